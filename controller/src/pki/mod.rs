//! The fleet's certificates: a CA of its own, certificates for agents and operators.
//!
//! One CA for one fleet, ECDSA P-256, files in PEM form. A role is a URI in the certificate
//! (`tranship://agent/host-a`, `tranship://operator/alice`); agents also carry their host name as
//! a DNS name, which whoever connects to them checks.
//!
//! Rejected: a daemon that issues certificates (one more thing to run and to guard), and public
//! CAs (they do not issue for host names without a domain). The CA's key is needed only here and
//! can be kept off every host.

mod files;

pub use files::{read_pem, write_new};

use crate::error::Error;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use time::{Duration, OffsetDateTime};
use tranship_proto::ids::HostName;
use tranship_proto::status::Reason;

/// Life of a CA in days: ten years.
pub const CA_DAYS: u32 = 3653;
/// Life of other certificates in days.
pub const LEAF_DAYS: u32 = 825;
/// Longest life that is accepted in days: a century.
pub const MAX_DAYS: u32 = 36_525;
/// Certificates begin a little in the past: clocks of hosts differ.
const SKEW: Duration = Duration::minutes(5);

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file is there already.
    #[error("{path} is there already")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A file or directory cannot be read or written.
    #[error("cannot {what} {path}")]
    File {
        /// Read, write, ...
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The CA's files are not usable.
    #[error("{path} is not a usable {what}: {why}")]
    Material {
        /// What it should be.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A value does not fit into a certificate.
    #[error("cannot make a certificate for {name}: {why}")]
    Value {
        /// For whom.
        name: String,
        /// Why.
        why: String,
    },
}

impl From<PkiError> for Error {
    fn from(e: PkiError) -> Self {
        let (reason, hint) = match &e {
            PkiError::Exists { .. } => (
                Reason::BadRequest,
                Some(
                    "--force replaces it; with a new CA every certificate of the old one stops being accepted",
                ),
            ),
            PkiError::File { what: "read", .. } => (
                Reason::Failed,
                Some("make a CA first with `tranship pki init --dir DIR`, and name its directory"),
            ),
            PkiError::File { .. } => (Reason::Failed, None),
            PkiError::Material { .. } => {
                (Reason::Failed, Some("`tranship pki init --dir DIR` makes a new CA"))
            }
            PkiError::Value { .. } => (Reason::BadRequest, None),
        };
        let error = Error::from_source(reason, &e);
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

/// Whom a certificate is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// The agent of a host; the addresses are put in beside its name.
    Agent(HostName, Vec<IpAddr>),
    /// A person or a program that gives orders.
    Operator(String),
}

impl Subject {
    /// The role as in the certificate.
    pub fn uri(&self) -> String {
        match self {
            Self::Agent(host, _) => format!("tranship://agent/{host}"),
            Self::Operator(name) => format!("tranship://operator/{name}"),
        }
    }

    /// The file's name without its ending.
    pub fn stem(&self) -> String {
        match self {
            Self::Agent(host, _) => format!("agent-{host}"),
            Self::Operator(name) => format!("operator-{name}"),
        }
    }
}

/// A certificate and its key in PEM form, and its last day.
pub struct Issued {
    /// Certificate.
    pub cert: String,
    /// Private key (PKCS #8).
    pub key: String,
    /// End of its validity, Unix seconds.
    pub not_after: i64,
}

/// A new CA.
pub fn new_ca(name: &str, days: u32) -> Result<Issued, PkiError> {
    let wrong = |e: rcgen::Error| PkiError::Value { name: name.into(), why: e.to_string() };
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(wrong)?;
    let mut params = params(name, days)?;
    // No CA below this one: a stolen agent key must not be able to sign anything.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    let cert = params.self_signed(&key).map_err(wrong)?;
    Ok(Issued { cert: cert.pem(), key: key.serialize_pem(), not_after: params.not_after.unix_timestamp() })
}

/// A CA that was made before.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    /// Reads `ca.pem` and `ca.key` of a directory.
    pub fn load(dir: &Path) -> Result<Self, PkiError> {
        let (cert_path, key_path) = (dir.join("ca.pem"), dir.join("ca.key"));
        let (cert, key) = (read_pem(&cert_path)?, read_pem(&key_path)?);
        let bad = |what, path: &Path, e: rcgen::Error| PkiError::Material {
            what,
            path: path.into(),
            why: e.to_string(),
        };
        let key = KeyPair::from_pem(&key).map_err(|e| bad("key", &key_path, e))?;
        let issuer =
            Issuer::from_ca_cert_pem(&cert, key).map_err(|e| bad("CA certificate", &cert_path, e))?;
        Ok(Self { issuer })
    }

    /// Issues a certificate with a new key.
    pub fn issue(&self, subject: &Subject, days: u32) -> Result<Issued, PkiError> {
        let name = subject.stem();
        let wrong = |e: rcgen::Error| PkiError::Value { name: name.clone(), why: e.to_string() };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(wrong)?;
        let common = match subject {
            Subject::Agent(host, _) => host.as_str(),
            Subject::Operator(name) => name,
        };
        let mut params = params(common, days)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params.subject_alt_names.push(SanType::URI(subject.uri().try_into().map_err(wrong)?));
        match subject {
            Subject::Agent(host, addresses) => {
                params.subject_alt_names.push(SanType::DnsName(host.as_str().try_into().map_err(wrong)?));
                params.subject_alt_names.extend(addresses.iter().map(|ip| SanType::IpAddress(*ip)));
                params.extended_key_usages =
                    vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            }
            // An operator never answers as a server.
            Subject::Operator(_) => params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth],
        }
        let cert = params.signed_by(&key, &self.issuer).map_err(wrong)?;
        Ok(Issued {
            cert: cert.pem(),
            key: key.serialize_pem(),
            not_after: params.not_after.unix_timestamp(),
        })
    }
}

fn params(common_name: &str, days: u32) -> Result<CertificateParams, PkiError> {
    if !(1..=MAX_DAYS).contains(&days) {
        return Err(PkiError::Value {
            name: common_name.into(),
            why: format!("{days} days are not 1 to {MAX_DAYS}"),
        });
    }
    let now = OffsetDateTime::now_utc();
    let mut params = CertificateParams::default();
    let mut dn = DistinguishedName::new();
    dn.push(DnType::OrganizationName, "tranship");
    dn.push(DnType::CommonName, common_name);
    params.distinguished_name = dn;
    params.not_before = now - SKEW;
    params.not_after = now + Duration::days(i64::from(days));
    Ok(params)
}

/// Checks an operator's name: it becomes part of a URI and of a file's name.
pub fn operator_name(text: &str) -> Result<String, String> {
    let good = (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-@".contains(&b))
        && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if good {
        Ok(text.into())
    } else {
        Err("use 1 to 63 of a-z, A-Z, 0-9, . _ - @, starting with a letter or digit".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};

    fn verify(ca: &str, leaf: &str, usage: webpki::KeyUsage, at: UnixTime) -> Result<(), webpki::Error> {
        let ca = CertificateDer::from_pem_slice(ca.as_bytes()).unwrap();
        let leaf = CertificateDer::from_pem_slice(leaf.as_bytes()).unwrap();
        let anchors = [webpki::anchor_from_trusted_cert(&ca).unwrap()];
        let cert = webpki::EndEntityCert::try_from(&leaf).unwrap();
        cert.verify_for_usage(webpki::ALL_VERIFICATION_ALGS, &anchors, &[], at, usage, None, None).map(drop)
    }

    fn load(ca: &Issued) -> Ca {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), &ca.cert).unwrap();
        std::fs::write(dir.path().join("ca.key"), &ca.key).unwrap();
        Ca::load(dir.path()).unwrap()
    }

    #[test]
    fn an_agent_is_both_sides_and_carries_its_names() {
        let ca = new_ca("test", CA_DAYS).unwrap();
        let subject = Subject::Agent("host-a".parse().unwrap(), vec!["10.0.0.1".parse().unwrap()]);
        let agent = load(&ca).issue(&subject, 10).unwrap();
        let now = UnixTime::now();
        verify(&ca.cert, &agent.cert, webpki::KeyUsage::server_auth(), now).unwrap();
        verify(&ca.cert, &agent.cert, webpki::KeyUsage::client_auth(), now).unwrap();
        let der = CertificateDer::from_pem_slice(agent.cert.as_bytes()).unwrap();
        let cert = webpki::EndEntityCert::try_from(&der).unwrap();
        assert_eq!(cert.valid_uri_names().collect::<Vec<_>>(), ["tranship://agent/host-a"]);
        assert_eq!(cert.valid_dns_names().collect::<Vec<_>>(), ["host-a"]);
        for good in ["host-a", "10.0.0.1"] {
            cert.verify_is_valid_for_subject_name(&ServerName::try_from(good).unwrap()).unwrap();
        }
        assert!(cert.verify_is_valid_for_subject_name(&ServerName::try_from("host-b").unwrap()).is_err());
    }

    #[test]
    fn validity_is_the_one_asked_for_with_room_for_clocks() {
        let ca = new_ca("test", CA_DAYS).unwrap();
        let leaf = load(&ca).issue(&Subject::Operator("alice".into()), 10).unwrap();
        let at = |offset: i64| {
            let now = i64::try_from(UnixTime::now().as_secs()).unwrap();
            UnixTime::since_unix_epoch(std::time::Duration::from_secs((now + offset).try_into().unwrap()))
        };
        let client = webpki::KeyUsage::client_auth;
        for (offset, good) in
            [(-360, false), (-240, true), (10 * 86_400 - 60, true), (10 * 86_400 + 60, false)]
        {
            assert_eq!(verify(&ca.cert, &leaf.cert, client(), at(offset)).is_ok(), good, "{offset}");
        }
        assert!(new_ca("test", 0).is_err() && new_ca("test", MAX_DAYS + 1).is_err());
    }

    #[test]
    fn an_operator_cannot_pose_as_a_server_nor_a_leaf_as_a_ca() {
        let ca = new_ca("test", CA_DAYS).unwrap();
        let alice = load(&ca).issue(&Subject::Operator("alice".into()), 10).unwrap();
        assert!(verify(&ca.cert, &alice.cert, webpki::KeyUsage::server_auth(), UnixTime::now()).is_err());
        let forged = load(&alice).issue(&Subject::Operator("mallory".into()), 10).unwrap();
        assert!(verify(&ca.cert, &forged.cert, webpki::KeyUsage::client_auth(), UnixTime::now()).is_err());
    }

    #[test]
    fn names_that_could_climb_are_refused() {
        for bad in ["", "a/b", "..", "-a", "a b", "ä", &"a".repeat(64)] {
            assert!(operator_name(bad).is_err(), "{bad:?}");
        }
        assert!(operator_name("alice@example.org").is_ok());
    }
}
