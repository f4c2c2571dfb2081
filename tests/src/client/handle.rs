//! A load client seen from the program that drives it.

use super::report::{LoadReport, Window};
use serde::de::DeserializeOwned;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Answers of a client that lives are immediate; this bounds one that does not.
const ANSWER: Duration = Duration::from_secs(20);

/// Why a load client could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// It could not be started.
    #[error("cannot start the load client: {0}")]
    Start(String),
    /// It does not answer.
    #[error("the load client did not answer {what} within {seconds} s")]
    Silent {
        /// What it was asked.
        what: &'static str,
        /// How long it was given.
        seconds: u64,
    },
    /// It ended.
    #[error("the load client ended before it answered {what}: {report}")]
    Ended {
        /// What it was asked.
        what: &'static str,
        /// Its last words.
        report: String,
    },
}

/// A running load client. Dropping it ends it.
#[derive(Debug)]
pub struct LoadClient {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl LoadClient {
    /// Takes over a child that was started with `tranship-lab load ..`, standard input and output
    /// piped, and waits until it is connected.
    pub fn attach(mut child: Child) -> Result<Self, ClientError> {
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(ClientError::Start("its standard streams are not pipes".into()));
        };
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let client = Self { child, stdin: Some(stdin), lines };
        client.expect::<serde_json::Value>("ready", "being connected")?;
        Ok(client)
    }

    /// Closes the open window, names the next, and gives the closed one.
    pub fn mark(&mut self, next: &str) -> Result<Window, ClientError> {
        self.command(&format!("mark {next}"));
        self.expect("window", "mark")
    }

    /// The open window.
    pub fn peek(&mut self) -> Result<Window, ClientError> {
        self.command("peek");
        self.expect("window", "peek")
    }

    /// Ends the client and gives what it saw.
    pub fn stop(mut self) -> Result<LoadReport, ClientError> {
        self.command("stop");
        self.stdin = None;
        let report = self.expect("report", "stop")?;
        let _ = self.child.wait();
        Ok(report)
    }

    /// Waits for the client to end by itself.
    pub fn wait(mut self, limit: Duration) -> Result<LoadReport, ClientError> {
        let report = self.expect_within("report", "its end", limit)?;
        let _ = self.child.wait();
        Ok(report)
    }

    fn command(&mut self, line: &str) {
        // A client that is gone shows when its answer is awaited.
        if let Some(stdin) = &mut self.stdin {
            let _ = writeln!(stdin, "{line}").and_then(|()| stdin.flush());
        }
    }

    fn expect<T: DeserializeOwned>(&self, key: &str, what: &'static str) -> Result<T, ClientError> {
        self.expect_within(key, what, ANSWER)
    }

    fn expect_within<T: DeserializeOwned>(
        &self,
        key: &str,
        what: &'static str,
        limit: Duration,
    ) -> Result<T, ClientError> {
        let until = Instant::now() + limit;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let line = match self.lines.recv_timeout(left) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => {
                    return Err(ClientError::Silent { what, seconds: limit.as_secs() });
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(ClientError::Ended { what, report: "nothing was said".into() });
                }
            };
            let Ok(mut value) = serde_json::from_str::<serde_json::Value>(&line) else { continue };
            if let Some(found) = value.get_mut(key).map(serde_json::Value::take) {
                return serde_json::from_value(found)
                    .map_err(|e| ClientError::Ended { what, report: format!("{e}: {line}") });
            }
            if value.get("report").is_some() {
                return Err(ClientError::Ended { what, report: line });
            }
        }
    }
}

impl Drop for LoadClient {
    fn drop(&mut self) {
        self.stdin = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
