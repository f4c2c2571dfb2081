//! Redis, counted at 1000 requests a second over one connection.

use super::scene::{Container, Scene};
use crate::client::{LoadClient, Window};
use anyhow::{Context, ensure};
use std::time::Duration;

pub(super) const HOSTS: [&str; 3] = ["host-a", "host-b", "host-c"];
/// A client that hears nothing for longer has not seen a live migration.
const LONGEST: Duration = Duration::from_secs(10);

/// Ten moves around three hosts; the client never notices more than a pause.
pub(super) fn ten_moves(scene: &mut Scene) -> anyhow::Result<()> {
    let mut container = Container::redis("counter", "10.77.1.1/16");
    container.mac = Some("02:00:00:00:77:01".into());
    scene.start("host-a", &container)?;
    scene.wait_port("10.77.1.1", 6379)?;
    let mut client = scene.load(&["redis", "--addr", "10.77.1.1:6379"])?;
    let mac = scene.neighbour("10.77.1.1")?;
    ensure!(mac == "02:00:00:00:77:01", "the container's MAC address is {mac} before any move");
    let mut gaps = Vec::new();
    for n in 0..10 {
        let (from, to) = (HOSTS[n % 3], HOSTS[(n + 1) % 3]);
        client.mark(&format!("move {n}"))?;
        let moved = scene.migrate(from, "counter", to)?;
        let window =
            counted_on(&mut client, "between").with_context(|| format!("after move {n}, to {to}"))?;
        gaps.push(window.longest_gap_us / 1000);
        println!(
            "  {from} to {to}: {:.2} s, longest gap {} ms",
            moved.took.as_secs_f64(),
            window.longest_gap_us / 1000
        );
        let mac = scene.neighbour("10.77.1.1")?;
        ensure!(mac == "02:00:00:00:77:01", "after move {n} the MAC address is {mac}");
        second_client(scene, "10.77.1.1:6379").with_context(|| format!("after move {n}"))?;
        scene.audit().with_context(|| format!("after move {n}"))?;
        let left = scene.containers(from)?;
        ensure!(left.is_empty(), "after move {n} {from} still lists {left:?}");
    }
    let value = finish(client)?;
    ensure!(value > 0, "the counter stands at {value}");
    gaps.sort_unstable();
    println!("  gaps in ms: {gaps:?}");
    Ok(())
}

/// 500 connections, most of them idle while they are moved.
pub(super) fn five_hundred_connections(scene: &mut Scene) -> anyhow::Result<()> {
    scene.start("host-a", &Container::redis("many", "10.77.1.2/16"))?;
    scene.wait_port("10.77.1.2", 6379)?;
    let client = scene.load(&["conns", "--addr", "10.77.1.2:6379", "--count", "500", "--rate", "10"])?;
    scene.migrate("host-a", "many", "host-b")?;
    scene.migrate("host-b", "many", "host-c")?;
    std::thread::sleep(Duration::from_secs(1));
    let report = client.stop()?;
    ensure!(report.failures.is_empty(), "{} resets; {:?}", report.resets, report.failures);
    ensure!(report.connections == 500, "{} connections", report.connections);
    ensure!(report.replies >= 500, "only {} replies", report.replies);
    Ok(())
}

/// Waits until the client counts on after a move and closes its window, which becomes `next`.
pub(super) fn counted_on(client: &mut LoadClient, next: &str) -> anyhow::Result<Window> {
    let before = client.peek()?;
    let until = std::time::Instant::now() + LONGEST;
    loop {
        let now = client.peek()?;
        ensure!(now.failures == 0, "the client has failures; see its report");
        if now.replies > before.replies + 20 {
            break;
        }
        ensure!(std::time::Instant::now() < until, "no reply for {} s", LONGEST.as_secs());
        std::thread::sleep(Duration::from_millis(20));
    }
    let window = client.mark(next)?;
    ensure!(
        u128::from(window.longest_gap_us) < LONGEST.as_micros(),
        "the client heard nothing for {} ms",
        window.longest_gap_us / 1000
    );
    Ok(window)
}

/// A new connection works, too.
pub(super) fn second_client(scene: &Scene, addr: &str) -> anyhow::Result<()> {
    let second = scene.load(&["redis", "--addr", addr, "--key", "second", "--rate", "100"])?;
    std::thread::sleep(Duration::from_millis(100));
    let report = second.stop()?;
    ensure!(report.failures.is_empty() && report.replies > 0, "a second client: {report:?}");
    Ok(())
}

/// Ends a counting client, which must have seen every number; answers the last one.
pub(super) fn finish(client: LoadClient) -> anyhow::Result<i64> {
    let report = client.stop()?;
    ensure!(report.failures.is_empty(), "the counting client: {:?}", report.failures);
    ensure!(report.resets == 0 && report.connections == 1, "{} resets", report.resets);
    let replies = i64::try_from(report.replies)?;
    let last = report.last_value.context("no number was ever answered")?;
    // Nobody else counts on this key, so the server's number is the number of replies.
    ensure!(last == replies, "{replies} replies were seen, and the server counted to {last}");
    Ok(last)
}
