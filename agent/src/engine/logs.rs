//! Reading what conmon wrote of a container's output.
//!
//! Each line: time, `stdout` or `stderr`, `F` (full) or `P` (partial, more follows), text (the CRI log
//! format). When the file is full conmon starts a new one under the same name, so followers compare
//! inodes.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

/// Longest line handed out, in bytes; conmon itself cuts at 8 KiB.
const MAX_LINE: usize = 64 * 1024;
/// Lines that wait for a slow reader.
const QUEUE: usize = 256;
const POLL: Duration = Duration::from_millis(200);

/// A line of output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// RFC 3339 time.
    pub time: String,
    /// From the error output.
    pub stderr: bool,
    /// The line goes on in the next one.
    pub partial: bool,
    /// Text without its line end; invalid UTF-8 replaced.
    pub text: String,
}

fn parse(line: &[u8]) -> LogLine {
    let text = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(line)).into_owned();
    let mut parts = text.splitn(4, ' ');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(time), Some(stream @ ("stdout" | "stderr")), Some(flag @ ("F" | "P")), rest) => LogLine {
            time: time.to_owned(),
            stderr: stream == "stderr",
            partial: flag == "P",
            text: rest.unwrap_or_default().to_owned(),
        },
        _ => LogLine { time: String::new(), stderr: false, partial: false, text },
    }
}

/// Starts to read a log on a thread of its own.
pub(super) fn open(path: PathBuf, follow: bool, tail: Option<usize>) -> mpsc::Receiver<LogLine> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::task::spawn_blocking(move || read(&path, follow, tail, &sender));
    receiver
}

fn read(path: &Path, follow: bool, tail: Option<usize>, sender: &mpsc::Sender<LogLine>) {
    let mut reader = Reader::default();
    let mut kept: VecDeque<LogLine> = VecDeque::new();
    reader.each(path, |line| match tail {
        Some(count) => {
            kept.push_back(line);
            if kept.len() > count {
                kept.pop_front();
            }
            true
        }
        None => sender.blocking_send(line).is_ok(),
    });
    for line in kept {
        if sender.blocking_send(line).is_err() {
            return;
        }
    }
    while follow && !sender.is_closed() {
        std::thread::sleep(POLL);
        if !path.exists() {
            return;
        }
        reader.each(path, |line| sender.blocking_send(line).is_ok());
    }
}

#[derive(Default)]
struct Reader {
    file: Option<(u64, BufReader<File>)>,
    pending: Vec<u8>,
}

impl Reader {
    /// Hands out the complete lines there are, going over to a new file when the name has one.
    fn each(&mut self, path: &Path, mut take: impl FnMut(LogLine) -> bool) {
        loop {
            if self.file.is_none() {
                let Ok(file) = File::open(path) else { return };
                let Ok(meta) = file.metadata() else { return };
                self.file = Some((meta.ino(), BufReader::new(file)));
            }
            let Some((inode, reader)) = &mut self.file else { return };
            loop {
                match reader.read_until(b'\n', &mut self.pending) {
                    Ok(0) | Err(_) => break,
                    Ok(_) if self.pending.ends_with(b"\n") || self.pending.len() > MAX_LINE => {
                        let more = take(parse(&self.pending));
                        self.pending.clear();
                        if !more {
                            return;
                        }
                    }
                    Ok(_) => break,
                }
            }
            match std::fs::metadata(path) {
                Ok(meta) if meta.ino() != *inode => {
                    self.file = None;
                    self.pending.clear();
                }
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn parses_lines() {
        let line = parse(b"2026-11-23T20:35:52.5+00:00 stderr P hello  world\n");
        assert_eq!((line.stderr, line.partial, line.text.as_str()), (true, true, "hello  world"));
        assert_eq!(parse(b"2026 stdout F \n").text, "");
        assert_eq!(parse(b"odd\xff line").text, "odd\u{fffd} line");
    }

    #[tokio::test]
    async fn tail_follow_and_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let write = |from: i32, to: i32| {
            let mut file = std::fs::OpenOptions::new().create(true).append(true).open(&path).unwrap();
            (from..to).for_each(|i| writeln!(file, "t stdout F {i}").unwrap());
        };
        write(0, 5);
        let mut lines = open(path.clone(), false, Some(2));
        assert_eq!(lines.recv().await.unwrap().text, "3");
        assert_eq!(lines.recv().await.unwrap().text, "4");
        assert_eq!(lines.recv().await, None);
        let mut lines = open(path.clone(), true, Some(0));
        tokio::time::sleep(POLL).await;
        write(5, 6);
        assert_eq!(lines.recv().await.unwrap().text, "5");
        std::fs::rename(&path, dir.path().join("old")).unwrap();
        write(6, 7);
        assert_eq!(lines.recv().await.unwrap().text, "6");
    }
}
