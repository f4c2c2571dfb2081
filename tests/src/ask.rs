//! The agent's control socket, asked from outside the host: a question costs a millisecond and not
//! the start of a program, so it can be asked all through a run.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, bail};
use tranship_proto::control::{Hello, Reply, Request, Welcome};
use tranship_proto::frame::{HEADER_LEN, Header};
use tranship_proto::registry::{Message, limit_of};
use tranship_proto::status::MigrationStatus;
use tranship_proto::version::{GREETING, SUPPORTED};

use crate::host::Host;

/// How long an agent that lives may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks an agent and gives its first answer.
pub fn ask(host: &Host, request: Request) -> anyhow::Result<Reply> {
    let socket = host.path("/run/tranship/agent.sock");
    let mut stream =
        UnixStream::connect(&socket).with_context(|| format!("connecting to {}", socket.display()))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let hello = Hello { versions: SUPPORTED.to_vec(), software: "tranship-lab".into() };
    stream.write_all(&Message::from(hello).to_frame(GREETING)?)?;
    let version = match read(&mut stream, GREETING)? {
        Message::Welcome(Welcome::Version { version, .. }) => version,
        other => bail!("{} answered the greeting with {}", host.name(), other.name()),
    };
    stream.write_all(&Message::from(request).to_frame(version)?)?;
    match read(&mut stream, version)? {
        Message::Reply(reply) => Ok(reply),
        other => bail!("{} answered with {}", host.name(), other.name()),
    }
}

/// Migrations that an agent has under way.
pub fn under_way(host: &Host) -> anyhow::Result<Vec<MigrationStatus>> {
    match ask(host, Request::Status { id: None })? {
        Reply::Migrations(all) => Ok(all),
        other => bail!("{} answered a question for its migrations with {other:?}", host.name()),
    }
}

/// Reads one message of this protocol version.
pub fn read(stream: &mut UnixStream, version: u16) -> anyhow::Result<Message> {
    let mut header = [0; HEADER_LEN];
    stream.read_exact(&mut header).context("reading a frame's header")?;
    let header = Header::parse(&header, version, limit_of)?;
    let mut body = vec![0; header.length as usize];
    stream.read_exact(&mut body).context("reading a frame's body")?;
    Ok(Message::decode(header.kind, &body)?)
}
