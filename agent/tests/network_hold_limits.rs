//! A hold keeps to its bounds, answers nobody, ends by itself when it has to and leaves nothing.

#![allow(clippy::unwrap_used)]

mod hold_lab;
mod network_lab;

use hold_lab::*;
use network_lab::{inside, name, on_host, request, sh};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};
use tranship_agent::network::*;
use tranship_proto::network::Mac;

const MS: Duration = Duration::from_millis(1);

/// Fences the source and holds at the destination.
async fn hold(s: &Segment, limits: HoldLimits) -> PacketHold {
    let t = Instant::now();
    let mut hold = s.prepare(limits).await;
    let prepared = t.elapsed();
    s.fence_source();
    let t = Instant::now();
    hold.catch().await.unwrap();
    let caught = t.elapsed();
    hold.attract().unwrap();
    eprintln!("prepared in {prepared:?}, caught in {caught:?}, attracted in {:?}", t.elapsed() - caught);
    rest(20).await;
    hold
}

#[test]
fn both_sides_of_the_bounds() {
    on_host(|host| async move {
        let s = Segment::new(host).await;
        let few = HoldLimits { packets: 100, ..HoldLimits::default() };
        for (limits, count, length, wanted) in [
            (few, 100, 100, 100..=100),
            (few, 130, 100, 100..=100),
            // 42 bytes of headers, 10 of virtio's and some bookkeeping.
            (HoldLimits { bytes: 55_000, ..few }, 70, 1000, 49..=52),
        ] {
            let hold = hold(&s, limits).await;
            let got = receiver(&s.netns, V4, 8 << 20);
            sender(&s.client, V4, count, MS / 5, length).join().unwrap();
            rest(20).await;
            let stats = hold.stats();
            assert!(wanted.contains(&stats.held), "{stats:?}");
            assert_eq!(stats.held + stats.dropped, u64::from(count));
            s.carry();
            let end = s.resume(Some(hold)).await;
            assert_eq!(end.dropped, stats.dropped);
            let numbers: Vec<u32> = got.join().unwrap().into_iter().map(|(n, _)| n).collect();
            let oldest: Vec<u32> = (0..stats.held as u32).collect();
            assert_eq!(numbers, oldest, "the oldest are kept");
            s.carry_back().await;
        }
        let short = HoldLimits { age: 200 * MS, ..few };
        let hold = hold(&s, short).await;
        let got = receiver(&s.netns, V4, 8 << 20);
        sender(&s.client, V4, 10, MS, 100).join().unwrap();
        rest(250).await;
        s.carry();
        let t = Instant::now();
        let late = sender(&s.client, V4, 1, MS, 100);
        let stats = s.resume(Some(hold)).await;
        late.join().unwrap();
        assert_eq!(stats.dropped, 10, "{stats:?}");
        assert!(got.join().unwrap().iter().all(|(n, at)| *n == 0 && *at > t));
        s.end().await;
    });
}

/// The MAC address in a line of `ip -o link`.
fn address_of(line: &str) -> [u8; 6] {
    let mut words = line.split_whitespace().skip_while(|w| *w != "link/ether");
    words.nth(1).unwrap().parse::<Mac>().unwrap().0
}

fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Clock ticks (10 ms) that the readers' threads have run.
fn reader_ticks() -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let stats = tasks.filter_map(|t| std::fs::read_to_string(t.path().join("stat")).ok());
    let of = |s: String| {
        let (name, rest) = s.rsplit_once(')')?;
        let rest: Vec<&str> = rest.split_whitespace().collect();
        name.contains("packet-hold")
            .then(|| rest[11].parse::<u64>().unwrap() + rest[12].parse::<u64>().unwrap())
    };
    stats.filter_map(of).sum()
}

#[test]
fn a_flood_takes_no_more_memory() {
    on_host(|host| async move {
        let s = Segment::new(host).await;
        let hold = hold(&s, HoldLimits::default()).await;
        // Its own memory is there before.
        sender(&s.client, V4, 10, MS, 1400).join().unwrap();
        let before = resident_kib();
        let flood = sender(&s.client, V4, 200_000, Duration::ZERO, 1400);
        let t = Instant::now();
        let sent = flood.join().unwrap();
        let took = t.elapsed();
        rest(50).await;
        let (stats, after) = (hold.stats(), resident_kib());
        drop(sent);
        eprintln!(
            "{stats:?} of 200000 in {took:?}; {before} to {after} KiB; the reader ran for {} ms",
            reader_ticks() * 10
        );
        assert!(stats.held < 3000 && stats.held > 2500, "{stats:?}");
        assert!(stats.dropped > 1000, "{stats:?}");
        // The sender's own book is 3.2 MB.
        assert!(after < before + 4096 + 3200 + 2048, "{before} to {after} KiB");
        hold.discard().await;
        assert_eq!(s.traces(), "");
        s.end().await;
    });
}

#[test]
fn nothing_is_left_and_nothing_disturbed() {
    on_host(|host| async move {
        let s = Segment::new(host).await;
        // A hold's MAC must be higher still, or the bridge takes it for its own.
        sh("ip link set up-br0 address fe:fd:ff:ff:ff:ff");
        let view =
            "ip -o -d link show br0 | grep -oE ' mtu [0-9]+|link/ether [^ ]+'; ip -o link | cut -d: -f2";
        let before = sh(view);
        let prepared = s.prepare(HoldLimits::default()).await;
        let during = sh(view);
        assert_eq!(during.lines().take(2).collect::<Vec<_>>(), before.lines().take(2).collect::<Vec<_>>());
        // Not caught yet: all goes its way.
        s.meet().await;
        let second = PacketHold::prepare(&s.container, &s.capture, &s.host.networks, HoldLimits::default());
        assert!(second.await.is_err(), "one hold at a time");
        prepared.discard().await;
        assert_eq!((sh(view), s.traces()), (before.clone(), String::new()));

        let held = hold(&s, HoldLimits::default()).await;
        assert_ne!(s.traces(), "");
        sender(&s.client, V4, 10, MS, 100).join().unwrap();
        assert_eq!(held.stats().held, 10);
        held.discard().await;
        assert_eq!((sh(view), s.traces()), (before.clone(), String::new()));
        s.unfence_source();
        rest(50).await;
        announce(&s.netns, &s.capture).await.unwrap();
        let got = receiver(&s.netns, V4, 1 << 20);
        sender(&s.client, V4, 10, MS, 100).join().unwrap();
        assert_eq!(got.join().unwrap().len(), 10);

        // As when the process ends.
        drop(hold(&s, HoldLimits::default()).await);
        let until = Instant::now() + Duration::from_secs(2);
        while s.traces() != "" && Instant::now() < until {
            rest(5).await;
        }
        assert_eq!((sh(view), s.traces()), (before, String::new()));

        // A peer that names an address of this host's own.
        let own = address_of(&sh("ip -o link show br0"));
        let mut thief = s.capture.clone();
        thief.links[1].mac = Some(Mac(own));
        let refused =
            PacketHold::prepare(&s.container, &thief, &s.host.networks, HoldLimits::default()).await;
        assert!(matches!(refused, Err(NetworkError::Invalid(_))));
        sh("ip link set br0 type bridge stp_state 1");
        let refused =
            PacketHold::prepare(&s.container, &s.capture, &s.host.networks, HoldLimits::default()).await;
        assert!(matches!(refused, Err(NetworkError::SlowBridge { .. })));
        s.end().await;
    });
}

#[test]
fn nobody_answers_for_the_container() {
    on_host(|host| async move {
        let s = Segment::new(host).await;
        let ear = in_ns(&s.client, || {
            socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_NONBLOCK, SockProtocol::EthAll)
                .unwrap()
        });
        let ear = ear.join().unwrap();
        let held = hold(&s, HoldLimits::default()).await;
        let mut b = [0; 2048];
        while recv(ear.as_raw_fd(), &mut b, MsgFlags::empty()).is_ok() {}
        // UDP to where nobody listens, and a connection.
        sender(&s.client, V4, 100, MS, 100).join().unwrap();
        sender(&s.client, V6, 100, MS, 100).join().unwrap();
        let connecting = in_ns(&s.client, || {
            let to = (V4.parse::<std::net::IpAddr>().unwrap(), 7009).into();
            TcpStream::connect_timeout(&to, 300 * MS).unwrap_err().kind()
        });
        assert_eq!(connecting.join().unwrap(), std::io::ErrorKind::TimedOut);
        rest(700).await;
        let outer = address_of(&sh(&format!("ip -o link show th{}", &s.port.name[2..])));
        let mine = address_of(&inside(&s.client, "ip -o link show nic"));
        let mut calls = 0;
        while let Ok(n) = recv(ear.as_raw_fd(), &mut b, MsgFlags::empty()) {
            let f = &b[..n];
            assert_ne!(f[6..12], outer, "the device itself is silent");
            assert_ne!(f[..6], mine, "an answer: {f:02x?}");
            if f[6..12] == s.mac.0 {
                assert_eq!(f[12..14], [0x80, 0x35], "{f:02x?}");
                calls += 1;
            }
        }
        assert!((5..=8).contains(&calls), "{calls} calls, and quiet then");
        assert!(held.stats().held >= 201, "{:?}", held.stats());
        held.discard().await;
        s.end().await;
    });
}

#[test]
fn questions_wait_too() {
    on_host(|host| async move {
        let s = Segment::new(host).await;
        for to in [V4, V6] {
            let held = hold(&s, HoldLimits::default()).await;
            inside(&s.client, "ip neigh flush dev nic");
            let got = receiver(&s.netns, to, 1 << 20);
            let sent = sender(&s.client, to, 1, MS, 100).join().unwrap();
            sender(&s.client, "10.77.9.9", 1, MS, 100).join().unwrap();
            sender(&s.client, "fd77::9:9", 1, MS, 100).join().unwrap();
            rest(300).await;
            assert_eq!(held.stats().held, 1, "one question, and none for others");
            s.carry();
            let port = std::slice::from_ref(&s.port);
            open_gate(port).await.unwrap();
            let opened = Instant::now();
            held.deliver().await.unwrap();
            let got = got.join().unwrap();
            let (asked, waited) = (got[0].1 - sent[0], got[0].1 - opened);
            eprintln!("{to}: arrived {asked:?} after it was sent, {waited:?} after opening");
            assert!(waited < 200 * MS, "not when it is asked again");
            announce(&s.netns, &s.capture).await.unwrap();
            s.carry_back().await;
        }
        s.end().await;
    });
}

#[test]
fn it_gives_way_to_the_container_itself() {
    on_host(|host| async move {
        let s = Segment::new(host).await;
        let held = hold(&s, HoldLimits::default()).await;
        let local = UdpSocket::bind("10.77.0.1:0").unwrap();
        local.send_to(&[0; 4], (V4, 7000)).unwrap();
        rest(150).await;
        assert!(held.stats().held >= 1 && !held.stats().gave_way);
        // The source takes its container back; nobody has told the destination.
        s.unfence_source();
        rest(100).await;
        announce(&s.netns, &s.capture).await.unwrap();
        rest(100).await;
        assert!(held.stats().gave_way);
        let got = receiver(&s.netns, V4, 1 << 20);
        sender(&s.client, V4, 10, MS, 100).join().unwrap();
        local.send_to(&[0; 4], (V4, 7000)).unwrap();
        assert_eq!(got.join().unwrap().len(), 11, "also from this host");
        let stats = held.deliver().await.unwrap();
        assert_eq!((stats.delivered, stats.gave_way), (0, true));
        assert!(!s.traces().contains("th"), "{}", s.traces());
        s.end().await;
    });
}

#[test]
fn neighbours_on_the_host_itself_wait_too() {
    on_host(|host| async move {
        let s = Segment::new(host).await;
        let neighbour = name("neighbour");
        let ns = Netns::create(s.host.run_dir.path(), &neighbour).await.unwrap();
        let link = request("eth0", "lan", &["10.77.1.9/16"]);
        let ports = connect(&ns, &neighbour, &[link], &s.host.networks, Gate::Open).await.unwrap();
        let local = UdpSocket::bind("10.77.0.1:0").unwrap();
        let send = |b: &[u8; 4]| assert_eq!(local.send_to(b, (V4, 7000)).unwrap(), 4);
        // They know where it is.
        sender(&ns, V4, 1, MS, 100).join().unwrap();
        send(&[0; 4]);
        rest(100).await;
        let held = hold(&s, HoldLimits::default()).await;
        let got = receiver(&s.netns, V4, 1 << 20);
        sender(&ns, V4, 10, MS, 100).join().unwrap();
        (0..10).for_each(|_| send(&[0; 4]));
        rest(100).await;
        assert_eq!(held.stats().held, 20);
        s.carry();
        s.resume(Some(held)).await;
        send(&[0; 4]);
        assert_eq!(got.join().unwrap().len(), 21);
        destroy(&ns, &neighbour, &ports).await.unwrap();
        s.end().await;
    });
}

/// Bytes that show their place.
fn pattern(at: usize, out: &mut [u8]) {
    for (n, b) in out.iter_mut().enumerate() {
        let at = at + n;
        *b = (at ^ (at >> 8) ^ (at >> 16)) as u8;
    }
}

/// Sends for a while, then ends the stream; how much.
fn pour(mut c: TcpStream, time: Duration) -> usize {
    let (start, mut at, mut b) = (Instant::now(), 0, vec![0; 64 << 10]);
    while start.elapsed() < time {
        pattern(at, &mut b);
        c.write_all(&b).unwrap();
        at += b.len();
    }
    c.shutdown(std::net::Shutdown::Write).unwrap();
    at
}

/// Receives to the end and compares; how much.
fn drink(mut c: TcpStream) -> usize {
    let (mut at, mut b, mut wanted) = (0, vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        let n = c.read(&mut b).unwrap();
        if n == 0 {
            return at;
        }
        pattern(at, &mut wanted[..n]);
        assert!(b[..n] == wanted[..n], "at {at}");
        at += n;
    }
}

#[test]
fn streams_with_large_offloads_go_on_whole() {
    on_host(|host| async move {
        let s = Segment::new(host).await;
        let time = Duration::from_millis(1200);
        for (to, up) in [(V4, true), (V6, true), (V4, false)] {
            let listener = in_ns(&s.netns, move || TcpListener::bind((to, 7001)).unwrap()).join().unwrap();
            let server = std::thread::spawn(move || {
                let (c, _) = listener.accept().unwrap();
                if up { drink(c) } else { pour(c, time) }
            });
            let client = in_ns(&s.client, move || {
                let c = TcpStream::connect((to, 7001)).unwrap();
                if up { pour(c, time) } else { drink(c) }
            });
            rest(300).await;
            let t = Instant::now();
            let held = hold(&s, HoldLimits::default()).await;
            rest(200).await;
            s.carry();
            let stats = s.resume(Some(held)).await;
            let outage = t.elapsed();
            let ended = Instant::now();
            let (a, b) = (server.join().unwrap(), client.join().unwrap());
            eprintln!("{to}: {a} bytes, outage {outage:?}, over {:?} later; {stats:?}", ended.elapsed());
            assert_eq!(a, b);
            let errors = inside(&s.netns, "grep '^Tcp: [0-9]' /proc/net/snmp");
            assert_eq!(errors.split_whitespace().next_back(), Some("0"), "wrong checksums");
            s.carry_back().await;
        }
        s.end().await;
    });
}

#[test]
fn large_frames_arrive_as_if_never_held() {
    on_host(|host| async move {
        let s = Segment::new(host).await;
        for to in [V4, V6] {
            let listener = in_ns(&s.netns, move || TcpListener::bind((to, 7001)).unwrap()).join().unwrap();
            let mut client =
                in_ns(&s.client, move || TcpStream::connect((to, 7001)).unwrap()).join().unwrap();
            let (server, _) = listener.accept().unwrap();
            let datagrams = in_ns(&s.client, move || {
                let any = if to == V4 { "0.0.0.0" } else { "::" };
                let u = UdpSocket::bind((any, 0)).unwrap();
                u.connect((to, 7000)).unwrap();
                nix::sys::socket::setsockopt(&u, nix::sys::socket::sockopt::UdpGsoSegment, &1000).unwrap();
                u
            });
            let datagrams = datagrams.join().unwrap();
            let held = hold(&s, HoldLimits::default()).await;
            let got = receiver(&s.netns, to, 8 << 20);
            let drinker = std::thread::spawn(move || drink(server));
            let mut b = vec![0; 14_000];
            pattern(0, &mut b);
            client.write_all(&b).unwrap();
            client.shutdown(std::net::Shutdown::Write).unwrap();
            datagrams.send(&[7; 20_000]).unwrap();
            rest(50).await;
            let frames = held.stats().held;
            s.carry();
            let t = Instant::now();
            s.resume(Some(held)).await;
            assert_eq!(drinker.join().unwrap(), b.len());
            let (whole, got) = (t.elapsed(), got.join().unwrap());
            eprintln!(
                "{to}: {frames} frames for 10 segments, an end and 20 datagrams; the stream in {whole:?}"
            );
            assert_eq!(got.len(), 20);
            assert!(got.last().unwrap().1 - t < 100 * MS && whole < 200 * MS);
            s.carry_back().await;
        }
        s.end().await;
    });
}
