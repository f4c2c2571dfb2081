//! Both families, and more than one network.

use super::redis::{counted_on, finish, second_client};
use super::scene::{Container, Scene};
use anyhow::ensure;

/// An IPv6 connection lives on, beside an IPv4 one.
pub(super) fn ipv6_connection(scene: &mut Scene) -> anyhow::Result<()> {
    let mut container = Container::redis("six", "10.77.1.3/16");
    container.links = vec![("lan".into(), vec!["10.77.1.3/16".into(), "fd77::1:3/64".into()])];
    scene.start("host-a", &container)?;
    scene.wait_port("fd77::1:3", 6379)?;
    let mut six = scene.load(&["redis", "--addr", "[fd77::1:3]:6379", "--key", "six"])?;
    let mut four = scene.load(&["redis", "--addr", "10.77.1.3:6379", "--key", "four", "--rate", "200"])?;
    let mac = scene.neighbour("fd77::1:3")?;
    for (from, to) in [("host-a", "host-b"), ("host-b", "host-c")] {
        six.mark("move")?;
        scene.migrate(from, "six", to)?;
        let window = counted_on(&mut six, "between")?;
        counted_on(&mut four, "between")?;
        println!("  {from} to {to}: longest gap over IPv6 {} ms", window.longest_gap_us / 1000);
        let now = scene.neighbour("fd77::1:3")?;
        ensure!(now == mac, "the MAC address was {mac} and is {now}");
        second_client(scene, "[fd77::1:3]:6379")?;
    }
    finish(six)?;
    finish(four)?;
    Ok(())
}

/// An interface in each of two networks, a connection over each.
pub(super) fn two_interfaces(scene: &mut Scene) -> anyhow::Result<()> {
    let mut container = Container::redis("both", "10.77.1.4/16");
    container.links = vec![
        ("lan".into(), vec!["10.77.1.4/16".into()]),
        ("back".into(), vec!["10.78.1.4/16".into(), "fd78::1:4/64".into()]),
    ];
    scene.start("host-a", &container)?;
    scene.wait_port("10.77.1.4", 6379)?;
    scene.wait_port("10.78.1.4", 6379)?;
    let mut lan = scene.load(&["redis", "--addr", "10.77.1.4:6379", "--key", "lan", "--rate", "500"])?;
    let mut back = scene.load(&["redis", "--addr", "10.78.1.4:6379", "--key", "back", "--rate", "500"])?;
    let mut six = scene.load(&["redis", "--addr", "[fd78::1:4]:6379", "--key", "back6", "--rate", "100"])?;
    let addresses = ["10.77.1.4", "10.78.1.4", "fd78::1:4"];
    let macs = addresses.map(|ip| scene.neighbour(ip).ok());
    ensure!(
        macs.iter().all(Option::is_some) && macs[0] != macs[1],
        "the interfaces' MAC addresses are {macs:?}"
    );
    for (from, to) in [("host-a", "host-b"), ("host-b", "host-a")] {
        scene.migrate(from, "both", to)?;
        for client in [&mut lan, &mut back, &mut six] {
            counted_on(client, "between")?;
        }
        let now = addresses.map(|ip| scene.neighbour(ip).ok());
        ensure!(now == macs, "the MAC addresses were {macs:?} and are {now:?}");
    }
    finish(lan)?;
    finish(back)?;
    finish(six)?;
    Ok(())
}
