//! runc and CRIU by hand, as an operator would script them.
//!
//! The container's root file system is the image itself, read-only and present on both hosts; its
//! network namespace is made beforehand (see [`super::netns`]); CRIU's images lie in a tmpfs that
//! both hosts see, so copying them costs nothing.
//!
//! Two ways: everything dumped and then restored, and CRIU's post-copy, where the dump leaves
//! memory at the source and `criu lazy-pages` fetches it over the network when it is used.

use super::measure::micros;
use super::netns::{self, ANNOUNCE, OPEN, SHUT, sh};
use super::shared;
use crate::names::Network;
use crate::scenario::Scene;
use anyhow::Context;
use serde_json::json;
use std::time::Instant;

const BUNDLE: &str = "/srv/rival";
/// CRIU's images, the same directory on both hosts.
const IMAGES: &str = "/mnt/handover/images";
/// Logs and sockets; one directory for each host.
const WORK: &str = "/run/rival";
/// Where CRIU's page server listens at the source.
const PORT: u16 = 27_000;

/// Puts the same bundle on both hosts.
pub(super) fn prepare(scene: &Scene) -> anyhow::Result<()> {
    let hosts = [scene.host("host-a")?, scene.host("host-b")?];
    shared::mount(&hosts[0], &hosts[1])?;
    for host in hosts {
        sh(
            scene,
            host.name(),
            &format!("mkdir -p {BUNDLE} && cd {BUNDLE} && rm -f config.json && runc spec"),
        )?;
        let path = host.path(format!("{BUNDLE}/config.json"));
        let text = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let config = adapt(serde_json::from_slice(&text)?);
        std::fs::write(&path, serde_json::to_vec_pretty(&config)?)
            .with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// What `runc spec` wrote, made to run Redis in the namespace.
fn adapt(mut config: serde_json::Value) -> serde_json::Value {
    config["root"] = json!({ "path": "/lab/images/redis", "readonly": true });
    let process = &mut config["process"];
    process["terminal"] = json!(false);
    // The lab may not raise limits.
    process["rlimits"] = json!([]);
    process["args"] = json!([
        "redis-server",
        "--bind",
        "* -::*",
        "--protected-mode",
        "no",
        "--save",
        "",
        "--appendonly",
        "no"
    ]);
    if let Some(spaces) = config["linux"]["namespaces"].as_array_mut() {
        for space in spaces.iter_mut().filter(|s| s["type"] == "network") {
            space["path"] = json!(netns::FILE);
        }
    }
    config
}

/// Starts Redis on host-a.
pub(super) fn start(scene: &Scene) -> anyhow::Result<()> {
    remove(scene)?;
    netns::make(scene)?;
    // The container's streams are runc's, and CRIU cannot dump a file of the host among them.
    let script = format!("runc run -d --bundle {BUNDLE} redis </dev/null >/dev/null 2>&1 && {ANNOUNCE}");
    sh(scene, "host-a", &script).map(drop)
}

/// Moves it to host-b: everything is dumped, then everything is restored. Answers the time of both
/// in microseconds, and the size of the images.
pub(super) fn migrate(scene: &Scene) -> anyhow::Result<serde_json::Value> {
    let began = Instant::now();
    let dump =
        format!("runc checkpoint --tcp-established --image-path {IMAGES} --work-path {WORK} redis && {SHUT}");
    sh(scene, "host-a", &dump)?;
    let checkpoint = began.elapsed();
    let bytes = image_bytes(scene)?;
    let again = Instant::now();
    sh(scene, "host-b", &restore(""))?;
    Ok(json!({
        "checkpoint_us": micros(checkpoint), "restore_us": micros(again.elapsed()), "image_bytes": bytes,
    }))
}

/// Moves it to host-b by post-copy. Answers the time until the images are complete, of the restore,
/// and until all memory is there, in microseconds.
pub(super) fn migrate_lazily(scene: &Scene) -> anyhow::Result<serde_json::Value> {
    let began = Instant::now();
    // runc writes one byte to the status descriptor when the images are complete and CRIU waits for
    // whoever fetches the memory. It ends with the last page.
    let dump = format!(
        "mkfifo {WORK}/status; \
         (runc checkpoint --lazy-pages --page-server 0.0.0.0:{PORT} --status-fd 3 --tcp-established \
            --image-path {IMAGES} --work-path {WORK} redis 3>{WORK}/status >{WORK}/out 2>&1; \
          echo $? >{WORK}/rc) & \
         n=$(head -c 1 {WORK}/status | wc -c); [ \"$n\" = 1 ] || {{ cat {WORK}/out >&2; exit 1; }}; {SHUT}"
    );
    sh(scene, "host-a", &dump)?;
    let checkpoint = began.elapsed();
    let again = Instant::now();
    let source = Network::Lan.host_v4(0);
    let fetch = format!(
        "(criu lazy-pages --page-server --address {source} --port {PORT} --images-dir {IMAGES} \
            --work-dir {WORK} -o lazy.log >{WORK}/out 2>&1; echo $? >{WORK}/rc) & \
         while [ ! -S {WORK}/lazy-pages.socket ]; do [ ! -s {WORK}/rc ] || exit 1; sleep 0.005; done; "
    );
    sh(scene, "host-b", &format!("{fetch}{}", restore("--lazy-pages")))?;
    let restored = again.elapsed();
    for host in ["host-b", "host-a"] {
        let ended = format!(
            "while [ ! -s {WORK}/rc ]; do sleep 0.02; done; \
             [ $(cat {WORK}/rc) = 0 ] || {{ cat {WORK}/out >&2; exit 1; }}"
        );
        sh(scene, host, &ended)?;
    }
    Ok(json!({
        "checkpoint_us": micros(checkpoint), "restore_us": micros(restored),
        "fetched_us": micros(again.elapsed()), "image_bytes": image_bytes(scene)?,
    }))
}

fn restore(how: &str) -> String {
    format!(
        "{OPEN} && runc restore -d {how} --tcp-established --image-path {IMAGES} --work-path {WORK} \
           --bundle {BUNDLE} redis </dev/null >/dev/null 2>&1; R=$?; {ANNOUNCE}; \
         [ $R = 0 ] || grep Error {WORK}/restore.log >&2; exit $R"
    )
}

fn image_bytes(scene: &Scene) -> anyhow::Result<u64> {
    let dir = scene.host("host-a")?.path(IMAGES);
    let entries = std::fs::read_dir(&dir).with_context(|| format!("listing {}", dir.display()))?;
    Ok(entries.flatten().filter_map(|e| e.metadata().ok()).map(|m| m.len()).sum())
}

/// Removes container, namespace and images from both hosts.
pub(super) fn remove(scene: &Scene) -> anyhow::Result<()> {
    for host in ["host-a", "host-b"] {
        let script = format!(
            "[ ! -d /run/runc/redis ] || runc delete --force redis; rm -rf {IMAGES} {WORK}; mkdir -p {WORK}"
        );
        sh(scene, host, &script)?;
    }
    netns::remove(scene)
}
