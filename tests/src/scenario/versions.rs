//! A peer with which no protocol version is shared, on either end of the agent's control socket.

use super::scene::Scene;
use crate::ask::read;
use anyhow::{Context, bail, ensure};
use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};
use tranship_proto::control::{Hello, Welcome};
use tranship_proto::registry::Message;
use tranship_proto::version::GREETING;

const FAR: u16 = 9999;
const PATIENCE: Duration = Duration::from_secs(10);

/// The agent refuses with words, and so does the command.
pub(super) fn refused(scene: &Scene) -> anyhow::Result<()> {
    by_the_agent(scene)?;
    by_the_command(scene)
}

fn by_the_agent(scene: &Scene) -> anyhow::Result<()> {
    let socket = scene.host("host-a")?.path("/run/tranship/agent.sock");
    let mut stream =
        UnixStream::connect(&socket).with_context(|| format!("connecting to {}", socket.display()))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let hello = Message::from(Hello { versions: vec![FAR], software: "from the future".into() });
    stream.write_all(&hello.to_frame(GREETING)?)?;
    match read(&mut stream, GREETING)? {
        Message::Welcome(Welcome::NoSharedVersion { versions, .. }) => {
            ensure!(
                !versions.is_empty() && !versions.contains(&FAR),
                "the agent says it speaks {versions:?}"
            );
            Ok(())
        }
        other => bail!("the agent answered version {FAR} with {}", other.name()),
    }
}

fn by_the_command(scene: &Scene) -> anyhow::Result<()> {
    // An agent of another age on host-c: its real one is away for a moment.
    let host = scene.host("host-c")?;
    let socket = host.path("/run/tranship/agent.sock");
    host.stop_agent()?;
    let _ = std::fs::remove_file(&socket);
    let listener =
        UnixListener::bind(&socket).with_context(|| format!("listening on {}", socket.display()))?;
    let result = std::thread::scope(|scope| {
        let answering = scope.spawn(|| answer(&listener));
        let ended = scene.tranship("host-c", &["ps", "--output", "json"], Duration::from_secs(30));
        answering.join().map_err(|_| anyhow::anyhow!("the answering thread panicked"))??;
        ended
    });
    drop(listener);
    let _ = std::fs::remove_file(&socket);
    host.start_agent()?;
    let ended = result?;
    ensure!(ended.code == Some(9), "the exit code is {:?}, not 9: {}", ended.code, ended.said());
    println!("  no shared version: refused by the agent and by the command");
    Ok(())
}

/// Greets one caller with versions that nobody speaks.
fn answer(listener: &UnixListener) -> anyhow::Result<()> {
    listener.set_nonblocking(true)?;
    let until = Instant::now() + PATIENCE;
    let mut stream = loop {
        match listener.accept() {
            Ok((stream, _)) => break stream,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(e) => return Err(e).context("waiting for the command"),
        }
    };
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let _hello = read(&mut stream, GREETING)?;
    let welcome = Welcome::NoSharedVersion { versions: vec![FAR], software: "from the future".into() };
    stream.write_all(&Message::from(welcome).to_frame(GREETING)?)?;
    Ok(())
}
