//! Plants every kind of residue by hand on a lab host and sees the audit name it, and nothing
//! else; once undone, the hosts are clean again. A real container runs all the time, so that what
//! belongs to a running container is seen not to be named.

#![allow(clippy::unwrap_used)] // helpers of tests, which clippy does not take for tests

use std::time::Duration;

use tranship_lab::progress::Quiet;
use tranship_lab::{Finding, Kind, Lab, LabName, LabOptions};

/// A container with sleep(1) under conmon and runc, laid out as the agent does it.
const CONTAINER: &str = r#"
set -e
name=$1 ip=$2
dir=/var/lib/tranship/containers/$name
mkdir -p $dir/bundle $dir/rootfs $dir/exits /run/tranship/netns
cp --parents /usr/bin/sleep $(ldd /usr/bin/sleep | grep -o '/[^ ]*') $dir/rootfs
touch /run/tranship/netns/$name
unshare --net=/run/tranship/netns/$name ip link set lo up
ip link add ts$name type veth peer name eth0 netns /run/tranship/netns/$name
ip link set ts$name master br0 up
nsenter --net=/run/tranship/netns/$name ip addr add $ip/16 dev eth0
nsenter --net=/run/tranship/netns/$name ip link set eth0 up
cd $dir/bundle
runc spec
jq --arg name $name '.process.terminal = false | .process.args = ["/usr/bin/sleep", "3600"]
  | .root = {path: "../rootfs", readonly: false} | .linux.resources = {}
  | .linux.cgroupsPath = "/tranship/\($name)" | .hostname = $name
  | (.linux.namespaces[] | select(.type == "network")).path = "/run/tranship/netns/\($name)"' \
  config.json > next && mv next config.json
conmon --api-version 1 -c $name -u $name -n $name -r $(which runc) -b $dir/bundle \
  -p $dir/pidfile -l k8s-file:$dir/ctr.log --exit-dir $dir/exits --full-attach </dev/null >/dev/null
for i in $(seq 50); do [ "$(runc state $name | jq -r .status)" = created ] && break; sleep 0.1; done
runc start $name
"#;

struct Plant {
    kind: Kind,
    /// Part of what the finding names.
    what: &'static str,
    plant: &'static str,
    undo: &'static str,
    /// Other kinds that come with it.
    also: &'static [Kind],
}

const fn plant(kind: Kind, what: &'static str, plant: &'static str, undo: &'static str) -> Plant {
    Plant { kind, what, plant, undo, also: &[] }
}

const fn with(mut plant: Plant, also: &'static [Kind]) -> Plant {
    plant.also = also;
    plant
}

const PLANTS: &[Plant] = &[
    plant(
        Kind::FrozenCgroup,
        "/tranship/web",
        "echo 1 > /sys/fs/cgroup/tranship/web/cgroup.freeze",
        "echo 0 > /sys/fs/cgroup/tranship/web/cgroup.freeze",
    ),
    plant(
        Kind::EmptyCgroup,
        "/tranship/old",
        "mkdir -p /sys/fs/cgroup/tranship/old",
        "rmdir /sys/fs/cgroup/tranship/old",
    ),
    plant(
        Kind::EmptyCgroup,
        "/elsewhere",
        "mkdir /sys/fs/cgroup/elsewhere",
        "rmdir /sys/fs/cgroup/elsewhere",
    ),
    plant(
        Kind::ProcessWithoutContainer,
        "sleep",
        "mkdir /sys/fs/cgroup/tranship/old
         sh -c 'echo $$ > /sys/fs/cgroup/tranship/old/cgroup.procs; exec sleep 3599' & sleep 0.2",
        "kill $(cat /sys/fs/cgroup/tranship/old/cgroup.procs); sleep 0.2; rmdir /sys/fs/cgroup/tranship/old",
    ),
    plant(
        Kind::Process,
        "criu",
        "cp /usr/bin/sleep /tmp/criu; /tmp/criu 3598 & sleep 0.1",
        "kill $(pgrep -x criu); sleep 0.2",
    ),
    plant(
        Kind::Process,
        "transhipd",
        "mkdir /tmp/b; cd /tmp/b; touch hook; cp /usr/bin/tail transhipd; ./transhipd hook -f /dev/null & sleep 0.2",
        "kill $(pgrep -x transhipd); sleep 0.2",
    ),
    plant(
        Kind::Zombie,
        "",
        // A child of a process that never waits.
        "bash -c 'sleep 0.1 & exec sleep 3596' & sleep 0.5",
        "kill $(pgrep -x -f 'sleep 3596'); sleep 0.2",
    ),
    plant(
        Kind::ConmonWithoutContainer,
        "conmon",
        "cp /usr/bin/tail /tmp/conmon; cd /tmp; ./conmon -c +1 -f /dev/null & sleep 0.2",
        "kill $(pgrep -x -f './conmon .*'); sleep 0.2",
    ),
    plant(
        Kind::StaleRuntimeState,
        "/run/runc/old",
        "mkdir /run/runc/old; jq '.init_process_start = 1' /run/runc/web/state.json > /run/runc/old/state.json",
        "rm -r /run/runc/old",
    ),
    plant(
        Kind::Firewall,
        "table inet CRIU-77",
        "nft add table inet CRIU-77",
        "nft delete table inet CRIU-77",
    ),
    plant(Kind::Firewall, "chain CRIU", "iptables -N CRIU", "iptables -X CRIU; nft delete table ip filter"),
    plant(
        Kind::Firewall,
        "table inet CRIU-1",
        "nsenter --net=/run/tranship/netns/web nft add table inet CRIU-1",
        "nsenter --net=/run/tranship/netns/web nft delete table inet CRIU-1",
    ),
    plant(Kind::TrafficControl, "tsweb", "tc qdisc add dev tsweb clsact", "tc qdisc del dev tsweb clsact"),
    plant(
        Kind::StrayNetns,
        "/run/tranship/netns/old",
        "touch /run/tranship/netns/old; unshare --net=/run/tranship/netns/old true",
        "umount /run/tranship/netns/old; rm /run/tranship/netns/old",
    ),
    plant(
        Kind::StrayNetnsFile,
        "/run/tranship/netns/old",
        "touch /run/tranship/netns/old",
        "rm /run/tranship/netns/old",
    ),
    plant(Kind::FencedLink, "tsweb", "ip link set tsweb down", "ip link set tsweb up"),
    plant(
        Kind::StrayLink,
        "tsold",
        "touch /run/netns-old; unshare --net=/run/netns-old true
         ip link add tsold type veth peer name eth0 netns /run/netns-old; ip link set tsold master br1 up
         umount /run/netns-old; rm /run/netns-old
         ip link add tsold type veth peer name tspeer 2>/dev/null || :",
        "ip link del tsold",
    ),
    plant(
        Kind::StrayLink,
        "tap0",
        "ip tuntap add tap0 mode tap; ip link set tap0 master br0 up",
        "ip link del tap0",
    ),
    plant(
        Kind::StrayAddress,
        "10.77.1.5",
        "ip addr add 10.77.1.5/32 dev br0",
        "ip addr del 10.77.1.5/32 dev br0",
    ),
    plant(
        Kind::StrayMount,
        "/run/tranship/work",
        "mkdir /run/tranship/work; mount -t tmpfs t /run/tranship/work",
        "umount /run/tranship/work; rmdir /run/tranship/work",
    ),
    with(
        plant(
            Kind::StrayMount,
            "/var/lib/tranship/containers/old/rootfs",
            "mkdir -p /var/lib/tranship/containers/old/rootfs
             mount -t tmpfs t /var/lib/tranship/containers/old/rootfs",
            "umount /var/lib/tranship/containers/old/rootfs; rm -r /var/lib/tranship/containers/old",
        ),
        &[Kind::ContainerNotRunning],
    ),
    plant(
        Kind::TemporaryData,
        "/run/tranship/images/1",
        "mkdir -p /run/tranship/images/1",
        "rm -r /run/tranship/images",
    ),
    plant(
        Kind::TemporaryData,
        "/run/tranship/hooks/1",
        "mkdir -p /run/tranship/hooks/1",
        "rm -r /run/tranship/hooks",
    ),
    plant(
        Kind::TemporaryData,
        "/var/lib/tranship/incoming/1",
        "mkdir -p /var/lib/tranship/incoming/1",
        "rm -r /var/lib/tranship/incoming",
    ),
    plant(
        Kind::TemporaryData,
        "/run/tranship/exits/old",
        "mkdir -p /run/tranship/exits; echo 0 > /run/tranship/exits/old",
        "rm -r /run/tranship/exits",
    ),
    plant(
        Kind::ContainerNotRunning,
        "/var/lib/tranship/containers/old",
        "mkdir /var/lib/tranship/containers/old",
        "rmdir /var/lib/tranship/containers/old",
    ),
    plant(
        Kind::LinkRemap,
        "/var/lib/tranship/containers/web/rootfs/usr/link_remap.3",
        "touch /var/lib/tranship/containers/web/rootfs/usr/link_remap.3",
        "rm /var/lib/tranship/containers/web/rootfs/usr/link_remap.3",
    ),
];

fn show(findings: &[Finding]) -> String {
    findings.iter().map(|f| format!("\n  {f}")).collect()
}

#[test]
fn the_audit_names_every_kind_of_residue_and_nothing_else() {
    if !nix::unistd::Uid::effective().is_root() {
        println!("a lab needs root: nothing was tested");
        return;
    }
    let options = LabOptions { name: LabName::new("audittest").unwrap(), hosts: 2, agents: false };
    if let Ok(old) = Lab::attach(&options.name) {
        old.down().unwrap();
    }
    let lab = Lab::up(&options, &Quiet).unwrap();
    let outcome = std::panic::catch_unwind(|| check(&lab));
    lab.down().unwrap();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

fn check(lab: &Lab) {
    let host = lab.host("host-a");
    let sh = |script: &str| host.run(["bash", "-c", script]).unwrap().ok();
    assert_eq!(lab.audit().unwrap(), [], "fresh hosts are clean");
    host.run(["bash", "-c", CONTAINER, "bash", "web", "10.77.1.1"]).unwrap().ok().unwrap();
    let findings = lab.audit_within(Duration::from_secs(3)).unwrap();
    assert!(findings.is_empty(), "a running container is in order:{}", show(&findings));

    for Plant { kind, what, plant, undo, also } in PLANTS {
        // Background jobs must not hold the pipes open that the output is read from.
        sh(&format!("exec >/tmp/out 2>&1; {plant}")).unwrap_or_else(|e| panic!("{kind} {what}: {e}"));
        let findings = lab.audit().unwrap();
        let named = findings.iter().any(|f| f.kind == *kind && f.what.contains(what) && f.host == "host-a");
        assert!(named, "{kind} {what} is not named:{}", show(&findings));
        let other = findings.iter().find(|f| f.kind != *kind && !also.contains(&f.kind));
        assert!(other.is_none(), "{kind} {what} is not alone:{}", show(&findings));
        sh(&format!("exec 2>/tmp/err; {undo}")).unwrap_or_else(|e| panic!("{kind} {what}: {e}"));
        let findings = lab.audit().unwrap();
        assert!(findings.is_empty(), "undoing {kind} {what}:{}", show(&findings));
    }

    // The other host starts a container of the same name: that is what must never happen.
    let other = lab.host("host-b");
    other.run(["bash", "-c", CONTAINER, "bash", "web", "10.77.1.2"]).unwrap().ok().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let findings = lab.audit().unwrap();
    let kinds: Vec<Kind> = findings.iter().map(|f| f.kind).collect();
    assert_eq!(kinds, [Kind::TwoCopies], "{}", show(&findings));
    assert!(findings[0].detail.contains("host-a and host-b"));
}
