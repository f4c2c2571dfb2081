//! What a peer may put into a [`NetCapture`].

use super::*;
use std::collections::HashSet;

/// `RTAX_FEATURES` and its neighbours end here; `RTAX_CC_ALGO` (16) is a name and kept apart.
const MAX_METRIC: u16 = 17;

fn bad<T>(field: &'static str, why: impl Into<String>) -> Result<T, WireError> {
    Err(WireError::invalid(field, why))
}

fn shown(s: &str) -> String {
    format!("{:?}", s.chars().take(40).collect::<String>())
}

/// An interface name that the kernel takes (`dev_valid_name`) and that is one path component.
///
/// # Errors
/// Empty, too long, `.`, `..`, not printable ASCII, or with `/`, `:` or `%`.
pub fn check_if_name(name: &str) -> Result<(), WireError> {
    let chars = name.bytes().all(|b| b.is_ascii_graphic() && !b"/:%\"'\\".contains(&b));
    if name.is_empty() || name.len() > MAX_IF_NAME || !chars || name == "." || name == ".." {
        return bad("interface name", shown(name));
    }
    Ok(())
}

/// A fleet network's name: 1 to 63 of letters, digits, `_.-`.
///
/// # Errors
/// Anything else.
pub fn check_network_name(name: &str) -> Result<(), WireError> {
    let chars = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    if name.is_empty() || name.len() > 63 || !chars || name.starts_with(['.', '-']) {
        return bad("network name", shown(name));
    }
    Ok(())
}

/// A sysctl that belongs to a network namespace: below `net/{core,ipv4,ipv6,unix,netfilter}`.
///
/// # Errors
/// Anything else, and anything that is not a plain path.
pub fn check_sysctl_key(key: &str) -> Result<(), WireError> {
    let parts: Vec<&str> = key.split('/').collect();
    let plain = |p: &&str| {
        !p.is_empty()
            && p.len() <= 64
            && **p != *"."
            && !p.contains("..")
            && p.bytes().all(|b| b.is_ascii_graphic() && !b"\"'\\:%".contains(&b))
    };
    let allowed = ["core", "ipv4", "ipv6", "unix", "netfilter"];
    if key.len() > MAX_SYSCTL_KEY
        || !(3..=6).contains(&parts.len())
        || parts[0] != "net"
        || !allowed.contains(&parts[1])
        || !parts.iter().all(plain)
    {
        return bad("sysctl", shown(key));
    }
    Ok(())
}

fn unicast(ip: IpAddr) -> bool {
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    !ip.is_multicast() && !ip.is_unspecified() && !broadcast
}

fn net(field: &'static str, v6: bool, net: Option<IpNet>) -> Result<(), WireError> {
    match net {
        Some(n) if n.ip.is_ipv6() != v6 => bad(field, format!("{n} is of the other family")),
        Some(n) => IpNet::new(n.ip, n.prefix).map(drop),
        None => Ok(()),
    }
}

fn count(field: &'static str, n: usize, max: usize) -> Result<(), WireError> {
    if n > max { bad(field, format!("{n} are more than {max}")) } else { Ok(()) }
}

impl AddrCapture {
    fn check(&self, link: &str) -> Result<(), WireError> {
        IpNet::new(self.ip, self.prefix)?;
        if !unicast(self.ip) {
            return bad("address", format!("{} is not a unicast address", self.ip));
        }
        if let Some(l) = &self.label
            && (l.len() > MAX_IF_NAME
                || self.ip.is_ipv6()
                || !l.bytes().all(|b| b.is_ascii_graphic() && b != b'/')
                || !(l == link || l.strip_prefix(link).is_some_and(|r| r.starts_with(':'))))
        {
            return bad("address label", shown(l));
        }
        if self.broadcast.is_some() && self.ip.is_ipv6() {
            return bad("broadcast address", "given for IPv6");
        }
        if self.peer.is_some_and(|p| p.is_ipv6() != self.ip.is_ipv6()) {
            return bad("peer address", "of the other family");
        }
        if self.preferred_lft > self.valid_lft || self.valid_lft == 0 {
            return bad("address lifetime", format!("{} of {}", self.preferred_lft, self.valid_lft));
        }
        Ok(())
    }
}

impl LinkCapture {
    fn check(&self) -> Result<(), WireError> {
        check_if_name(&self.name)?;
        let lo = self.name == "lo";
        let names = ["all", "default"];
        if lo != (self.kind == LinkKind::Loopback) || names.contains(&self.name.as_str()) {
            return bad("interface name", format!("{} for {:?}", shown(&self.name), self.kind));
        }
        match (&self.network, self.kind) {
            (Some(n), LinkKind::Veth) => check_network_name(n)?,
            (None, LinkKind::Veth) => return bad("network name", format!("missing for {}", self.name)),
            (Some(_), _) => return bad("network name", format!("given for {}", self.name)),
            (None, _) => {}
        }
        match self.mac {
            Some(m) if !m.is_station() || lo => return bad("mac address", format!("{m} for {}", self.name)),
            None if !lo => return bad("mac address", format!("missing for {}", self.name)),
            _ => {}
        }
        if !(68..=65535).contains(&self.mtu) && !lo {
            return bad("mtu", self.mtu.to_string());
        }
        if self.index == 0 || self.index > 1 << 30 || (lo != (self.index == 1)) {
            return bad("interface index", format!("{} for {}", self.index, self.name));
        }
        count("addresses", self.addrs.len(), MAX_ADDRESSES)?;
        self.addrs.iter().try_for_each(|a| a.check(&self.name))
    }
}

impl RouteCapture {
    fn check(&self, links: &HashSet<&str>) -> Result<(), WireError> {
        net("route destination", self.v6, self.dst)?;
        net("route source", self.v6, self.src)?;
        if self.src.is_some() && !self.v6 {
            return bad("route source", "given for IPv4");
        }
        if self.prefsrc.is_some_and(|p| p.is_ipv6() != self.v6) {
            return bad("route preferred source", "of the other family");
        }
        if self.table == 0 || !matches!(self.kind, 1..=9) {
            return bad("route", format!("kind {} in table {}", self.kind, self.table));
        }
        count("next hops", self.next_hops.len(), MAX_NEXT_HOPS)?;
        count("route metrics", self.metrics.len(), usize::from(MAX_METRIC))?;
        if let Some((m, _)) = self.metrics.iter().find(|(m, _)| *m == 0 || *m == 16 || *m > MAX_METRIC) {
            return bad("route metric", m.to_string());
        }
        if let Some(c) = &self.congestion
            && (c.is_empty()
                || c.len() > 15
                || !c.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-'))
        {
            return bad("congestion control", shown(c));
        }
        for hop in &self.next_hops {
            if let Some(d) = &hop.dev
                && !links.contains(d.as_str())
            {
                return bad("route device", shown(d));
            }
            if hop.via.is_some_and(|v| !unicast(v) || (v.is_ipv4() && self.v6)) {
                return bad("gateway", format!("{:?}", hop.via));
            }
        }
        Ok(())
    }
}

impl RuleCapture {
    fn check(&self) -> Result<(), WireError> {
        net("rule source", self.v6, self.src)?;
        net("rule destination", self.v6, self.dst)?;
        // A rule may name a link that does not exist (yet).
        self.iif.iter().chain(&self.oif).try_for_each(|n| check_if_name(n))?;
        if !matches!(self.action, 1..=3 | 6..=8) {
            return bad("rule action", self.action.to_string());
        }
        let ports = [self.sport, self.dport];
        if ports.iter().flatten().any(|(a, b)| a > b) || self.uids.is_some_and(|(a, b)| a > b) {
            return bad("rule", "a range that ends before it begins");
        }
        Ok(())
    }
}

impl SysctlCapture {
    fn check(&self, links: &HashSet<&str>) -> Result<(), WireError> {
        check_sysctl_key(&self.key)?;
        let text = self.value.bytes().all(|b| b == b'\t' || b == b' ' || b.is_ascii_graphic());
        if self.value.len() > MAX_SYSCTL_VALUE || !text {
            return bad("sysctl value", format!("of {}", self.key));
        }
        let parts: Vec<&str> = self.key.split('/').collect();
        if parts.len() > 4
            && ["conf", "neigh"].contains(&parts[2])
            && !["all", "default"].contains(&parts[3])
            && !links.contains(parts[3])
        {
            return bad("sysctl", format!("{} names an interface that is not carried", self.key));
        }
        Ok(())
    }
}

impl NetCapture {
    /// Bounds everything; to be called before anything of a peer's is used.
    ///
    /// # Errors
    /// The first thing found wrong.
    pub fn check(&self) -> Result<(), WireError> {
        count("links", self.links.len(), MAX_LINKS)?;
        count("routes", self.routes.len(), MAX_ROUTES)?;
        count("rules", self.rules.len(), MAX_RULES)?;
        count("neighbours", self.neighbours.len(), MAX_NEIGHBOURS)?;
        count("sysctls", self.sysctls.len(), MAX_SYSCTLS)?;
        self.links.iter().try_for_each(LinkCapture::check)?;
        let names: HashSet<&str> = self.links.iter().map(|l| l.name.as_str()).collect();
        let indices: HashSet<u32> = self.links.iter().map(|l| l.index).collect();
        if names.len() != self.links.len() || indices.len() != self.links.len() {
            return bad("links", "a name or an index is used twice");
        }
        self.routes.iter().try_for_each(|r| r.check(&names))?;
        self.rules.iter().try_for_each(RuleCapture::check)?;
        for n in &self.neighbours {
            let mac = n.mac.is_some_and(|m| !m.is_station()) || (n.mac.is_none() && !n.proxy);
            if !names.contains(n.dev.as_str()) || !unicast(n.ip) || mac {
                return bad("neighbour", format!("{} on {}", n.ip, shown(&n.dev)));
            }
        }
        self.sysctls.iter().try_for_each(|s| s.check(&names))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str, index: u32) -> LinkCapture {
        LinkCapture {
            name: name.into(),
            kind: LinkKind::Veth,
            index,
            network: Some("lan".into()),
            mac: Some(Mac([2, 0, 0, 0, 0, index as u8])),
            mtu: 1500,
            up: true,
            txqlen: 1000,
            addrs: vec![],
        }
    }

    fn good() -> NetCapture {
        NetCapture { links: vec![link("eth0", 2)], ..NetCapture::default() }
    }

    #[test]
    fn names_and_keys() {
        for n in ["eth0", "a", "veth-x.100", "123456789012345"] {
            assert!(check_if_name(n).is_ok(), "{n}");
        }
        for n in ["", ".", "..", "a/b", "a b", "1234567890123456", "a:b", "x\n", "e%d", "ä"] {
            assert!(check_if_name(n).is_err(), "{n}");
        }
        for k in ["net/ipv4/ip_forward", "net/ipv6/conf/eth0.1/disable_ipv6", "net/core/somaxconn"] {
            assert!(check_sysctl_key(k).is_ok(), "{k}");
        }
        for k in [
            "kernel/core_pattern",
            "net/../kernel/core_pattern",
            "/net/ipv4/ip_forward",
            "net/ipv4//x",
            "net/ipv4",
            "net/sctp/x",
            "net/ipv4/./x",
            "net/ipv4/a b",
            "net.ipv4.ip_forward",
        ] {
            assert!(check_sysctl_key(k).is_err(), "{k}");
        }
    }

    #[test]
    fn text_forms() {
        let m: Mac = "02:00:5e:10:00:ff".parse().unwrap();
        assert_eq!(m.to_string(), "02:00:5e:10:00:ff");
        assert_eq!(m.link_local().to_string(), "fe80::5eff:fe10:ff");
        for s in ["02:00:5e:10:00", "02:00:5e:10:00:ff:01", "02:00:5e:10:00:+f", "", "g2:00:5e:10:00:ff"] {
            assert!(s.parse::<Mac>().is_err(), "{s}");
        }
        for s in ["10.0.0.1/33", "fd00::/129", "10.0.0.1/-1", "x/1", "10.0.0/8"] {
            assert!(s.parse::<IpNet>().is_err(), "{s}");
        }
        assert_eq!("10.0.0.1".parse::<IpNet>().unwrap().prefix, 32);
    }

    #[test]
    fn limits_on_both_sides() {
        let mut c = good();
        assert!(c.check().is_ok());
        c.links[0].mtu = 67;
        assert!(c.check().is_err());
        for (mtu, ok) in [(68, true), (65535, true), (65536, false)] {
            c.links[0].mtu = mtu;
            assert_eq!(c.check().is_ok(), ok);
        }
        let mut c = good();
        c.links = (0..MAX_LINKS as u32).map(|i| link(&format!("e{i}"), i + 2)).collect();
        assert!(c.check().is_ok());
        c.links.push(link("more", 99));
        assert!(c.check().is_err());
    }

    #[test]
    fn hostile_parts() {
        let cases: [fn(&mut NetCapture); 9] = [
            |c| c.links[0].name = "lo".into(),
            |c| c.links[0].name = "all".into(),
            |c| c.links[0].mac = Some(Mac([1, 0, 0, 0, 0, 1])),
            |c| c.links[0].mac = Some(Mac([0; 6])),
            |c| c.links[0].network = Some("../x".into()),
            |c| c.links.push(link("eth0", 3)),
            |c| c.links.push(link("eth1", 2)),
            |c| {
                c.sysctls.push(SysctlCapture {
                    key: "net/ipv4/conf/other/forwarding".into(),
                    value: "1".into(),
                    changed: true,
                });
            },
            |c| {
                c.sysctls.push(SysctlCapture {
                    key: "net/ipv4/ip_forward".into(),
                    value: "1\n2".into(),
                    changed: true,
                });
            },
        ];
        for (i, f) in cases.iter().enumerate() {
            let mut c = good();
            f(&mut c);
            assert!(c.check().is_err(), "case {i}");
        }
    }
}
