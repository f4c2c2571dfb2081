//! CRIU dumps the tracked connections of each network namespace, and the expected ones (CRIU's criu/net.c,
//! `dump_nf_ct`). The kernel walks the table of the whole host for either, some milliseconds, also for a
//! namespace that has none. Then the question is turned into one that the kernel answers at once: a no-op
//! that wants an acknowledgement, which CRIU reads as the end of an empty list.
//!
//! There are no expected connections without a tracked one that expects them.

use nix::libc;

/// Bytes of the question: `struct nlmsghdr` and `struct nfgenmsg`.
pub const REQUEST: usize = 20;
/// `IPCTNL_MSG_CT_GET` and `IPCTNL_MSG_EXP_GET` are 1.
const CT_GET: u16 = (libc::NFNL_SUBSYS_CTNETLINK << 8 | 1) as u16;
const EXP_GET: u16 = (libc::NFNL_SUBSYS_CTNETLINK_EXP << 8 | 1) as u16;
const ASKS: u16 = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
const WANTS_ANSWER: u16 = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
const NOOP: u16 = libc::NLMSG_NOOP as u16;

/// Tracked connections of this network namespace (nf_conntrack-sysctl, `nf_conntrack_count`).
const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";

/// Alters the question when the answer is known to be empty.
pub fn spare(request: &mut [u8]) {
    if asks(request) && std::fs::read_to_string(COUNT).is_ok_and(|n| n.trim() == "0") {
        answer_at_once(request);
    }
}

fn word(request: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(request.get(at..at + 2)?.try_into().ok()?))
}

fn asks(request: &[u8]) -> bool {
    request.len() == REQUEST
        && request.get(..4) == Some(&20u32.to_ne_bytes())
        && matches!(word(request, 4), Some(CT_GET | EXP_GET))
        && word(request, 6) == Some(ASKS)
}

fn answer_at_once(request: &mut [u8]) {
    let words = [NOOP, WANTS_ANSWER].map(u16::to_ne_bytes);
    for (to, from) in request.iter_mut().skip(4).zip(words.as_flattened()) {
        *to = *from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(kind: u16, flags: u16) -> Vec<u8> {
        let mut bytes = vec![0; REQUEST];
        bytes[..4].copy_from_slice(&20u32.to_ne_bytes());
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes
    }

    #[test]
    fn only_these_two_questions_are_altered() {
        assert!(asks(&question(0x101, 0x301)) && asks(&question(0x201, 0x301)));
        for other in
            [question(0x102, 0x301), question(0x100, 0x301), question(0x101, 0x1), question(18, 0x301)]
        {
            assert!(!asks(&other));
        }
        assert!(!asks(&question(0x101, 0x301)[..19]));
    }

    // The kernel's word on the altered question, in whichever namespace the test runs.
    #[test]
    fn the_kernel_acknowledges_it() {
        use nix::sys::socket::{
            AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
        };
        use std::os::fd::AsRawFd;
        let netfilter = SockProtocol::NetlinkNetFilter;
        let socket =
            socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, netfilter).unwrap();
        let mut request = question(0x101, 0x301);
        answer_at_once(&mut request);
        send(socket.as_raw_fd(), &request, MsgFlags::empty()).unwrap();
        let mut answer = [0; 256];
        let got = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty()).unwrap();
        assert!(got >= 20);
        assert_eq!(word(&answer, 4), Some(libc::NLMSG_ERROR as u16));
        assert_eq!(answer[16..20], [0; 4], "no error");
    }
}
