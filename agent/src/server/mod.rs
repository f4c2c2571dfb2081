//! Requests from controllers and peers, and who may make them.
//!
//! Two doors lead to the same handler: QUIC, where the certificate's role decides, and a Unix
//! socket that only root of this host can open. What a peer sends is bounded by `proto`; here its
//! role is checked for each request.

mod requests;

use crate::context::Context;
use crate::migrate::registry::Migrations;
use crate::transport::bulk::accept_open;
use crate::transport::endpoint::{Connection, greet_reply};
use crate::transport::framing::{FrameError, read_message, write_message};
use crate::transport::identity::{Identity, Role};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tranship_proto::control::{Reply, Request};
use tranship_proto::registry::Message;
use tranship_proto::status::{Failure, Reason, Side};
use tranship_proto::version;

/// How long a client may take for its greeting and its request.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections at a time through either door; far above what a fleet needs.
const MAX_CONNECTIONS: usize = 512;

/// The server of one agent. Cheap to clone.
#[derive(Clone)]
pub struct Server {
    ctx: Arc<Context>,
    migrations: Migrations,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Server {
    /// A server that does not listen yet.
    pub fn new(ctx: Arc<Context>, migrations: Migrations, stop: CancellationToken) -> Self {
        Self { ctx, migrations, tasks: TaskTracker::new(), stop }
    }

    /// Listens on the Unix socket, replacing one that a dead agent has left.
    pub fn bind_socket(path: &Path) -> std::io::Result<UnixListener> {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(std::io::Error::new(
                std::io::ErrorKind::AddrInUse,
                "another transhipd answers on it",
            ));
        }
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    }

    /// Serves both doors until the stop token is cancelled, then waits for open requests briefly.
    pub async fn serve(self, unix: UnixListener) {
        loop {
            tokio::select! {
                () = self.stop.cancelled() => break,
                accepted = unix.accept() => match accepted {
                    Ok((stream, _)) if self.tasks.len() < MAX_CONNECTIONS => {
                        let this = self.clone();
                        self.tasks.spawn(async move { this.unix_client(stream).await });
                    }
                    Ok(_) => tracing::warn!("too many connections; one was closed"),
                    Err(e) => {
                        tracing::error!(error = %e, "cannot accept on the control socket");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                incoming = self.ctx.endpoint.incoming() => match incoming {
                    Some(incoming) if self.tasks.len() < MAX_CONNECTIONS => {
                        let this = self.clone();
                        self.tasks.spawn(async move { this.quic_client(incoming).await });
                    }
                    Some(incoming) => incoming.refuse(),
                    None => break,
                },
            }
        }
        self.tasks.close();
        let _ = tokio::time::timeout(Duration::from_secs(1), self.tasks.wait()).await;
    }

    async fn unix_client(&self, mut stream: UnixStream) {
        let root = stream.peer_cred().is_ok_and(|c| c.uid() == 0);
        if !root {
            tracing::warn!("a process that is not root's reached the control socket; closed");
            return;
        }
        let client = Identity { role: Role::LocalRoot };
        let greeted = tokio::time::timeout(PATIENCE, async {
            match read_message(&mut stream, version::GREETING).await {
                Ok(Message::Hello(hello)) => {
                    greet_reply(&hello, &self.ctx.config.host, crate::SOFTWARE, &mut stream).await
                }
                Ok(other) => Err(format!("{} instead of a greeting", other.name())),
                // A probe that connects and goes is not worth a line.
                Err(FrameError::Closed) => Err(String::new()),
                Err(e) => Err(crate::chain(&e)),
            }
        })
        .await;
        match greeted {
            Ok(Ok(version)) => {
                let (mut recv, mut send) = stream.split();
                self.request(&client, version, &mut recv, &mut send, None).await;
            }
            Ok(Err(why)) if why.is_empty() => {}
            Ok(Err(why)) => tracing::warn!(why, "control socket: no greeting"),
            Err(_) => tracing::warn!("control socket: no greeting in time"),
        }
    }

    async fn quic_client(&self, incoming: quinn::Incoming) {
        let from = incoming.remote_address();
        let greeted =
            tokio::time::timeout(PATIENCE, self.ctx.endpoint.greet(incoming, &self.ctx.config.host)).await;
        let connection = match greeted {
            Ok(Ok(c)) => c,
            Ok(Err(why)) => return tracing::warn!(%from, why, "connection refused"),
            Err(_) => return tracing::warn!(%from, "no greeting in time"),
        };
        tracing::debug!(%from, peer = %connection.peer, "connected");
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                stream = connection.quic.accept_bi() => match stream {
                    Ok((send, recv)) => {
                        let (this, connection) = (self.clone(), connection.clone());
                        self.tasks.spawn(async move { this.quic_stream(connection, send, recv).await });
                    }
                    Err(_) => return,
                },
                stream = connection.quic.accept_uni() => match stream {
                    Ok(recv) => {
                        let (this, connection) = (self.clone(), connection.clone());
                        self.tasks.spawn(async move { this.quic_bulk(connection, recv).await });
                    }
                    Err(_) => return,
                },
            }
        }
    }

    async fn quic_stream(
        &self,
        connection: Connection,
        mut send: quinn::SendStream,
        mut recv: quinn::RecvStream,
    ) {
        let version = connection.version;
        match tokio::time::timeout(PATIENCE, read_message(&mut recv, version)).await {
            Ok(Ok(Message::Handoff(first))) => {
                let peer = connection.peer.clone();
                if let Err(why) = self.migrations.attach(connection.clone(), send, recv, first).await {
                    tracing::warn!(%peer, why, "hand-over refused");
                    connection.quic.close(quinn::VarInt::from_u32(1), why.as_bytes());
                }
            }
            Ok(Ok(Message::Request(request))) => {
                let client = connection.peer.clone();
                self.request(&client, version, &mut recv, &mut send, Some(request)).await;
                let _ = send.finish();
                // Until the client has read it all, or has gone.
                let _ = tokio::time::timeout(PATIENCE, send.stopped()).await;
            }
            Ok(Ok(other)) => tracing::warn!(peer = %connection.peer, message = other.name(), "not a request"),
            Ok(Err(e)) => {
                tracing::debug!(peer = %connection.peer, error = %crate::chain(&e), "stream dropped")
            }
            Err(_) => tracing::debug!(peer = %connection.peer, "stream without a request in time"),
        }
    }

    async fn quic_bulk(&self, connection: Connection, mut recv: quinn::RecvStream) {
        let Some(peer) = connection.peer.agent().cloned() else {
            tracing::warn!(peer = %connection.peer, "only agents send bulk streams");
            let _ = recv.stop(quinn::VarInt::from_u32(3));
            return;
        };
        match tokio::time::timeout(PATIENCE, accept_open(&mut recv, connection.version)).await {
            Ok(Ok(open)) => self.migrations.bulk(&peer, open, recv).await,
            Ok(Err(e)) => tracing::warn!(%peer, error = %crate::chain(&e), "bulk stream dropped"),
            Err(_) => tracing::warn!(%peer, "bulk stream without a start in time"),
        }
    }

    /// Reads one request (unless it was read) and answers it.
    async fn request<R, W>(
        &self,
        client: &Identity,
        version: u16,
        recv: &mut R,
        send: &mut W,
        request: Option<Request>,
    ) where
        R: AsyncRead + Unpin + Send,
        W: AsyncWrite + Unpin + Send,
    {
        let request = match request {
            Some(r) => r,
            None => match tokio::time::timeout(PATIENCE, read_message(recv, version)).await {
                Ok(Ok(Message::Request(r))) => r,
                Ok(Ok(other)) => return tracing::warn!(%client, message = other.name(), "not a request"),
                Ok(Err(FrameError::Closed)) | Err(_) => return,
                Ok(Err(e)) => return tracing::warn!(%client, error = %crate::chain(&e), "request dropped"),
            },
        };
        // Agents may ask about a host; everything else is an operator's.
        let allowed = client.is_operator() || matches!(request, Request::HostInfo | Request::List);
        let mut out = requests::Out { send, version };
        let result = if allowed {
            tokio::select! {
                result = requests::answer(&self.ctx, &self.migrations, client, request, &mut out) => result,
                () = self.stop.cancelled() => {
                    Err(Failure::new(Reason::Unreachable, Side::Source, "the agent is shutting down").retryable())
                }
            }
        } else {
            let text = format!("{client} may not do this: it takes an operator's certificate");
            Err(Failure::new(Reason::NotAuthorized, Side::Source, text)
                .hint("use a certificate made with `tranship pki issue --operator NAME`"))
        };
        if let Err(failure) = result {
            let _ = write_message(out.send, version, Reply::Failed(failure)).await;
        }
    }
}
