//! Things in a namespace that are not carried: firewall rules and IPsec. They are looked for so
//! that the answer is a clear no before anything is touched, and not a container without its
//! firewall. The kernel is asked, not `nft`: the tool may be missing, the kernel is not.

use super::error::{Attempt, NetworkError};
use super::netns::NsFd;
use nix::libc;
use rtnetlink::sys::protocols::{NETLINK_NETFILTER, NETLINK_XFRM};
use rtnetlink::sys::{Socket, SocketAddr};
use std::fs;
use std::io;
use std::process::{Command, Stdio};

/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETCHAIN`, `.. NFT_MSG_GETRULE`.
const NFT_GET_CHAIN: u16 = 10 << 8 | 4;
const NFT_GET_RULE: u16 = 10 << 8 | 7;
const NFTA_CHAIN_POLICY: u16 = 5;
const NF_DROP: u32 = 0;
const XFRM_GET_STATE: u16 = 0x12;
const XFRM_GET_POLICY: u16 = 0x15;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const FLAGS: u16 = 0x301;

fn netlink(protocol: isize) -> io::Result<Option<Socket>> {
    match Socket::new(protocol) {
        Ok(s) => Ok(Some(s)),
        // The kernel has no such thing, so there is none of it.
        Err(e) if [libc::EPROTONOSUPPORT, libc::EAFNOSUPPORT].contains(&e.raw_os_error().unwrap_or(0)) => {
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

/// Asks for a list and shows each message's type and body to `f` until it says enough.
fn list(s: &Socket, kind: u16, body: &[u8], mut f: impl FnMut(&[u8]) -> bool) -> io::Result<bool> {
    let mut m = Vec::with_capacity(16 + body.len());
    m.extend_from_slice(&((16 + body.len()) as u32).to_ne_bytes());
    m.extend_from_slice(&kind.to_ne_bytes());
    m.extend_from_slice(&FLAGS.to_ne_bytes());
    m.extend_from_slice(&[0; 8]);
    m.extend_from_slice(body);
    s.send_to(&m, &SocketAddr::new(0, 0), 0)?;
    let mut found = false;
    loop {
        let (datagram, _) = s.recv_from_full()?;
        let mut rest = datagram.as_slice();
        while let Some((header, _)) = rest.split_first_chunk::<16>() {
            let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
            let Some(message) = rest.get(..length).filter(|_| length >= 16) else {
                return Err(io::Error::from(io::ErrorKind::InvalidData));
            };
            match u16::from_ne_bytes([header[4], header[5]]) {
                // NLMSG_ERROR: an old or partial kernel; NLMSG_DONE: the end.
                2 | 3 => return Ok(found),
                _ => found |= f(&message[16..]),
            }
            rest = rest.get((length + 3) & !3..).unwrap_or_default();
        }
    }
}

/// Does a chain (behind `struct nfgenmsg`) drop what no rule accepts?
fn drops(chain: &[u8]) -> bool {
    let mut rest = chain.get(4..).unwrap_or_default();
    while let Some((h, _)) = rest.split_first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([h[0], h[1]]));
        let kind = u16::from_ne_bytes([h[2], h[3]]) & 0x3fff;
        let Some(value) = rest.get(4..length) else { return false };
        if kind == NFTA_CHAIN_POLICY && value == NF_DROP.to_be_bytes() {
            return true;
        }
        rest = rest.get((length + 3) & !3..).unwrap_or_default();
    }
    false
}

/// Rules of the old iptables, which nf_tables does not show.
fn legacy() -> io::Result<Option<String>> {
    for (names, tool) in
        [("ip_tables_names", "iptables-legacy-save"), ("ip6_tables_names", "ip6tables-legacy-save")]
    {
        // Lists the tables that were ever looked at in this namespace.
        let tables = fs::read_to_string(format!("/proc/thread-self/net/{names}")).unwrap_or_default();
        if tables.trim().is_empty() {
            continue;
        }
        let out = Command::new(tool).stdin(Stdio::null()).stderr(Stdio::null()).output();
        match out {
            Ok(o) if o.status.success() => {
                let text = String::from_utf8_lossy(&o.stdout);
                let rule = |l: &&str| l.starts_with("-A") || (l.starts_with(':') && l.contains(" DROP "));
                if let Some(l) = text.lines().find(rule) {
                    return Ok(Some(l.chars().take(120).collect()));
                }
            }
            _ => return Ok(Some(format!("legacy tables {}", tables.trim().replace('\n', ", ")))),
        }
    }
    Ok(None)
}

enum Found {
    Nothing,
    Netfilter(String),
    Ipsec(&'static str),
}

fn look() -> io::Result<Found> {
    if let Some(s) = netlink(NETLINK_NETFILTER)? {
        if list(&s, NFT_GET_RULE, &[0; 4], |_| true)? {
            return Ok(Found::Netfilter("nf_tables rules".into()));
        }
        let s = netlink(NETLINK_NETFILTER)?.ok_or(io::ErrorKind::Unsupported)?;
        if list(&s, NFT_GET_CHAIN, &[0; 4], drops)? {
            return Ok(Found::Netfilter("an nf_tables chain that drops".into()));
        }
    }
    if let Some(what) = legacy()? {
        return Ok(Found::Netfilter(what));
    }
    // The bodies are struct xfrm_usersa_id and struct xfrm_userpolicy_id.
    for (kind, size, what) in [(XFRM_GET_STATE, 24, "states"), (XFRM_GET_POLICY, 64, "policies")] {
        if let Some(s) = netlink(NETLINK_XFRM)?
            && list(&s, kind, &vec![0; size], |_| true)?
        {
            return Ok(Found::Ipsec(what));
        }
    }
    Ok(Found::Nothing)
}

/// Refuses a namespace with rules that would be lost.
pub(super) async fn refuse_foreign(ns: &NsFd) -> Result<(), NetworkError> {
    match ns.inside(look).await.attempt("look for", "firewall rules in the container's namespace")? {
        Found::Nothing => Ok(()),
        Found::Netfilter(what) => Err(NetworkError::NetfilterRules { what }),
        Found::Ipsec(what) => Err(NetworkError::Ipsec { what }),
    }
}
