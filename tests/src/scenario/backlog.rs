//! Servers with connections that they have not accepted yet, which no checkpoint can hold.

use super::bounded::Running;
use super::scene::{Container, MOVE, Scene};
use super::unmoved::fails;
use anyhow::ensure;
use std::time::Duration;

/// A server on port 7 that sleeps so many milliseconds, accepts all that wait, and sleeps again.
const SERVER: &str = "my $nap = shift; socket(my $l, 2, 1, 6); setsockopt($l, 1, 2, pack('i', 1)); \
    bind($l, pack('Snx12', 2, 7)) or die; listen($l, 128) or die; \
    while (1) { select(undef, undef, undef, $nap / 1000); \
    while (1) { my $r = ''; vec($r, fileno($l), 1) = 1; last unless select($r, undef, undef, 0); \
    accept(my $c, $l); close $c } }";

/// One that is slow gets a moment to accept and moves; one that accepts nothing is refused by name, and
/// runs on.
pub(super) fn connections_that_wait(scene: &mut Scene) -> anyhow::Result<()> {
    let scene = &*scene;
    let server =
        |name: &str, ip: &str, nap: &str| Container::new(name, "redis", ip, &["perl", "-e", SERVER, nap]);
    scene.start("host-a", &server("slow", "10.77.1.21/16", "30"))?;
    scene.start("host-a", &server("deaf", "10.77.1.22/16", "1000000"))?;
    scene.wait_port("10.77.1.22", 7)?;
    let said = fails(scene, "deaf", 6, "deaf does not accept the connections that wait on its port 7")?;
    println!("  {said}");
    scene.runs_only_on("deaf", "host-a")?;
    scene.wait_port("10.77.1.21", 7)?;
    let callers = "while :; do exec 3<>/dev/tcp/10.77.1.21/7; done 2>/dev/null";
    let mut calling = Running::start("callers", scene.lab().client_command(["bash", "-c", callers])?)?;
    let moved = scene.tranship("host-a", &["migrate", "slow", "--to", "host-b", "--output", "json"], MOVE)?;
    ensure!(!calling.has_ended(), "the callers have ended");
    drop(calling);
    moved.ok()?;
    scene.runs_only_on("slow", "host-b")?;
    scene.wait_port("10.77.1.21", 7)?;
    std::thread::sleep(Duration::from_millis(50));
    scene.audit()
}
