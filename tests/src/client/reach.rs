//! Waits until a TCP port takes a connection.

use super::report::{Books, LoadReport};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

pub(super) fn run(addr: SocketAddr, patience: Duration) -> LoadReport {
    let mut books = Books::new(1);
    let began = Instant::now();
    loop {
        let asked = Instant::now();
        books.request();
        match TcpStream::connect_timeout(&addr, Duration::from_secs(1)) {
            Ok(_) => {
                books.reply(asked, 0);
                return books.finish();
            }
            Err(e) if began.elapsed() >= patience => {
                books.lost(&format!("connecting to {addr} for {} s", patience.as_secs()), &e);
                return books.finish();
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
