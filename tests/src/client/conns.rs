//! Many connections to Redis, most of them idle at any moment. Each has a counter of its own and
//! checks it, and the server's id of each connection is the same at the end as at the beginning.

use super::Limits;
use super::control::{Control, print_line};
use super::report::{Books, LoadReport};
use super::resp::Connection;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

struct Slot {
    connection: Connection,
    key: String,
    count: i64,
    id: i64,
    alive: bool,
}

pub(super) fn run(addr: SocketAddr, count: u16, active: u16, rate: u32, limits: &Limits) -> LoadReport {
    let control = Control::start(Books::new(u32::from(count)), limits.run_time());
    let mut slots = Vec::with_capacity(usize::from(count));
    for n in 0..count {
        match open(addr, n, limits.patience()) {
            Ok(slot) => slots.push(slot),
            Err(e) => {
                control.books().lost(&format!("opening connection {n} of {count} to {addr}"), &e);
                return control.books().finish();
            }
        }
    }
    print_line("ready", &count);
    control.books().ready();
    let period = Duration::from_secs(1) / rate.max(1);
    let mut next = Instant::now();
    let mut turn = 0;
    while !control.over() {
        control.sleep_until(next);
        if let Some(slot) = slots.get_mut(turn) {
            use_once(slot, &control);
        }
        turn = (turn + 1) % slots.len().min(usize::from(active)).max(1);
        next = (next + period).max(Instant::now());
        if slots.iter().all(|s| !s.alive) {
            break;
        }
    }
    for slot in &mut slots {
        use_once(slot, &control);
        if !slot.alive {
            continue;
        }
        match slot.connection.integer(&[b"CLIENT", b"ID"]) {
            Ok(id) if id == slot.id => {}
            Ok(id) => control.books().fail(format!("{}: connection id {} became {id}", slot.key, slot.id)),
            Err(e) => control.books().lost(&format!("{}: asking for its id", slot.key), &e),
        }
    }
    control.books().finish()
}

fn open(addr: SocketAddr, n: u16, patience: Duration) -> std::io::Result<Slot> {
    let mut connection = Connection::open(addr, patience)?;
    let id = connection.integer(&[b"CLIENT", b"ID"])?;
    let key = format!("conn:{}:{n}", std::process::id());
    Ok(Slot { connection, key, count: 0, id, alive: true })
}

fn use_once(slot: &mut Slot, control: &Control) {
    if !slot.alive {
        return;
    }
    let sent = Instant::now();
    control.books().request();
    match slot.connection.integer(&[b"INCR", slot.key.as_bytes()]) {
        Ok(value) => {
            slot.count += 1;
            let mut books = control.books();
            if value != slot.count {
                books.fail(format!("{}: {value} came instead of {}", slot.key, slot.count));
                slot.count = value;
            }
            books.reply(sent, 0);
        }
        Err(e) => {
            slot.alive = false;
            control.books().lost(&slot.key, &e);
        }
    }
}
