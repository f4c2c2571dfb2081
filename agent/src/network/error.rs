//! What can go wrong with a container's network, and what an operator can do about it.

use std::io;
use tranship_proto::error::WireError;

/// An error of this module. Each names what was attempted, on what, and why it failed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A system call or a netlink request failed.
    #[error("cannot {attempt} {what}: {why}")]
    Failed {
        /// What was attempted, as a verb.
        attempt: &'static str,
        /// On what.
        what: String,
        /// The kernel's reason.
        #[source]
        why: io::Error,
    },
    /// A description from a peer or an operator breaks a limit or a rule.
    #[error("network description refused: {0}")]
    Invalid(#[from] WireError),
    /// A network is asked for that this host does not have.
    #[error("this host has no network {network:?} (configured: {known})")]
    MissingNetwork {
        /// The network.
        network: String,
        /// What there is.
        known: String,
    },
    /// A network is configured but its bridge does not exist.
    #[error("network {network:?} is configured as bridge {bridge:?}, which does not exist")]
    MissingBridge {
        /// The network.
        network: String,
        /// The bridge.
        bridge: String,
    },
    /// A bridge that would keep a new port shut for half a minute.
    #[error("bridge {bridge:?} runs the spanning tree protocol: a port opens only after 30 s")]
    SlowBridge {
        /// The bridge.
        bridge: String,
    },
    /// Packets of the container would not fit through the bridge.
    #[error("link {link} has an MTU of {mtu}, bridge {bridge:?} on this host only {limit}")]
    SmallBridge {
        /// The container's link.
        link: String,
        /// Its MTU.
        mtu: u32,
        /// The bridge.
        bridge: String,
        /// The bridge's MTU.
        limit: u32,
    },
    /// A link leads to a bridge that is no configured network.
    #[error("link {link} is attached to {bridge:?}, which is no configured network")]
    NoNetwork {
        /// The container's link.
        link: String,
        /// The bridge.
        bridge: String,
    },
    /// A link's host end is not there.
    #[error("link {link} of container {container} has no host end {port}")]
    Unattached {
        /// The container.
        container: String,
        /// Its link.
        link: String,
        /// The name the host end should have.
        port: String,
    },
    /// A link of a sort that cannot be made again elsewhere.
    #[error("link {name} is of kind {kind}, which cannot be moved")]
    UnsupportedLink {
        /// The link.
        name: String,
        /// Its kind.
        kind: String,
    },
    /// A route, rule or queueing discipline that cannot be made again elsewhere.
    #[error("{what} cannot be moved: {why}")]
    Unsupported {
        /// The object.
        what: String,
        /// The part that is not understood.
        why: String,
    },
    /// The namespace has firewall rules.
    #[error("the container's network namespace has netfilter rules ({what}), which would be lost")]
    NetfilterRules {
        /// Which.
        what: String,
    },
    /// The namespace has IPsec state.
    #[error("the container's network namespace has IPsec {what}, which would be lost")]
    Ipsec {
        /// States or policies.
        what: &'static str,
    },
    /// More than is carried.
    #[error("{count} {what} are more than the {limit} that can be moved")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        count: usize,
        /// How many may be.
        limit: usize,
    },
    /// The namespace to be filled has something in it.
    #[error("network namespace {netns} already has link {link}")]
    NotEmpty {
        /// The namespace's file.
        netns: String,
        /// What is there.
        link: String,
    },
    /// A sysctl that the container depends on cannot be set.
    #[error("cannot set sysctl {key} to {value:?}: {why}")]
    Sysctl {
        /// Path below `/proc/sys`.
        key: String,
        /// The value wanted.
        value: String,
        /// The kernel's reason.
        #[source]
        why: io::Error,
    },
    /// An operation failed, and so did undoing what it had done.
    #[error("{error}; then cleaning up failed: {cleanup}")]
    Both {
        /// The first.
        #[source]
        error: Box<NetworkError>,
        /// The second.
        cleanup: Box<NetworkError>,
    },
}

impl NetworkError {
    /// What an operator can do, where there is something to do.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::MissingNetwork { .. } => "add it under [networks] in transhipd.toml of this host",
            Self::MissingBridge { .. } => "create the bridge, or correct [networks] in transhipd.toml",
            Self::SlowBridge { .. } => "turn it off (ip link set BRIDGE type bridge stp_state 0)",
            Self::SmallBridge { .. } => "raise the bridge's MTU (ip link set BRIDGE mtu N)",
            Self::NoNetwork { .. } => "name the bridge under [networks] in transhipd.toml of this host",
            Self::Unattached { .. } => "only containers whose links were made by tranship can be moved",
            Self::UnsupportedLink { .. } => "remove the link from the container before the migration",
            Self::Unsupported { .. } => "remove it inside the container before the migration",
            Self::NetfilterRules { .. } => "put the rules on the hosts, or flush them before the migration",
            Self::Ipsec { .. } => "flush it (ip xfrm state flush; ip xfrm policy flush) before the migration",
            Self::NotEmpty { .. } => "destroy what an earlier attempt left there",
            Self::Sysctl { .. } => "the kernels or loaded modules of the two hosts differ",
            Self::Both { error, .. } => return error.hint(),
            Self::Failed { .. } | Self::Invalid(_) | Self::TooMany { .. } => return None,
        })
    }

    /// Is it a clear no about the container itself, found before anything was touched?
    pub fn is_refusal(&self) -> bool {
        !matches!(self, Self::Failed { .. } | Self::Sysctl { .. } | Self::NotEmpty { .. } | Self::Both { .. })
    }
}

/// Adds the attempt to a bare error of the kernel's.
pub(super) trait Attempt<T> {
    /// `attempt` is a verb, `what` its object.
    fn attempt(self, attempt: &'static str, what: impl Into<String>) -> Result<T, NetworkError>;
}

impl<T, E: Into<io::Error>> Attempt<T> for Result<T, E> {
    fn attempt(self, attempt: &'static str, what: impl Into<String>) -> Result<T, NetworkError> {
        self.map_err(|e| NetworkError::Failed { attempt, what: what.into(), why: e.into() })
    }
}
