//! What goes wrong in the middle of a move without anything crashing: the container saw a pause at
//! most, runs where it ran, and can be moved at once.

use super::hosts_file::with_config;
use super::redis::finish;
use super::refusals::set;
use super::scene::{Container, Scene};
use super::unmoved::{fails, met, rules, unmoved};
use crate::agent_log::AgentLog;
use crate::client::LoadClient;
use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::Duration;
use tranship_proto::status::Phase;

/// A datagram that is begun and not sent: the kernel keeps it where nobody can read it, so CRIU
/// refuses to dump the socket, and nothing of that can be seen from outside.
const CORKED: &str = "socket(my $s, 2, 2, 17); connect($s, pack('SnC4x8', 2, 9, 10, 77, 1, 18)); \
    setsockopt($s, 17, 1, pack('i', 1)); send($s, 'half', 0); sleep 1000 while 1";

/// All of them, with one container and one client.
pub(super) fn in_the_middle(scene: &mut Scene) -> anyhow::Result<()> {
    scene.start("host-a", &Container::redis("unlucky", "10.77.1.18/16"))?;
    scene.wait_port("10.77.1.18", 6379)?;
    let mut client = scene.load(&["redis", "--addr", "10.77.1.18:6379"])?;
    let scene = &*scene;
    dump_refused(scene)?;
    memory_full(scene, &mut client)?;
    disk_full(scene, &mut client)?;
    silent(scene, &mut client)?;
    scene.migrate("host-a", "unlucky", "host-b")?;
    super::redis::counted_on(&mut client, "moved")?;
    finish(client).map(drop)
}

/// Something that only CRIU finds, in a container of its own.
fn dump_refused(scene: &Scene) -> anyhow::Result<()> {
    let corked = Container::new("corked", "redis", "10.77.1.19/16", &["perl", "-e", CORKED]);
    scene.start("host-a", &corked)?;
    std::thread::sleep(Duration::from_millis(200));
    let said = fails(scene, "corked", 1, "corked").context("a dump that is refused")?;
    println!("  a dump that is refused: {said}");
    scene.runs_only_on("corked", "host-a")?;
    scene.audit().context("after a dump that is refused")?;
    scene.tranship("host-a", &["rm", "--force", "corked"], Duration::from_secs(30))?.ok().map(drop)
}

/// No memory for images is left at the destination when they come.
fn memory_full(scene: &Scene, client: &mut LoadClient) -> anyhow::Result<()> {
    let what = "memory for images running out";
    with_config(scene, "host-a", &rules(&["source.effect.freeze.before=delay:500"]), || {
        full(scene, "/run", || {
            let said = fails(scene, "unlucky", 1, "space")?;
            println!("  {what}: {said}");
            Ok(())
        })
    })
    .with_context(|| what.to_owned())?;
    unmoved(scene, client, "unlucky", what).map(drop)
}

/// No disk is left at the destination when files come.
fn disk_full(scene: &Scene, client: &mut LoadClient) -> anyhow::Result<()> {
    let what = "a disk running full";
    let dir = "/mnt/small";
    // Another state directory has another journal, and the agent would miss the decisions of its own.
    let journal = "rm -f /run/tranship/journal.at";
    let mount = format!("mkdir -p {dir} && mount -t tmpfs -o size=2g,mode=700 tmpfs {dir} && {journal}");
    scene.on_ok("host-b", &["sh", "-c", &mount])?;
    let result = with_config(
        scene,
        "host-b",
        &|config| {
            config.insert("state_dir".into(), dir.into());
            set(config, "limits", "disk_reserve_mib", 0.into());
        },
        || {
            // Until the disk is full.
            with_config(scene, "host-a", &rules(&["source.effect.stage.before=delay:1500"]), || {
                full(scene, dir, || {
                    let said = fails(scene, "unlucky", 1, "space")?;
                    println!("  {what}: {said}");
                    Ok(())
                })
            })
        },
    );
    scene.on_ok("host-b", &["sh", "-c", &format!("umount -l {dir} && rmdir {dir}")])?;
    result.with_context(|| what.to_owned())?;
    unmoved(scene, client, "unlucky", what).map(drop)
}

/// Runs `body` and leaves no room in a tmpfs of host-b as soon as its agent has reserved.
fn full(scene: &Scene, dir: &str, body: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let host = scene.host("host-b")?;
    // df(1) counts in KiB here; a tmpfs takes no size below what it holds, and memory comes meanwhile.
    let size = format!("$(($(df -k --output=used {dir} | tail -n 1) + 8))k");
    let once = format!("mount -o remount,size={size} {dir}");
    let shrink = format!("for i in $(seq 200); do {once} 2>/dev/null && exit; done; {once}");
    let result = std::thread::scope(|threads| {
        let filling = threads.spawn(|| {
            scene.wait_for("the arrival at host-b", Duration::from_secs(20), || {
                Ok(crate::ask::under_way(&host)?.iter().any(|m| m.phase != Phase::Reserve))
            })?;
            scene.on_ok("host-b", &["sh", "-c", &shrink])
        });
        let result = body();
        let filled = filling.join().map_err(|_| anyhow::anyhow!("the filling thread panicked"))?;
        result.and(filled.map(drop))
    });
    scene.on_ok("host-b", &["sh", "-c", &format!("mount -o remount,size=2g {dir}")])?;
    result
}

/// The destination's agent stops reading and answering, without closing anything.
fn silent(scene: &Scene, client: &mut LoadClient) -> anyhow::Result<()> {
    let what = "a peer that stops reading";
    let host = scene.host("host-b")?;
    with_config(scene, "host-a", &rules(&["source.effect.stage.before=delay:300"]), || {
        let log = AgentLog::of(scene.host("host-a")?);
        let mut moving = scene.migrate_begin("host-a", "unlucky", "host-b")?;
        met(scene, &log, &mut moving, 1)?;
        let agent = Pid::from_raw(host.agent_pid()?.context("no agent on host-b")?);
        kill(agent, Signal::SIGSTOP)?;
        let ended = moving.finish_within(Duration::from_secs(40));
        kill(agent, Signal::SIGCONT)?;
        let ended = ended?;
        let took = ended.took.as_secs_f64();
        ensure!(ended.code == Some(5), "the exit code is {:?}, not 5: {}", ended.code, ended.said());
        println!("  {what}: given up after {took:.1} s");
        Ok(())
    })
    .with_context(|| what.to_owned())?;
    let window = unmoved(scene, client, "unlucky", what)?;
    // It was not frozen for a peer that took nothing.
    ensure!(window.longest_gap_us < 500_000, "{what}: silent for {} ms", window.longest_gap_us / 1000);
    Ok(())
}
