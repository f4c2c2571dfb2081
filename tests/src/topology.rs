//! The wires: a namespace with one bridge for each network, to which hosts and client are plugged.
//!
//! ip(8) does the work, one batch for each namespace: the topology reads like the commands a
//! person would type. rtnetlink would save a few milliseconds and cost a page of code.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use crate::error::{LabError, Result};
use crate::host_init::quick_addresses;
use crate::names::{LabName, Network};
use crate::run::{LabCommand, tool};
use crate::sys::{Entrance, in_netns, make_netns};

const NETNS_DIR: &str = "/run/netns";

/// File that a named network namespace is bound to.
#[must_use]
pub fn netns_file(name: &str) -> PathBuf {
    PathBuf::from(NETNS_DIR).join(name)
}

fn create_netns(name: &str) -> Result<PathBuf> {
    let file = netns_file(name);
    // `ip netns add` would also turn /run/netns into a mount of its own, which nobody removes.
    fs::create_dir_all(NETNS_DIR).map_err(LabError::io("create", NETNS_DIR))?;
    fs::File::create_new(&file).map_err(LabError::io("create", &file))?;
    make_netns(file.clone())?;
    Ok(file)
}

/// Makes the switch and the client namespace, joined.
pub fn create(lab: &LabName) -> Result<()> {
    let switch = create_netns(&lab.switch_netns())?;
    in_netns(switch, || {
        // The bridges only forward; their own neighbour discovery would be noise in captures.
        let _ = fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
        Ok(())
    })?;
    let mut batch = String::new();
    for network in Network::ALL {
        let _ = writeln!(batch, "{}", bridge(network.name()));
        let _ = writeln!(batch, "link set {} up", network.name());
    }
    ip(&lab.switch_netns(), &batch)?;

    let client = create_netns(&lab.client_netns())?;
    in_netns(client, || {
        quick_addresses();
        Ok(())
    })?;
    plug(lab, "client", &lab.client_netns())?;
    let mut batch = String::from("link set lo up\n");
    for network in Network::ALL {
        let link = network.interface();
        let _ = writeln!(batch, "link set {link} up");
        let _ = writeln!(batch, "addr add {}/16 dev {link}", network.client_v4());
        let _ = writeln!(batch, "addr add {}/64 dev {link}", network.client_v6());
    }
    ip(&lab.client_netns(), &batch)
}

/// Joins a host to both networks and gives its bridges their addresses.
pub fn connect_host(lab: &LabName, host: &str, index: usize, init: i32, entrance: Entrance) -> Result<()> {
    plug(lab, host, &init.to_string())?;
    let mut batch = String::from("link set lo up\n");
    for network in Network::ALL {
        let (link, name) = (network.interface(), network.bridge());
        let _ = writeln!(batch, "{}", bridge(&name));
        let _ = writeln!(batch, "link set {name} address {}", network.bridge_mac(index));
        let _ = writeln!(batch, "link set {link} addrgenmode none");
        let _ = writeln!(batch, "link set {link} master {name}");
        let _ = writeln!(batch, "link set {link} up");
        let _ = writeln!(batch, "link set {name} up");
        let _ = writeln!(batch, "addr add {}/16 dev {name}", network.host_v4(index));
        let _ = writeln!(batch, "addr add {}/64 dev {name}", network.host_v6(index));
    }
    LabCommand::new(host, ["ip", "-batch", "-"], entrance)?.run_with_input(Some(batch.as_bytes()))?.ok()?;
    Ok(())
}

fn bridge(name: &str) -> String {
    format!("link add {name} type bridge stp_state 0 forward_delay 0 mcast_snooping 0")
}

fn plug(lab: &LabName, node: &str, netns: &str) -> Result<()> {
    let mut batch = String::new();
    for network in Network::ALL {
        let (port, link, wire) = (network.port(node), network.interface(), network.name());
        let _ = writeln!(batch, "link add {port} type veth peer name {link} netns {netns}");
        let _ = writeln!(batch, "link set {port} master {wire}");
        let _ = writeln!(batch, "link set {port} up");
    }
    ip(&lab.switch_netns(), &batch)
}

fn ip(netns: &str, batch: &str) -> Result<()> {
    tool(&["ip", "-n", netns, "-batch", "-"], Some(batch))?.ok()?;
    Ok(())
}
