//! The counting client: one connection, `INCR` on an absolute schedule, every reply one more than
//! the reply before.
//!
//! One request is outstanding at a time, so the longest interval between replies is the outage.
//! After an outage the schedule goes on from now: missed requests are not made up for, because a
//! burst would only measure itself.

use super::Limits;
use super::control::{Control, print_line};
use super::report::{Books, LoadReport};
use super::resp::Connection;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

pub(super) fn run(addr: SocketAddr, rate: u32, key: &str, limits: &Limits) -> LoadReport {
    let control = Control::start(Books::new(1), limits.run_time());
    let mut connection = match Connection::open(addr, limits.patience()) {
        Ok(connection) => connection,
        Err(e) => {
            control.books().lost(&format!("connecting to {addr}"), &e);
            return control.books().finish();
        }
    };
    print_line("ready", &1);
    control.books().ready();
    let period = Duration::from_secs(1) / rate.max(1);
    let mut next = Instant::now();
    let mut last: Option<i64> = None;
    while !control.over() {
        control.sleep_until(next);
        let sent = Instant::now();
        control.books().request();
        match connection.integer(&[b"INCR", key.as_bytes()]) {
            Ok(value) => {
                let mut books = control.books();
                if let Some(last) = last
                    && value != last + 1
                {
                    books.fail(format!("{value} came after {last}"));
                }
                last = Some(value);
                books.value(value);
                books.reply(sent, 0);
            }
            Err(e) => {
                let told =
                    last.map_or_else(|| "the first request".into(), |v| format!("counting on from {v}"));
                control.books().lost(&told, &e);
                break;
            }
        }
        next += period;
        let now = Instant::now();
        if next < now {
            next = now;
        }
    }
    control.books().finish()
}
