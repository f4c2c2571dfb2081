//! Fills Redis with random values.
//!
//! Random because a move compresses what it sends and podman compresses its archive; zeros would
//! flatter both. BLAKE3's output stream is used as the source: it is fast, also in a debug build.

use super::report::{Books, LoadReport};
use super::resp::Connection;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Just below 1 MiB, so that the value with its header fits the allocator's 1 MiB class.
const VALUE: usize = (1 << 20) - 512;
/// Values made ahead.
const AHEAD: usize = 4;

pub(super) fn run(addr: SocketAddr, mib: u32) -> LoadReport {
    let mut books = Books::new(1);
    if let Err(e) = fill(addr, mib, &mut books) {
        books.lost(&format!("filling {addr}"), &e);
    }
    books.finish()
}

fn fill(addr: SocketAddr, mib: u32, books: &mut Books) -> std::io::Result<()> {
    let mut connection = Connection::open(addr, Duration::from_secs(60))?;
    let mut seed = [0; 32];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut seed)?;
    // The next values are made while Redis takes in the last.
    let (sender, values) = std::sync::mpsc::sync_channel(AHEAD);
    std::thread::spawn(move || {
        for n in 0..mib {
            let mut value = vec![0; VALUE];
            blake3::Hasher::new_keyed(&seed).update(&n.to_le_bytes()).finalize_xof().fill(&mut value);
            if sender.send((n, value)).is_err() {
                break;
            }
        }
    });
    for (n, value) in values {
        let sent = Instant::now();
        books.request();
        connection.send(&[b"SET", format!("fill:{n}").as_bytes(), &value])?;
        let line = connection.line()?;
        if line != "+OK" {
            books.fail(format!("SET of fill:{n} answered {line:?}"));
            return Ok(());
        }
        books.reply(sent, value.len() as u64);
    }
    Ok(())
}
