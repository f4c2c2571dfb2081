//! The network of a container as it travels: everything inside its network namespace that has to
//! be the same at the destination.
//!
//! The document is written by the source and read by the destination, which runs as root and feeds
//! it to the kernel: [`NetCapture::check`] bounds every list, name and number first. Netlink
//! attributes are not passed through as bytes, for nobody could then say what they may do.
//! It travels as JSON (fields at their default are left out, which the binary codec cannot do).

use crate::error::WireError;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

mod check;

pub use check::{check_if_name, check_network_name, check_sysctl_key};

/// Links of one container, loopback included.
pub const MAX_LINKS: usize = 32;
/// Addresses of one link.
pub const MAX_ADDRESSES: usize = 256;
/// Routes of one container.
pub const MAX_ROUTES: usize = 4096;
/// Next hops of one route.
pub const MAX_NEXT_HOPS: usize = 64;
/// Policy rules of one container.
pub const MAX_RULES: usize = 512;
/// Permanent and proxy neighbours of one container.
pub const MAX_NEIGHBOURS: usize = 4096;
/// Sysctls of one container: some 400, and 145 more for each link.
pub const MAX_SYSCTLS: usize = 8192;
/// Bytes of a sysctl's name.
pub const MAX_SYSCTL_KEY: usize = 128;
/// Bytes of a sysctl's value.
pub const MAX_SYSCTL_VALUE: usize = 256;
/// Bytes of an interface's name (`IFNAMSIZ` less the NUL).
pub const MAX_IF_NAME: usize = 15;
/// Lifetime that never ends, in seconds.
pub const FOREVER: u32 = u32::MAX;

/// An Ethernet address, as text `aa:bb:cc:dd:ee:ff`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Neither zero nor a group address (IEEE 802-2014, 8.2): fit to be an interface's own.
    pub fn is_station(&self) -> bool {
        self.0 != [0; 6] && self.0[0] & 1 == 0
    }

    /// The link-local address made from it: modified EUI-64 (RFC 4291, appendix A).
    pub fn link_local(&self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(out, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

impl FromStr for Mac {
    type Err = WireError;

    fn from_str(s: &str) -> Result<Self, WireError> {
        let bad =
            || WireError::invalid("mac address", format!("{:?}", s.chars().take(32).collect::<String>()));
        let mut mac = [0; 6];
        let mut parts = s.split(':');
        for byte in &mut mac {
            let p = parts.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()));
            *byte = u8::from_str_radix(p.ok_or_else(bad)?, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() { Err(bad()) } else { Ok(Self(mac)) }
    }
}

impl TryFrom<String> for Mac {
    type Error = WireError;

    fn try_from(s: String) -> Result<Self, WireError> {
        s.parse()
    }
}

impl From<Mac> for String {
    fn from(m: Mac) -> String {
        m.to_string()
    }
}

/// An address and the length of its prefix, as text `10.0.0.5/16`. Host bits are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IpNet {
    /// The address.
    pub ip: IpAddr,
    /// 0 to 32 or 0 to 128.
    pub prefix: u8,
}

impl IpNet {
    /// Checks the length against the family.
    ///
    /// # Errors
    /// When the prefix is longer than the address.
    pub fn new(ip: IpAddr, prefix: u8) -> Result<Self, WireError> {
        let max = if ip.is_ipv4() { 32 } else { 128 };
        if prefix > max {
            return Err(WireError::invalid("prefix", format!("{ip}/{prefix} is longer than {max}")));
        }
        Ok(Self { ip, prefix })
    }
}

impl fmt::Display for IpNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

impl FromStr for IpNet {
    type Err = WireError;

    /// Without a length the whole address is meant.
    fn from_str(s: &str) -> Result<Self, WireError> {
        let bad = || WireError::invalid("address", format!("{:?}", s.chars().take(64).collect::<String>()));
        let (ip, prefix) = match s.split_once('/') {
            Some((ip, p)) => (ip, Some(p.parse::<u8>().map_err(|_| bad())?)),
            None => (s, None),
        };
        let ip: IpAddr = ip.parse().map_err(|_| bad())?;
        Self::new(ip, prefix.unwrap_or(if ip.is_ipv4() { 32 } else { 128 }))
    }
}

impl TryFrom<String> for IpNet {
    type Error = WireError;

    fn try_from(s: String) -> Result<Self, WireError> {
        s.parse()
    }
}

impl From<IpNet> for String {
    fn from(n: IpNet) -> String {
        n.to_string()
    }
}

/// A link asked for with a new container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkRequest {
    /// Name inside the container, such as `eth0`.
    pub name: String,
    /// Fleet network.
    pub network: String,
    /// Made up when absent: random, locally administered.
    pub mac: Option<Mac>,
    /// The bridge's when absent.
    pub mtu: Option<u32>,
    /// Addresses.
    pub addrs: Vec<IpNet>,
    /// Default gateways, at most one of each family.
    #[serde(default)]
    pub gateways: Vec<IpAddr>,
}

/// What sort of interface a link is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkKind {
    /// One end of a pair; the other end is in a bridge of the host.
    Veth,
    /// `lo`.
    Loopback,
    /// Leads nowhere; holds addresses.
    Dummy,
}

/// One address of a link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddrCapture {
    /// The link's own address.
    pub ip: IpAddr,
    /// Length of the prefix (the peer's, where there is one).
    pub prefix: u8,
    /// `RT_SCOPE_*`.
    pub scope: u8,
    /// `IFA_F_*`, only those that can be set.
    pub flags: u32,
    /// IPv4 label (`eth0:1`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// IPv4 broadcast address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broadcast: Option<Ipv4Addr>,
    /// The other end of a point-to-point address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<IpAddr>,
    /// Seconds left, [`FOREVER`] for no end.
    pub valid_lft: u32,
    /// Seconds left before the address is deprecated.
    pub preferred_lft: u32,
    /// Metric of the prefix route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<u32>,
}

/// One interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkCapture {
    /// Name inside the container.
    pub name: String,
    /// Sort.
    pub kind: LinkKind,
    /// Interface index, kept where it can be: programs hold it as scope of link-local addresses.
    pub index: u32,
    /// Fleet network of a veth; `None` for the other kinds.
    pub network: Option<String>,
    /// `None` for the loopback.
    pub mac: Option<Mac>,
    /// Bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Packets.
    pub txqlen: u32,
    /// In the order in which the kernel lists them.
    pub addrs: Vec<AddrCapture>,
}

/// One next hop of a route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextHop {
    /// Gateway, of either family.
    pub via: Option<IpAddr>,
    /// Link name.
    pub dev: Option<String>,
    /// Weight less one.
    pub weight: u8,
    /// The gateway is on the link although no prefix says so.
    pub onlink: bool,
}

/// One route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteCapture {
    /// IPv6 rather than IPv4.
    pub v6: bool,
    /// Routing table.
    pub table: u32,
    /// `RTPROT_*`: who made it; 2 is the kernel.
    pub protocol: u8,
    /// `RT_SCOPE_*`.
    pub scope: u8,
    /// `RTN_*`: 1 unicast, 2 local, 6 blackhole, 7 unreachable, 8 prohibit, 9 throw.
    pub kind: u8,
    /// Type of service.
    pub tos: u8,
    /// `None` is the default route.
    pub dst: Option<IpNet>,
    /// IPv6 source prefix.
    pub src: Option<IpNet>,
    /// Preferred source address.
    pub prefsrc: Option<IpAddr>,
    /// Metric.
    pub priority: Option<u32>,
    /// One, or several for a multipath route; none for some that drop.
    pub next_hops: Vec<NextHop>,
    /// `RTAX_*` numbers and values.
    pub metrics: Vec<(u16, u32)>,
    /// Congestion control of the route.
    pub congestion: Option<String>,
    /// Router preference (RFC 4191).
    pub pref: Option<u8>,
    /// Seconds left; `None` for no end.
    pub expires: Option<u32>,
}

/// One policy rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct RuleCapture {
    /// IPv6 rather than IPv4.
    pub v6: bool,
    /// Order; lower comes first.
    pub priority: u32,
    /// `FR_ACT_*`: 1 table, 2 goto, 3 nop, 6 blackhole, 7 unreachable, 8 prohibit.
    pub action: u8,
    /// Routing table.
    pub table: u32,
    /// The condition is negated.
    pub invert: bool,
    /// Type of service.
    pub tos: u8,
    /// Source prefix.
    pub src: Option<IpNet>,
    /// Destination prefix.
    pub dst: Option<IpNet>,
    /// Input interface.
    pub iif: Option<String>,
    /// Output interface.
    pub oif: Option<String>,
    /// Firewall mark and mask.
    pub mark: Option<(u32, u32)>,
    /// Priority of the rule to go to.
    pub goto: Option<u32>,
    /// Routes with a prefix of this length or less do not count.
    pub suppress_prefix: Option<u32>,
    /// IP protocol.
    pub ip_proto: Option<u8>,
    /// Source ports, both included.
    pub sport: Option<(u16, u16)>,
    /// Destination ports, both included.
    pub dport: Option<(u16, u16)>,
    /// Users, both included.
    pub uids: Option<(u32, u32)>,
    /// `RTPROT_*`.
    pub protocol: u8,
}

/// One neighbour that does not come from asking the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NeighbourCapture {
    /// Whose.
    pub ip: IpAddr,
    /// On which link.
    pub dev: String,
    /// `None` for a proxy entry.
    pub mac: Option<Mac>,
    /// The container answers for this address.
    pub proxy: bool,
    /// An IPv6 router.
    pub router: bool,
}

/// One sysctl of the namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SysctlCapture {
    /// Path below `/proc/sys`, such as `net/ipv4/ip_forward`.
    pub key: String,
    /// Value without the line end.
    pub value: String,
    /// Differs from what a new namespace at the source has: failing to set it is an error. The
    /// others are carried since a new namespace takes some values from its host.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub changed: bool,
}

/// Everything in a container's network namespace that is carried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct NetCapture {
    /// In order of index; the loopback is among them.
    pub links: Vec<LinkCapture>,
    /// All tables, without what the kernel keeps in table `local`.
    pub routes: Vec<RouteCapture>,
    /// All rules, also those that every namespace begins with: they can be deleted.
    pub rules: Vec<RuleCapture>,
    /// Permanent and proxy neighbours.
    pub neighbours: Vec<NeighbourCapture>,
    /// In order of key.
    pub sysctls: Vec<SysctlCapture>,
}

impl NetCapture {
    /// Names of the links that have a host end, in order.
    pub fn ports(&self) -> impl Iterator<Item = &LinkCapture> {
        self.links.iter().filter(|l| l.kind == LinkKind::Veth)
    }

    /// Fleet networks used, each once, in order.
    pub fn networks(&self) -> Vec<String> {
        let mut all: Vec<String> = self.links.iter().filter_map(|l| l.network.clone()).collect();
        all.sort();
        all.dedup();
        all
    }
}
