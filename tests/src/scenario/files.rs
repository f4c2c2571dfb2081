//! A tree with every kind of file, compared entry by entry; and files that change all the while.

use super::scene::{Container, MOVE, Scene};
use super::tree::{self, Listing};
use crate::host::Host;
use anyhow::{Context, ensure};
use std::time::Duration;

const MAKE: &str = include_str!("make_tree.py");
const LIST: &str = include_str!("list_tree.py");
const MUTATE: &str = include_str!("mutate.py");
const ROOTFS: &str = "/var/lib/tranship/containers/files/rootfs";
const VOLUMES: &str = "/var/lib/tranship/containers/files/volumes";

/// One tree in the root file system and one in a volume, two moves, and a process that changes
/// files from before the first move to after the last.
pub(super) fn every_kind(scene: &mut Scene) -> anyhow::Result<()> {
    let start = "mkdir -p /srv/ctl; exec python3 -c \"$0\" /srv/work /srv/ctl";
    let mut container = Container::new("files", "web", "10.77.1.7/16", &["sh", "-c", start, MUTATE]);
    container.volumes = vec!["data:/srv/data".into()];
    scene.start("host-a", &container)?;
    let source = scene.host("host-a")?;
    let volume = only_volume(&source)?;
    for place in [format!("{ROOTFS}/srv/tree"), format!("{volume}/tree")] {
        python(scene, "host-a", MAKE, &place)?;
    }
    counted(scene, "host-a", 200)?;
    let still = [format!("{ROOTFS}/srv/tree"), volume.clone()];
    let before = list(scene, "host-a", &still)?;
    ensure!(before[0].len() > 2100, "the tree has only {} entries", before[0].len());

    // A slow link, so that files change for a while after the first pass has begun.
    scene.lab().slow("host-a", "host-b", 200_000_000, Duration::ZERO)?;
    let mut moving = scene.migrate_begin("host-a", "files", "host-b")?;
    std::thread::sleep(Duration::from_millis(1500));
    std::fs::write(source.path(format!("{ROOTFS}/srv/ctl/stop")), "")?;
    let stopped = source.path(format!("{ROOTFS}/srv/ctl/stopped"));
    scene.wait_for("the end of the changes", Duration::from_secs(20), || Ok(stopped.exists()))?;
    let changed = list(scene, "host-a", &[format!("{ROOTFS}/srv/work/first")])?;
    ensure!(!moving.has_ended(), "the move ended before the listing did: it compares nothing");
    scene.lab().heal("host-a", "host-b")?;
    moving.finish(MOVE)?.ok()?;
    scene.runs_only_on("files", "host-b")?;

    same(&before, &list(scene, "host-b", &still)?)?;
    same(&changed, &list(scene, "host-b", &[format!("{ROOTFS}/srv/work/first")])?)
        .context("files changed during the move")?;
    no_surprise(scene, "host-b")?;
    scene.migrate("host-b", "files", "host-c")?;
    same(&before, &list(scene, "host-c", &still)?).context("after the second move")?;
    no_surprise(scene, "host-c")
}

/// The changing process made checks on this host and found nothing wrong.
fn no_surprise(scene: &Scene, host: &str) -> anyhow::Result<()> {
    let at = counted(scene, host, 0)?;
    counted(scene, host, at + 500)?;
    let wrong = scene.host(host)?.path(format!("{ROOTFS}/srv/ctl/wrong"));
    let wrong = std::fs::read_to_string(wrong).unwrap_or_default();
    ensure!(
        wrong.is_empty(),
        "the container finds its files changed: {}",
        wrong.lines().take(20).collect::<String>()
    );
    Ok(())
}

/// Waits until the process inside has made this many checks.
fn counted(scene: &Scene, host: &str, at_least: u64) -> anyhow::Result<u64> {
    let file = scene.host(host)?.path(format!("{ROOTFS}/srv/ctl/count"));
    let mut count = 0;
    scene.wait_for("the changing of files", Duration::from_secs(60), || {
        count = std::fs::read_to_string(&file).ok().and_then(|t| t.trim().parse().ok()).unwrap_or(0);
        Ok(count > 0 && count >= at_least)
    })?;
    Ok(count)
}

/// Where the container's only volume is on the host.
fn only_volume(host: &Host) -> anyhow::Result<String> {
    let dir = host.path(VOLUMES);
    let mut names = std::fs::read_dir(&dir)
        .with_context(|| format!("listing {}", dir.display()))?
        .map_while(Result::ok)
        .map(|e| e.file_name().to_string_lossy().into_owned());
    let name = names.next().context("the container has no volume on the host's disk")?;
    Ok(format!("{VOLUMES}/{name}"))
}

/// Runs a script with the image's Python on the host's file system, as the host's root.
fn python(scene: &Scene, host: &str, script: &str, argument: &str) -> anyhow::Result<String> {
    // The image has the interpreter, the host has the files: a chroot cannot show both, the
    // interpreter called through its own loader can.
    let interpreter = "R=/lab/images/web; L=$(echo $R/usr/lib/*-linux-gnu); \
        V=$(basename $R/usr/lib/python3.*); PYTHONHOME=$R/usr \
        exec $L/ld-linux*.so.* --library-path $L $R/usr/bin/$V -c \"$0\" \"$1\"";
    let args = ["sh", "-c", interpreter, script, argument];
    scene.on(host, &args, Duration::from_secs(120))?.ok()
}

fn list(scene: &Scene, host: &str, places: &[String]) -> anyhow::Result<Vec<Listing>> {
    places.iter().map(|place| tree::parse(&python(scene, host, LIST, place)?)).collect()
}

fn same(before: &[Listing], after: &[Listing]) -> anyhow::Result<()> {
    for (before, after) in before.iter().zip(after) {
        let found = tree::differences(before, after);
        ensure!(found.is_empty(), "{} entries, these differ:\n  {}", before.len(), found.join("\n  "));
    }
    Ok(())
}
