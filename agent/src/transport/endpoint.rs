//! The QUIC endpoint of an agent: one UDP socket, server and client.
//!
//! Flow control bounds the receiver's memory for one connection to [`RECEIVE_WINDOW`], and for one
//! stream to [`STREAM_WINDOW`]: quinn closes a connection when one stream has more than 1024 gaps
//! ("too many gaps in stream buffer"), which a slow wire with a full queue makes by dropping every
//! second packet. Two megabytes of the smallest packets (1200 bytes) cannot have as many. Who needs
//! more on a long path opens several streams. Rejected: windows of 16 MiB, with which moves over
//! 200 Mbit/s failed, and BBR and NewReno, which were no faster than CUBIC on a clean wire and on a
//! lossy one. MTU discovery stays below 6553 bytes because ten segments of a GSO batch must fit
//! into 64 KiB (quinn sends up to ten); one of ordinary Ethernet ends at 1452. The keep-alive is
//! short, because during a freeze or a restore nothing else flows; a container is frozen for as long
//! as a vanished peer goes unnoticed. A restarted agent knows none of its connections: it answers
//! their packets with stateless resets (RFC 9000 section 10.3), whose key follows from the private
//! key of the host, so that the peer believes them and connects anew at once.

use super::framing::{FrameError, read_message, write_message};
use super::identity::Identity;
use crate::config::{Config, Tls};
use nix::sys::socket::{setsockopt, sockopt};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{EndpointConfig, TokioRuntime, TransportConfig, VarInt};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tranship_proto::control::{Hello, Welcome};
use tranship_proto::ids::HostName;
use tranship_proto::registry::Message;
use tranship_proto::version;

/// Receive window of one stream in bytes.
pub const STREAM_WINDOW: u32 = 2 << 20;
/// Receive window of one connection in bytes.
pub const RECEIVE_WINDOW: u32 = 16 << 20;
/// Bulk streams that a peer may have open on one connection, which is one migration's.
pub const MAX_BULK_STREAMS: u32 = 32;
/// Packets for each acknowledgement, instead of two (draft-ietf-quic-ack-frequency): a tenth more
/// throughput between two agents on the same two cores.
const ACK_EVERY: u32 = 10;
/// Socket buffers asked for, in bytes.
const SOCKET_BUFFER: usize = 4 << 20;
/// Largest UDP payload sent and accepted.
const MAX_UDP_PAYLOAD: u16 = 6500;
/// How long connecting and greeting may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why an endpoint or a connection could not be had.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// A certificate or key file cannot be used.
    #[error("cannot use {what} {path}: {why}")]
    Certificate {
        /// Which file.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// TLS refuses the configuration.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
    /// The peer does not answer.
    #[error("{host} ({address}) does not answer: {why}")]
    Unreachable {
        /// The peer.
        host: HostName,
        /// Its address.
        address: SocketAddr,
        /// Why.
        why: String,
    },
    /// One side refuses the other's certificate.
    #[error("no trust between this host and {host} ({address}): {why}")]
    Untrusted {
        /// The peer.
        host: HostName,
        /// Its address.
        address: SocketAddr,
        /// Why.
        why: String,
    },
    /// No protocol version is shared.
    #[error("{host} speaks protocol versions {theirs:?} ({software}), this host {ours:?}")]
    Version {
        /// The peer.
        host: HostName,
        /// Its versions.
        theirs: Vec<u16>,
        /// Its software.
        software: String,
        /// Ours.
        ours: Vec<u16>,
    },
    /// The greeting failed.
    #[error("the greeting with {host} failed")]
    Greeting {
        /// The peer.
        host: HostName,
        /// Why.
        source: FrameError,
    },
}

/// A connection with an agreed protocol version.
#[derive(Debug, Clone)]
pub struct Connection {
    /// The QUIC connection.
    pub quic: quinn::Connection,
    /// Agreed version.
    pub version: u16,
    /// Who is at the other end.
    pub peer: Identity,
}

/// The agent's QUIC endpoint.
#[derive(Debug, Clone)]
pub struct Endpoint {
    quic: quinn::Endpoint,
    client: quinn::ClientConfig,
    software: String,
}

fn load_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TransportError> {
    let bad = |why: String| TransportError::Certificate { what: "the certificate", path: path.into(), why };
    let chain: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(path).map_err(|e| bad(e.to_string()))?.collect();
    let chain = chain.map_err(|e| bad(e.to_string()))?;
    if chain.is_empty() {
        return Err(bad("no certificate in it".into()));
    }
    Ok(chain)
}

fn transport() -> Arc<TransportConfig> {
    let mut t = TransportConfig::default();
    let mut mtu = quinn::MtuDiscoveryConfig::default();
    mtu.upper_bound(MAX_UDP_PAYLOAD);
    let mut ack = quinn::AckFrequencyConfig::default();
    ack.ack_eliciting_threshold(VarInt::from_u32(ACK_EVERY));
    t.stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(RECEIVE_WINDOW))
        .send_window(u64::from(RECEIVE_WINDOW))
        .max_concurrent_bidi_streams(VarInt::from_u32(64))
        .max_concurrent_uni_streams(VarInt::from_u32(MAX_BULK_STREAMS))
        .max_idle_timeout(quinn::IdleTimeout::try_from(Duration::from_secs(8)).ok())
        .keep_alive_interval(Some(Duration::from_secs(2)))
        .ack_frequency_config(Some(ack))
        .mtu_discovery_config(Some(mtu));
    Arc::new(t)
}

/// Reads certificates and makes server and client configurations.
pub fn load_tls(tls: &Tls) -> Result<(quinn::ServerConfig, quinn::ClientConfig), TransportError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    for ca in load_chain(&tls.ca)? {
        roots.add(ca).map_err(|e| TransportError::Certificate {
            what: "the certificate authority",
            path: tls.ca.clone(),
            why: e.to_string(),
        })?;
    }
    let roots = Arc::new(roots);
    let chain = load_chain(&tls.cert)?;
    let key = || {
        PrivateKeyDer::from_pem_file(&tls.key).map_err(|e| TransportError::Certificate {
            what: "the private key",
            path: tls.key.clone(),
            why: e.to_string(),
        })
    };
    let tls_error = |e: &dyn std::fmt::Display| TransportError::Tls(e.to_string());
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|e| tls_error(&e))?;
    let mut server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| tls_error(&e))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain.clone(), key()?)
        .map_err(|e| tls_error(&e))?;
    server.alpn_protocols = vec![version::ALPN.to_vec()];
    let mut client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| tls_error(&e))?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key()?)
        .map_err(|e| tls_error(&e))?;
    client.alpn_protocols = vec![version::ALPN.to_vec()];

    let server = QuicServerConfig::try_from(server).map_err(|e| tls_error(&e))?;
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(server));
    server
        .transport_config(transport())
        .migration(false)
        .max_incoming(256)
        .incoming_buffer_size_total(8 << 20);
    let client = QuicClientConfig::try_from(client).map_err(|e| tls_error(&e))?;
    let mut client = quinn::ClientConfig::new(Arc::new(client));
    client.transport_config(transport());
    Ok((server, client))
}

/// An endpoint whose answers to packets of an earlier agent of this host are believed.
fn endpoint_config(tls: &Tls) -> Result<EndpointConfig, TransportError> {
    let pem = std::fs::read(&tls.key).map_err(|e| TransportError::Certificate {
        what: "the private key",
        path: tls.key.clone(),
        why: e.to_string(),
    })?;
    let reset = blake3::derive_key("tranship 2026 QUIC stateless reset", &pem);
    let ids = blake3::derive_key("tranship 2026 QUIC connection ids", &pem);
    let ids = u64::from_le_bytes([ids[0], ids[1], ids[2], ids[3], ids[4], ids[5], ids[6], ids[7]]);
    let mut config = EndpointConfig::new(Arc::new(ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &reset)));
    // Ids of an earlier agent must pass for ours, or they are not worth an answer.
    config.cid_generator(move || Box::new(quinn_proto::HashedConnectionIdGenerator::from_key(ids)));
    Ok(config)
}

fn bind(address: SocketAddr) -> std::io::Result<std::net::UdpSocket> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    // Root may go beyond net.core.rmem_max and wmem_max, at which the kernel caps both silently.
    if setsockopt(&socket, sockopt::RcvBufForce, &SOCKET_BUFFER).is_err() {
        socket.set_recv_buffer_size(SOCKET_BUFFER)?;
    }
    if setsockopt(&socket, sockopt::SndBufForce, &SOCKET_BUFFER).is_err() {
        socket.set_send_buffer_size(SOCKET_BUFFER)?;
    }
    if socket.recv_buffer_size()? < SOCKET_BUFFER {
        tracing::warn!(
            have_bytes = socket.recv_buffer_size()?,
            want_bytes = SOCKET_BUFFER,
            "UDP buffers are small; raise net.core.rmem_max and net.core.wmem_max"
        );
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

impl Endpoint {
    /// Binds the address of the configuration. Must be called inside the runtime.
    pub fn bind(config: &Config) -> Result<Self, TransportError> {
        let (server, client) = load_tls(&config.tls)?;
        let listen = |source| TransportError::Listen { address: config.listen, source };
        let socket = bind(config.listen).map_err(listen)?;
        let mut endpoint = endpoint_config(&config.tls)?;
        endpoint
            .max_udp_payload_size(MAX_UDP_PAYLOAD)
            .map_err(|e| TransportError::Tls(format!("UDP payload size: {e}")))?;
        let quic =
            quinn::Endpoint::new(endpoint, Some(server), socket, Arc::new(TokioRuntime)).map_err(listen)?;
        Ok(Self { quic, client, software: crate::SOFTWARE.to_owned() })
    }

    /// Where it listens.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.quic.local_addr()
    }

    /// The next connection attempt, or `None` when the endpoint is closed.
    pub async fn incoming(&self) -> Option<quinn::Incoming> {
        self.quic.accept().await
    }

    /// Finishes a handshake and greets the peer as a server.
    pub async fn greet(&self, incoming: quinn::Incoming, host: &HostName) -> Result<Connection, String> {
        let quic = incoming.await.map_err(|e| e.to_string())?;
        let peer = match Identity::of_peer(quic.peer_identity()) {
            Ok(peer) => peer,
            Err(why) => {
                quic.close(VarInt::from_u32(1), why.as_bytes());
                return Err(why);
            }
        };
        let (mut send, mut recv) = quic.accept_bi().await.map_err(|e| e.to_string())?;
        let hello = match read_message(&mut recv, version::GREETING).await {
            Ok(Message::Hello(h)) => h,
            Ok(other) => return Err(format!("{} instead of a greeting", other.name())),
            Err(e) => return Err(crate::chain(&e)),
        };
        let version = greet_reply(&hello, host, &self.software, &mut send).await;
        let _ = send.finish();
        if version.is_err() {
            // Dropping the connection now would take the answer back.
            let _ = tokio::time::timeout(Duration::from_secs(1), send.stopped()).await;
        }
        Ok(Connection { quic, version: version?, peer })
    }

    /// Connects to a host and greets it. The name is checked against its certificate.
    pub async fn connect(&self, host: &HostName, address: SocketAddr) -> Result<Connection, TransportError> {
        let unreachable = |why: String| TransportError::Unreachable { host: host.clone(), address, why };
        let attempt =
            async {
                let connecting = self
                    .quic
                    .connect_with(self.client.clone(), address, host.as_str())
                    .map_err(|e| unreachable(e.to_string()))?;
                let quic = connecting.await.map_err(|e| classify(e, host, address))?;
                let peer = Identity::of_peer(quic.peer_identity())
                    .map_err(|why| TransportError::Untrusted { host: host.clone(), address, why })?;
                if peer.agent() != Some(host) {
                    let why = format!("it is {peer}");
                    return Err(TransportError::Untrusted { host: host.clone(), address, why });
                }
                let greeting = |source| TransportError::Greeting { host: host.clone(), source };
                let lost = |e: quinn::ConnectionError| classify(e, host, address);
                let (mut send, mut recv) = quic.open_bi().await.map_err(lost)?;
                let hello = Hello { versions: version::SUPPORTED.to_vec(), software: self.software.clone() };
                write_message(&mut send, version::GREETING, hello).await.map_err(greeting)?;
                // A server that refuses the certificate says so only now: TLS 1.3 lets the client finish first.
                let answer = match read_message(&mut recv, version::GREETING).await {
                    Ok(m) => m,
                    Err(e) => {
                        return Err(match quic.close_reason() {
                            Some(reason) => classify(reason, host, address),
                            None => greeting(e),
                        });
                    }
                };
                match answer {
                    Message::Welcome(Welcome::Version { version: chosen, .. }) => {
                        let version = version::accept(chosen).map_err(|e| greeting(e.into()))?;
                        Ok(Connection { quic, version, peer })
                    }
                    Message::Welcome(Welcome::NoSharedVersion { versions, software }) => {
                        Err(TransportError::Version {
                            host: host.clone(),
                            theirs: versions,
                            software,
                            ours: version::SUPPORTED.to_vec(),
                        })
                    }
                    other => Err(greeting(FrameError::Unexpected { got: other.name(), want: "Welcome" })),
                }
            };
        match tokio::time::timeout(CONNECT_TIMEOUT, attempt).await {
            Ok(result) => result,
            Err(_) => Err(unreachable(format!("nothing within {} s", CONNECT_TIMEOUT.as_secs()))),
        }
    }

    /// Closes all connections and waits until the peers know.
    pub async fn close(&self) {
        self.quic.close(VarInt::from_u32(0), b"the agent is shutting down");
        let _ = tokio::time::timeout(Duration::from_secs(2), self.quic.wait_idle()).await;
    }
}

/// Chooses a version and answers a greeting; the error is for the log.
pub async fn greet_reply(
    hello: &Hello,
    host: &HostName,
    software: &str,
    send: &mut (impl tokio::io::AsyncWrite + Unpin),
) -> Result<u16, String> {
    let chosen = version::choose(&hello.versions);
    let reply = match chosen {
        Some(version) => Welcome::Version { version, software: software.to_owned(), host: host.clone() },
        None => {
            Welcome::NoSharedVersion { versions: version::SUPPORTED.to_vec(), software: software.to_owned() }
        }
    };
    write_message(send, version::GREETING, reply).await.map_err(|e| crate::chain(&e))?;
    let theirs: String = hello.software.chars().filter(|c| !c.is_control()).take(80).collect();
    chosen.ok_or_else(|| format!("no shared protocol version: {theirs} speaks {:?}", &hello.versions))
}

/// Says whether a failed connection is a matter of reach or of trust (RFC 9001 section 4.8: TLS
/// alerts are errors 0x100 and up).
fn classify(error: quinn::ConnectionError, host: &HostName, address: SocketAddr) -> TransportError {
    use quinn::ConnectionError as E;
    let untrusted = |why: String| TransportError::Untrusted { host: host.clone(), address, why };
    match &error {
        E::TransportError(t) if (0x100..0x200).contains(&u64::from(t.code)) => {
            untrusted(format!("its certificate is not acceptable here: {}", t.reason))
        }
        E::ConnectionClosed(c) if (0x100..0x200).contains(&u64::from(c.error_code)) => {
            untrusted(format!("it does not accept this host's certificate: {}", c.error_code))
        }
        E::ApplicationClosed(c) if c.error_code == VarInt::from_u32(1) => {
            untrusted(String::from_utf8_lossy(&c.reason).chars().take(200).collect())
        }
        other => TransportError::Unreachable { host: host.clone(), address, why: other.to_string() },
    }
}
