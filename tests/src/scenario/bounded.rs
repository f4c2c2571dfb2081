//! Running a program with a deadline: nothing in a scenario may wait for ever.

use crate::run::LabCommand;
use anyhow::{Context, bail};
use std::io::Read;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// How a program ended.
#[derive(Debug, Clone)]
pub struct Ended {
    /// What was run, for messages.
    pub what: String,
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
}

impl Ended {
    /// Its standard output when it ended with 0, else an error with all it said.
    pub fn ok(self) -> anyhow::Result<String> {
        if self.code == Some(0) {
            return Ok(self.stdout);
        }
        bail!("{} ended with {}: {}", self.what, code(self.code), self.said())
    }

    /// Both streams, shortened.
    pub fn said(&self) -> String {
        let text = format!("{}\n{}", self.stdout.trim(), self.stderr.trim());
        tail(text.trim(), 3000).to_owned()
    }
}

/// A program under way whose output is collected.
#[derive(Debug)]
pub struct Running {
    what: String,
    child: Child,
    stdout: Receiver<String>,
    stderr: Receiver<String>,
    began: Instant,
}

impl Running {
    /// Starts a program.
    pub fn start(what: impl Into<String>, command: LabCommand) -> anyhow::Result<Self> {
        let what = what.into();
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("starting {what}"))?;
        let stdout = collect(child.stdout.take());
        let stderr = collect(child.stderr.take());
        Ok(Self { what, child, stdout, stderr, began: Instant::now() })
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: nix::sys::signal::Signal) -> anyhow::Result<()> {
        let pid = i32::try_from(self.child.id()).context("a process id out of range")?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal)
            .with_context(|| format!("signalling {}", self.what))
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end, at most `limit` from now; as [`Running::finish`].
    pub fn finish_within(self, limit: Duration) -> anyhow::Result<Ended> {
        let since = self.began.elapsed();
        self.finish(since + limit)
    }

    /// Waits for its end. It is killed, and that is an error, when it takes longer than `limit`
    /// from its start.
    pub fn finish(mut self, limit: Duration) -> anyhow::Result<Ended> {
        let until = self.began + limit;
        let status = loop {
            if let Some(status) =
                self.child.try_wait().with_context(|| format!("waiting for {}", self.what))?
            {
                break status;
            }
            if Instant::now() >= until {
                let _ = self.child.kill();
                let _ = self.child.wait();
                bail!(
                    "{} did not end within {} s; it said: {}",
                    self.what,
                    limit.as_secs(),
                    tail(&text(&self.stderr), 2000)
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let took = self.began.elapsed();
        Ok(Ended {
            code: status.code(),
            stdout: text(&self.stdout),
            stderr: text(&self.stderr),
            what: std::mem::take(&mut self.what),
            took,
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.has_ended() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Runs a program to its end.
pub fn run(what: impl Into<String>, command: LabCommand, limit: Duration) -> anyhow::Result<Ended> {
    Running::start(what, command)?.finish(limit)
}

/// Reads a stream to its end in a thread: a full pipe would stop the program.
fn collect<R: Read + Send + 'static>(stream: Option<R>) -> Receiver<String> {
    let (sender, receiver) = channel();
    if let Some(mut stream) = stream {
        std::thread::spawn(move || {
            let mut buffer = [0; 16 << 10];
            while let Ok(n) = stream.read(&mut buffer) {
                if n == 0
                    || sender
                        .send(String::from_utf8_lossy(buffer.get(..n).unwrap_or_default()).into())
                        .is_err()
                {
                    break;
                }
            }
        });
    }
    receiver
}

/// What came so far. A process that outlives the program may hold its streams open, so the end
/// of the stream is awaited only for a moment.
fn text(stream: &Receiver<String>) -> String {
    let mut text = String::new();
    loop {
        match stream.recv_timeout(Duration::from_millis(200)) {
            Ok(part) => text.push_str(&part),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return text,
        }
    }
}

fn code(code: Option<i32>) -> String {
    code.map_or_else(|| "a signal".into(), |c| format!("code {c}"))
}

/// The last `max` bytes or a few less.
pub fn tail(text: &str, max: usize) -> &str {
    let from = text.len().saturating_sub(max);
    let from = (from..=text.len()).find(|i| text.is_char_boundary(*i)).unwrap_or(text.len());
    text.get(from..).unwrap_or_default()
}
