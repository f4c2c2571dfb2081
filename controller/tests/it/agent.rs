//! A fake agent that answers what it is told to.

use crate::certs::{Leaf, TestCa};
use quinn::crypto::rustls::QuicServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixListener;
use tranship_proto::control::{Reply, Request, Welcome};
use tranship_proto::frame::{HEADER_LEN, Header};
use tranship_proto::registry::{Message, limit_of};

/// What is sent in answer to a request, one after the other.
#[derive(Clone)]
pub enum Step {
    Say(Reply),
    Raw(Vec<u8>),
    Wait(u64),
    /// Until this request has come on another stream.
    Until(fn(&Request) -> bool),
    /// Ends the connection without a word.
    Hang,
}

/// How the greeting is answered.
#[derive(Clone)]
pub enum Greeting {
    Host(&'static str),
    NoShared(Vec<u16>),
    Raw(Vec<u8>),
    Nothing,
    Close(u32, &'static str),
}

type Script = Arc<dyn Fn(&Request) -> Vec<Step> + Send + Sync>;

/// The agent's behaviour, and what it has seen.
#[derive(Clone)]
pub struct Fake {
    greeting: Greeting,
    script: Script,
    pub seen: Arc<Mutex<Vec<Request>>>,
}

impl Fake {
    pub fn new(host: &'static str, script: impl Fn(&Request) -> Vec<Step> + Send + Sync + 'static) -> Self {
        Self { greeting: Greeting::Host(host), script: Arc::new(script), seen: Arc::default() }
    }

    pub fn greeting(mut self, greeting: Greeting) -> Self {
        self.greeting = greeting;
        self
    }

    pub fn requests(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }

    /// Answers the greeting; false when nothing follows.
    async fn greet(&self, r: &mut (impl AsyncRead + Unpin), w: &mut (impl AsyncWrite + Unpin)) -> bool {
        let Some(Message::Hello(_)) = read(r).await else { return false };
        let welcome = match &self.greeting {
            Greeting::Host(host) => {
                Welcome::Version { version: 1, software: "fake 1".into(), host: host.parse().unwrap() }
            }
            Greeting::NoShared(versions) => {
                Welcome::NoSharedVersion { versions: versions.clone(), software: "fake 9".into() }
            }
            Greeting::Raw(bytes) => {
                let _ = w.write_all(bytes).await;
                tokio::time::sleep(Duration::from_secs(60)).await;
                return false;
            }
            Greeting::Nothing => {
                tokio::time::sleep(Duration::from_secs(60)).await;
                return false;
            }
            Greeting::Close(..) => return false,
        };
        w.write_all(&Message::from(welcome).to_frame(1).unwrap()).await.is_ok()
            && matches!(self.greeting, Greeting::Host(_))
    }

    /// One request. Answers whether the connection is to be hung up.
    async fn serve(&self, r: &mut (impl AsyncRead + Unpin), w: &mut (impl AsyncWrite + Unpin)) -> bool {
        let Some(Message::Request(request)) = read(r).await else { return false };
        self.seen.lock().unwrap().push(request.clone());
        for step in (self.script)(&request) {
            let bytes = match step {
                Step::Say(reply) => Message::from(reply).to_frame(1).unwrap(),
                Step::Raw(bytes) => bytes,
                Step::Wait(ms) => {
                    tokio::time::sleep(Duration::from_millis(ms)).await;
                    continue;
                }
                Step::Until(wanted) => {
                    while !self.requests().iter().any(wanted) {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                    continue;
                }
                Step::Hang => return true,
            };
            if w.write_all(&bytes).await.is_err() {
                return false;
            }
        }
        let _ = w.flush().await;
        false
    }

    /// Listens on a Unix socket, until the answer is dropped.
    pub fn on_socket(&self, path: &Path) -> Running {
        let (fake, path) = (self.clone(), path.to_path_buf());
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let listener = runtime.block_on(async { UnixListener::bind(&path).unwrap() });
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let fake = fake.clone();
                tokio::spawn(async move {
                    let (mut r, mut w) = stream.into_split();
                    if fake.greet(&mut r, &mut w).await {
                        fake.serve(&mut r, &mut w).await;
                    }
                });
            }
        });
        Running { runtime: Some(runtime), socket: Some(path), address: None }
    }

    /// Listens for QUIC with a certificate, trusting clients of `clients`.
    pub fn on_quic(&self, own: &TestCa, leaf: &Leaf, clients: &TestCa) -> Running {
        self.on_quic_at("127.0.0.1:0".parse().unwrap(), own, leaf, clients, tranship_proto::version::ALPN)
    }

    pub fn on_quic_at(
        &self,
        at: SocketAddr,
        own: &TestCa,
        leaf: &Leaf,
        clients: &TestCa,
        alpn: &[u8],
    ) -> Running {
        let config = server_config(own, leaf, clients, alpn);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let endpoint = runtime.block_on(async { quinn::Endpoint::server(config, at).unwrap() });
        let address = endpoint.local_addr().unwrap();
        let fake = self.clone();
        runtime.spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                let fake = fake.clone();
                tokio::spawn(async move {
                    let Ok(connection) = incoming.await else { return };
                    if let Greeting::Close(code, words) = fake.greeting {
                        connection.close(code.into(), words.as_bytes());
                        return;
                    }
                    let mut first = true;
                    while let Ok((mut w, mut r)) = connection.accept_bi().await {
                        let (fake, connection, greets) = (fake.clone(), connection.clone(), first);
                        first = false;
                        tokio::spawn(async move {
                            if greets {
                                fake.greet(&mut r, &mut w).await;
                            } else if fake.serve(&mut r, &mut w).await {
                                connection.close(0u32.into(), b"");
                            }
                        });
                    }
                });
            }
        });
        Running { runtime: Some(runtime), socket: None, address: Some(address) }
    }
}

fn server_config(own: &TestCa, leaf: &Leaf, clients: &TestCa, alpn: &[u8]) -> quinn::ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(clients.pem.as_bytes()).unwrap()).unwrap();
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .unwrap();
    let (cert, key) = own.issue(leaf);
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        )
        .unwrap();
    tls.alpn_protocols = vec![alpn.to_vec()];
    quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()))
}

async fn read(r: &mut (impl AsyncRead + Unpin)) -> Option<Message> {
    let mut header = [0; HEADER_LEN];
    r.read_exact(&mut header).await.ok()?;
    let header = Header::parse(&header, 1, limit_of).ok()?;
    let mut body = vec![0; header.length as usize];
    r.read_exact(&mut body).await.ok()?;
    Message::decode(header.kind, &body).ok()
}

/// An agent that runs until this is dropped.
pub struct Running {
    runtime: Option<tokio::runtime::Runtime>,
    socket: Option<PathBuf>,
    address: Option<SocketAddr>,
}

impl Running {
    pub fn address(&self) -> String {
        self.address.unwrap().to_string()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
        if let Some(socket) = &self.socket {
            let _ = std::fs::remove_file(socket);
        }
    }
}
