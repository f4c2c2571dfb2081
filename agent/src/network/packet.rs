//! The four frames that are sent by hand, and the raw socket they go through.
//!
//! ARP: RFC 826 and RFC 5227. Neighbour discovery: RFC 4861; detection of duplicates: RFC 4862.

use super::error::{Attempt, NetworkError};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, SockaddrLike, bind, sendto, socket,
};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use tranship_proto::network::Mac;

pub(super) const ETH_P_ALL: u16 = 0x0003;
pub(super) const ETH_P_IP: u16 = 0x0800;
pub(super) const ETH_P_ARP: u16 = 0x0806;
pub(super) const ETH_P_IPV6: u16 = 0x86dd;
pub(super) const ETH_P_RARP: u16 = 0x8035;
pub(super) const ICMPV6: u8 = 58;
const BROADCAST: Mac = Mac([0xff; 6]);

/// An `AF_PACKET` address: the only way to one in `nix` is from the C structure.
fn link_addr(index: u32, protocol: u16) -> io::Result<LinkAddr> {
    let raw = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol.to_be(),
        sll_ifindex: index as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the pointer is to a complete, initialized sockaddr_ll of the length given, which
    // begins with its family as every sockaddr does; from_raw copies it.
    unsafe { LinkAddr::from_raw((&raw const raw).cast(), Some(length)) }
        .ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// A raw socket on one interface of the calling thread's namespace.
pub(super) struct RawSocket {
    fd: OwnedFd,
    to: LinkAddr,
}

impl RawSocket {
    /// `listen` is the protocol to receive; 0 for none.
    pub(super) fn open(index: u32, listen: u16) -> io::Result<Self> {
        // Protocol 0: nothing arrives from other interfaces before bind.
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Packet, SockType::Raw, flags, None)?;
        let to = link_addr(index, listen)?;
        bind(fd.as_raw_fd(), &to)?;
        Ok(Self { fd, to })
    }

    pub(super) fn send(&self, frame: &[u8]) -> Result<(), NetworkError> {
        sendto(self.fd.as_raw_fd(), frame, &self.to, MsgFlags::empty()).attempt("send", "a frame").map(drop)
    }

    /// With the kernel's own words, for those who try again.
    pub(super) fn try_send(&self, frame: &[u8]) -> Result<(), Errno> {
        sendto(self.fd.as_raw_fd(), frame, &self.to, MsgFlags::empty()).map(drop)
    }

    /// From now on frames sent have a `virtio_net_hdr` in front: packet(7), `PACKET_VNET_HDR`.
    pub(super) fn expect_virtio_header(&self) -> io::Result<()> {
        let (on, length) = (1 as libc::c_int, size_of::<libc::c_int>() as libc::socklen_t);
        let fd = self.fd.as_raw_fd();
        // SAFETY: the option's value is an int, and the pointer and length are those of one.
        let set = unsafe {
            libc::setsockopt(fd, libc::SOL_PACKET, libc::PACKET_VNET_HDR, (&raw const on).cast(), length)
        };
        if set == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }
}

fn ethernet(to: Mac, from: Mac, protocol: u16) -> Vec<u8> {
    let mut f = Vec::with_capacity(86);
    f.extend_from_slice(&to.0);
    f.extend_from_slice(&from.0);
    f.extend_from_slice(&protocol.to_be_bytes());
    f
}

fn arp(
    protocol: u16,
    operation: u16,
    from: Mac,
    sender: (Mac, Ipv4Addr),
    target: (Mac, Ipv4Addr),
) -> Vec<u8> {
    let mut f = ethernet(BROADCAST, from, protocol);
    // Ethernet, IPv4, lengths 6 and 4.
    f.extend_from_slice(&[0, 1, 8, 0, 6, 4]);
    f.extend_from_slice(&operation.to_be_bytes());
    for (mac, ip) in [sender, target] {
        f.extend_from_slice(&mac.0);
        f.extend_from_slice(&ip.octets());
    }
    f
}

/// A gratuitous ARP packet, 42 bytes: a request (RFC 5227) or, for those that only listen to
/// answers, a reply.
pub fn arp_announcement(mac: Mac, ip: Ipv4Addr, reply: bool) -> Vec<u8> {
    let (operation, target) = if reply { (2, BROADCAST) } else { (1, Mac([0; 6])) };
    arp(ETH_P_ARP, operation, mac, (mac, ip), (target, ip))
}

/// An ARP probe (RFC 5227, 2.1.1), 42 bytes: asks without claiming the address.
pub fn arp_probe(mac: Mac, ip: Ipv4Addr) -> Vec<u8> {
    arp(ETH_P_ARP, 1, mac, (mac, Ipv4Addr::UNSPECIFIED), (Mac([0; 6]), ip))
}

/// A reverse ARP request (RFC 903), 60 bytes as Ethernet wants: from it switches learn where an
/// address is, and neighbours nothing.
pub(super) fn reverse_arp(mac: Mac) -> Vec<u8> {
    let nobody = (mac, Ipv4Addr::UNSPECIFIED);
    let mut f = arp(ETH_P_RARP, 3, mac, nobody, nobody);
    f.resize(60, 0);
    f
}

fn icmpv6(from: Mac, to: Mac, source: Ipv6Addr, destination: Ipv6Addr, body: &mut [u8]) -> Vec<u8> {
    let mut sum: u32 = u32::from(ICMPV6) + body.len() as u32;
    for word in source.segments().iter().chain(&destination.segments()) {
        sum += u32::from(*word);
    }
    // All bodies here have an even length.
    for pair in body.chunks_exact(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    body[2..4].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    let mut f = ethernet(to, from, ETH_P_IPV6);
    f.extend_from_slice(&[0x60, 0, 0, 0]);
    f.extend_from_slice(&(body.len() as u16).to_be_bytes());
    // Hop limit 255: others are discarded (RFC 4861, 7.1).
    f.extend_from_slice(&[ICMPV6, 255]);
    f.extend_from_slice(&source.octets());
    f.extend_from_slice(&destination.octets());
    f.extend_from_slice(body);
    f
}

/// An unsolicited neighbour advertisement to all nodes, 86 bytes, overriding what they have.
pub fn neighbour_advertisement(mac: Mac, ip: Ipv6Addr) -> Vec<u8> {
    let mut body = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    body.extend_from_slice(&ip.octets());
    body.extend_from_slice(&[2, 1]);
    body.extend_from_slice(&mac.0);
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    icmpv6(mac, Mac([0x33, 0x33, 0, 0, 0, 1]), ip, all_nodes, &mut body)
}

/// A neighbour solicitation as for detecting duplicates (RFC 4862, 5.4.2), 78 bytes: from the
/// unspecified address, so the answer goes to all nodes.
pub fn neighbour_solicitation(mac: Mac, ip: Ipv6Addr) -> Vec<u8> {
    let mut body = vec![135, 0, 0, 0, 0, 0, 0, 0];
    body.extend_from_slice(&ip.octets());
    let [.., x, y, z] = ip.octets();
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(x), u16::from_be_bytes([y, z]));
    icmpv6(mac, Mac([0x33, 0x33, 0xff, x, y, z]), Ipv6Addr::UNSPECIFIED, group, &mut body)
}

/// Who says in this frame that it has the address? A probe by another who wants it counts too.
pub(super) fn claimant(frame: &[u8], ip: std::net::IpAddr, own: Mac) -> Option<Mac> {
    let mac = |at: usize| frame.get(at..at + 6).and_then(|m| <[u8; 6]>::try_from(m).ok()).map(Mac);
    let found = match ip {
        std::net::IpAddr::V4(v4) => {
            if frame.get(12..20)? != [8, 6, 0, 1, 8, 0, 6, 4] {
                return None;
            }
            let (sender, target) = (frame.get(28..32)?, frame.get(38..42)?);
            let wanted = sender == [0; 4] && target == v4.octets() && frame.get(20..22)? == [0, 1];
            if sender == v4.octets() || wanted { mac(22) } else { None }
        }
        std::net::IpAddr::V6(v6) => {
            if frame.get(12..14)? != ETH_P_IPV6.to_be_bytes()
                || *frame.get(20)? != ICMPV6
                || frame.get(62..78)? != v6.octets()
            {
                return None;
            }
            match frame.get(54)? {
                // The option with the link-layer address may be missing: then the frame's sender.
                136 if frame.get(78..80) == Some(&[2, 1]) => mac(80),
                136 => mac(6),
                135 if frame.get(22..38)? == [0; 16] => mac(6),
                _ => None,
            }
        }
    };
    found.filter(|m| *m != own)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    const MAC: Mac = Mac([0x02, 0, 0x5e, 0x10, 0, 0xff]);

    fn hex(frame: &[u8]) -> String {
        frame.iter().map(|b| format!("{b:02x}")).collect()
    }

    // The expected bytes were put together by hand from the RFCs, the checksums by another program.
    #[test]
    fn golden_arp() {
        let ip = Ipv4Addr::new(10, 77, 1, 5);
        let request = "ffffffffffff02005e1000ff0806000108000604000102005e1000ff0a4d01050000000000000a4d0105";
        let reply = "ffffffffffff02005e1000ff0806000108000604000202005e1000ff0a4d0105ffffffffffff0a4d0105";
        let probe = "ffffffffffff02005e1000ff0806000108000604000102005e1000ff000000000000000000000a4d0105";
        assert_eq!(hex(&arp_announcement(MAC, ip, false)), request);
        assert_eq!(hex(&arp_announcement(MAC, ip, true)), reply);
        assert_eq!(hex(&arp_probe(MAC, ip)), probe);
        assert_eq!(request.len(), 2 * 42);
    }

    #[test]
    fn golden_neighbour_discovery() {
        let ip: Ipv6Addr = "fd77::1:5".parse().unwrap();
        let na = "33330000000102005e1000ff86dd6000000000203aff\
                  fd770000000000000000000000010005ff020000000000000000000000000001\
                  8800fa9420000000fd770000000000000000000000010005020102005e1000ff";
        let ns = "3333ff01000502005e1000ff86dd6000000000183aff\
                  00000000000000000000000000000000ff0200000000000000000001ff010005\
                  87007d2400000000fd770000000000000000000000010005";
        assert_eq!(hex(&neighbour_advertisement(MAC, ip)), na);
        assert_eq!(hex(&neighbour_solicitation(MAC, ip)), ns);
        assert_eq!((na.len(), ns.len()), (2 * 86, 2 * 78));
    }

    #[test]
    fn claims() {
        let (v4, v6) = (Ipv4Addr::new(10, 77, 1, 5), "fd77::1:5".parse::<Ipv6Addr>().unwrap());
        let own = Mac([2, 0, 0, 0, 0, 1]);
        let claims = [
            (arp_announcement(MAC, v4, false), IpAddr::V4(v4)),
            (arp_announcement(MAC, v4, true), IpAddr::V4(v4)),
            (arp_probe(MAC, v4), IpAddr::V4(v4)),
            (neighbour_advertisement(MAC, v6), IpAddr::V6(v6)),
            (neighbour_solicitation(MAC, v6), IpAddr::V6(v6)),
        ];
        for (frame, ip) in &claims {
            assert_eq!(claimant(frame, *ip, own), Some(MAC));
            assert_eq!(claimant(frame, *ip, MAC), None, "one's own question");
            assert_eq!(claimant(frame, "10.77.1.6".parse().unwrap(), own), None);
            assert_eq!(claimant(frame, "fd77::1:6".parse().unwrap(), own), None);
            // Cut anywhere: no panic, and nothing made up.
            for n in 0..frame.len() {
                let found = claimant(&frame[..n], *ip, own);
                assert!(found.is_none() || found == Some(MAC), "{n}");
            }
        }
    }
}
