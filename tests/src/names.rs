//! Names, addresses and directories of a lab.
//!
//! Everything the lab makes in the kernel carries the lab's name, so that `down` finds it with no
//! record at all: cgroups below `tl-LAB`, network namespaces `tl-LAB-*`, mounts and files below
//! the lab's directory. Lab names hold no dash, so no lab's prefix matches another lab's objects.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{LabError, Result};

/// The most hosts a lab takes: one letter each.
pub const MAX_HOSTS: usize = 26;

/// Name of a lab: a lower-case letter, then up to 11 lower-case letters or digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LabName(String);

impl LabName {
    /// Checks the shape of the name.
    pub fn new(name: &str) -> Result<Self> {
        let mut bytes = name.bytes();
        let first = bytes.next().is_some_and(|b| b.is_ascii_lowercase());
        let rest = bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if first && rest && name.len() <= 12 {
            Ok(Self(name.to_owned()))
        } else {
            Err(LabError::Invalid {
                what: format!("{name:?} is not a name for a lab"),
                hint: "a name is a lower-case letter and up to 11 more letters or digits".into(),
            })
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `/var/lib/tranship-lab/LAB`.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        base_dir().join(&self.0)
    }

    /// `state.json` of the lab.
    #[must_use]
    pub fn state_file(&self) -> PathBuf {
        self.dir().join("state.json")
    }

    /// What the lab keeps of one host: upper layer, stores, logs.
    #[must_use]
    pub fn host_dir(&self, host: &str) -> PathBuf {
        self.dir().join(host)
    }

    /// Copies of the programs under test.
    #[must_use]
    pub fn bin_dir(&self) -> PathBuf {
        self.dir().join("bin")
    }

    /// `ca.pem`, `operator.pem` and `operator.key` for programs in the client namespace.
    #[must_use]
    pub fn operator_dir(&self) -> PathBuf {
        self.dir().join("operator")
    }

    /// `tl-LAB`, the cgroup that holds every process of the lab, in each hierarchy.
    #[must_use]
    pub fn cgroup(&self) -> String {
        format!("tl-{}", self.0)
    }

    /// What the names of the lab's network namespaces start with.
    #[must_use]
    pub fn netns_prefix(&self) -> String {
        format!("tl-{}-", self.0)
    }

    /// Name below /run/netns of the namespace that holds the bridges between the hosts.
    #[must_use]
    pub fn switch_netns(&self) -> String {
        format!("tl-{}-switch", self.0)
    }

    /// Name below /run/netns of the namespace where clients run.
    #[must_use]
    pub fn client_netns(&self) -> String {
        format!("tl-{}-client", self.0)
    }
}

impl fmt::Display for LabName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for LabName {
    type Error = LabError;
    fn try_from(name: String) -> Result<Self> {
        Self::new(&name)
    }
}

impl From<LabName> for String {
    fn from(name: LabName) -> Self {
        name.0
    }
}

/// Where labs keep their state: `$TRANSHIP_LAB_DIR`, else `/var/lib/tranship-lab`. It must not be
/// on an overlay, since the hosts' root file systems are overlays on it.
#[must_use]
pub fn base_dir() -> PathBuf {
    std::env::var_os("TRANSHIP_LAB_DIR").map_or_else(|| PathBuf::from("/var/lib/tranship-lab"), PathBuf::from)
}

/// Where root file systems are cached: `$TRANSHIP_LAB_CACHE`, else `/var/cache/tranship-lab`.
#[must_use]
pub fn cache_dir() -> PathBuf {
    std::env::var_os("TRANSHIP_LAB_CACHE")
        .map_or_else(|| PathBuf::from("/var/cache/tranship-lab"), PathBuf::from)
}

/// `host-a` for 0, `host-b` for 1, ...
#[must_use]
pub fn host_name(index: usize) -> String {
    let letter = char::from(b'a' + u8::try_from(index.min(MAX_HOSTS - 1)).unwrap_or(0));
    format!("host-{letter}")
}

/// The two networks every host and the client are attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// `lan`: br0 and eth0, 10.77.0.0/16 and fd77::/64.
    Lan,
    /// `back`: br1 and eth1, 10.78.0.0/16 and fd78::/64.
    Back,
}

impl Network {
    /// Both, in the order of their interfaces.
    pub const ALL: [Self; 2] = [Self::Lan, Self::Back];

    /// Name in `transhipd.toml`, and of the bridge in the switch namespace.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Lan => "lan",
            Self::Back => "back",
        }
    }

    /// 0 or 1: eth0 and br0, eth1 and br1.
    #[must_use]
    pub fn index(self) -> u8 {
        match self {
            Self::Lan => 0,
            Self::Back => 1,
        }
    }

    /// The host's uplink.
    #[must_use]
    pub fn interface(self) -> String {
        format!("eth{}", self.index())
    }

    /// The host's bridge.
    #[must_use]
    pub fn bridge(self) -> String {
        format!("br{}", self.index())
    }

    /// Port of `node` ("host-a", "client") on this network's bridge in the switch namespace.
    #[must_use]
    pub fn port(self, node: &str) -> String {
        format!("{node}-{}", self.index())
    }

    /// IPv4 address of the host with this index, prefix length 16.
    #[must_use]
    pub fn host_v4(self, index: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 77 + self.index(), 0, host_number(index))
    }

    /// IPv6 address of the host with this index, prefix length 64.
    #[must_use]
    pub fn host_v6(self, index: usize) -> Ipv6Addr {
        Ipv6Addr::new(self.v6(), 0, 0, 0, 0, 0, 0, u16::from(host_number(index)))
    }

    /// IPv4 address of the client namespace, prefix length 16.
    #[must_use]
    pub fn client_v4(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77 + self.index(), 254, 1)
    }

    /// IPv6 address of the client namespace, prefix length 64.
    #[must_use]
    pub fn client_v6(self) -> Ipv6Addr {
        Ipv6Addr::new(self.v6(), 0, 0, 0, 0, 0, 0xfe, 1)
    }

    /// Fixed MAC address for a host's bridge: a bridge that takes the lowest of its ports'
    /// addresses would change it whenever a container comes or goes.
    #[must_use]
    pub fn bridge_mac(self, index: usize) -> String {
        format!("02:{:02x}:00:00:00:{:02x}", 0x77 + self.index(), host_number(index))
    }

    fn v6(self) -> u16 {
        0xfd77 + u16::from(self.index())
    }
}

fn host_number(index: usize) -> u8 {
    u8::try_from(index.min(MAX_HOSTS - 1) + 1).unwrap_or(1)
}

/// UDP port the agents listen on.
pub const AGENT_PORT: u16 = 7717;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_a_dash_or_capitals_are_refused() {
        for bad in ["", "a-b", "Lab", "1lab", "abcdefghijklm", "lab/..", "läb"] {
            assert!(LabName::new(bad).is_err(), "{bad}");
        }
        assert_eq!(LabName::new("lab2").unwrap().cgroup(), "tl-lab2");
    }

    #[test]
    fn addresses_are_those_of_the_plan() {
        assert_eq!(host_name(1), "host-b");
        assert_eq!(Network::Lan.host_v4(1).to_string(), "10.77.0.2");
        assert_eq!(Network::Back.host_v6(0).to_string(), "fd78::1");
        assert_eq!(Network::Lan.client_v6().to_string(), "fd77::fe:1");
        assert_eq!(Network::Back.client_v4().to_string(), "10.78.254.1");
        assert!(Network::Back.port(&host_name(25)).len() <= 15);
    }
}
