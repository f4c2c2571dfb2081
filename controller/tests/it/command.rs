//! The binary, run with a bound on its time.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What came out.
#[derive(Debug)]
pub struct Result {
    pub code: i32,
    pub out: String,
    pub err: String,
    pub took: Duration,
}

/// A command that is under way.
pub struct Started {
    pub child: Child,
    begun: Instant,
}

pub const TRANSHIP: &str = env!("CARGO_BIN_EXE_tranship");
pub const MIGRATE: &str = env!("CARGO_BIN_EXE_migrate");

/// Starts a program; nothing of this machine's own configuration has an influence.
pub fn start(program: impl AsRef<Path>, args: &[&str]) -> Started {
    let child = Command::new(program.as_ref())
        .args(args)
        .env_clear()
        .env("TZ", "UTC")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    Started { child, begun: Instant::now() }
}

impl Started {
    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("/bin/kill").args([name, &pid]).status().unwrap().success());
    }

    /// Waits at most 60 seconds.
    pub fn finish(mut self) -> Result {
        fn read(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                from.read_to_end(&mut bytes).unwrap();
                String::from_utf8_lossy(&bytes).into_owned()
            })
        }
        let out = read(self.child.stdout.take().unwrap());
        let err = read(self.child.stderr.take().unwrap());
        let code = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status.code().unwrap_or(-1);
            }
            if self.begun.elapsed() > Duration::from_secs(60) {
                let _ = self.child.kill();
                let _ = self.child.wait();
                panic!("the command does not end: {} {}", out.join().unwrap(), err.join().unwrap());
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let took = self.begun.elapsed();
        Result { code, out: out.join().unwrap(), err: err.join().unwrap(), took }
    }
}

/// Runs `tranship` to its end.
pub fn tranship(args: &[&str]) -> Result {
    start(TRANSHIP, args).finish()
}

impl Result {
    /// The JSON objects on stdout.
    pub fn json(&self) -> Vec<serde_json::Value> {
        self.out.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"))).collect()
    }

    #[track_caller]
    pub fn expect(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, code, "{self:#?}");
        for word in words {
            assert!(self.err.contains(word) || self.out.contains(word), "no {word:?} in {self:#?}");
        }
        assert!(!self.err.contains("panicked"), "{self:#?}");
        self
    }
}
