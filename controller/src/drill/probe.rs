//! The client of a drill: asks the container for an answer all the time, and notes its silences.
//!
//! An answer is what the container's TCP gives to a new connection: accepted, or (when no port is
//! named) refused, which takes a container with its addresses and an open gate but no server. ICMP
//! would say the same and take a raw socket, that is root.
//!
//! With a port there is a connection besides that lives through the whole move. It carries nothing;
//! TCP's own keepalive (tcp(7)) has a container that does not know it reset it.

use serde::Serialize;
use socket2::{SockRef, TcpKeepalive};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(50);
/// How long one question may take: shorter than TCP's first retransmission, so that a lost question
/// costs no more than the next one.
const QUESTION: Duration = Duration::from_millis(500);
/// Idle time before keepalive asks, and how often it does.
const KEEPALIVE: Duration = Duration::from_secs(1);
/// A port that has no server, as a rule: discard (RFC 863).
const CLOSED_PORT: u16 = 9;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Nothing: the container cannot be reached from here.
    None,
    /// An address of the container: any answer counts.
    Address(IpAddr),
    /// A server in it, which accepts connections.
    Tcp(SocketAddr),
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::None => f.write_str("nothing"),
            Target::Address(ip) => write!(f, "{ip}"),
            Target::Tcp(addr) => write!(f, "{addr}"),
        }
    }
}

/// A client that can be begun any number of times.
#[derive(Debug, Clone, Copy)]
pub struct Probe {
    /// What it asks.
    pub target: Target,
}

/// What a client saw during one move.
#[derive(Debug, Clone, Serialize)]
pub struct Saw {
    /// Answers.
    pub answers: u64,
    /// Longest time without one, in milliseconds.
    pub longest_silence_ms: u64,
    /// Why the connection that was open all the time is lost. Not when the server closed it.
    pub connection_lost: Option<String>,
}

#[derive(Debug)]
struct Seen {
    answers: u64,
    last: Instant,
    longest: Duration,
}

/// A client at work. It ends when this is dropped.
pub struct Client {
    seen: Arc<Mutex<Seen>>,
    kept: Option<TcpStream>,
    asking: JoinHandle<()>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.asking.abort();
    }
}

impl Probe {
    /// Whether the container answers at all.
    pub async fn answers(&self) -> bool {
        match self.target {
            Target::None => true,
            target => ask(target).await,
        }
    }

    /// Begins to ask. `None` without a target.
    pub async fn begin(&self) -> Option<Client> {
        let target = self.target;
        if target == Target::None {
            return None;
        }
        let kept = match target {
            Target::Tcp(addr) => connect(addr).await.ok(),
            _ => None,
        };
        let seen = Arc::new(Mutex::new(Seen { answers: 0, last: Instant::now(), longest: Duration::ZERO }));
        let shared = seen.clone();
        let asking = tokio::spawn(async move {
            loop {
                if ask(target).await {
                    let mut seen = lock(&shared);
                    let silence = seen.last.elapsed();
                    (seen.answers, seen.last) = (seen.answers + 1, Instant::now());
                    seen.longest = seen.longest.max(silence);
                }
                tokio::time::sleep(PAUSE).await;
            }
        });
        Some(Client { seen, kept, asking })
    }
}

impl Client {
    /// Whether an answer comes within `limit` from now.
    pub async fn heard_within(&self, limit: Duration) -> bool {
        let before = lock(&self.seen).answers;
        let heard = async {
            while lock(&self.seen).answers == before {
                tokio::time::sleep(PAUSE).await;
            }
        };
        tokio::time::timeout(limit, heard).await.is_ok()
    }

    /// Ends it.
    pub async fn end(self) -> Saw {
        let connection_lost = match &self.kept {
            Some(stream) => lost(stream).await,
            None => None,
        };
        let seen = lock(&self.seen);
        let longest = seen.longest.max(seen.last.elapsed());
        Saw {
            answers: seen.answers,
            longest_silence_ms: u64::try_from(longest.as_millis()).unwrap_or(u64::MAX),
            connection_lost,
        }
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn ask(target: Target) -> bool {
    let (addr, refusal_counts) = match target {
        Target::None => return false,
        Target::Address(ip) => (SocketAddr::new(ip, CLOSED_PORT), true),
        Target::Tcp(addr) => (addr, false),
    };
    match tokio::time::timeout(QUESTION, TcpStream::connect(addr)).await {
        Ok(Ok(_)) => true,
        Ok(Err(e)) => refusal_counts && e.kind() == ErrorKind::ConnectionRefused,
        Err(_) => false,
    }
}

async fn connect(addr: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = tokio::time::timeout(QUESTION, TcpStream::connect(addr)).await??;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
    SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    Ok(stream)
}

/// Why a connection is gone, after keepalive has had the time to ask.
async fn lost(stream: &TcpStream) -> Option<String> {
    let gone = async {
        let mut bytes = [0; 4096];
        loop {
            stream.readable().await?;
            match stream.try_read(&mut bytes) {
                // The server has closed it, as it may.
                Ok(0) => return Ok::<(), std::io::Error>(()),
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
    };
    match tokio::time::timeout(KEEPALIVE * 2, gone).await {
        Ok(Err(e)) => Some(e.to_string()),
        Ok(Ok(())) | Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn silences_and_resets_are_seen() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let probe = Probe { target: Target::Tcp(addr) };
        assert!(probe.answers().await);
        // The one of `answers`, then the one that is kept.
        drop(listener.accept().await.unwrap());
        let client = probe.begin().await.unwrap();
        let (kept, _) = listener.accept().await.unwrap();
        assert!(client.heard_within(Duration::from_secs(2)).await);
        SockRef::from(&kept).set_linger(Some(Duration::ZERO)).unwrap();
        drop(kept);
        drop(listener);
        tokio::time::sleep(Duration::from_millis(300)).await;
        let saw = client.end().await;
        assert!(saw.answers > 0 && saw.longest_silence_ms >= 250, "{saw:?}");
        assert!(saw.connection_lost.is_some(), "{saw:?}");
    }

    #[tokio::test]
    async fn a_refusal_is_an_answer_of_an_address_only() {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        assert!(!Probe { target: Target::Tcp(free) }.answers().await);
        assert!(Probe { target: Target::Address("127.0.0.1".parse().unwrap()) }.answers().await);
        assert!(Probe { target: Target::None }.begin().await.is_none());
    }
}
