//! The workload's server: as much of Redis' protocol as its clients use.

use super::Workload;
use super::journal::{BLOCK, Journal};
use super::pages::Pages;
use anyhow::Context;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Time between two batches of pages.
const TICK: Duration = Duration::from_millis(1);
/// After a pause, what was missed before this much is not made up for.
const CATCH_UP: Duration = Duration::from_millis(20);
const MIB: f64 = 1024.0 * 1024.0;
/// Longest word of a command, and most words.
const MAX_WORD: usize = 64;
const MAX_WORDS: usize = 4;

struct Shared {
    pages: Mutex<Pages>,
    journal: Mutex<Option<Journal>>,
    counter: AtomicU64,
    written: AtomicU64,
}

pub(super) fn run(workload: &Workload) -> anyhow::Result<ExitCode> {
    let journal = match workload.file_mib {
        0 => None,
        _ => Some(Journal::create(&workload.file)?),
    };
    let shared = Arc::new(Shared {
        pages: Mutex::new(Pages::new(workload.mib, workload.content)),
        journal: Mutex::new(journal),
        counter: AtomicU64::new(0),
        written: AtomicU64::new(0),
    });
    let listener =
        TcpListener::bind(workload.addr).with_context(|| format!("listening at {}", workload.addr))?;
    if workload.write_mib > 0 {
        let (shared, rate) = (shared.clone(), f64::from(workload.write_mib) * 256.0);
        std::thread::spawn(move || {
            at_rate(rate, |due| {
                let mut pages = lock(&shared.pages);
                for _ in 0..due {
                    pages.write_any();
                    shared.written.fetch_add(1, Ordering::Relaxed);
                }
            });
        });
    }
    if workload.file_mib > 0 {
        let (shared, rate) = (shared.clone(), f64::from(workload.file_mib) * MIB / BLOCK as f64);
        std::thread::spawn(move || {
            at_rate(rate, |due| {
                for _ in 0..due {
                    // One that is missing shows in the check.
                    let _ = lock(&shared.journal).as_mut().map(Journal::append);
                }
            });
        });
    }
    for stream in listener.incoming() {
        let (stream, shared) = (stream.context("taking a connection")?, shared.clone());
        std::thread::spawn(move || {
            // A client that is gone or speaks nonsense loses its connection.
            let _ = serve(&stream, &shared);
        });
    }
    Ok(ExitCode::SUCCESS)
}

fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does what is due, `rate` times a second, for ever.
fn at_rate(rate: f64, mut work: impl FnMut(u32)) {
    let mut last = Instant::now();
    let mut due = 0.0;
    loop {
        std::thread::sleep(TICK);
        due += rate * last.elapsed().min(CATCH_UP).as_secs_f64();
        last = Instant::now();
        // At most 21 thousand pages, at 4 GiB/s.
        let now = due as u32;
        work(now);
        due -= f64::from(now);
    }
}

fn serve(stream: &TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    while let Some(words) = command(&mut reader)? {
        let word = words.first().map(Vec::as_slice).unwrap_or_default();
        let answer = match word {
            b"INCR" => shared.counter.fetch_add(1, Ordering::Relaxed) + 1,
            b"WRITTEN" => shared.written.load(Ordering::Relaxed),
            b"CHECK" => {
                let blocks = lock(&shared.journal).as_ref().map_or(0, Journal::wrong);
                (lock(&shared.pages).wrong() + blocks) as u64
            }
            _ => {
                reader.get_mut().write_all(b"-ERR use INCR, WRITTEN or CHECK\r\n")?;
                continue;
            }
        };
        reader.get_mut().write_all(format!(":{answer}\r\n").as_bytes())?;
    }
    Ok(())
}

/// The next command: an array of strings (RESP2). `None` at the end of the connection.
fn command(reader: &mut impl BufRead) -> io::Result<Option<Vec<Vec<u8>>>> {
    let Some(count) = header(reader, b'*', MAX_WORDS)? else { return Ok(None) };
    let mut words = Vec::with_capacity(count);
    for _ in 0..count {
        let length = header(reader, b'$', MAX_WORD)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let mut word = vec![0; length + 2];
        reader.read_exact(&mut word)?;
        word.truncate(length);
        words.push(word);
    }
    Ok(Some(words))
}

fn header(reader: &mut impl BufRead, kind: u8, most: usize) -> io::Result<Option<usize>> {
    let mut line = Vec::new();
    if reader.take(16).read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    let number = line.strip_prefix(&[kind]).and_then(|l| l.strip_suffix(b"\r\n"));
    let number = number.and_then(|n| std::str::from_utf8(n).ok()?.parse().ok());
    number
        .filter(|n| *n <= most)
        .map(Some)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no command of Redis"))
}

#[cfg(test)]
mod tests {
    use super::command;

    #[test]
    fn commands_are_taken_apart_and_nonsense_is_refused() {
        let mut good: &[u8] = b"*2\r\n$4\r\nINCR\r\n$1\r\nk\r\n*1\r\n$5\r\nCHECK\r\n";
        assert_eq!(command(&mut good).unwrap().unwrap(), [b"INCR".to_vec(), b"k".to_vec()]);
        assert_eq!(command(&mut good).unwrap().unwrap(), [b"CHECK".to_vec()]);
        assert!(command(&mut good).unwrap().is_none());
        for mut bad in
            [&b"PING\r\n"[..], b"*9\r\n", b"*1\r\n$65\r\n", b"*1\r\n$-1\r\n", b"*1\r\n", b"*1\r\n$4\r\nIN"]
        {
            assert!(command(&mut bad).is_err(), "{bad:?}");
        }
    }
}
