//! podman's export and import, treated as kindly as can be.
//!
//! Its container joins a network namespace made beforehand (see [`super::netns`]); the archive lies
//! in a tmpfs that both hosts see; the image is there already on both.

use super::measure::micros;
use super::netns::{self, ANNOUNCE, OPEN, SHUT, sh};
use super::shared;
use crate::scenario::Scene;
use anyhow::Context;
use std::time::Instant;

const ARCHIVE: &str = "/mnt/handover/redis.tar";
const IMAGE: &str = "localhost/redis:lab";

/// Puts the image on both hosts.
pub(super) fn prepare(scene: &Scene) -> anyhow::Result<()> {
    shared::mount(&scene.host("host-a")?, &scene.host("host-b")?)?;
    // Both need the very same image: a restore looks for its id.
    let import = format!(
        "set -e; podman image exists {IMAGE} && exit 0; \
         tar -C /lab/images/redis --exclude=./proc --exclude=./sys -c . | podman import -q - {IMAGE}"
    );
    sh(scene, "host-a", &import)?;
    let image = format!("{}/image.tar", shared::PLACE);
    sh(scene, "host-a", &format!("podman save -q -o {image} {IMAGE}"))?;
    sh(scene, "host-b", &format!("podman load -q -i {image} && rm {image}"))?;
    Ok(())
}

/// Starts Redis on host-a.
pub(super) fn start(scene: &Scene) -> anyhow::Result<()> {
    remove(scene)?;
    netns::make(scene)?;
    let script = format!(
        "podman run -d --name redis --network ns:{} --pids-limit 0 {IMAGE} \
           redis-server --bind '* -::*' --protected-mode no --save '' --appendonly no && {ANNOUNCE}",
        netns::FILE
    );
    sh(scene, "host-a", &script).map(drop)
}

/// Moves it to host-b, its archive compressed as podman does by default or not at all. Answers the
/// time of the checkpoint and of the restore in microseconds, and the size of the archive.
pub(super) fn migrate(scene: &Scene, compress: bool) -> anyhow::Result<serde_json::Value> {
    let how = if compress { "" } else { "--compress none" };
    let began = Instant::now();
    let script =
        format!("podman container checkpoint --export {ARCHIVE} {how} --tcp-established redis && {SHUT}");
    sh(scene, "host-a", &script)?;
    let checkpoint = began.elapsed();
    let bytes =
        std::fs::metadata(scene.host("host-a")?.path(ARCHIVE)).context("looking at the archive")?.len();
    let again = Instant::now();
    let script = format!(
        "{OPEN} && podman container restore --import {ARCHIVE} --tcp-established; R=$?; {ANNOUNCE}; exit $R"
    );
    sh(scene, "host-b", &script)?;
    Ok(serde_json::json!({
        "checkpoint_us": micros(checkpoint), "restore_us": micros(again.elapsed()), "archive_bytes": bytes,
    }))
}

/// Removes container, namespace and archive from both hosts.
pub(super) fn remove(scene: &Scene) -> anyhow::Result<()> {
    for host in ["host-a", "host-b"] {
        sh(scene, host, &format!("podman rm -f -i -t 0 redis; rm -f {ARCHIVE}"))?;
    }
    netns::remove(scene)
}
