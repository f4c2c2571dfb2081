//! Fence, gate, packet watch, announcement and probe, with real packets.

#![allow(clippy::unwrap_used)]

mod network_lab;

use network_lab::{Host, inside, name, on_host, request, sh};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, socket};
use std::net::{IpAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tranship_agent::network::*;
use tranship_proto::ids::ContainerName;
use tranship_proto::network::{LinkRequest, NetCapture};

/// Runs `f` on a thread inside a namespace.
fn in_ns<T: Send + 'static>(
    ns: &Netns,
    f: impl FnOnce() -> T + Send + 'static,
) -> std::thread::JoinHandle<T> {
    let path = ns.path().to_owned();
    std::thread::spawn(move || {
        let fd = std::fs::File::open(path).unwrap();
        nix::sched::setns(fd, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        f()
    })
}

async fn container(host: &Host, c: &ContainerName, links: &[LinkRequest]) -> (Netns, Vec<Port>) {
    let ns = Netns::create(host.run_dir.path(), c).await.unwrap();
    let ports = connect(&ns, c, links, &host.networks, Gate::Open).await.unwrap();
    (ns, ports)
}

/// A UDP sender inside every 100 us, and the moments at which its packets come.
fn stream(host_ip: &str, ns: &Netns) -> mpsc::Receiver<Instant> {
    let sink = UdpSocket::bind((host_ip, 0)).unwrap();
    let to = sink.local_addr().unwrap();
    let (tx, rx) = mpsc::channel();
    std::thread::spawn(move || {
        let mut b = [0; 64];
        while sink.recv(&mut b).is_ok() && tx.send(Instant::now()).is_ok() {}
    });
    drop(in_ns(ns, move || {
        let any: IpAddr = if to.is_ipv4() { "0.0.0.0" } else { "::" }.parse().unwrap();
        let s = UdpSocket::bind((any, 0)).unwrap();
        for _ in 0..100_000 {
            let _ = s.send_to(&[7; 20], to);
            std::thread::sleep(Duration::from_micros(100));
        }
    }));
    rx
}

#[test]
fn fence_stops_and_unfence_restores_at_once() {
    on_host(|host| async move {
        let c = name("web");
        let (ns, ports) =
            container(&host, &c, &[request("eth0", "lan", &["10.77.1.5/16", "fd77::1:5/64"])]).await;
        inside(&ns, "ip neigh add 10.77.0.50 lladdr 02:00:00:00:00:50 dev eth0 nud permanent");
        let v4 = stream("10.77.0.1", &ns);
        let v6 = stream("fd77::1", &ns);
        v4.recv_timeout(Duration::from_secs(3)).unwrap();
        v6.recv_timeout(Duration::from_secs(3)).unwrap();
        let view = "ip addr show dev eth0; ip route; ip -6 route; ip neigh show nud permanent";
        let before = inside(&ns, view);
        for round in 0..3 {
            assert!(is_open(&ports[0]).await.unwrap());
            let t = Instant::now();
            fence(&ports).await.unwrap();
            let fenced = Instant::now();
            fence(&ports).await.unwrap();
            assert!(!is_open(&ports[0]).await.unwrap());
            tokio::time::sleep(Duration::from_millis(500)).await;
            let late =
                v4.try_iter().chain(v6.try_iter()).filter(|at| *at > fenced + Duration::from_millis(20));
            assert_eq!(late.count(), 0, "packets passed a fence");
            let up = Instant::now();
            unfence(&ns, &ports).await.unwrap();
            let opened = up.elapsed();
            let a = v4.recv_timeout(Duration::from_secs(3)).unwrap() - up;
            let b = v6.recv_timeout(Duration::from_secs(3)).unwrap() - up;
            eprintln!(
                "round {round}: fence {:?}, unfence {opened:?}, first packet v4 {a:?} v6 {b:?}",
                fenced - t
            );
            assert!(a < Duration::from_millis(300) && b < Duration::from_millis(300), "{a:?} {b:?}");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(before, inside(&ns, view));
        destroy(&ns, &c, &ports).await.unwrap();
        fence(&ports).await.unwrap();
        assert!(open_gate(&ports).await.is_err());
    });
}

#[test]
fn watch_sees_the_outage() {
    on_host(|host| async move {
        let c = name("web");
        let (ns, ports) = container(&host, &c, &[request("eth0", "lan", &["10.77.1.5/16"])]).await;
        let out = stream("10.77.0.1", &ns);
        out.recv_timeout(Duration::from_secs(3)).unwrap();
        let to = UdpSocket::bind("10.77.0.1:0").unwrap();
        let watch = PacketWatch::start(&ports[0]).unwrap();
        assert!(PacketWatch::start(&Port::of(&c, "none")).is_err());
        watch.arm().unwrap();
        to.send_to(b"x", "10.77.1.5:9").unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let seen = watch.times().unwrap();
        let (first, last) = (seen.first_out.unwrap(), seen.last_in.unwrap());
        fence(&ports).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        watch.arm().unwrap();
        to.send_to(b"x", "10.77.1.5:9").unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(watch.times().unwrap(), PacketTimes::default());
        unfence(&ns, &ports).await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        let seen = watch.times().unwrap();
        let gap = seen.first_out.unwrap() - last;
        eprintln!("from last in to first out: {} us", gap / 1000);
        assert!(gap > 150_000_000 && gap < 600_000_000, "{gap}");
        assert!(seen.first_out.unwrap() > first && seen.last_out > seen.first_out);
        destroy(&ns, &c, &ports).await.unwrap();
    });
}

#[test]
fn probe_finds_who_has_an_address() {
    on_host(|host| async move {
        let c = name("web");
        let (ns, ports) =
            container(&host, &c, &[request("eth0", "lan", &["10.77.1.5/16", "fd77::1:5/64"])]).await;
        let taken = capture(&ns, &c, &host.networks).await.unwrap();
        let mac = taken.links[1].mac;
        let wait = Duration::from_millis(500);
        for (ip, who) in [("10.77.1.5", mac), ("fd77::1:5", mac), ("10.77.9.9", None), ("fd77::99", None)] {
            let t = Instant::now();
            let found = probe(&host.networks, "lan", ip.parse().unwrap(), wait).await.unwrap();
            assert_eq!(found, who, "{ip}");
            eprintln!("probe {ip}: {:?}", t.elapsed());
        }
        let own = probe(&host.networks, "lan", "10.77.0.1".parse().unwrap(), wait).await.unwrap();
        assert!(own.is_some());
        let none = probe(&host.networks, "wan", "10.77.0.1".parse().unwrap(), wait).await;
        assert!(matches!(none, Err(NetworkError::MissingNetwork { .. })));
        assert_eq!(conflicts(&host.networks, &taken, wait).await.unwrap(), []);
        // Another container with the same addresses.
        let thief = name("thief");
        let (other, stolen) =
            container(&host, &thief, &[request("eth0", "lan", &["10.77.1.5/16", "fd77::1:5/64"])]).await;
        let found = conflicts(&host.networks, &taken, wait).await.unwrap();
        let ips: Vec<_> = found.iter().map(|c| c.ip.to_string()).collect();
        assert_eq!(ips, ["10.77.1.5", "fd77::1:5"], "{found:?}");
        destroy(&other, &thief, &stolen).await.unwrap();
        destroy(&ns, &c, &ports).await.unwrap();
    });
}

fn listener() -> OwnedFd {
    let proto = nix::sys::socket::SockProtocol::EthAll;
    socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_NONBLOCK, proto).unwrap()
}

fn frames(s: &OwnedFd) -> Vec<Vec<u8>> {
    let mut b = [0; 2048];
    std::iter::from_fn(|| recv(s.as_raw_fd(), &mut b, MsgFlags::empty()).ok().map(|n| b[..n].to_vec()))
        .collect()
}

#[test]
fn announcement_reaches_another_container() {
    on_host(|host| async move {
        let c = name("web");
        let (ns, ports) = container(
            &host,
            &c,
            &[
                request("eth0", "lan", &["10.77.1.5/16", "fd77::1:5/64", "10.77.1.6/16"]),
                request("eth1", "back", &["10.78.1.5/16"]),
            ],
        )
        .await;
        let peer = name("peer");
        let (other, other_ports) =
            container(&host, &peer, &[request("eth0", "lan", &["10.77.1.9/16", "fd77::1:9/64"])]).await;
        let taken: NetCapture = capture(&ns, &c, &host.networks).await.unwrap();
        let mac = taken.links[1].mac.unwrap();
        // The peer believes in another place.
        for ip in ["10.77.1.5", "10.77.1.6", "fd77::1:5"] {
            inside(&other, &format!("ip neigh add {ip} lladdr 02:00:00:00:00:99 dev eth0 nud stale"));
        }
        let ear = in_ns(&other, listener).join().unwrap();
        announce(&ns, &taken).await.unwrap();
        tokio::time::sleep(Duration::from_millis(30)).await;
        let first = frames(&ear);
        let wanted: Vec<Vec<u8>> = frames_of(&taken.links[1]);
        assert_eq!(wanted.len(), 2 + 2 + 2, "two addresses twice, two neighbour advertisements");
        for w in &wanted {
            assert!(first.contains(w), "{w:02x?}");
        }
        let now = inside(&other, "ip neigh show");
        for ip in ["10.77.1.5", "10.77.1.6", "fd77::1:5"] {
            assert!(now.contains(&format!("{ip} dev eth0 lladdr {mac}")), "{now}");
        }
        tokio::time::sleep(Duration::from_millis(2300)).await;
        let repeats = frames(&ear).iter().filter(|f| **f == wanted[0]).count();
        assert_eq!(repeats, 4);
        destroy(&other, &peer, &other_ports).await.unwrap();
        destroy(&ns, &c, &ports).await.unwrap();
    });
}

/// One in 64 containers gets such an address by chance.
#[test]
fn a_container_with_a_high_address_is_reached() {
    on_host(|host| async move {
        let c = name("web");
        let mut link = request("eth0", "lan", &["10.77.1.5/16"]);
        link.mac = Some("fe:00:00:00:00:05".parse().unwrap());
        let (ns, ports) = container(&host, &c, &[link]).await;
        let listener = in_ns(&ns, || std::net::TcpListener::bind("10.77.1.5:7001").unwrap()).join().unwrap();
        let to = "10.77.1.5:7001".parse().unwrap();
        std::net::TcpStream::connect_timeout(&to, Duration::from_secs(5)).unwrap();
        drop(listener);
        let taken = capture(&ns, &c, &host.networks).await.unwrap();
        let hold = PacketHold::prepare(&c, &taken, &host.networks, HoldLimits::default()).await.unwrap();
        hold.discard().await;
        destroy(&ns, &c, &ports).await.unwrap();
    });
}

#[test]
fn what_cannot_be_carried_is_refused_before() {
    on_host(|host| async move {
        let c = name("web");
        let (ns, ports) = container(&host, &c, &[request("eth0", "lan", &["10.77.1.5/16"])]).await;
        let refusal = async |make: &str, undo: &str| {
            inside(&ns, make);
            let e = capture(&ns, &c, &host.networks).await.expect_err(make);
            eprintln!("{e}; {:?}", e.hint());
            assert!(e.is_refusal() && e.hint().is_some());
            inside(&ns, undo);
            capture(&ns, &c, &host.networks).await.expect(undo);
            e
        };
        let e = refusal("ip link add v0 type veth peer name v1", "ip link del v0").await;
        assert!(matches!(e, NetworkError::Unattached { .. }));
        let e = refusal("ip link add b0 type bridge", "ip link del b0").await;
        assert!(matches!(e, NetworkError::UnsupportedLink { .. }));
        let e = refusal(
            "nft add table inet t; nft add chain inet t c; nft add rule inet t c accept",
            "nft flush ruleset",
        )
        .await;
        assert!(matches!(e, NetworkError::NetfilterRules { .. }));
        let e = refusal(
            "nft 'add table inet t; add chain inet t c { type filter hook input priority 0; policy drop; }'",
            "nft flush ruleset",
        )
        .await;
        assert!(matches!(e, NetworkError::NetfilterRules { .. }));
        // Not every kernel has IPsec.
        let policy = "ip xfrm policy add src 10.0.0.0/8 dst 10.1.0.0/16 dir out action block";
        if !inside(&ns, &format!("{policy} 2>/dev/null || echo none")).contains("none") {
            inside(&ns, "ip xfrm policy flush");
            let e = refusal(policy, "ip xfrm policy flush").await;
            assert!(matches!(e, NetworkError::Ipsec { .. }));
        }
        // An empty table loses nothing.
        inside(&ns, "nft add table inet t; nft 'add chain inet t c { type filter hook input priority 0; }'");
        capture(&ns, &c, &host.networks).await.unwrap();
        let others = Networks::new([("lan".to_owned(), "br1".to_owned())]);
        let e = capture(&ns, &c, &others).await.unwrap_err();
        assert!(matches!(e, NetworkError::NoNetwork { .. }), "{e}");
        destroy(&ns, &c, &ports).await.unwrap();
    });
}

#[test]
fn failures_leave_nothing() {
    on_host(|host| async move {
        let c = name("web");
        let ns = Netns::create(host.run_dir.path(), &c).await.unwrap();
        assert_eq!(Netns::create(host.run_dir.path(), &c).await.unwrap(), ns);
        let ok = request("eth0", "lan", &["10.77.1.5/16"]);
        let mut twice = request("eth1", "lan", &["10.77.1.6/16"]);
        twice.gateways = vec!["192.0.2.1".parse().unwrap()];
        let e = connect(&ns, &c, &[ok.clone(), twice], &host.networks, Gate::Open).await.unwrap_err();
        assert!(matches!(e, NetworkError::Failed { .. }), "{e}");
        assert!(ports_in_use(&c).await.unwrap().is_empty());
        assert_eq!(inside(&ns, "ip -o link").lines().count(), 1);
        for bad in ["lo", "a/b", "", "0123456789abcdef"] {
            let r = LinkRequest { name: bad.into(), ..ok.clone() };
            let e = connect(&ns, &c, &[r], &host.networks, Gate::Shut).await.unwrap_err();
            assert!(matches!(e, NetworkError::Invalid(_)), "{bad}: {e}");
        }
        let ports = connect(&ns, &c, &[ok], &host.networks, Gate::Shut).await.unwrap();
        assert!(!is_open(&ports[0]).await.unwrap());
        assert_eq!(ports_in_use(&c).await.unwrap(), ports);
        // Nothing known but the name.
        destroy(&Netns::at(host.run_dir.path(), &c), &c, &[]).await.unwrap();
        destroy(&Netns::at(host.run_dir.path(), &c), &c, &[]).await.unwrap();
        assert!(ports_in_use(&c).await.unwrap().is_empty());
        assert!(!sh("ip -o link").contains(&ports[0].name));
        assert!(Netns::open(ns.path()).is_err());
    });
}

#[test]
fn a_gate_opens_at_once_also_where_indices_meet() {
    on_host(|host| async move {
        let c = name("web");
        let (ns, ports) = container(&host, &c, &[request("eth0", "lan", &["10.77.1.5/16"])]).await;
        let mut taken = capture(&ns, &c, &host.networks).await.unwrap();
        destroy(&ns, &c, &ports).await.unwrap();
        // The index that the host's next link will get.
        sh("ip link add x type veth peer name y");
        let last: u32 = sh("ip -o link show x | cut -d: -f1").trim().parse().unwrap();
        sh("ip link del x");
        taken.links[1].index = last + 1;
        let ns = Netns::create(host.run_dir.path(), &c).await.unwrap();
        let ports = recreate(&ns, &c, &taken, &host.networks).await.unwrap();
        let inner = inside(&ns, "ip -o link show eth0");
        let outer = sh(&format!("ip -o link show {}", ports[0].name));
        assert!(inner.starts_with(&format!("{}:", last + 1)), "{inner}");
        assert_ne!(inner.split(':').next(), outer.split(':').next());
        open_gate(&ports).await.unwrap();
        for round in 0..3 {
            let out = stream("10.77.0.1", &ns);
            out.recv_timeout(Duration::from_secs(3)).unwrap();
            fence(&ports).await.unwrap();
            tokio::time::sleep(Duration::from_millis(300)).await;
            while out.try_recv().is_ok() {}
            let up = Instant::now();
            unfence(&ns, &ports).await.unwrap();
            let first = out.recv_timeout(Duration::from_secs(3)).unwrap() - up;
            assert!(first < Duration::from_millis(300), "round {round}: {first:?}");
        }
        destroy(&ns, &c, &ports).await.unwrap();
    });
}
