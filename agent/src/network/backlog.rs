//! Connections that a container's servers have not accepted yet. CRIU cannot dump them ("In-flight
//! connection"), since no process has them.
//!
//! sock_diag(7) tells the length of a listener's queue (`tcp_diag_get_info` of net/ipv4/tcp_diag.c), and is
//! asked for listeners only. Rejected: /proc/PID/net/tcp, for which the kernel walks the table of all
//! connections of the host, 2 ms for each of its two families on a host with 24 GiB, and more on larger ones.

use super::error::{Attempt, NetworkError};
use super::netns::{Netns, NsFd};
use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use rtnetlink::packet_core::{NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer};
use std::io;
use std::os::fd::AsRawFd;

/// `SOCK_DIAG_BY_FAMILY` of linux/sock_diag.h, also the type of an answer.
const BY_FAMILY: u16 = 20;
/// State of a listening socket (include/net/tcp_states.h), as one of a set.
const LISTEN: u32 = 1 << 10;
/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// `struct inet_diag_req_v2`.
const QUESTION: usize = 56;
/// In `struct inet_diag_msg` of linux/inet_diag.h: `id.idiag_sport`, in network order, and `idiag_rqueue`.
const PORT: usize = 4;
const QUEUE: usize = 56;

/// TCP ports of a network namespace on which connections wait to be accepted.
///
/// # Errors
/// When the namespace cannot be entered, or the kernel cannot be asked.
pub async fn backlogged_ports(netns: &Netns) -> Result<Vec<u16>, NetworkError> {
    waiting_in(&netns.fd()?)
        .await
        .attempt("ask for connections that wait in", netns.path().display().to_string())
}

async fn waiting_in(ns: &NsFd) -> io::Result<Vec<u16>> {
    ns.inside(|| {
        let mut ports = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            listeners(family as u8, &mut ports)?;
        }
        ports.sort_unstable();
        ports.dedup();
        Ok(ports)
    })
    .await
}

/// Adds the ports of this family in the namespace of the calling thread.
fn listeners(family: u8, ports: &mut Vec<u16>) -> io::Result<()> {
    let diag = SockProtocol::NetlinkSockDiag;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, diag)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(5))?;
    send(socket.as_raw_fd(), &question(family), MsgFlags::empty())?;
    let mut buffer = vec![0; 32 << 10];
    loop {
        let got = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        if read(&buffer[..got], ports)? {
            return Ok(());
        }
    }
}

fn question(family: u8) -> [u8; HEADER + QUESTION] {
    let mut all = [0; HEADER + QUESTION];
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    all[0..4].copy_from_slice(&((HEADER + QUESTION) as u32).to_ne_bytes());
    all[4..6].copy_from_slice(&BY_FAMILY.to_ne_bytes());
    all[6..8].copy_from_slice(&flags.to_ne_bytes());
    all[HEADER] = family;
    all[HEADER + 1] = libc::IPPROTO_TCP as u8;
    all[HEADER + 4..HEADER + 8].copy_from_slice(&LISTEN.to_ne_bytes());
    all
}

/// Reads the messages of one datagram. Whether they were the last.
fn read(mut messages: &[u8], ports: &mut Vec<u16>) -> io::Result<bool> {
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "a message of sock_diag that is cut short");
    while !messages.is_empty() {
        let message = NetlinkBuffer::new_checked(messages).map_err(|_| bad())?;
        let (length, body) = (message.length() as usize, message.payload());
        match message.message_type() {
            BY_FAMILY => {
                let (port, queue) = (bytes_at(body, PORT), bytes_at(body, QUEUE));
                if u32::from_ne_bytes(queue.ok_or_else(bad)?) > 0 {
                    ports.push(u16::from_be_bytes(port.ok_or_else(bad)?));
                }
            }
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let code = i32::from_ne_bytes(bytes_at(body, 0).ok_or_else(bad)?);
                return Err(io::Error::from_raw_os_error(code.wrapping_neg()));
            }
            _ => {}
        }
        // NLMSG_ALIGN of netlink(3).
        messages = messages.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

fn bytes_at<const N: usize>(body: &[u8], at: usize) -> Option<[u8; N]> {
    body.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    async fn waits(port: u16) -> bool {
        match waiting_in(&NsFd::host().unwrap()).await {
            Ok(ports) => ports.contains(&port),
            Err(e) => panic!("{e}"),
        }
    }

    #[tokio::test]
    async fn a_connection_counts_until_it_is_accepted() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root to enter a namespace");
            return;
        }
        for address in ["127.0.0.1:0", "[::1]:0"] {
            // A machine without IPv6 has nothing to be tested there.
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let port = listener.local_addr().unwrap().port();
            assert!(!waits(port).await);
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            assert!(waits(port).await);
            let accepted = listener.accept().unwrap();
            assert!(!waits(port).await);
            drop((client, accepted));
        }
    }

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut all = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
        all.extend(kind.to_ne_bytes());
        all.extend([0; 10]);
        all.extend(body);
        all
    }

    #[test]
    fn damaged_messages_are_errors() {
        let mut listener = [0; 72];
        listener[PORT..PORT + 2].copy_from_slice(&8080u16.to_be_bytes());
        listener[QUEUE] = 1;
        let mut ports = Vec::new();
        let both = [message(BY_FAMILY, &listener), message(NLMSG_DONE, &[0; 4])].concat();
        assert!(read(&both, &mut ports).unwrap());
        assert_eq!(ports, [8080]);
        for length in 1..HEADER + 72 {
            assert!(read(&both[..length], &mut ports).is_err(), "{length}");
        }
        let short = message(BY_FAMILY, &listener[..QUEUE]);
        assert!(read(&short, &mut ports).is_err());
        let mut endless = both;
        endless[..4].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert!(read(&endless, &mut ports).is_err());
        endless[..4].copy_from_slice(&0u32.to_ne_bytes());
        assert!(read(&endless, &mut ports).is_err());
        let refused = message(NLMSG_ERROR, &(-libc::ENOENT).to_ne_bytes());
        assert_eq!(read(&refused, &mut ports).unwrap_err().raw_os_error(), Some(libc::ENOENT));
    }
}
