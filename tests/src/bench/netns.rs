//! The network of a rival's container: a namespace made beforehand on both hosts with the same
//! address and MAC, so that a rival spends no time on networks.
//!
//! A packet that comes before the restored sockets are there is not answered with a reset; and as
//! soon as the restored container runs, the switch is told where its MAC now is, as tranship does
//! for its own.

use crate::scenario::Scene;
use crate::scenario::bounded::Ended;
use anyhow::ensure;
use std::time::Duration;

/// Address of a rival's container, and its MAC.
pub(super) const IP: &str = "10.77.1.77";
const MAC: &str = "02:00:00:00:77:77";
/// File of the namespace on a host.
pub(super) const FILE: &str = "/run/netns/rival";
/// Opens the container's link to the bridge.
pub(super) const OPEN: &str = "ip link set rivalv up";
/// Shuts it.
pub(super) const SHUT: &str = "ip link set rivalv down";
/// A frame from the container's MAC address, so that the switch learns its new port.
pub(super) const ANNOUNCE: &str = "ip netns exec rival ping -c 1 -i 0.02 -w 2 -q 10.77.254.1 >/dev/null";
/// No rival takes longer for one step.
const LONG: Duration = Duration::from_secs(600);

/// Makes the namespace on both hosts; the link is open on host-a alone.
pub(super) fn make(scene: &Scene) -> anyhow::Result<()> {
    for host in ["host-a", "host-b"] {
        let script = format!(
            "set -e; ip netns add rival; ip link add rivalv type veth peer name eth0 netns rival; \
             ip link set rivalv master br0; ip -n rival link set lo up; \
             ip -n rival link set eth0 address {MAC}; ip -n rival addr add {IP}/16 dev eth0; \
             ip -n rival link set eth0 up"
        );
        sh(scene, host, &script)?;
    }
    sh(
        scene,
        "host-b",
        "ip netns exec rival nft 'add table inet kind; \
           add chain inet kind out { type filter hook output priority 0; }; \
           add rule inet kind out tcp flags & rst == rst drop'",
    )?;
    sh(scene, "host-a", OPEN).map(drop)
}

/// Removes it from both hosts. It is made anew for each measurement, because CRIU leaves its
/// network lock in the one that it dumped.
pub(super) fn remove(scene: &Scene) -> anyhow::Result<()> {
    for host in ["host-a", "host-b"] {
        sh(scene, host, "! ip netns list | grep -qw rival || ip netns del rival")?;
    }
    Ok(())
}

/// Runs a script on a host that has to succeed.
pub(super) fn sh(scene: &Scene, host: &str, script: &str) -> anyhow::Result<Ended> {
    let ended = scene.on(host, &["sh", "-c", script], LONG)?;
    ensure!(ended.code == Some(0), "{} ended with {:?}: {}", ended.what, ended.code, ended.said());
    Ok(ended)
}
