//! An agent that breaks the protocol: it has a good certificate, and means no good.
//!
//! It is a server of one connection after the other and says what its play tells. What the wire's
//! decoders make of every possible byte is tested beside them; here a whole agent meets a peer that
//! speaks nonsense, another version, or of things that are not due.

use anyhow::Context;
use clap::ValueEnum;
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Endpoint, RecvStream, SendStream};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tranship_proto::control::Welcome;
use tranship_proto::frame::{HEADER_LEN, Header};
use tranship_proto::handoff::{Envelope, Handoff, Position, ResumeTimes};
use tranship_proto::ids::{Epoch, HostName, MigrationId};
use tranship_proto::registry::{Message, limit_of};
use tranship_proto::version::{ALPN, GREETING, SUPPORTED};

/// A version that nobody speaks.
const FAR: u16 = 9999;
/// Until what was said has left.
const LEAVE: Duration = Duration::from_millis(200);

/// What it does to whoever connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Play {
    /// Answers the greeting with bytes that mean nothing.
    Garbage,
    /// Announces a message of 4 GiB instead of a greeting.
    Huge,
    /// Has no version in common.
    OtherVersion,
    /// Chooses a version that was not offered.
    WrongChoice,
    /// Answers an offer with bytes that mean nothing.
    GarbageLater,
    /// Answers an offer by speaking of another migration.
    OtherMigration,
    /// Answers an offer by saying that it owns and runs the container.
    Usurper,
}

impl Play {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::Garbage,
        Self::Huge,
        Self::OtherVersion,
        Self::WrongChoice,
        Self::GarbageLater,
        Self::OtherMigration,
        Self::Usurper,
    ];

    /// `garbage`, ...
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned())
    }
}

/// Arguments of `peer`.
#[derive(Debug, clap::Args)]
pub struct Peer {
    /// UDP address
    #[arg(long)]
    listen: SocketAddr,
    /// Directory with host.pem and host.key of the host that it claims to be
    #[arg(long)]
    pki: PathBuf,
    /// That host
    #[arg(long)]
    host: HostName,
    /// What it does
    #[arg(long)]
    play: Play,
}

impl Peer {
    /// Runs until it is killed.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(self.serve())?;
        Ok(ExitCode::SUCCESS)
    }

    async fn serve(&self) -> anyhow::Result<()> {
        let endpoint = Endpoint::server(server(&self.pki)?, self.listen)?;
        println!("{{\"ready\":1}}");
        while let Some(incoming) = endpoint.accept().await {
            let Ok(connection) = incoming.await else { continue };
            // Whatever the other side makes of it is its own to say.
            if let Err(e) = self.act(&connection).await {
                eprintln!("{e:#}");
            }
            tokio::time::sleep(LEAVE).await;
            connection.close(0u32.into(), b"");
        }
        Ok(())
    }

    async fn act(&self, connection: &quinn::Connection) -> anyhow::Result<()> {
        let (mut send, mut recv) = connection.accept_bi().await?;
        read(&mut recv, GREETING).await?;
        let software = "another".to_owned();
        let version = SUPPORTED[0];
        match self.play {
            Play::Garbage => return Ok(send.write_all(&[0xa5; 4096]).await?),
            Play::Huge => {
                let mut frame = Message::from(Welcome::NoSharedVersion { versions: vec![FAR], software })
                    .to_frame(GREETING)?;
                // The length is the last of a header (proto::frame).
                frame[HEADER_LEN - 4..HEADER_LEN].fill(0xff);
                return Ok(send.write_all(&frame).await?);
            }
            Play::OtherVersion => {
                return write(
                    &mut send,
                    GREETING,
                    Welcome::NoSharedVersion { versions: vec![FAR], software },
                )
                .await;
            }
            Play::WrongChoice => {
                let host = self.host.clone();
                return write(&mut send, GREETING, Welcome::Version { version: FAR, software, host }).await;
            }
            _ => {
                let host = self.host.clone();
                write(&mut send, GREETING, Welcome::Version { version, software, host }).await?;
            }
        }
        let (mut send, mut recv) = connection.accept_bi().await?;
        let Message::Handoff(Envelope { migration, epoch, .. }) = read(&mut recv, version).await? else {
            anyhow::bail!("no offer came");
        };
        match self.play {
            Play::OtherMigration => {
                let migration: MigrationId = "01890a5d-ac96-774b-bcce-b302099a8057".parse()?;
                let body = Handoff::Running(ResumeTimes::default());
                write(&mut send, version, Envelope { migration, epoch: Epoch(1), body }).await
            }
            Play::Usurper => {
                for body in [
                    Handoff::Position(Position::Owner),
                    Handoff::Running(ResumeTimes::default()),
                    Handoff::Prepared { restore_us: 1 },
                    Handoff::Grant,
                    Handoff::Closed,
                    Handoff::Position(Position::Taken),
                ] {
                    write(&mut send, version, Envelope { migration, epoch, body }).await?;
                }
                Ok(())
            }
            _ => Ok(send.write_all(&[0xa5; 4096]).await?),
        }
    }
}

fn server(pki: &Path) -> anyhow::Result<quinn::ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = CertificateDer::pem_file_iter(pki.join("host.pem"))?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(pki.join("host.key"))?;
    // Who connects is of no interest.
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .context("using the certificate")?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    Ok(quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?)))
}

async fn read(recv: &mut RecvStream, version: u16) -> anyhow::Result<Message> {
    let mut header = [0; HEADER_LEN];
    recv.read_exact(&mut header).await?;
    let header = Header::parse(&header, version, limit_of)?;
    let mut body = vec![0; header.length as usize];
    recv.read_exact(&mut body).await?;
    Ok(Message::decode(header.kind, &body)?)
}

async fn write(send: &mut SendStream, version: u16, message: impl Into<Message>) -> anyhow::Result<()> {
    send.write_all(&message.into().to_frame(version)?).await?;
    Ok(())
}
