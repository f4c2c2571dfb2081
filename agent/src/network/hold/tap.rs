//! A TAP device: frames that a bridge forwards to it are read from a file descriptor.
//!
//! It lives as long as the descriptor. Frames have a `virtio_net_hdr` (linux/virtio_net.h) in front,
//! for those from other namespaces and large receive offloads come without checksums and longer
//! than any MTU, and have to be sent on so. Offloads are also said to be understood because a bridge
//! otherwise takes them from itself and all its ports (`br_features_recompute`).

use super::super::packet::{ETH_P_ARP, ETH_P_IPV6, ICMPV6};
use nix::libc;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use tranship_proto::handoff::MAX_PACKET;
use tranship_proto::network::Mac;

/// Bytes of the header in front of each frame: without the count of merged buffers.
pub(super) const VNET_HEADER: usize = 10;
/// The longest frame with its header.
pub(super) const LONGEST: usize = VNET_HEADER + MAX_PACKET;

pub(super) struct Tap {
    file: File,
}

fn load(size: u32, at: u32) -> libc::sock_filter {
    instruction(libc::BPF_LD | size | libc::BPF_ABS, 0, 0, at)
}

/// Goes on if what is loaded is `k`, else skips.
fn unless(k: u32, skip: u8) -> libc::sock_filter {
    instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, skip, k)
}

fn verdict(accept: bool) -> libc::sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, 0, 0, if accept { u32::MAX } else { 0 })
}

fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
}

/// Lets through what is for the station or from it, ARP requests and neighbour solicitations.
/// Everything else that a bridge floods does not even wake the reader.
fn program(mac: Mac) -> Vec<libc::sock_filter> {
    use libc::{BPF_B, BPF_H, BPF_W};
    let [a, b, c, d, e, f] = mac.0;
    let (high, low) = (u32::from(u16::from_be_bytes([a, b])), u32::from_be_bytes([c, d, e, f]));
    let mut p = Vec::new();
    for at in [0, 6] {
        p.extend([load(BPF_W, at + 2), unless(low, 3), load(BPF_H, at), unless(high, 1), verdict(true)]);
    }
    p.extend([load(BPF_H, 12), unless(ETH_P_ARP.into(), 3), load(BPF_H, 20), unless(1, 7), verdict(true)]);
    p.extend([unless(ETH_P_IPV6.into(), 5), load(BPF_B, 20), unless(ICMPV6.into(), 3)]);
    p.extend([load(BPF_B, 54), unless(135, 1), verdict(true), verdict(false)]);
    p
}

fn control(file: &File, request: libc::Ioctl, argument: *const libc::c_void) -> io::Result<()> {
    // SAFETY: the callers pass what the request reads: for TUNSETIFF an ifreq, for TUNATTACHFILTER
    // a sock_fprog whose program is alive, for TUNSETOFFLOAD a number in place of the pointer.
    match unsafe { libc::ioctl(file.as_raw_fd(), request, argument) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

impl Tap {
    /// Makes a device in the calling thread's namespace, down; it must not exist.
    pub(super) fn make(name: &str, mac: Mac) -> io::Result<Self> {
        let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open("/dev/net/tun")?;
        let mut ifr_name = [0; libc::IFNAMSIZ];
        if name.len() >= ifr_name.len() {
            return Err(ErrorKind::InvalidInput.into());
        }
        for (to, from) in ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;
        let ifr_ifru = libc::__c_anonymous_ifr_ifru { ifru_flags: flags as libc::c_short };
        let wanted = libc::ifreq { ifr_name, ifr_ifru };
        control(&file, libc::TUNSETIFF, (&raw const wanted).cast())?;
        let mut filter = program(mac);
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        control(&file, libc::TUNATTACHFILTER, (&raw const program).cast())?;
        let tso = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
        let uso = libc::TUN_F_USO4 | libc::TUN_F_USO6;
        // UDP segmentation is known since Linux 6.2.
        control(&file, libc::TUNSETOFFLOAD, (tso | uso) as usize as *const libc::c_void)
            .or_else(|_| control(&file, libc::TUNSETOFFLOAD, tso as usize as *const libc::c_void))?;
        Ok(Self { file })
    }

    /// The next frame with its header, if there is one.
    pub(super) fn next(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match (&self.file).read(buffer) {
                Ok(n) => return Ok(Some(n)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Sends a complete frame into the bridge.
    pub(super) fn send(&self, frame: &[u8]) -> io::Result<()> {
        let mut packet = vec![0; VNET_HEADER];
        packet.extend_from_slice(frame);
        (&self.file).write(&packet).map(drop)
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
