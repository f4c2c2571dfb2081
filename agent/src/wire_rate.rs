//! What one QUIC stream carries between two hosts, with this agent's endpoint settings.
//!
//! `transhipd wire-rate --listen ADDRESS` on one host, `transhipd wire-rate --send-to HOST
//! --address ADDRESS` on another; the sender prints the result as JSON. It is the yardstick that
//! moves are held against, so it uses the same socket, windows and certificates as a move, and
//! nothing else of the agent: no records, no compression, no disk.

use crate::config::Config;
use crate::transport::Endpoint;
use crate::transport::endpoint::Connection;
use bytes::Bytes;
use quinn::VarInt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tranship_proto::ids::HostName;

/// Bytes written at a time, as a bulk stream does.
const CHUNK: usize = 64 << 10;
/// How long a listener waits for a sender.
const PATIENCE: Duration = Duration::from_secs(60);

/// One end of the measurement.
#[derive(Debug, clap::Args)]
pub struct WireRate {
    /// Take one stream on this address and throw it away.
    #[arg(long, value_name = "ADDRESS:PORT", required_unless_present = "send_to")]
    listen: Option<SocketAddr>,
    /// Send to this host.
    #[arg(long, value_name = "HOST", requires = "address", conflicts_with = "listen")]
    send_to: Option<HostName>,
    /// Where its listener is.
    #[arg(long, value_name = "ADDRESS:PORT", requires = "send_to")]
    address: Option<SocketAddr>,
    /// Mebibytes to send.
    #[arg(long, value_name = "N", default_value_t = 1024)]
    mib: u64,
}

/// Runs one end to its end.
///
/// # Errors
/// When the endpoint cannot be had, the other end does not answer, or the stream breaks.
pub fn run(mut config: Config, end: WireRate) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match (end.send_to, end.address) {
            (Some(host), Some(address)) => {
                let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                config.listen = any.parse()?;
                let endpoint = Endpoint::bind(&config)?;
                let connection = endpoint.connect(&host, address).await?;
                println!("{}", send(&connection, end.mib << 20).await?);
                endpoint.close().await;
            }
            _ => {
                config.listen = end.listen.unwrap_or(config.listen);
                let endpoint = Endpoint::bind(&config)?;
                tokio::time::timeout(PATIENCE, receive(&endpoint, &config.host)).await??;
                endpoint.close().await;
            }
        }
        Ok(())
    })
}

async fn send(connection: &Connection, bytes: u64) -> anyhow::Result<serde_json::Value> {
    // Contents do not matter to QUIC: everything is encrypted.
    let chunk = Bytes::from(vec![0x5a; CHUNK]);
    let start = Instant::now();
    let mut stream = connection.quic.open_uni().await?;
    let mut left = bytes;
    while left > 0 {
        let n = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        stream.write_chunk(chunk.slice(..n)).await?;
        left -= n as u64;
    }
    stream.finish()?;
    anyhow::ensure!(stream.stopped().await?.is_none(), "the listener gave up");
    let micros = start.elapsed().as_micros().max(1);
    let path = connection.quic.stats().path;
    Ok(serde_json::json!({
        "bytes": bytes,
        "microseconds": micros,
        "bytes_per_second": u128::from(bytes) * 1_000_000 / micros,
        "mtu": path.current_mtu,
        "rtt_us": path.rtt.as_micros(),
        "lost_packets": path.lost_packets,
        "congestion_window": path.cwnd,
    }))
}

async fn receive(endpoint: &Endpoint, host: &HostName) -> anyhow::Result<()> {
    let incoming = endpoint.incoming().await.ok_or_else(|| anyhow::anyhow!("the endpoint is closed"))?;
    let connection = endpoint.greet(incoming, host).await.map_err(|why| anyhow::anyhow!(why))?;
    anyhow::ensure!(connection.peer.agent().is_some(), "{} is no agent", connection.peer);
    let mut stream = connection.quic.accept_uni().await?;
    while stream.read_chunk(usize::MAX, true).await?.is_some() {}
    // The sender has its acknowledgement when it closes.
    let _ = connection.quic.closed().await;
    connection.quic.close(VarInt::from_u32(0), b"");
    Ok(())
}
