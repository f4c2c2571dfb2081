//! What a frame is to a container, and what is missing before it can travel.

use super::super::packet::{ETH_P_ARP, ETH_P_IPV6, ETH_P_RARP};
use super::tap::VNET_HEADER;
use std::net::IpAddr;
use tranship_proto::network::Mac;

/// Why a frame cannot be handed on as it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unfinished;

/// The frame alone, with the checksum that was left to the hardware. Large offloads are refused: to
/// cut them is the kernel's business, and what follows them makes their sender repeat them.
pub(super) fn finished(packet: &[u8]) -> Result<Vec<u8>, Unfinished> {
    const NEEDS_CHECKSUM: u8 = 1;
    let (header, frame) = packet.split_at_checked(VNET_HEADER).ok_or(Unfinished)?;
    let mut frame = frame.to_vec();
    // Any kind of segmentation.
    if header[1] != 0 {
        return Err(Unfinished);
    }
    if header[0] & NEEDS_CHECKSUM != 0 {
        let number = |at: usize| usize::from(u16::from_ne_bytes([header[at], header[at + 1]]));
        let (start, place) = (number(6), number(6) + number(8));
        let mut sum: u64 = 0;
        for pair in frame.get(start..).ok_or(Unfinished)?.chunks(2) {
            sum += u64::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        // Zero would mean none in UDP; to TCP both are the same.
        let sum = if sum == 0xffff { 0xffff } else { !(sum as u16) };
        frame.get_mut(place..place + 2).ok_or(Unfinished)?.copy_from_slice(&sum.to_be_bytes());
    }
    Ok(frame)
}

/// What a frame is to a container's link.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// To its MAC address.
    Own,
    /// A question to all for one of its addresses.
    Question,
    /// Sent by someone with its MAC address.
    Claim,
    /// Nothing to it.
    Other,
}

/// `packet` has a `virtio_net_hdr` in front. Reverse ARP from the link's address is not a claim:
/// it is our own, reflected.
pub(super) fn kind(packet: &[u8], mac: Mac, addresses: &[IpAddr]) -> Kind {
    let Some(frame) = packet.get(VNET_HEADER..).filter(|f| f.len() >= 14) else { return Kind::Other };
    let protocol = u16::from_be_bytes([frame[12], frame[13]]);
    if frame[6..12] == mac.0 {
        return if protocol == ETH_P_RARP { Kind::Other } else { Kind::Claim };
    }
    if frame[..6] == mac.0 {
        return Kind::Own;
    }
    let asks = |ip: &IpAddr| match ip {
        IpAddr::V4(v4) => protocol == ETH_P_ARP && frame.get(38..42) == Some(&v4.octets()),
        IpAddr::V6(v6) => protocol == ETH_P_IPV6 && frame.get(62..78) == Some(&v6.octets()),
    };
    if addresses.iter().any(asks) { Kind::Question } else { Kind::Other }
}

#[cfg(test)]
mod tests {
    use super::super::super::packet::{
        ICMPV6, arp_announcement, arp_probe, neighbour_advertisement, neighbour_solicitation,
    };
    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 5]);

    #[test]
    fn checksums_are_finished() {
        let advertisement = neighbour_advertisement(MAC, "fd77::1:5".parse().unwrap());
        let mut frame = advertisement.clone();
        // As a sender leaves it: the pseudo header's sum, not inverted, in place of the checksum.
        let mut pseudo: u32 = u32::from(ICMPV6) + 32;
        for pair in frame[22..54].chunks(2) {
            pseudo += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
        }
        let pseudo = (pseudo & 0xffff) + (pseudo >> 16);
        frame[56..58].copy_from_slice(&(pseudo as u16).to_be_bytes());
        let with = |flags: u8, gso: u8, start: u16, offset: u16| {
            let mut p = vec![flags, gso, 0, 0, 0, 0];
            p.extend(start.to_ne_bytes());
            p.extend(offset.to_ne_bytes());
            p.extend(&frame);
            p
        };
        assert_eq!(finished(&with(1, 0, 54, 2)).unwrap(), advertisement);
        assert_eq!(finished(&with(0, 0, 54, 2)).unwrap(), frame);
        assert_eq!(finished(&with(1, 1, 54, 2)), Err(Unfinished));
        assert_eq!(finished(&with(1, 0, 54, 31)), Err(Unfinished));
        assert_eq!(finished(&with(1, 0, 87, 0)), Err(Unfinished));
        assert_eq!(finished(&with(1, 0, u16::MAX, u16::MAX)), Err(Unfinished));
        assert_eq!(finished(&[0; 9]), Err(Unfinished));
    }

    #[test]
    fn kinds() {
        let (v4, v6) = ("10.77.1.5".parse().unwrap(), "fd77::1:5".parse().unwrap());
        let addresses = [IpAddr::V4(v4), IpAddr::V6(v6)];
        let other = Mac([2, 0, 0, 0, 0, 9]);
        let of = |frame: &[u8]| {
            let packet: Vec<u8> = [0; VNET_HEADER].iter().chain(frame).copied().collect();
            for n in 0..packet.len() {
                kind(&packet[..n], MAC, &addresses);
            }
            kind(&packet, MAC, &addresses)
        };
        assert_eq!(of(&arp_probe(other, v4)), Kind::Question);
        assert_eq!(of(&neighbour_solicitation(other, v6)), Kind::Question);
        assert_eq!(of(&arp_probe(other, "10.77.1.6".parse().unwrap())), Kind::Other);
        assert_eq!(of(&neighbour_solicitation(other, "fd77::1:6".parse().unwrap())), Kind::Other);
        assert_eq!(of(&arp_announcement(MAC, v4, false)), Kind::Claim);
        let mut unicast = arp_probe(other, v4);
        unicast[..6].copy_from_slice(&MAC.0);
        assert_eq!(of(&unicast), Kind::Own);
        let mut mine = arp_announcement(MAC, v4, false);
        mine[12..14].copy_from_slice(&ETH_P_RARP.to_be_bytes());
        assert_eq!(of(&mine), Kind::Other);
    }
}
