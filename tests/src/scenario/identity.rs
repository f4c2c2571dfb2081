//! Certificates that must not be accepted: expired, of another authority, with the wrong role.

use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use time::{Duration, OffsetDateTime};

/// A certificate authority of the scenario's own.
#[derive(Debug)]
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(super) ca_pem: String,
}

/// Who a certificate says its holder is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Role {
    Agent,
    Operator,
}

/// A certificate and its key, PEM.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub(super) cert: String,
    pub(super) key: String,
}

impl Authority {
    pub(super) fn new() -> anyhow::Result<Self> {
        let mut params = CertificateParams::default();
        let now = OffsetDateTime::now_utc();
        (params.not_before, params.not_after) = (now - Duration::days(30), now + Duration::days(30));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.distinguished_name.push(DnType::CommonName, "another authority");
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let ca_pem = params.self_signed(&key).context("signing a CA certificate")?.pem();
        Ok(Self { issuer: Issuer::new(params, key), ca_pem })
    }

    /// A certificate that ends `ends_in` from now, which may be in the past. `dns` is the host
    /// name that it is good for as a server.
    pub(super) fn issue(
        &self,
        role: Role,
        name: &str,
        dns: &str,
        ends_in: Duration,
    ) -> anyhow::Result<Identity> {
        let mut params = CertificateParams::default();
        let now = OffsetDateTime::now_utc();
        (params.not_before, params.not_after) = (now - Duration::days(20), now + ends_in);
        params.distinguished_name.push(DnType::CommonName, name);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let role = match role {
            Role::Agent => "agent",
            Role::Operator => "operator",
        };
        params.subject_alt_names = vec![
            SanType::URI(format!("tranship://{role}/{name}").try_into().context("a URI")?),
            SanType::DnsName(dns.try_into().context("a host name")?),
        ];
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, &self.issuer).context("signing a certificate")?;
        Ok(Identity { cert: cert.pem(), key: key.serialize_pem() })
    }
}
