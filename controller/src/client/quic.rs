//! A QUIC connection to an agent.

use super::error::ClientError;
use super::tls::{Identity, TlsProblemKind, Verdict};
use crate::output::clean_line;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ConnectionError, VarInt};
use rustls::pki_types::UnixTime;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tranship_proto::ids::HostName;

/// How long one address may take to finish the handshake.
pub const HANDSHAKE: Duration = Duration::from_secs(5);
/// Silence after which the connection counts as lost. The agent answers keep-alives even while it
/// freezes a container.
const IDLE: Duration = Duration::from_secs(15);
const KEEP_ALIVE: Duration = Duration::from_secs(4);
/// Code with which an agent closes a connection whose certificate has no role that it accepts.
const NOT_ACCEPTED: VarInt = VarInt::from_u32(1);
/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 4;

/// An open connection. Dropping it closes the connection without waiting.
pub struct QuicLink {
    endpoint: quinn::Endpoint,
    /// The connection.
    pub connection: quinn::Connection,
    host: HostName,
    address: String,
    identity: Arc<Identity>,
    verdict: Verdict,
}

impl QuicLink {
    /// Connects to `host` at `address`, trying each address of a name in turn.
    pub async fn open(host: &HostName, address: &str, identity: Arc<Identity>) -> Result<Self, ClientError> {
        let resolve = |source| ClientError::Resolve { host: host.clone(), address: address.into(), source };
        let addresses: Vec<SocketAddr> =
            tokio::net::lookup_host(address).await.map_err(resolve)?.take(MAX_ADDRESSES).collect();
        let mut last = resolve(std::io::Error::other("the name has no address"));
        for at in addresses {
            match Self::open_at(host, address, at, identity.clone()).await {
                Ok(link) => return Ok(link),
                Err(e) => last = e,
            }
        }
        Err(last)
    }

    async fn open_at(
        host: &HostName,
        address: &str,
        at: SocketAddr,
        identity: Arc<Identity>,
    ) -> Result<Self, ClientError> {
        let failed = |why: String| ClientError::Connect { host: host.clone(), address: address.into(), why };
        let (tls, verdict) = identity.client_config()?;
        let crypto = QuicClientConfig::try_from(tls).map_err(|e| failed(e.to_string()))?;
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(Arc::new(transport().map_err(failed)?));
        let any: IpAddr =
            if at.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let mut endpoint = quinn::Endpoint::client(SocketAddr::new(any, 0))
            .map_err(|e| failed(format!("cannot open a UDP socket: {e}")))?;
        endpoint.set_default_client_config(config);
        let connecting = endpoint.connect(at, host.as_str()).map_err(|e| failed(e.to_string()))?;
        let result = tokio::time::timeout(HANDSHAKE, connecting).await;
        let explain = |e: ConnectionError| explain(&e, host, address, &identity, &verdict);
        let connection = match result {
            Ok(Ok(connection)) => connection,
            Ok(Err(e)) => {
                let error = explain(e);
                // Lets the alert reach the agent, whose log should name the reason too.
                drain(&endpoint).await;
                return Err(error);
            }
            Err(_) => return Err(ClientError::NoAnswer { host: host.clone(), address: address.into() }),
        };
        Ok(Self { endpoint, connection, host: host.clone(), address: address.into(), identity, verdict })
    }

    /// The host at the other end.
    pub fn host(&self) -> &HostName {
        &self.host
    }

    /// Why the connection is closed, if it is.
    pub fn fault(&self) -> Option<ClientError> {
        let reason = self.connection.close_reason()?;
        Some(explain(&reason, &self.host, &self.address, &self.identity, &self.verdict))
    }

    /// [`Self::fault`], waiting a moment for it: a refused certificate is known only after the
    /// client has finished its handshake, and a stream may fail a little before that.
    pub async fn fault_soon(&self) -> Option<ClientError> {
        let _ = tokio::time::timeout(Duration::from_millis(200), self.connection.closed()).await;
        self.fault()
    }

    /// Says goodbye and waits a moment for it to be sent.
    pub async fn close(self) {
        self.connection.close(VarInt::from_u32(0), b"done");
        drain(&self.endpoint).await;
    }
}

async fn drain(endpoint: &quinn::Endpoint) {
    let _ = tokio::time::timeout(Duration::from_millis(100), endpoint.wait_idle()).await;
}

fn transport() -> Result<quinn::TransportConfig, String> {
    let mut transport = quinn::TransportConfig::default();
    let idle = IDLE.try_into().map_err(|_| "the idle timeout is out of range".to_owned())?;
    transport.max_idle_timeout(Some(idle)).keep_alive_interval(Some(KEEP_ALIVE));
    // An agent opens no stream towards a command.
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0));
    transport.datagram_receive_buffer_size(None);
    transport.stream_receive_window(VarInt::from_u32(8 << 20)).receive_window(VarInt::from_u32(16 << 20));
    Ok(transport)
}

/// A closed connection in words.
fn explain(
    error: &ConnectionError,
    host: &HostName,
    address: &str,
    identity: &Identity,
    verdict: &Verdict,
) -> ClientError {
    let peer = || host.to_string();
    let closed = |why: String| ClientError::Closed { peer: peer(), why };
    match error {
        ConnectionError::TransportError(e) => match verdict.problem() {
            Some(kind) => identity.problem(host, kind),
            None => match alert_of(u64::from(e.code)) {
                Some(_) => identity.problem(host, TlsProblemKind::Handshake(clean_line(&e.reason))),
                None => closed(format!("QUIC error: {}", clean_line(&e.to_string()))),
            },
        },
        ConnectionError::ConnectionClosed(e) => match alert_of(u64::from(e.error_code)) {
            // missing_extension, no_application_protocol, protocol_version, handshake_failure
            Some(alert @ (40 | 70 | 109 | 120)) => {
                let why = match alert {
                    120 => "the other side does not speak tranship".into(),
                    70 => "the other side does not speak TLS 1.3".into(),
                    n => format!("TLS alert {n}"),
                };
                identity.problem(host, TlsProblemKind::Handshake(why))
            }
            Some(alert) => {
                let found = identity.own_fault(UnixTime::now());
                identity.problem(host, TlsProblemKind::OwnRefused { alert, found })
            }
            None => closed(format!("QUIC error: {}", clean_line(&e.to_string()))),
        },
        ConnectionError::ApplicationClosed(e) => {
            let words = clean_line(&String::from_utf8_lossy(&e.reason));
            if e.error_code == NOT_ACCEPTED {
                return ClientError::NotAccepted { peer: peer(), why: words };
            }
            closed(if words.is_empty() { format!("code {}", e.error_code) } else { words })
        }
        ConnectionError::TimedOut => ClientError::NoAnswer { host: host.clone(), address: address.into() },
        ConnectionError::Reset => closed("the agent has been restarted".into()),
        ConnectionError::VersionMismatch => {
            identity.problem(host, TlsProblemKind::Handshake("it speaks another version of QUIC".into()))
        }
        ConnectionError::LocallyClosed | ConnectionError::CidsExhausted => closed(error.to_string()),
    }
}

/// The TLS alert in a QUIC error code (RFC 9000 section 20.1: 0x0100 to 0x01ff).
fn alert_of(code: u64) -> Option<u8> {
    (0x100..0x200).contains(&code).then_some((code & 0xff) as u8)
}
