//! Keep-alive fetches of one large file, compared byte for byte by digest. A connection is opened
//! once; one that the server closes is a failure.

use super::Limits;
use super::control::{Control, print_line};
use super::report::{Books, LoadReport};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Headers of an answer at most.
const MAX_HEAD: usize = 16 << 10;
/// Read at once.
const CHUNK: usize = 64 << 10;

/// What to fetch.
#[derive(Debug, Clone)]
pub(super) struct Fetch {
    pub(super) addr: SocketAddr,
    pub(super) path: String,
    pub(super) bytes: u64,
    pub(super) digest: String,
    pub(super) rate_mib: u32,
}

pub(super) fn run(fetch: &Fetch, connections: u16, limits: &Limits) -> LoadReport {
    let control = Control::start(Books::new(u32::from(connections)), limits.run_time());
    let mut streams = Vec::new();
    for n in 0..connections {
        match open(fetch.addr, limits.patience()) {
            Ok(stream) => streams.push(stream),
            Err(e) => {
                control.books().lost(&format!("opening connection {n} to {}", fetch.addr), &e);
                return control.books().finish();
            }
        }
    }
    print_line("ready", &connections);
    control.books().ready();
    std::thread::scope(|scope| {
        for (n, stream) in streams.into_iter().enumerate() {
            let control = &control;
            scope.spawn(move || {
                if let Err(e) = keep_fetching(stream, fetch, control) {
                    control.books().lost(&format!("connection {n}"), &e);
                    control.end();
                }
            });
        }
    });
    control.books().finish()
}

fn open(addr: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&addr, Duration::from_secs(10))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    Ok(stream)
}

fn keep_fetching(mut stream: TcpStream, fetch: &Fetch, control: &Control) -> io::Result<()> {
    let request = format!("GET {} HTTP/1.1\r\nHost: {}\r\n\r\n", fetch.path, fetch.addr);
    while !control.over() {
        let sent = Instant::now();
        control.books().request();
        stream.write_all(request.as_bytes())?;
        let digest = one_answer(&mut stream, fetch, control)?;
        let mut books = control.books();
        if digest != fetch.digest {
            books.fail(format!("a fetch has digest {digest} instead of {}", fetch.digest));
        }
        books.reply(sent, fetch.bytes);
    }
    Ok(())
}

/// Reads one answer and gives the digest of its body.
fn one_answer(stream: &mut TcpStream, fetch: &Fetch, control: &Control) -> io::Result<String> {
    let mut buffer = vec![0; CHUNK];
    let mut head = Vec::new();
    let body_at = loop {
        let n = read_some(stream, &mut buffer, control)?;
        head.extend_from_slice(buffer.get(..n).unwrap_or_default());
        if let Some(at) = head.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        if head.len() > MAX_HEAD {
            return Err(invalid("the answer has no end of its header".into()));
        }
    };
    let (text, body) = head.split_at(body_at);
    let text = String::from_utf8_lossy(text).into_owned();
    check_head(&text, fetch.bytes)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(body);
    let began = Instant::now();
    let mut got = body.len() as u64;
    while got < fetch.bytes {
        let n = read_some(stream, &mut buffer, control)?;
        hasher.update(buffer.get(..n).unwrap_or_default());
        got += n as u64;
        pace(began, got, fetch.rate_mib);
    }
    if got > fetch.bytes {
        return Err(invalid(format!("{got} bytes came instead of {}", fetch.bytes)));
    }
    Ok(hasher.finalize().to_hex().to_string())
}

fn check_head(text: &str, bytes: u64) -> io::Result<()> {
    let mut lines = text.lines();
    let status = lines.next().unwrap_or_default();
    if !status.starts_with("HTTP/1.1 200") {
        return Err(invalid(format!("the server answered {status:?}")));
    }
    let mut length = None;
    for line in lines {
        let Some((name, value)) = line.split_once(':') else { continue };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse::<u64>().ok();
        }
        if name.eq_ignore_ascii_case("connection") && value.trim().eq_ignore_ascii_case("close") {
            return Err(invalid("the server wants to close the connection".into()));
        }
    }
    match length {
        Some(n) if n == bytes => Ok(()),
        other => Err(invalid(format!("the answer's length is {other:?} instead of {bytes}"))),
    }
}

fn read_some(stream: &mut TcpStream, buffer: &mut [u8], control: &Control) -> io::Result<usize> {
    let n = stream.read(buffer).map_err(|e| match e.kind() {
        io::ErrorKind::WouldBlock => {
            io::Error::new(io::ErrorKind::TimedOut, "no answer within the client's patience")
        }
        _ => e,
    })?;
    if n == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection"));
    }
    control.books().sign_of_life(Instant::now());
    Ok(n)
}

fn pace(began: Instant, got: u64, rate_mib: u32) {
    if rate_mib == 0 {
        return;
    }
    let due = Duration::from_micros(got.saturating_mul(1_000_000) / (u64::from(rate_mib) << 20));
    // Short naps only: a long one would be a gap of this client's own making.
    std::thread::sleep(due.saturating_sub(began.elapsed()).min(Duration::from_millis(5)));
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
