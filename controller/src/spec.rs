//! Values that a user types, checked here so that a mistake is answered before anything is sent.
//!
//! The agent checks everything again: this is for clear words, not for safety.

use std::net::IpAddr;
use tranship_proto::control::{MIN_BANDWIDTH, VolumeSpec};
use tranship_proto::ids::HostName;

/// `NAME` or `NAME=ADDRESS:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRef {
    /// The host.
    pub name: HostName,
    /// Where its agent is; looked up in the inventory when absent.
    pub address: Option<String>,
}

/// Parses a [`HostRef`].
pub fn host_ref(text: &str) -> Result<HostRef, String> {
    let (name, address) = match text.split_once('=') {
        Some((name, addr)) => (name, Some(address(addr)?)),
        None => (text, None),
    };
    Ok(HostRef { name: name.parse().map_err(|e| format!("{e}"))?, address })
}

/// Checks `ADDRESS:PORT`, where the address is a name, an IPv4 address or `[IPv6]`.
pub fn address(text: &str) -> Result<String, String> {
    let (host, port) = text.rsplit_once(':').ok_or("write ADDRESS:PORT, for example 10.77.0.2:7717")?;
    if port.parse::<u16>().ok().is_none_or(|p| p == 0) {
        return Err(format!("{port:?} is not a port number (1 to 65535)"));
    }
    let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let good = match bracketed {
        Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
        None if host.contains(':') => return Err("write an IPv6 address as [fd77::2]:7717".into()),
        None => {
            !host.is_empty()
                && host.len() <= 253
                && host.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'-')
        }
    };
    if good { Ok(text.to_owned()) } else { Err(format!("{host:?} is neither an address nor a host name")) }
}

/// Checks `IP/PREFIX` for an interface and answers it in its usual form.
pub fn cidr(text: &str) -> Result<String, String> {
    let (ip, prefix) =
        text.split_once('/').ok_or("write the address with its prefix length, for example 10.77.1.1/16")?;
    let ip: IpAddr = ip.parse().map_err(|_| format!("{ip:?} is not an IP address"))?;
    let bits = if ip.is_ipv4() { 32 } else { 128 };
    let digits = prefix.bytes().all(|b| b.is_ascii_digit());
    let prefix: u32 = prefix
        .parse()
        .ok()
        .filter(|p| digits && (1..=bits).contains(p))
        .ok_or_else(|| format!("{prefix:?} is not a prefix length (1 to {bits})"))?;
    usable(ip)?;
    let (value, width) = match ip {
        IpAddr::V4(v) => (u128::from(u32::from(v)), 32),
        IpAddr::V6(v) => (u128::from(v), 128),
    };
    let host_bits = width - prefix;
    let mask = if host_bits == 128 { u128::MAX } else { (1u128 << host_bits) - 1 };
    // /31 (RFC 3021) and /127 (RFC 6164) have no network or broadcast address.
    if host_bits > 1 && value & mask == 0 {
        return Err(format!("{ip}/{prefix} is the network itself, not an address in it"));
    }
    if ip.is_ipv4() && host_bits > 1 && value & mask == mask {
        return Err(format!("{ip} is the broadcast address of its network"));
    }
    Ok(format!("{ip}/{prefix}"))
}

/// Checks the address of a gateway and answers it in its usual form.
pub fn gateway(text: &str) -> Result<String, String> {
    let ip: IpAddr =
        text.parse().map_err(|_| format!("{text:?} is not an IP address (no prefix length here)"))?;
    usable(ip)?;
    Ok(ip.to_string())
}

fn usable(ip: IpAddr) -> Result<(), String> {
    let broadcast = matches!(ip, IpAddr::V4(v) if v.is_broadcast());
    if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || broadcast {
        return Err(format!("{ip} is not the address of one machine"));
    }
    Ok(())
}

/// Checks a MAC address and answers it in lower case with colons.
pub fn mac(text: &str) -> Result<String, String> {
    let wrong = || format!("{text:?} is not a MAC address: write six bytes, for example 02:00:0a:4d:01:01");
    let parts: Vec<&str> = text.split([':', '-']).collect();
    let hex = |p: &&str| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit());
    if parts.len() != 6 || !parts.iter().all(hex) {
        return Err(wrong());
    }
    let bytes: Vec<u8> =
        parts.iter().map(|p| u8::from_str_radix(p, 16)).collect::<Result<_, _>>().map_err(|_| wrong())?;
    if bytes[0] & 1 == 1 {
        return Err(format!("{text} is a group address: the first byte has to be even"));
    }
    if bytes.iter().all(|b| *b == 0) {
        return Err(format!("{text} is no address"));
    }
    Ok(parts.join(":").to_ascii_lowercase())
}

/// Parses a rate in bytes per second: digits, and K, M or G for powers of 1000.
pub fn rate(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 1_000),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 1_000_000),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 1_000_000_000),
        _ => (text, 1),
    };
    let number = digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse::<u64>().ok()).flatten();
    let rate = number
        .and_then(|n| n.checked_mul(unit))
        .ok_or_else(|| format!("{text:?} is not a number of bytes per second, for example 100M"))?;
    if rate < MIN_BANDWIDTH {
        return Err(format!("less than {MIN_BANDWIDTH} bytes per second: a migration would not end"));
    }
    Ok(rate)
}

/// Parses `SRC:DST[:ro]`.
pub fn volume(text: &str) -> Result<VolumeSpec, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, destination, read_only) = match parts[..] {
        [s, d] | [s, d, "rw"] => (s, d, false),
        [s, d, "ro"] => (s, d, true),
        [_, _, option] => return Err(format!("{option:?} is not a volume option: ro or rw")),
        _ => return Err("write SRC:DST or SRC:DST:ro, for example data:/var/lib/redis".into()),
    };
    if source.starts_with('/') {
        absolute("source", source)?;
    } else if !managed_name(source) {
        return Err(format!(
            "source {source:?} is neither an absolute path nor a volume name (a-z, 0-9, -, _, . after a letter or digit)"
        ));
    }
    absolute("destination", destination)?;
    if destination.trim_end_matches('/').is_empty() {
        return Err("the destination cannot be the root directory".into());
    }
    Ok(VolumeSpec { source: source.into(), destination: destination.into(), read_only })
}

fn managed_name(name: &str) -> bool {
    name.len() <= 63
        && name.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b))
}

fn absolute(what: &str, path: &str) -> Result<(), String> {
    if !path.starts_with('/') {
        return Err(format!("{what} {path:?} is not an absolute path"));
    }
    if path.split('/').any(|p| p == "..") {
        return Err(format!("{what} {path:?} goes through \"..\""));
    }
    Ok(())
}

/// Checks an absolute path inside the container.
pub fn inside_path(text: &str) -> Result<String, String> {
    absolute("path", text)?;
    Ok(text.to_owned())
}

/// Checks `NAME=value`.
pub fn env(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((name, _)) if !name.is_empty() && !text.contains('\0') => Ok(text.to_owned()),
        _ => Err(format!("{text:?} is not NAME=value")),
    }
}

/// Checks `UID[:GID]`.
pub fn user(text: &str) -> Result<String, String> {
    // The last number is what the kernel uses to say "no id".
    let number =
        |s: &str| s.parse::<u32>().is_ok_and(|n| n != u32::MAX) && s.bytes().all(|b| b.is_ascii_digit());
    let (uid, gid) = text.split_once(':').unwrap_or((text, "0"));
    if number(uid) && number(gid) {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} is not UID or UID:GID in numbers"))
    }
}

/// Checks a host name inside a container (RFC 1123, at most the kernel's 64 bytes).
pub fn hostname(text: &str) -> Result<String, String> {
    let label = |l: &str| {
        !l.is_empty()
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    let good = text.len() <= 64 && text.split('.').all(label);
    if good { Ok(text.to_owned()) } else { Err(format!("{text:?} is not a host name")) }
}

/// Parses a time: `500ms`, `30s`, `2m`.
pub fn duration(text: &str) -> Result<std::time::Duration, String> {
    let wrong = || format!("{text:?} is not a time, for example 500ms, 30s or 2m");
    let (digits, unit_ms) = [("ms", 1), ("s", 1_000), ("m", 60_000)]
        .iter()
        .find_map(|(unit, ms)| text.strip_suffix(unit).map(|d| (d, *ms)))
        .ok_or_else(wrong)?;
    let number = digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse::<u64>().ok()).flatten();
    let ms = number.and_then(|n| n.checked_mul(unit_ms)).filter(|ms| *ms > 0 && *ms <= 7 * 86_400_000);
    ms.map(std::time::Duration::from_millis).ok_or_else(wrong)
}

/// Parses a number of bytes: `65536`, `64k`, `16M` (powers of 1024).
pub fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a number of bytes; write 65536, 64k or 16M");
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 10),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 20),
        Some(b'g' | b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(wrong());
    }
    digits.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift)).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both<T: std::fmt::Debug>(f: impl Fn(&str) -> Result<T, String>, good: &[&str], bad: &[&str]) {
        for g in good {
            assert!(f(g).is_ok(), "{g:?} refused: {:?}", f(g));
        }
        for b in bad {
            assert!(f(b).is_err(), "{b:?} taken as {:?}", f(b));
        }
    }

    #[test]
    fn times_have_units_and_bounds() {
        let ms = |text: &str| duration(text).map(|d| d.as_millis());
        assert_eq!((ms("500ms"), ms("30s"), ms("2m")), (Ok(500), Ok(30_000), Ok(120_000)));
        for bad in ["", "5", "ms", "0s", "-1s", "1.5s", "5 s", "5h", "99999999m", "18446744073709551615m"] {
            assert!(ms(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn rates() {
        assert_eq!(rate("100M"), Ok(100_000_000));
        assert_eq!(rate("65536"), Ok(65_536));
        both(
            rate,
            &["500K", "2G", "66k"],
            &["", "M", "1", "65K", "-1M", "1.5G", "10MB", "99999999999G", "é"],
        );
    }

    #[test]
    fn addresses_of_interfaces() {
        both(
            cidr,
            &[
                "10.77.1.1/16",
                "fd77::1:1/64",
                "10.0.0.0/31",
                "10.0.0.1/32",
                "fe80::1/10",
                "fd00::1/128",
                "fd00::ffff/112",
            ],
            &[
                "10.77.1.1",
                "10.77.1.1/33",
                "10.77.1.1/0",
                "10.77.1.1/",
                "10.77.1.1/+8",
                "10.77.0.0/16",
                "10.77.255.255/16",
                "0.0.0.0/8",
                "127.0.0.1/8",
                "224.0.0.1/4",
                "::1/128",
                "ff02::1/16",
                "fd00::/64",
                "fd00::1/129",
                "x/1",
                "",
            ],
        );
        assert_eq!(cidr("FD77:0::0001:1/64").unwrap(), "fd77::1:1/64");
        both(gateway, &["10.0.0.1", "fe80::1"], &["10.0.0.1/8", "::", "255.255.255.255", "gw"]);
    }

    #[test]
    fn mac_addresses() {
        both(
            mac,
            &["02:00:0a:4d:01:01", "02-00-0A-4D-01-01"],
            &[
                "01:00:5e:00:00:01",
                "00:00:00:00:00:00",
                "ff:ff:ff:ff:ff:ff",
                "02:00:0a:4d:01",
                "2:0:0:0:0:1",
                "02:00:0a:4d:01:0g",
                "02:00:0a:4d:01:+1",
            ],
        );
        assert_eq!(mac("02-00-0A-4D-01-01").unwrap(), "02:00:0a:4d:01:01");
    }

    #[test]
    fn volumes() {
        both(
            volume,
            &["data:/var/lib/redis", "/srv/x:/data:ro", "/srv/x:/data:rw"],
            &[
                "data",
                "data:data",
                "../x:/data",
                ":/data",
                "/srv/../etc:/x",
                "/srv:/a/../b",
                "data:/",
                "a:/b:xx",
                "a:/b:ro:z",
                "Data:/x",
            ],
        );
        assert!(volume("/srv/x:/data:ro").unwrap().read_only);
    }

    #[test]
    fn hosts_and_their_addresses() {
        both(
            host_ref,
            &["host-b", "host-b=10.0.0.2:7717", "b=[fd77::2]:7717", "b=b.example.org:1"],
            &[
                "host_b",
                "",
                "b=",
                "b=10.0.0.2",
                "b=fd77::2:7717",
                "b=[10.0.0.2]:1",
                "b=x:0",
                "b=x:65536",
                "b=:7717",
                "b=a b:1",
            ],
        );
    }

    #[test]
    fn the_small_ones() {
        both(env, &["A=", "A=b=c"], &["A", "=b", ""]);
        both(user, &["0", "1000:1000"], &["", "root", "1:", "-1", "4294967296", "4294967295", "+1", "1:2:3"]);
        both(hostname, &["web", "web-1.example"], &["", "-a", "a-", "a..b", "a_b", "a b", &"a".repeat(65)]);
        both(
            size,
            &["0", "64k", "16M"],
            &["", "k", "-1", "1.5M", "99999999999999999999", "18446744073709551615k"],
        );
        assert_eq!(size("16M").unwrap(), 16 << 20);
        both(inside_path, &["/", "/srv"], &["srv", "/a/.."]);
    }
}
