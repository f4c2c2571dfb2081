//! What can go wrong between this command and an agent, in words for an operator.

use super::tls::TlsProblem;
use crate::error::Error;
use std::path::PathBuf;
use std::time::Duration;
use tranship_proto::error::WireError;
use tranship_proto::ids::HostName;
use tranship_proto::status::{Failure, Reason};

/// A failed conversation with an agent.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The socket of the local agent does not answer.
    #[error("cannot reach the agent of this host at {path}")]
    Socket {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A host's address does not resolve.
    #[error("cannot find the address {address} of {host}")]
    Resolve {
        /// The host.
        host: HostName,
        /// Its address in the inventory.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// No answer on the network.
    #[error("{host} does not answer at {address} (UDP)")]
    NoAnswer {
        /// The host.
        host: HostName,
        /// Where.
        address: String,
    },
    /// A connection cannot be begun.
    #[error("cannot open a connection to {host} at {address}: {why}")]
    Connect {
        /// The host.
        host: HostName,
        /// Where.
        address: String,
        /// Why.
        why: String,
    },
    /// The certificates of one side are not acceptable to the other.
    #[error("{problem}")]
    Tls {
        /// What exactly.
        problem: TlsProblem,
    },
    /// The operator's certificate files cannot be used.
    #[error("cannot use the {what} in {path}: {why}")]
    Material {
        /// Certificate, key or CA.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// No protocol version in common.
    #[error("{peer} speaks protocol versions {theirs:?} and this command {ours:?}: none in common")]
    Version {
        /// Who, and its software.
        peer: String,
        /// Its versions.
        theirs: Vec<u16>,
        /// Our versions.
        ours: Vec<u16>,
    },
    /// Another host answers.
    #[error("{peer} says that it is {got}")]
    WrongHost {
        /// Who was asked.
        peer: String,
        /// Who answered.
        got: HostName,
    },
    /// The bytes make no sense.
    #[error("{peer} sent something that is not understood")]
    Wire {
        /// Who.
        peer: String,
        /// What is wrong.
        source: WireError,
    },
    /// A message that does not belong here.
    #[error("{peer} answered with {got} where {wanted} was expected")]
    Unexpected {
        /// Who.
        peer: String,
        /// What came.
        got: String,
        /// What should have come.
        wanted: &'static str,
    },
    /// The stream ended early.
    #[error("the connection to {peer} ended {what}")]
    Ended {
        /// Who.
        peer: String,
        /// At which point.
        what: &'static str,
    },
    /// The agent closed the connection with words.
    #[error("{peer} closed the connection: {why}")]
    Closed {
        /// Who.
        peer: String,
        /// Its words.
        why: String,
    },
    /// The agent does not accept who this is.
    #[error("{peer} does not accept the certificate of this operator: {why}")]
    NotAccepted {
        /// Who.
        peer: String,
        /// Its words.
        why: String,
    },
    /// Reading or writing failed.
    #[error("cannot {what} {peer}")]
    Io {
        /// Who.
        peer: String,
        /// Read or write.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// No answer in time on an open connection.
    #[error("{peer} has not answered for {} s", .after.as_secs())]
    Silent {
        /// Who.
        peer: String,
        /// How long was waited.
        after: Duration,
    },
    /// The request cannot be sent.
    #[error("the request cannot be sent")]
    Request {
        /// Why.
        source: WireError,
    },
    /// The agent refuses the request.
    #[error("{0}")]
    Refused(Box<Failure>),
}

impl ClientError {
    /// The reason it counts as.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Socket { .. }
            | Self::Resolve { .. }
            | Self::NoAnswer { .. }
            | Self::Connect { .. }
            | Self::Ended { .. }
            | Self::Closed { .. }
            | Self::Io { .. }
            | Self::Silent { .. } => Reason::Unreachable,
            Self::Tls { .. } | Self::NotAccepted { .. } | Self::Material { .. } | Self::WrongHost { .. } => {
                Reason::NotAuthorized
            }
            Self::Version { .. } => Reason::Version,
            Self::Wire { .. } | Self::Unexpected { .. } => Reason::Internal,
            Self::Request { .. } => Reason::BadRequest,
            Self::Refused(f) => f.reason,
        }
    }

    /// Whether the connection is gone and a new one may do better.
    pub fn is_lost(&self) -> bool {
        self.reason() == Reason::Unreachable && !matches!(self, Self::Refused(_))
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        use std::io::ErrorKind as K;
        Some(match self {
            Self::Socket { source, .. } => match source.kind() {
                K::PermissionDenied => "only root may use this socket; run the command as root, or with \
                                        --host NAME and an operator's certificate"
                    .into(),
                K::NotFound => "is transhipd running here (`systemctl status transhipd`)? For another host \
                                use --host NAME"
                    .into(),
                _ => "transhipd is not running or is stopping; see `systemctl status transhipd` and \
                      `journalctl -u transhipd`"
                    .into(),
            },
            Self::Resolve { host, .. } => {
                format!("correct the address of {host} in the inventory, or give it as --host {host}=ADDRESS:PORT")
            }
            Self::NoAnswer { host, .. } => format!(
                "is {host} up, does transhipd run there, and does a firewall let its UDP port through?"
            ),
            Self::Tls { problem } => problem.hint(),
            Self::Material { what: "key", .. } => {
                "the key has to belong to the certificate and be readable; `tranship pki issue` makes both".into()
            }
            Self::Material { .. } => {
                "set [tls] ca, cert and key in the configuration (--config); `tranship pki issue --operator NAME` \
                 makes them"
                    .into()
            }
            Self::NotAccepted { .. } => {
                "use a certificate made by `tranship pki issue --operator NAME` and name it in [tls]".into()
            }
            Self::Version { .. } => "install the same tranship release on this machine and on that host".into(),
            Self::WrongHost { .. } => "correct the inventory: this address belongs to another host".into(),
            Self::Wire { .. } | Self::Unexpected { .. } => {
                "is it really transhipd that listens there, and of the same release?".into()
            }
            Self::Closed { .. } | Self::Ended { .. } | Self::Io { .. } | Self::Silent { .. } => {
                "look at the agent's log there: `journalctl -u transhipd`".into()
            }
            Self::Connect { .. } | Self::Request { .. } => return None,
            Self::Refused(f) => return f.hint.clone(),
        })
    }
}

impl From<ClientError> for Error {
    fn from(e: ClientError) -> Self {
        if let ClientError::Refused(failure) = e {
            return Error::from(*failure);
        }
        let error = Error::from_source(e.reason(), &e);
        match e.hint() {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;

    fn socket(kind: ErrorKind) -> String {
        Error::from(ClientError::Socket { path: "/run/tranship/agent.sock".into(), source: kind.into() })
            .to_text()
    }

    #[test]
    fn a_missing_agent_reads_well() {
        assert_eq!(
            socket(ErrorKind::NotFound),
            "error: cannot reach the agent of this host at /run/tranship/agent.sock\n  because: entity not found\n\
             hint: is transhipd running here (`systemctl status transhipd`)? For another host use --host NAME"
        );
        assert!(socket(ErrorKind::PermissionDenied).contains("as root"));
        assert!(socket(ErrorKind::ConnectionRefused).contains("not running"));
    }

    #[test]
    fn an_agents_refusal_keeps_its_own_reason_and_hint() {
        let failure = Failure::new(Reason::Refused, tranship_proto::status::Side::Destination, "no room")
            .hint("make some");
        let e = Error::from(ClientError::Refused(Box::new(failure)));
        assert_eq!((e.code(), e.to_text().as_str()), (6, "error: no room\nhint: make some"));
    }
}
