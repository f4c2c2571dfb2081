//! podman's export and import, treated as kindly as can be.
//!
//! Its container joins a network namespace made beforehand on both hosts with the same address
//! and MAC, so that it spends no time on networks; the archive lies in a tmpfs that both hosts
//! see; the image is there already on both; a packet that comes before the restored sockets are
//! there is not answered with a reset; and as soon as the restored container runs, the
//! switch is told where its MAC now is, as tranship does for its own.

use super::shared;
use crate::scenario::Scene;
use crate::scenario::bounded::Ended;
use anyhow::{Context, ensure};
use std::time::{Duration, Instant};

/// Address of podman's container, and its MAC.
pub(super) const IP: &str = "10.77.1.77";
const MAC: &str = "02:00:00:00:77:77";
const SHARED: &str = "/mnt/handover";
const ARCHIVE: &str = "/mnt/handover/redis.tar";
const IMAGE: &str = "localhost/redis:lab";
const LONG: Duration = Duration::from_secs(600);

/// Puts the image on both hosts.
pub(super) fn prepare(scene: &Scene) -> anyhow::Result<()> {
    shared::mount(&scene.host("host-a")?, &scene.host("host-b")?, SHARED)?;
    // Both need the very same image: a restore looks for its id.
    let import = format!(
        "set -e; podman image exists {IMAGE} && exit 0; \
         tar -C /lab/images/redis --exclude=./proc --exclude=./sys -c . | podman import -q - {IMAGE}"
    );
    sh(scene, "host-a", &import)?;
    sh(scene, "host-a", &format!("podman save -q -o {SHARED}/image.tar {IMAGE}"))?;
    sh(scene, "host-b", &format!("podman load -q -i {SHARED}/image.tar && rm {SHARED}/image.tar"))?;
    Ok(())
}

/// Starts Redis on host-a.
pub(super) fn start(scene: &Scene) -> anyhow::Result<()> {
    remove(scene)?;
    for host in ["host-a", "host-b"] {
        let script = format!(
            "set -e; ip netns add pm; ip link add pmv type veth peer name eth0 netns pm; \
             ip link set pmv master br0; ip -n pm link set lo up; \
             ip -n pm link set eth0 address {MAC}; ip -n pm addr add {IP}/16 dev eth0; \
             ip -n pm link set eth0 up"
        );
        sh(scene, host, &script)?;
    }
    sh(
        scene,
        "host-b",
        "ip netns exec pm nft 'add table inet kind; \
           add chain inet kind out { type filter hook output priority 0; }; \
           add rule inet kind out tcp flags & rst == rst drop'",
    )?;
    sh(
        scene,
        "host-a",
        &format!(
            "set -e; ip link set pmv up; \
             podman run -d --name redis --network ns:/run/netns/pm --pids-limit 0 {IMAGE} \
               redis-server --bind '* -::*' --protected-mode no --save '' --appendonly no; {}",
            announce()
        ),
    )?;
    Ok(())
}

/// Moves it to host-b, its archive compressed as podman does by default or not at all. Answers the time of the checkpoint and of the restore in microseconds, and
/// the size of the archive.
pub(super) fn migrate(scene: &Scene, compress: bool) -> anyhow::Result<serde_json::Value> {
    let how = if compress { "" } else { "--compress none" };
    let began = Instant::now();
    sh(
        scene,
        "host-a",
        &format!(
            "podman container checkpoint --export {ARCHIVE} {how} --tcp-established redis && ip link set pmv down"
        ),
    )?;
    let checkpoint = began.elapsed();
    let bytes =
        std::fs::metadata(scene.host("host-a")?.path(ARCHIVE)).context("looking at the archive")?.len();
    let again = Instant::now();
    sh(
        scene,
        "host-b",
        &format!(
            "ip link set pmv up && podman container restore --import {ARCHIVE} --tcp-established; R=$?; {}; exit $R",
            announce()
        ),
    )?;
    let micros = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
    Ok(serde_json::json!({
        "checkpoint_us": micros(checkpoint), "restore_us": micros(again.elapsed()), "archive_bytes": bytes,
    }))
}

/// Removes container, namespace and archive from both hosts. The namespace goes, too, because
/// CRIU leaves its network lock in the one that it dumped.
pub(super) fn remove(scene: &Scene) -> anyhow::Result<()> {
    for host in ["host-a", "host-b"] {
        sh(
            scene,
            host,
            &format!("podman rm -f -i -t 0 redis; ip netns del pm 2>/dev/null; rm -f {ARCHIVE}"),
        )?;
    }
    Ok(())
}

/// A frame from the container's MAC address, so that the switch learns its new port.
fn announce() -> &'static str {
    "ip netns exec pm ping -c 1 -i 0.02 -w 2 -q 10.77.254.1 >/dev/null"
}

fn sh(scene: &Scene, host: &str, script: &str) -> anyhow::Result<Ended> {
    let ended = scene.on(host, &["sh", "-c", script], LONG)?;
    ensure!(ended.code == Some(0), "{} ended with {:?}: {}", ended.what, ended.code, ended.said());
    Ok(ended)
}
