//! A host for one test: the test's thread moves into a network and a mount namespace of its own,
//! with two bridges. Everything it starts (runtime, threads, programs) inherits them, and all is
//! gone with the thread.

#![allow(dead_code, clippy::unwrap_used)]

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::process::Command;
use tranship_agent::network::{Netns, Networks};
use tranship_proto::ids::ContainerName;
use tranship_proto::network::LinkRequest;

pub struct Host {
    pub run_dir: tempfile::TempDir,
    pub networks: Networks,
}

/// Runs a test on a host of its own.
pub fn on_host<F: Future<Output = ()>>(test: impl FnOnce(Host) -> F + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
        let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        sh("ip link set lo up");
        for (bridge, net, v6) in
            [("br0", "10.77.0.1/16", "fd77::1/64"), ("br1", "10.78.0.1/16", "fd78::1/64")]
        {
            sh(&format!("ip link add {bridge} type bridge"));
            sh(&format!("ip link set {bridge} up"));
            // A cable: a bridge without any other port would lose its own carrier with a fence.
            sh(&format!("ip link add up-{bridge} type veth peer name far-{bridge}"));
            sh(&format!("ip link set up-{bridge} master {bridge} up && ip link set far-{bridge} up"));
            sh(&format!("ip addr add {net} dev {bridge}"));
            sh(&format!("ip addr add {v6} dev {bridge} nodad"));
        }
        let networks =
            Networks::new([("lan", "br0"), ("back", "br1")].map(|(n, b)| (n.to_owned(), b.to_owned())));
        let host = Host { run_dir: tempfile::tempdir().unwrap(), networks };
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(test(host));
    });
    if let Err(e) = thread.join() {
        std::panic::resume_unwind(e);
    }
}

/// Runs a command line, which must succeed, and returns what it prints.
pub fn sh(line: &str) -> String {
    let out = Command::new("sh").args(["-c", line]).output().unwrap();
    assert!(out.status.success(), "{line}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// The same inside a namespace.
pub fn inside(ns: &Netns, line: &str) -> String {
    let line = line.replace('\'', "'\\''");
    sh(&format!("nsenter --net={} sh -c '{line}'", ns.path().display()))
}

pub fn name(s: &str) -> ContainerName {
    s.parse().unwrap()
}

pub fn request(link: &str, network: &str, addrs: &[&str]) -> LinkRequest {
    LinkRequest {
        name: link.into(),
        network: network.into(),
        mac: None,
        mtu: None,
        addrs: addrs.iter().map(|a| a.parse().unwrap()).collect(),
        gateways: vec![],
    }
}
