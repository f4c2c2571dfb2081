//! The operator's certificate, the check of the agent's, and TLS failures in words.
//!
//! QUIC reports a failed handshake as an alert number and a debug text. The text is not an
//! interface, so the verifier here delegates to webpki and keeps the exact error for the caller.
//! What the *other* side dislikes is known only as an alert (RFC 8446 section 6.2); to say more,
//! the own certificate is checked against the own CA and clock.

use super::error::ClientError;
use crate::config::TlsPaths;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use tranship_proto::ids::HostName;
use tranship_proto::version::ALPN;

/// Why two sides do not accept each other's certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsProblem {
    /// The host.
    pub host: HostName,
    /// What.
    pub kind: TlsProblemKind,
    /// The own CA file, for hints.
    pub ca: PathBuf,
    /// The own certificate file, for hints.
    pub cert: PathBuf,
}

/// The kinds of [`TlsProblem`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TlsProblemKind {
    /// The agent's certificate has expired (not after, Unix seconds).
    HostExpired(Option<u64>),
    /// The agent's certificate is not valid yet (not before, Unix seconds).
    HostNotYetValid(Option<u64>),
    /// The agent's certificate comes from another CA.
    HostOtherCa,
    /// The agent's certificate is for other names.
    HostWrongName(Vec<String>),
    /// The agent's certificate is not made for agents, or is damaged.
    HostOther(String),
    /// The agent refuses the operator's certificate: alert number, and what a check here found.
    OwnRefused {
        /// TLS alert.
        alert: u8,
        /// What is wrong with the certificate as seen from here.
        found: Option<String>,
    },
    /// The handshake failed for another reason.
    Handshake(String),
}

fn date(seconds: Option<u64>) -> String {
    seconds
        .and_then(|s| i64::try_from(s).ok())
        .and_then(|s| jiff::Timestamp::from_second(s).ok())
        .map_or_else(|| "an unknown date".into(), |t| t.strftime("%Y-%m-%d %H:%M UTC").to_string())
}

impl fmt::Display for TlsProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use TlsProblemKind as K;
        let host = &self.host;
        match &self.kind {
            K::HostExpired(at) => write!(f, "the certificate of {host} expired on {}", date(*at)),
            K::HostNotYetValid(at) => {
                write!(f, "the certificate of {host} is not valid before {}", date(*at))
            }
            K::HostOtherCa => {
                write!(f, "the certificate of {host} is signed by another CA than {}", self.ca.display())
            }
            K::HostWrongName(names) if names.is_empty() => {
                write!(f, "the certificate shown for {host} names no host")
            }
            K::HostWrongName(names) => {
                write!(f, "the certificate shown for {host} is for {}", names.join(", "))
            }
            K::HostOther(why) => write!(f, "the certificate of {host} is not acceptable: {why}"),
            K::OwnRefused { alert, found } => {
                write!(f, "{host} refuses the certificate {}: ", self.cert.display())?;
                match (alert, found) {
                    (_, Some(found)) => f.write_str(found),
                    (45, _) => f.write_str("it is expired or not yet valid by the clock there"),
                    (48 | 51, _) => f.write_str("it is signed by a CA that is not trusted there"),
                    (43, _) => f.write_str("it is not made for clients"),
                    (44, _) => f.write_str("it is revoked"),
                    (116, _) => f.write_str("none was sent"),
                    (n, _) => write!(f, "TLS alert {n}"),
                }
            }
            K::Handshake(why) => write!(f, "no TLS 1.3 connection to {host}: {why}"),
        }
    }
}

impl TlsProblem {
    /// What to do about it.
    pub fn hint(&self) -> String {
        use TlsProblemKind as K;
        let host = &self.host;
        match &self.kind {
            K::HostExpired(_) => format!(
                "make a new one with `tranship pki issue --dir DIR --agent {host} --force`, install it there and \
                 restart transhipd; if the date is in the future, the clock of this machine is wrong"
            ),
            K::HostNotYetValid(_) => format!("compare `date -u` on this machine and on {host}: one of the clocks is wrong"),
            K::HostOtherCa => format!(
                "use the CA file that {host} has (/etc/tranship/pki/ca.pem there), or issue its certificate from this CA"
            ),
            K::HostWrongName(_) => {
                format!("the address of {host} leads to another host, or its certificate was issued under another name")
            }
            K::HostOther(_) => format!("make a new one with `tranship pki issue --dir DIR --agent {host} --force`"),
            K::OwnRefused { alert: 48 | 51, found: None } => {
                format!("{host} trusts another CA; use a certificate issued by the CA in its /etc/tranship/pki/ca.pem")
            }
            K::OwnRefused { alert: 45, found: None } => {
                format!("compare `date -u` on this machine and on {host}: one of the clocks is wrong")
            }
            K::OwnRefused { .. } => {
                "make a new one with `tranship pki issue --dir DIR --operator NAME --force` and name it in [tls]".into()
            }
            K::Handshake(_) => format!("is it transhipd that listens at the address of {host}?"),
        }
    }
}

/// The operator's certificate with its key, and the CA to check agents with.
#[derive(Debug)]
pub struct Identity {
    paths: TlsPaths,
    roots: Arc<RootCertStore>,
    anchors: Vec<CertificateDer<'static>>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    /// Reads the three files. Errors name the file.
    pub fn load(paths: &TlsPaths) -> Result<Self, ClientError> {
        let anchors = certificates("CA", &paths.ca)?;
        let chain = certificates("certificate", &paths.cert)?;
        let key = PrivateKeyDer::from_pem_file(&paths.key)
            .map_err(|e| material("key", &paths.key, pem_words(&e)))?;
        let mut roots = RootCertStore::empty();
        for anchor in &anchors {
            roots.add(anchor.clone()).map_err(|e| material("CA", &paths.ca, e.to_string()))?;
        }
        Ok(Self { paths: paths.clone(), roots: Arc::new(roots), anchors, chain, key })
    }

    /// A client configuration, and the place where the verifier leaves its verdict.
    pub fn client_config(&self) -> Result<(rustls::ClientConfig, Verdict), ClientError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let inner = WebPkiServerVerifier::builder_with_provider(self.roots.clone(), provider.clone())
            .build()
            .map_err(|e| material("CA", &self.paths.ca, e.to_string()))?;
        let verdict = Verdict::default();
        let verifier = Arc::new(Recording { inner, verdict: verdict.clone() });
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| material("certificate", &self.paths.cert, e.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            .map_err(|e| material("key", &self.paths.key, e.to_string()))?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok((config, verdict))
    }

    /// A problem with this host, with the files' names for its words.
    pub fn problem(&self, host: &HostName, kind: TlsProblemKind) -> ClientError {
        let (ca, cert) = (self.paths.ca.clone(), self.paths.cert.clone());
        ClientError::Tls { problem: TlsProblem { host: host.clone(), kind, ca, cert } }
    }

    /// What is wrong with the own certificate by the own CA and clock, if anything.
    pub fn own_fault(&self, now: UnixTime) -> Option<String> {
        let leaf = self.chain.first()?;
        let cert = webpki::EndEntityCert::try_from(leaf).ok()?;
        let anchors: Vec<_> =
            self.anchors.iter().filter_map(|a| webpki::anchor_from_trusted_cert(a).ok()).collect();
        let usage = webpki::KeyUsage::client_auth();
        let algorithms = webpki::ALL_VERIFICATION_ALGS;
        let result = cert.verify_for_usage(algorithms, &anchors, &self.chain[1..], now, usage, None, None);
        Some(match result.err()? {
            webpki::Error::CertExpired { not_after, .. } => {
                format!("it expired on {}", date(Some(not_after.as_secs())))
            }
            webpki::Error::CertNotValidYet { not_before, .. } => {
                format!("it is not valid before {}", date(Some(not_before.as_secs())))
            }
            webpki::Error::UnknownIssuer => {
                format!("it is not signed by the CA in {}", self.paths.ca.display())
            }
            webpki::Error::RequiredEkuNotFoundContext(_) => "it is not made for clients".into(),
            e => format!("{e:?}"),
        })
    }
}

fn material(what: &'static str, path: &std::path::Path, why: impl Into<String>) -> ClientError {
    ClientError::Material { what, path: path.into(), why: why.into() }
}

fn pem_words(e: &rustls::pki_types::pem::Error) -> String {
    match e {
        rustls::pki_types::pem::Error::Io(e) => e.to_string(),
        rustls::pki_types::pem::Error::NoItemsFound => "no such PEM section in it".into(),
        e => e.to_string(),
    }
}

fn certificates(
    what: &'static str,
    path: &std::path::Path,
) -> Result<Vec<CertificateDer<'static>>, ClientError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    match all {
        Ok(list) if list.is_empty() => Err(material(what, path, "no certificate in it")),
        Ok(list) => Ok(list),
        Err(e) => Err(material(what, path, pem_words(&e))),
    }
}

/// Where the verifier leaves what it found.
#[derive(Debug, Clone, Default)]
pub struct Verdict(Arc<Mutex<Option<rustls::Error>>>);

impl Verdict {
    /// What is wrong with the agent's certificate, if it was seen and refused.
    pub fn problem(&self) -> Option<TlsProblemKind> {
        let error = self.0.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        let rustls::Error::InvalidCertificate(error) = error else {
            return Some(TlsProblemKind::HostOther(error.to_string()));
        };
        Some(match error {
            CertificateError::Expired => TlsProblemKind::HostExpired(None),
            CertificateError::ExpiredContext { not_after, .. } => {
                TlsProblemKind::HostExpired(Some(not_after.as_secs()))
            }
            CertificateError::NotValidYet => TlsProblemKind::HostNotYetValid(None),
            CertificateError::NotValidYetContext { not_before, .. } => {
                TlsProblemKind::HostNotYetValid(Some(not_before.as_secs()))
            }
            // A CA of the same name with another key shows as a bad signature.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => TlsProblemKind::HostOtherCa,
            CertificateError::NotValidForName => TlsProblemKind::HostWrongName(Vec::new()),
            CertificateError::NotValidForNameContext { presented, .. } => TlsProblemKind::HostWrongName(
                presented.iter().take(4).map(|n| crate::output::clean_line(n)).collect(),
            ),
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                TlsProblemKind::HostOther("it is not made for servers".into())
            }
            e => TlsProblemKind::HostOther(e.to_string()),
        })
    }
}

/// webpki's verifier with a memory.
#[derive(Debug)]
struct Recording {
    inner: Arc<WebPkiServerVerifier>,
    verdict: Verdict,
}

impl ServerCertVerifier for Recording {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now).inspect_err(
            |e| {
                *self.verdict.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(e.clone());
            },
        )
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
