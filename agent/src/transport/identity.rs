//! Who a peer is: the role and the name in its certificate.

use rustls_pki_types::CertificateDer;
use std::any::Any;
use tranship_proto::ids::HostName;

/// What a certificate lets its holder do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// The agent of a host: may take part in hand-overs and ask about hosts.
    Agent(HostName),
    /// A person or a system: may do everything a controller can.
    Operator(String),
    /// Root on this host, through the Unix socket: as an operator.
    LocalRoot,
}

/// A peer that TLS has authenticated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its role.
    pub role: Role,
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.role {
            Role::Agent(h) => write!(f, "agent {h}"),
            Role::Operator(n) => write!(f, "operator {n}"),
            Role::LocalRoot => f.write_str("root on this host"),
        }
    }
}

/// Prefix of the URI name in every certificate.
const SCHEME: &str = "tranship://";

impl Identity {
    /// Reads the role out of the certificate chain that QUIC's TLS has verified.
    ///
    /// Exactly one `tranship://ROLE/NAME` URI must be there; two would leave open which counts.
    pub fn of_peer(identity: Option<Box<dyn Any>>) -> Result<Self, String> {
        let chain = identity
            .and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok())
            .ok_or("the peer sent no certificate")?;
        let cert = chain.first().ok_or("the peer sent no certificate")?;
        let cert =
            webpki::EndEntityCert::try_from(cert).map_err(|e| format!("unreadable certificate: {e}"))?;
        let mut ours = cert.valid_uri_names().filter_map(|uri| uri.strip_prefix(SCHEME));
        match (ours.next(), ours.next()) {
            (Some(name), None) => Self::parse(name),
            (None, _) => Err("its certificate names no tranship role".into()),
            (Some(_), Some(_)) => Err("its certificate names more than one tranship role".into()),
        }
    }

    fn parse(name: &str) -> Result<Self, String> {
        match name.split_once('/') {
            Some(("agent", host)) => {
                let host = host.parse().map_err(|e| format!("its certificate's agent name: {e}"))?;
                Ok(Self { role: Role::Agent(host) })
            }
            Some(("operator", who))
                if !who.is_empty() && who.len() <= 64 && who.bytes().all(|b| b.is_ascii_graphic()) =>
            {
                Ok(Self { role: Role::Operator(who.to_owned()) })
            }
            _ => Err(format!(
                "its certificate names the unknown role {:?}",
                name.chars().take(80).collect::<String>()
            )),
        }
    }

    /// Whether it may act as a controller.
    pub fn is_operator(&self) -> bool {
        matches!(self.role, Role::Operator(_) | Role::LocalRoot)
    }

    /// The host, when it is an agent.
    pub fn agent(&self) -> Option<&HostName> {
        match &self.role {
            Role::Agent(h) => Some(h),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_read_strictly() {
        assert_eq!(Identity::parse("agent/host-a").unwrap().agent().unwrap().as_str(), "host-a");
        assert!(Identity::parse("operator/alice").unwrap().is_operator());
        assert!(!Identity::parse("agent/host-a").unwrap().is_operator());
        for bad in ["agent/", "agent/../x", "root/x", "operator/", "operator/a b", "agent"] {
            assert!(Identity::parse(bad).is_err(), "{bad}");
        }
        assert!(Identity::of_peer(None).is_err());
    }
}
