//! A network is captured and made again; an independent tool (`ip`) must see no difference.

#![allow(clippy::unwrap_used)]

mod network_lab;

use network_lab::{Host, inside, name, on_host, request, sh};
use serde_json::Value;
use std::time::Instant;
use tranship_agent::network::*;
use tranship_proto::network::{LinkKind, NetCapture};

/// Removes what may differ: indices, counters, states of the carrier, the flag that says that an
/// address was not tested, and lifetimes (compared apart).
fn normal(v: Value) -> Value {
    const DROP: [&str; 15] = [
        "ifindex",
        "link_index",
        "link_netnsid",
        "operstate",
        "nodad",
        "valid_life_time",
        "preferred_life_time",
        "expires",
        "flags",
        "protocol_ra",
        "stable-privacy",
        "temporary",
        "mngtmpaddr_x",
        "altnames",
        "link_netns",
    ];
    match v {
        Value::Array(a) => Value::Array(
            a.into_iter().map(normal).filter(|v| *v != Value::Object(Default::default())).collect(),
        ),
        Value::Object(o) => Value::Object(
            o.into_iter().filter(|(k, _)| !DROP.contains(&k.as_str())).map(|(k, v)| (k, normal(v))).collect(),
        ),
        v => v,
    }
}

fn seen(ns: &Netns, what: &str) -> Value {
    let text = inside(ns, &format!("ip -j {what}"));
    normal(serde_json::from_str(if text.trim().is_empty() { "[]" } else { &text }).unwrap())
}

const VIEWS: [&str; 8] = [
    "addr show",
    "-4 route show table all",
    "-6 route show table all",
    "-4 rule show",
    "-6 rule show",
    "neigh show nud permanent",
    "neigh show proxy",
    "-d link show",
];

async fn source(host: &Host) -> (Netns, Vec<Port>) {
    let c = name("web");
    let ns = Netns::create(host.run_dir.path(), &c).await.unwrap();
    let mut eth0 = request("eth0", "lan", &["10.77.1.5/16", "fd77::1:5/64"]);
    eth0.gateways = vec!["10.77.0.1".parse().unwrap(), "fd77::1".parse().unwrap()];
    let mut eth1 = request("eth1", "back", &["10.78.1.5/16"]);
    eth1.mtu = Some(1400);
    eth1.mac = Some("02:00:00:aa:bb:01".parse().unwrap());
    let ports = connect(&ns, &c, &[eth0, eth1], &host.networks, Gate::Open).await.unwrap();
    for line in [
        "ip addr add 10.77.1.6/16 dev eth0 label eth0:one",
        "ip addr add 10.77.1.7/16 brd + dev eth0",
        "ip addr add 192.0.2.1 peer 192.0.2.2/32 dev eth1",
        "ip addr add 198.51.100.9/24 dev eth1 valid_lft 3600 preferred_lft 1800 metric 77",
        "ip addr add 203.0.113.4/24 dev eth1 noprefixroute",
        "ip addr add 10.255.0.1/32 dev lo",
        "ip addr add fd77::1:6/64 dev eth0 nodad",
        "ip addr add fd77::1:7/64 dev eth0 nodad preferred_lft 0",
        "ip addr add fd99::1/64 dev eth1 nodad valid_lft 7200 preferred_lft 3600",
        "ip addr add 2001:db8:5::1/128 dev lo",
        "ip link set eth0 txqueuelen 500",
        "ip route add 172.16.0.0/12 via 10.77.0.9 metric 50 mtu 1300 advmss 1200",
        "ip route add 172.16.0.0/12 via 10.78.0.9 metric 60 src 10.78.1.5",
        "ip route add 169.254.7.7 dev eth0 scope link",
        "ip route add 100.64.0.0/10 via 169.254.7.7",
        "ip route add 10.99.0.0/16 via 10.1.1.1 dev eth0 onlink table 100 proto static",
        "ip route add default via 10.78.0.1 table 5000",
        "ip route add 10.98.0.0/16 nexthop via 10.77.0.2 weight 3 nexthop via 10.78.0.2 weight 1",
        "ip route add blackhole 192.168.0.0/16",
        "ip route add prohibit 192.168.3.0/24 table 100",
        "ip route add local 10.66.0.0/16 dev lo",
        "ip route add 203.0.113.0/24 via inet6 fe80::1 dev eth0",
        "ip -6 route add 2001:db8::/32 via fd77::9 metric 5",
        "ip -6 route add 2001:db8:1::/48 nexthop via fd77::a nexthop via fe80::b dev eth1",
        "ip -6 route add unreachable 2001:db8:2::/48",
        "ip -6 route add default via fe80::1 dev eth1 table 200 pref high",
        "ip -6 route add 2001:db8:9::/64 via fe80::1 dev eth0 expires 900",
        "ip rule add from 10.78.1.5 lookup 5000 priority 100",
        "ip rule add fwmark 0x10/0xff iif eth0 lookup 100 priority 200",
        "ip rule add not to 10.0.0.0/8 ipproto tcp dport 80-90 uidrange 100-200 lookup main suppress_prefixlength 0 priority 300",
        "ip -6 rule add from fd77::/64 tos 0x10 oif eth1 lookup 200 priority 150",
        "ip -6 rule add prohibit from 2001:db8:ff::/48 priority 160",
        "ip neigh add 10.77.0.50 lladdr 02:00:00:00:00:50 dev eth0 nud permanent",
        "ip neigh add fd77::50 lladdr 02:00:00:00:00:51 dev eth0 nud permanent router",
        "ip neigh add proxy 10.77.0.60 dev eth0",
        "ip neigh add proxy fd77::60 dev eth0",
        "sysctl -qw net.ipv4.ip_forward=1",
        "sysctl -qw net.ipv4.conf.eth1.rp_filter=2",
        "sysctl -qw net.ipv4.conf.eth0.forwarding=0",
        "sysctl -qw net.ipv4.tcp_keepalive_time=77",
        "sysctl -qw net.core.somaxconn=321",
        "sysctl -qw net.ipv6.conf.eth0.hop_limit=33",
        "sysctl -qw net.ipv6.conf.eth1.mtu=1300",
        "sysctl -qw 'net.ipv4.ip_local_port_range=20000 30000'",
        "sysctl -qw net.ipv4.neigh.eth0.base_reachable_time_ms=12345",
        "sysctl -qw net.ipv6.conf.default.accept_ra=0",
    ] {
        inside(&ns, line);
    }
    // Not every kernel has dummy links.
    let dummy = "ip link add dum0 type dummy && ip addr add 10.200.0.1/24 dev dum0 && \
        ip link set dum0 address 02:00:00:00:00:77 up && sysctl -qw net.ipv6.conf.dum0.disable_ipv6=1";
    inside(&ns, &format!("{{ {dummy}; }} 2>/dev/null || true"));
    (ns, ports)
}

fn lifetimes_close(a: &NetCapture, b: &NetCapture) {
    for (x, y) in a.links.iter().zip(&b.links) {
        for (p, q) in x.addrs.iter().zip(&y.addrs) {
            assert!(p.valid_lft.abs_diff(q.valid_lft) < 10, "{p:?} {q:?}");
            assert!(p.preferred_lft.abs_diff(q.preferred_lft) < 10, "{p:?} {q:?}");
        }
    }
}

#[test]
fn all_is_the_same_elsewhere() {
    on_host(|host| async move {
        let (ns, ports) = source(&host).await;
        let t = Instant::now();
        let taken = capture(&ns, &name("web"), &host.networks).await.unwrap();
        eprintln!("capture: {:?}, {} sysctls", t.elapsed(), taken.sysctls.len());
        assert!(taken.links.len() >= 3);
        assert_eq!(taken.links[1].kind, LinkKind::Veth);
        let document = serde_json::to_vec(&taken).unwrap();
        eprintln!("document: {} bytes", document.len());
        let carried: NetCapture = serde_json::from_slice(&document).unwrap();
        assert_eq!(carried, taken);
        let mut carried = carried;
        // Not those that the kernel would give.
        carried.links[1].index = 17;
        carried.links[2].index = 23;
        assert!(missing_networks(&carried, &host.networks).is_empty());

        let t = Instant::now();
        fence(&ports).await.unwrap();
        eprintln!("fence: {:?}", t.elapsed());

        let c = name("web-b");
        let there = Netns::create(host.run_dir.path(), &c).await.unwrap();
        let t = Instant::now();
        let new_ports = recreate(&there, &c, &carried, &host.networks).await.unwrap();
        eprintln!("recreate: {:?}", t.elapsed());
        for p in &new_ports {
            assert!(!is_open(p).await.unwrap());
        }
        for view in VIEWS {
            pretty(view, &seen(&ns, view), &seen(&there, view));
        }
        assert!(!inside(&there, "ip -6 addr show").contains("tentative"));
        let again = capture(&there, &c, &host.networks).await.unwrap();
        lifetimes_close(&carried, &again);
        let indices = |c: &NetCapture| c.links.iter().map(|l| l.index).collect::<Vec<_>>();
        assert_eq!(indices(&carried)[..3], indices(&again)[..3]);
        let differ: Vec<_> = carried.sysctls.iter().filter(|s| !again.sysctls.contains(s)).collect();
        assert!(differ.is_empty(), "{differ:?}");
        assert_eq!(carried.rules, again.rules);
        let sorted = |c: &NetCapture| {
            let mut r: Vec<_> = c
                .routes
                .iter()
                .map(|r| {
                    format!("{:?}", tranship_proto::network::RouteCapture { expires: None, ..r.clone() })
                })
                .collect();
            r.sort();
            r
        };
        assert_eq!(sorted(&carried), sorted(&again));

        sockets_can_be_repaired(&there);

        // Twice is refused, not mixed.
        let twice = recreate(&there, &c, &carried, &host.networks).await;
        assert!(matches!(twice, Err(NetworkError::NotEmpty { .. })), "{twice:?}");

        destroy(&ns, &name("web"), &ports).await.unwrap();
        let before: Vec<Value> = VIEWS.iter().map(|v| seen(&there, v)).collect();
        let t = Instant::now();
        open_gate(&new_ports).await.unwrap();
        eprintln!("open gate: {:?}", t.elapsed());
        std::thread::sleep(std::time::Duration::from_millis(300));
        // Opening adds nothing and loses nothing: no second link-local address, no route.
        for (view, before) in VIEWS.iter().zip(&before) {
            if *view != "-d link show" {
                pretty(view, before, &seen(&there, view));
            }
        }
        destroy(&there, &c, &[]).await.unwrap();
        destroy(&there, &c, &new_ports).await.unwrap();
        assert!(!sh("ip -o link").contains(": ts"), "{}", sh("ip -o link"));
        assert!(!there.path().exists() && !ns.path().exists());
        assert!(!sh("cat /proc/self/mounts").contains(host.run_dir.path().to_str().unwrap()));
    });
}

/// What CRIU does with an established connection: bind and connect in repair mode, while the gate
/// is shut.
fn sockets_can_be_repaired(ns: &Netns) {
    use nix::sys::socket::*;
    use std::net::SocketAddr;
    use std::os::fd::AsRawFd;
    let path = ns.path().to_owned();
    let thread = std::thread::spawn(move || {
        let fd = std::fs::File::open(path).unwrap();
        nix::sched::setns(fd, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        for (own, peer) in [
            ("10.77.1.5:4000", "10.77.254.1:80"),
            ("10.77.1.5:4001", "8.8.8.8:80"),
            ("[fd77::1:5]:4000", "[fd77::fe:1]:80"),
            ("[fd77::1:5]:4001", "[2a00::1]:80"),
        ] {
            let own: SocketAddr = own.parse().unwrap();
            let family = if own.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
            let s = socket(family, SockType::Stream, SockFlag::empty(), None).unwrap();
            setsockopt(&s, sockopt::TcpRepair, &1).unwrap();
            bind(s.as_raw_fd(), &SockaddrStorage::from(own)).unwrap();
            let peer: SocketAddr = peer.parse().unwrap();
            connect(s.as_raw_fd(), &SockaddrStorage::from(peer)).unwrap();
        }
    });
    thread.join().unwrap();
}

fn pretty(view: &str, a: &Value, b: &Value) {
    let (Value::Array(x), Value::Array(y)) = (a, b) else { panic!("{view}: no list") };
    let mut x: Vec<String> = x.iter().map(Value::to_string).collect();
    let mut y: Vec<String> = y.iter().map(Value::to_string).collect();
    if view.contains("route") {
        x.sort();
        y.sort();
    }
    assert_eq!(x, y, "{view}");
}

#[test]
fn a_host_that_cannot_take_it_says_so_and_keeps_nothing() {
    on_host(|host| async move {
        let (ns, ports) = source(&host).await;
        let taken = capture(&ns, &name("web"), &host.networks).await.unwrap();
        let c = name("other");
        let there = Netns::create(host.run_dir.path(), &c).await.unwrap();
        let attempt = async |capture: &NetCapture, networks: &Networks| {
            let e = recreate(&there, &c, capture, networks).await.unwrap_err();
            eprintln!("{e}");
            assert!(ports_in_use(&c).await.unwrap().is_empty());
            e
        };
        let only_lan = Networks::new([("lan".to_owned(), "br0".to_owned())]);
        assert_eq!(missing_networks(&taken, &only_lan), ["back"]);
        assert!(matches!(attempt(&taken, &only_lan).await, NetworkError::MissingNetwork { .. }));
        let gone =
            Networks::new([("lan", "br0"), ("back", "br9")].map(|(a, b)| (a.to_owned(), b.to_owned())));
        assert_eq!(missing_bridges(&gone).await.unwrap(), ["back"]);
        assert!(matches!(attempt(&taken, &gone).await, NetworkError::MissingBridge { .. }));
        sh("ip link set br1 type bridge stp_state 1");
        assert!(matches!(attempt(&taken, &host.networks).await, NetworkError::SlowBridge { .. }));
        sh("ip link set br1 type bridge stp_state 0");
        let mut big = taken.clone();
        big.links[1].mtu = 9000;
        assert!(matches!(attempt(&big, &host.networks).await, NetworkError::SmallBridge { .. }));
        let mut hostile = taken.clone();
        hostile.sysctls[0].key = "net/ipv4/../../kernel/hostname".into();
        assert!(matches!(attempt(&hostile, &host.networks).await, NetworkError::Invalid(_)));
        // Found only while building: what was made goes again.
        let mut odd = taken.clone();
        let forward = odd.sysctls.iter_mut().find(|s| s.key == "net/ipv4/ip_forward").unwrap();
        forward.value = "nonsense".into();
        assert!(matches!(attempt(&odd, &host.networks).await, NetworkError::Sysctl { .. }));
        assert_eq!(inside(&there, "ip -o link").lines().count(), 1);
        // And then it works in the same namespace.
        recreate(&there, &c, &taken, &host.networks).await.unwrap();
        destroy(&there, &c, &[]).await.unwrap();
        destroy(&ns, &name("web"), &ports).await.unwrap();
    });
}
