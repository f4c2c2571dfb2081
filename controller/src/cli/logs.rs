//! `tranship logs`

use super::{Context, container};
use crate::error::Error;
use crate::{exit, spec};
use std::io::{ErrorKind, Write};
use tranship_proto::control::{Reply, Request};
use tranship_proto::ids::ContainerName;
use tranship_proto::status::Reason;

/// Most bytes of the past that can be asked for.
const MAX_TAIL: u64 = 16 << 20;

fn tail(text: &str) -> Result<u64, String> {
    let n = spec::size(text)?;
    if n <= MAX_TAIL { Ok(n) } else { Err("at most 16M; without --tail-bytes all of it is shown".into()) }
}

/// Show what a container has written
///
/// The bytes are written to stdout as the container wrote them, whatever --output says.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  tranship logs web --tail-bytes 64k\n  tranship logs web -f\n")]
pub struct Logs {
    /// The container
    #[arg(value_name = "NAME", value_parser = container)]
    name: ContainerName,
    /// Go on until the container ends
    #[arg(long, short = 'f')]
    follow: bool,
    /// Begin with the last bytes, at most 16M
    #[arg(long, value_name = "BYTES", value_parser = tail)]
    tail_bytes: Option<u64>,
}

impl Logs {
    pub(super) async fn execute(self, context: &Context) -> Result<u8, Error> {
        let agent = context.fleet.agent().await?;
        let request = Request::Logs { name: self.name, tail_bytes: self.tail_bytes, follow: self.follow };
        let mut replies = agent.open(request).await?;
        loop {
            match replies.next().await? {
                Reply::Log(bytes) => {
                    let mut out = std::io::stdout().lock();
                    match out.write_all(&bytes).and_then(|()| out.flush()) {
                        Ok(()) => {}
                        // `tranship logs web | head` is no failure.
                        Err(e) if e.kind() == ErrorKind::BrokenPipe => return Ok(exit::DONE),
                        Err(e) => {
                            return Err(Error::new(Reason::Failed, format!("cannot write to stdout: {e}")));
                        }
                    }
                }
                Reply::End => break,
                Reply::Failed(failure) => return Err(failure.into()),
                other => return Err(agent.unexpected(&other, "Log").into()),
            }
        }
        drop(replies);
        agent.close().await;
        Ok(exit::DONE)
    }
}
