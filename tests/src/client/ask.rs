//! Asks a server for one number.

use super::report::{Books, LoadReport};
use super::resp::Connection;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

pub(super) fn run(addr: SocketAddr, command: &str, patience: Duration) -> LoadReport {
    let mut books = Books::new(1);
    let asked = Instant::now();
    books.request();
    match Connection::open(addr, patience).and_then(|mut c| c.integer(&[command.as_bytes()])) {
        Ok(value) => {
            books.value(value);
            books.reply(asked, 0);
        }
        Err(e) => books.lost(&format!("asking {addr} for {command}"), &e),
    }
    books.finish()
}
