//! A conversation with one agent.
//!
//! A Unix socket connection carries one request; a QUIC connection carries many, each on a
//! stream of its own, after a greeting on the first. [`Agent`] hides the difference: it holds a
//! QUIC connection open between requests and makes a new one when the old one is gone.

mod error;
mod frames;
mod quic;
mod tls;

pub use error::ClientError;
pub use quic::HANDSHAKE;
pub use tls::{Identity, TlsProblem, TlsProblemKind};

use crate::output::clean_line;
use frames::FrameReader;
use quic::QuicLink;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tranship_proto::control::{Hello, Reply, Request, Welcome};
use tranship_proto::ids::HostName;
use tranship_proto::registry::Message;
use tranship_proto::version;

/// How long an agent may take for the greeting.
pub const GREETING: Duration = Duration::from_secs(10);
/// How long an agent may take to answer a question about what it knows.
pub const QUESTION: Duration = Duration::from_secs(30);

/// Where an agent is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// On this host, behind a Unix socket.
    Local(PathBuf),
    /// On a host of the fleet.
    Remote {
        /// Its name, checked against its certificate.
        host: HostName,
        /// `address:port`.
        address: String,
    },
}

/// An agent to talk to.
pub struct Agent {
    target: Target,
    identity: Option<Arc<Identity>>,
    link: Mutex<Option<(Arc<QuicLink>, u16)>>,
    host: OnceLock<HostName>,
}

type BoxRead = Box<dyn AsyncRead + Send + Sync + Unpin>;
type BoxWrite = Box<dyn AsyncWrite + Send + Sync + Unpin>;

impl Agent {
    /// The agent behind a Unix socket. Nothing is opened yet.
    pub fn local(path: impl Into<PathBuf>) -> Self {
        Self {
            target: Target::Local(path.into()),
            identity: None,
            link: Mutex::new(None),
            host: OnceLock::new(),
        }
    }

    /// The agent of a host of the fleet. Nothing is opened yet.
    pub fn remote(host: HostName, address: impl Into<String>, identity: Arc<Identity>) -> Self {
        let target = Target::Remote { host, address: address.into() };
        Self { target, identity: Some(identity), link: Mutex::new(None), host: OnceLock::new() }
    }

    /// Where it is.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Its host's name: given, or as the local agent said when it was first asked.
    pub fn host(&self) -> Option<&HostName> {
        match &self.target {
            Target::Local(_) => self.host.get(),
            Target::Remote { host, .. } => Some(host),
        }
    }

    /// How errors call it.
    pub fn name(&self) -> String {
        match self.host() {
            Some(host) => host.to_string(),
            None => "the local agent".into(),
        }
    }

    /// Sends a request and answers the stream of its replies.
    pub async fn open(&self, request: Request) -> Result<Replies, ClientError> {
        match &self.target {
            Target::Local(path) => {
                let socket = |source| ClientError::Socket { path: path.clone(), source };
                let stream = tokio::time::timeout(GREETING, UnixStream::connect(path))
                    .await
                    .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
                    .map_err(socket)?;
                let (read, write) = stream.into_split();
                let mut replies = Replies::new(self.name(), Box::new(read), Box::new(write), None);
                replies.greet(self).await?;
                replies.peer = self.name();
                replies.send(request).await?;
                Ok(replies)
            }
            Target::Remote { host, address } => {
                let (link, version) = self.link(host, address).await?;
                let mut replies = Replies::on(link).await?;
                replies.reader.version = version;
                replies.send(request).await?;
                Ok(replies)
            }
        }
    }

    /// Sends a request that has one answer, to be given within `limit`.
    pub async fn ask_within(&self, request: Request, limit: Duration) -> Result<Reply, ClientError> {
        let silent = || ClientError::Silent { peer: self.name(), after: limit };
        let work = async {
            let mut replies = self.open(request).await?;
            replies.next().await
        };
        match tokio::time::timeout(limit, work).await.map_err(|_| silent())?? {
            Reply::Failed(failure) => Err(ClientError::Refused(Box::new(failure))),
            reply => Ok(reply),
        }
    }

    /// [`Self::ask_within`] with the time of a [`QUESTION`].
    pub async fn ask(&self, request: Request) -> Result<Reply, ClientError> {
        self.ask_within(request, QUESTION).await
    }

    /// An answer of another kind than the request has.
    pub fn unexpected(&self, reply: &Reply, wanted: &'static str) -> ClientError {
        ClientError::Unexpected { peer: self.name(), got: kind_of(reply).into(), wanted }
    }

    /// Ends the connection in an orderly way.
    pub async fn close(&self) {
        if let Some((link, _)) = self.link.lock().await.take()
            && let Some(link) = Arc::into_inner(link)
        {
            link.close().await;
        }
    }

    async fn link(&self, host: &HostName, address: &str) -> Result<(Arc<QuicLink>, u16), ClientError> {
        let mut held = self.link.lock().await;
        if let Some((link, version)) = &*held
            && link.fault().is_none()
        {
            return Ok((link.clone(), *version));
        }
        *held = None;
        // A remote agent always has an identity: its constructor takes one.
        let Some(identity) = self.identity.clone() else {
            let why = "no operator's certificate is configured".into();
            return Err(ClientError::Connect { host: host.clone(), address: address.into(), why });
        };
        let link = Arc::new(QuicLink::open(host, address, identity).await?);
        let mut greeting = Replies::on(link.clone()).await?;
        let version = greeting.greet(self).await?;
        *held = Some((link.clone(), version));
        Ok((link, version))
    }
}

/// The replies to one request.
pub struct Replies {
    reader: FrameReader<BoxRead>,
    /// Kept open: an agent may take the end of a request's stream for a client that left.
    writer: BoxWrite,
    link: Option<Arc<QuicLink>>,
    peer: String,
}

impl Replies {
    fn new(peer: String, read: BoxRead, write: BoxWrite, link: Option<Arc<QuicLink>>) -> Self {
        Self { reader: FrameReader::new(read, version::GREETING), writer: write, link, peer }
    }

    async fn on(link: Arc<QuicLink>) -> Result<Self, ClientError> {
        let peer = link.host().to_string();
        let opened = tokio::time::timeout(GREETING, link.connection.open_bi()).await;
        match opened {
            Ok(Ok((write, read))) => Ok(Self::new(peer, Box::new(read), Box::new(write), Some(link))),
            Ok(Err(_)) => Err(link.fault_soon().await.unwrap_or(ClientError::Ended { peer, what: "early" })),
            Err(_) => Err(ClientError::Silent { peer, after: GREETING }),
        }
    }

    /// Says hello and answers the version to speak.
    async fn greet(&mut self, agent: &Agent) -> Result<u16, ClientError> {
        let ours = version::SUPPORTED.to_vec();
        let hello = Hello {
            versions: ours.clone(),
            software: concat!("tranship ", env!("CARGO_PKG_VERSION")).into(),
        };
        let silent = ClientError::Silent { peer: self.peer.clone(), after: GREETING };
        let welcome = async {
            self.write(&Message::from(hello), version::GREETING).await?;
            self.message("before its greeting").await
        };
        let welcome = tokio::time::timeout(GREETING, welcome).await.map_err(|_| silent)??;
        match welcome {
            Message::Welcome(Welcome::Version { version: chosen, host, .. }) => {
                let peer = self.peer.clone();
                let chosen = version::accept(chosen).map_err(|source| ClientError::Wire { peer, source })?;
                if agent.host().is_some_and(|known| *known != host) {
                    return Err(ClientError::WrongHost { peer: self.peer.clone(), got: host });
                }
                let _ = agent.host.set(host);
                self.reader.version = chosen;
                Ok(chosen)
            }
            Message::Welcome(Welcome::NoSharedVersion { versions, software }) => Err(ClientError::Version {
                peer: format!("{} ({})", self.peer, clean_line(&software)),
                theirs: versions,
                ours,
            }),
            other => Err(self.unexpected(other.name(), "Welcome")),
        }
    }

    async fn send(&mut self, request: Request) -> Result<(), ClientError> {
        let version = self.reader.version;
        tokio::time::timeout(GREETING, self.write(&Message::from(request), version))
            .await
            .unwrap_or_else(|_| Err(ClientError::Silent { peer: self.peer.clone(), after: GREETING }))
    }

    async fn write(&mut self, message: &Message, version: u16) -> Result<(), ClientError> {
        let frame = message.to_frame(version).map_err(|source| ClientError::Request { source })?;
        let written = async {
            self.writer.write_all(&frame).await?;
            self.writer.flush().await
        };
        match written.await {
            Ok(()) => Ok(()),
            Err(source) => {
                let error = ClientError::Io { peer: self.peer.clone(), what: "write to", source };
                Err(self.better(error).await)
            }
        }
    }

    /// The next reply. The end of the stream is an error: a stream of replies has an end message.
    ///
    /// Cancel safe.
    pub async fn next(&mut self) -> Result<Reply, ClientError> {
        match self.message("before its answer was complete").await? {
            Message::Reply(reply) => Ok(reply),
            other => Err(self.unexpected(other.name(), "Reply")),
        }
    }

    async fn message(&mut self, at: &'static str) -> Result<Message, ClientError> {
        match self.reader.next(&self.peer).await {
            Ok(Some(message)) => Ok(message),
            Ok(None) => {
                let ended = ClientError::Ended { peer: self.peer.clone(), what: at };
                Err(self.better(ended).await)
            }
            Err(e @ (ClientError::Io { .. } | ClientError::Ended { .. })) => Err(self.better(e).await),
            Err(e) => Err(e),
        }
    }

    /// The connection's own end says more than a stream's.
    async fn better(&self, error: ClientError) -> ClientError {
        match &self.link {
            Some(link) => link.fault_soon().await.unwrap_or(error),
            None => error,
        }
    }

    fn unexpected(&self, got: &str, wanted: &'static str) -> ClientError {
        ClientError::Unexpected { peer: self.peer.clone(), got: got.into(), wanted }
    }
}

/// A reply's name, for errors.
fn kind_of(reply: &Reply) -> &'static str {
    match reply {
        Reply::HostInfo(_) => "HostInfo",
        Reply::Hosts(_) => "Hosts",
        Reply::Containers(_) => "Containers",
        Reply::Document(_) => "Document",
        Reply::Log(_) => "Log",
        Reply::Accepted { .. } => "Accepted",
        Reply::Plan(_) => "Plan",
        Reply::Event(_) => "Event",
        Reply::Migrations(_) => "Migrations",
        Reply::Done(_) => "Done",
        Reply::End => "End",
        Reply::Failed(_) => "Failed",
        Reply::Unmet(_) => "Unmet",
    }
}
