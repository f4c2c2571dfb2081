//! A segment of two hosts and a client, joined by a switch that learns. The test's own namespace is
//! the destination; the source, the switch and the client are namespaces beside it. The container
//! "moves" by its host end being carried from the source's bridge to the destination's, so its
//! sockets live on without being dumped.

#![allow(dead_code, clippy::unwrap_used)]

use crate::network_lab::{Host, inside, name, request, sh};
use std::net::UdpSocket;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tranship_agent::network::*;
use tranship_proto::handoff::HeldPacket;
use tranship_proto::ids::ContainerName;
use tranship_proto::network::{Mac, NetCapture};

pub const V4: &str = "10.77.1.5";
pub const V6: &str = "fd77::1:5";

pub struct Segment {
    pub host: Host,
    pub source: Netns,
    pub switch: Netns,
    pub client: Netns,
    pub container: ContainerName,
    pub netns: Netns,
    pub port: Port,
    pub capture: NetCapture,
    pub mac: Mac,
}

/// Runs `f` on a thread inside a namespace.
pub fn in_ns<T: Send + 'static>(ns: &Netns, f: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let path = ns.path().to_owned();
    std::thread::spawn(move || {
        let fd = std::fs::File::open(path).unwrap();
        nix::sched::setns(fd, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        f()
    })
}

pub async fn rest(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

impl Segment {
    /// The container begins at the source and has been heard by all.
    pub async fn new(host: Host) -> Self {
        let dir = host.run_dir.path();
        let source = Netns::create(dir, &name("source")).await.unwrap();
        let switch = Netns::create(dir, &name("switch")).await.unwrap();
        let client = Netns::create(dir, &name("client")).await.unwrap();
        inside(&switch, "ip link add br0 type bridge && ip link set br0 up");
        sh(&format!("ip link set far-br0 netns {}", switch.path().display()));
        inside(&switch, "ip link set far-br0 master br0 up");
        for (ns, far) in [(&source, "to-source"), (&client, "to-client")] {
            let path = ns.path().display();
            inside(&switch, &format!("ip link add {far} type veth peer name nic netns {path}"));
            inside(&switch, &format!("ip link set {far} master br0 up"));
        }
        inside(&source, "ip link add br0 type bridge && ip link set br0 up && ip link set nic master br0 up");
        inside(&client, "ip link set lo up && ip link set nic up && ip addr add 10.77.254.1/16 dev nic");
        inside(&client, "ip addr add fd77::fe:1/64 dev nic nodad");
        let container = name("web");
        let netns = Netns::create(dir, &container).await.unwrap();
        let link = request("eth0", "lan", &["10.77.1.5/16", "fd77::1:5/64"]);
        let ports = connect(&netns, &container, &[link], &host.networks, Gate::Shut).await.unwrap();
        let capture = capture(&netns, &container, &host.networks).await.unwrap();
        let mac = capture.links[1].mac.unwrap();
        let port = ports[0].clone();
        let s = Self { host, source, switch, client, container, netns, port, capture, mac };
        sh(&format!("ip link set {} netns {}", s.port.name, s.source.path().display()));
        inside(&s.source, &format!("ip link set {} master br0 up", s.port.name));
        s.meet().await;
        s
    }

    /// Until container and client have heard each other and the switch both, where they are now.
    pub async fn meet(&self) {
        let until = Instant::now() + Duration::from_secs(10);
        let known = |list: String| list.lines().filter(|l| l.contains("lladdr")).count() >= 2;
        loop {
            for (ns, to) in [(&self.client, [V4, V6]), (&self.netns, ["10.77.254.1", "fd77::fe:1"])] {
                for to in to {
                    sender(ns, to, 1, Duration::ZERO, 4).join().unwrap();
                }
            }
            rest(50).await;
            if known(inside(&self.client, "ip neigh")) && known(inside(&self.netns, "ip neigh")) {
                return;
            }
            assert!(Instant::now() < until, "the segment does not work");
        }
    }

    /// Carries the container back, open.
    pub async fn carry_back(&self) {
        // Until the last announcement.
        rest(2200).await;
        fence(std::slice::from_ref(&self.port)).await.unwrap();
        sh(&format!("ip link set {} netns {}", self.port.name, self.source.path().display()));
        inside(&self.source, &format!("ip link set {} master br0 up", self.port.name));
        rest(50).await;
        self.meet().await;
    }

    pub async fn prepare(&self, limits: HoldLimits) -> PacketHold {
        PacketHold::prepare(&self.container, &self.capture, &self.host.networks, limits).await.unwrap()
    }

    /// What the source does; by hand, for its namespace is not this process's.
    pub fn fence_source(&self) {
        inside(&self.source, &format!("ip link set {} down", self.port.name));
    }

    pub fn unfence_source(&self) {
        inside(&self.source, &format!("ip link set {} up", self.port.name));
        // The kernel tells both ends a moment later, up to a second on a busy machine.
        let running = format!("ip -o link show {} | grep -c LOWER_UP || true", self.port.name);
        let until = Instant::now() + Duration::from_secs(3);
        while inside(&self.source, &running).trim() != "1" && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Carries the fenced host end to the destination's bridge, shut.
    pub fn carry(&self) {
        // SAFETY: gettid has no arguments and cannot fail.
        let tid = unsafe { nix::libc::gettid() };
        let to = format!("/proc/{}/task/{tid}/ns/net", std::process::id());
        inside(&self.source, &format!("ip link set {} netns {to}", self.port.name));
        sh(&format!("ip link set {} master br0", self.port.name));
    }

    /// The port's end of an outage: open, deliver, announce.
    pub async fn resume(&self, hold: Option<PacketHold>) -> HoldStats {
        open_gate(std::slice::from_ref(&self.port)).await.unwrap();
        announce(&self.netns, &self.capture).await.unwrap();
        match hold {
            Some(hold) => hold.deliver().await.unwrap(),
            None => HoldStats::default(),
        }
    }

    pub async fn end(self) {
        destroy(&self.netns, &self.container, std::slice::from_ref(&self.port)).await.unwrap();
        for ns in [&self.source, &self.switch, &self.client] {
            ns.remove().unwrap();
        }
    }

    /// What would be left of a hold here.
    pub fn traces(&self) -> String {
        sh(&format!(
            "ip -o link | grep -o ' th[0-9a-f]*' || true; bridge fdb | grep {} | grep static || true",
            self.mac
        ))
    }
}

/// The source's own hold, run inside its namespace.
pub struct AtSource {
    collect: std::sync::mpsc::Sender<()>,
    thread: JoinHandle<(Vec<HeldPacket>, HoldStats)>,
}

impl AtSource {
    /// Catches what is for the container at the source.
    pub fn catch(s: &Segment) -> Self {
        let (collect, told) = std::sync::mpsc::channel();
        let (ready, caught) = std::sync::mpsc::channel();
        let (container, capture, networks) =
            (s.container.clone(), s.capture.clone(), s.host.networks.clone());
        let thread = in_ns(&s.source, move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            runtime.block_on(async {
                let limits = HoldLimits::default();
                let mut hold = PacketHold::prepare(&container, &capture, &networks, limits).await.unwrap();
                hold.catch().await.unwrap();
                ready.send(()).unwrap();
                told.recv().unwrap();
                let (mut packets, mut early) = (Vec::new(), false);
                let collected = hold.collect(|all| {
                    packets = all;
                    let links = nix::net::if_::if_nameindex().unwrap();
                    early = links.iter().any(|l| l.name().to_bytes().starts_with(b"th"));
                });
                let stats = collected.await.unwrap();
                assert!(early, "packets do not wait for the end of the device");
                (packets, stats)
            })
        });
        caught.recv().unwrap();
        Self { collect, thread }
    }

    pub fn collect(self) -> (Vec<HeldPacket>, HoldStats) {
        self.collect.send(()).unwrap();
        self.thread.join().unwrap()
    }
}

/// A number, and the moments when it was sent and when it came.
pub type Arrivals = Vec<(u32, Instant)>;

/// Receives numbers in a namespace until nothing comes for a second.
pub fn receiver(ns: &Netns, at: &'static str, room: usize) -> JoinHandle<Arrivals> {
    let (tx, rx) = std::sync::mpsc::channel();
    let thread = in_ns(ns, move || {
        let s = UdpSocket::bind((at, 7000)).unwrap();
        nix::sys::socket::setsockopt(&s, nix::sys::socket::sockopt::RcvBufForce, &room).unwrap();
        s.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        tx.send(()).unwrap();
        let (mut b, mut all) = ([0; 2048], Vec::new());
        while s.recv(&mut b).is_ok() {
            all.push((u32::from_be_bytes(b[..4].try_into().unwrap()), Instant::now()));
        }
        all
    });
    rx.recv().unwrap();
    thread
}

/// Sends a number every `pause` from a namespace; returns when each was sent.
pub fn sender(
    ns: &Netns,
    to: &'static str,
    count: u32,
    pause: Duration,
    length: usize,
) -> JoinHandle<Vec<Instant>> {
    in_ns(ns, move || {
        let any = if to.contains(':') { "::" } else { "0.0.0.0" };
        let s = UdpSocket::bind((any, 0)).unwrap();
        s.connect((to, 7000)).unwrap();
        let start = Instant::now();
        let (mut sent, mut refused) = (Vec::new(), 0);
        for n in 0..count {
            if let Some(wait) = (start + pause * n).checked_duration_since(Instant::now())
                && !wait.is_zero()
            {
                std::thread::sleep(wait);
            }
            let mut packet = vec![0x5a; length];
            packet[..4].copy_from_slice(&n.to_be_bytes());
            sent.push(Instant::now());
            // An error is an answer by someone: ECONNREFUSED.
            refused += u32::from(s.send(&packet).is_err());
        }
        assert!(count == 1 || refused == 0, "somebody answered {refused} times");
        sent
    })
}
