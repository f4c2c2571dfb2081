//! Connections that a container's servers have not accepted yet. CRIU cannot dump them ("In-flight
//! connection"), since no process has them.
//!
//! The kernel shows the length of a listener's queue as its `rx_queue` (proc_pid_net(5) and
//! net/ipv4/tcp_ipv4.c, `get_tcp4_sock`). Rejected: sock_diag, which tells the same to a process that has
//! entered the namespace, while these files are seen from outside.

use std::io;
use std::path::PathBuf;

/// State of a listening socket in these tables (include/net/tcp_states.h).
const LISTEN: &str = "0A";

/// TCP ports of the network namespace of process `pid` on which connections wait to be accepted.
///
/// # Errors
/// When the process is gone, or the tables cannot be read.
pub fn backlogged_ports(pid: i32) -> io::Result<Vec<u16>> {
    let mut ports = Vec::new();
    for table in ["tcp", "tcp6"] {
        match std::fs::read_to_string(PathBuf::from(format!("/proc/{pid}/net/{table}"))) {
            Ok(text) => ports.extend(text.lines().skip(1).filter_map(backlogged)),
            // A kernel without IPv6.
            Err(e) if e.kind() == io::ErrorKind::NotFound && table == "tcp6" => {}
            Err(e) => return Err(e),
        }
    }
    ports.sort_unstable();
    ports.dedup();
    Ok(ports)
}

/// The port of a line, when it is a listener's and something waits there.
fn backlogged(line: &str) -> Option<u16> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (local, state, queues) = (fields.get(1)?, fields.get(3)?, fields.get(4)?);
    let waiting = u32::from_str_radix(queues.split_once(':')?.1, 16).ok()?;
    if *state != LISTEN || waiting == 0 {
        return None;
    }
    u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    fn mine(port: u16) -> bool {
        let pid = i32::try_from(std::process::id()).unwrap();
        backlogged_ports(pid).unwrap().contains(&port)
    }

    #[test]
    fn a_connection_counts_until_it_is_accepted() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            // A machine without IPv6 has nothing to be tested there.
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let port = listener.local_addr().unwrap().port();
            assert!(!mine(port));
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            assert!(mine(port));
            let accepted = listener.accept().unwrap();
            assert!(!mine(port));
            drop((client, accepted));
        }
    }

    #[test]
    fn other_sockets_and_damaged_lines_count_nothing() {
        let established = "0: 0100007F:1F90 0100007F:9C40 01 00000000:00000005 00:00000000 00000000 0 0 1";
        for line in [established, "", "0:", "0: 0100007F 0 0A 0:1", "0: 0100007F:1F90 0 0A x"] {
            assert_eq!(backlogged(line), None, "{line:?}");
        }
        assert_eq!(backlogged("0: 0100007F:1F90 00000000:0000 0A 00000000:00000001 00:0"), Some(8080));
    }
}
