//! Certificates of the lab's own authority, so that `up` does not depend on the controller.
//!
//! Same shape as `tranship pki` makes: ECDSA P-256, the role and name in a URI
//! (`tranship://agent/host-a`, `tranship://operator/lab`), agents with their host name as DNS
//! name too, and usable for both ends of a connection.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use time::{Duration, OffsetDateTime};

use crate::error::{LabError, Result};

/// Days a lab's certificates are valid.
const VALID_DAYS: i64 = 30;

/// The lab's certificate authority; its key never leaves this process.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// The authority's certificate, PEM.
    pub ca_pem: String,
}

/// A certificate with its key, both PEM.
#[derive(Debug)]
pub struct Identity {
    /// The certificate.
    pub cert_pem: String,
    /// The private key, PKCS #8.
    pub key_pem: String,
}

impl Authority {
    /// Makes a new authority.
    pub fn new(lab: &str) -> Result<Self> {
        let mut params = validity(CertificateParams::default());
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.distinguished_name.push(DnType::CommonName, format!("tranship lab {lab}"));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().map_err(failed)?;
        let ca_pem = params.self_signed(&key).map_err(failed)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), ca_pem })
    }

    /// A certificate for the agent of a host.
    pub fn agent(&self, host: &str) -> Result<Identity> {
        self.issue("agent", host, true)
    }

    /// A certificate for an operator.
    pub fn operator(&self, name: &str) -> Result<Identity> {
        self.issue("operator", name, false)
    }

    fn issue(&self, role: &str, name: &str, dns: bool) -> Result<Identity> {
        let mut params = validity(CertificateParams::default());
        params.distinguished_name.push(DnType::CommonName, name);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names =
            vec![SanType::URI(format!("tranship://{role}/{name}").try_into().map_err(failed)?)];
        if dns {
            params.subject_alt_names.push(SanType::DnsName(name.try_into().map_err(failed)?));
        }
        let key = KeyPair::generate().map_err(failed)?;
        let cert = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok(Identity { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
    }

    /// Writes `ca.pem`, `STEM.pem` and `STEM.key` (mode 0600) into `dir`.
    pub fn install(&self, dir: &Path, stem: &str, identity: &Identity) -> Result<()> {
        fs::create_dir_all(dir).map_err(LabError::io("create", dir))?;
        write(&dir.join("ca.pem"), &self.ca_pem, 0o644)?;
        write(&dir.join(format!("{stem}.pem")), &identity.cert_pem, 0o644)?;
        write(&dir.join(format!("{stem}.key")), &identity.key_pem, 0o600)
    }
}

fn validity(mut params: CertificateParams) -> CertificateParams {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - Duration::minutes(5);
    params.not_after = now + Duration::days(VALID_DAYS);
    params
}

fn write(path: &Path, text: &str, mode: u32) -> Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(LabError::io("write", path))
}

fn failed(e: rcgen::Error) -> LabError {
    LabError::System { what: "make a certificate".into(), source: std::io::Error::other(e) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn identities_are_signed_by_the_authority_and_keys_are_private() {
        let authority = Authority::new("t").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let identity = authority.agent("host-a").unwrap();
        authority.install(dir.path(), "host", &identity).unwrap();
        let key = fs::metadata(dir.path().join("host.key")).unwrap();
        assert_eq!(key.permissions().mode() & 0o777, 0o600);
        let text = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let Ok(verify) =
            crate::run::tool(&["openssl", "verify", "-CAfile", &text("ca.pem"), &text("host.pem")], None)
        else {
            return; // no openssl on this machine
        };
        verify.ok().unwrap();
        let shown = crate::run::tool(&["openssl", "x509", "-noout", "-text", "-in", &text("host.pem")], None);
        let shown = shown.unwrap().ok().unwrap();
        assert!(shown.contains("URI:tranship://agent/host-a, DNS:host-a"), "{shown}");
        assert!(shown.contains("prime256v1"));
        assert!(shown.contains("TLS Web Server Authentication, TLS Web Client Authentication"));
    }
}
