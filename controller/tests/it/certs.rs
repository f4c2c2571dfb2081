//! Certificates with any fault that is wanted.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use std::path::{Path, PathBuf};
use time::{Duration, OffsetDateTime};

/// A CA.
pub struct TestCa {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

/// What a certificate is to be like.
#[derive(Clone)]
pub struct Leaf {
    pub dns: Option<&'static str>,
    pub uri: String,
    pub from: Duration,
    pub until: Duration,
    pub usages: Vec<ExtendedKeyUsagePurpose>,
}

impl Leaf {
    pub fn agent(host: &'static str) -> Self {
        Self {
            dns: Some(host),
            uri: format!("tranship://agent/{host}"),
            from: Duration::minutes(-5),
            until: Duration::days(1),
            usages: vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        }
    }

    pub fn operator() -> Self {
        Self {
            dns: None,
            uri: "tranship://operator/alice".into(),
            usages: vec![ExtendedKeyUsagePurpose::ClientAuth],
            ..Self::agent("x")
        }
    }

    pub fn expired(mut self) -> Self {
        (self.from, self.until) = (Duration::days(-10), Duration::days(-2));
        self
    }

    pub fn not_yet(mut self) -> Self {
        (self.from, self.until) = (Duration::days(2), Duration::days(10));
        self
    }

    pub fn usages(mut self, usages: Vec<ExtendedKeyUsagePurpose>) -> Self {
        self.usages = usages;
        self
    }
}

impl TestCa {
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = params(name, Duration::minutes(-5), Duration::days(30));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Certificate and key in PEM form.
    pub fn issue(&self, leaf: &Leaf) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = params("leaf", leaf.from, leaf.until);
        params.subject_alt_names = vec![SanType::URI(leaf.uri.clone().try_into().unwrap())];
        params.subject_alt_names.extend(leaf.dns.map(|d| SanType::DnsName(d.try_into().unwrap())));
        params.extended_key_usages = leaf.usages.clone();
        params.use_authority_key_identifier_extension = true;
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        (cert.pem(), key.serialize_pem())
    }

    /// Files of an operator in `dir`, and the configuration that names them.
    pub fn operator_config(&self, dir: &Path, leaf: &Leaf, hosts: &[(&str, String)]) -> PathBuf {
        let (cert, key) = self.issue(leaf);
        let files = [("ca.pem", &self.pem), ("op.pem", &cert), ("op.key", &key)];
        for (name, content) in files {
            std::fs::write(dir.join(name), content).unwrap();
        }
        let d = dir.display();
        let mut text = format!("[tls]\nca = '{d}/ca.pem'\ncert = '{d}/op.pem'\nkey = '{d}/op.key'\n");
        for (name, address) in hosts {
            text.push_str(&format!("[[hosts]]\nname = '{name}'\naddress = '{address}'\n"));
        }
        let path = dir.join("tranship.toml");
        std::fs::write(&path, text).unwrap();
        path
    }
}

fn params(name: &str, from: Duration, until: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    let now = OffsetDateTime::now_utc();
    (params.not_before, params.not_after) = (now + from, now + until);
    params
}
