//! A destination with a good certificate that breaks the protocol: nothing is touched, and the real
//! one is there again afterwards.

use super::hosts_file::with_config;
use super::redis::{counted_on, finish};
use super::refusals::said_well;
use super::scene::{Container, MOVE, Scene};
use super::unmoved::unmoved;
use crate::names::{AGENT_PORT, Network};
use crate::peer::Play;
use anyhow::{Context, ensure};
use std::io::{BufRead, BufReader};
use std::process::Stdio;

/// Every play of [`crate::peer`], in the place of host-b.
pub(super) fn peers(scene: &mut Scene) -> anyhow::Result<()> {
    scene.start("host-a", &Container::redis("coveted", "10.77.1.20/16"))?;
    scene.wait_port("10.77.1.20", 6379)?;
    let mut client = scene.load(&["redis", "--addr", "10.77.1.20:6379"])?;
    let scene = &*scene;
    let address = format!("{}:{AGENT_PORT}", Network::Lan.client_v4());
    let elsewhere = |config: &mut toml::Table| {
        let hosts = config.get_mut("hosts").and_then(toml::Value::as_array_mut);
        for host in hosts.into_iter().flatten().filter_map(toml::Value::as_table_mut) {
            if host.get("name").and_then(toml::Value::as_str) == Some("host-b") {
                host.insert("address".into(), address.clone().into());
            }
        }
    };
    with_config(scene, "host-a", &elsewhere, || {
        for play in Play::ALL {
            let what = play.name();
            one(scene, &address, *play).with_context(|| format!("a peer that plays {what}"))?;
            scene.runs_only_on("coveted", "host-a")?;
            counted_on(&mut client, "after")?;
            scene.audit().with_context(|| format!("after a peer that plays {what}"))?;
        }
        Ok(())
    })?;
    unmoved(scene, &mut client, "coveted", "hostile peers")?;
    scene.migrate("host-a", "coveted", "host-b")?;
    finish(client).map(drop)
}

fn one(scene: &Scene, address: &str, play: Play) -> anyhow::Result<()> {
    let exe = std::env::current_exe()?.to_string_lossy().into_owned();
    let pki = scene.host("host-b")?.path("/etc/tranship/pki").to_string_lossy().into_owned();
    let args = [&exe, "peer", "--listen", address, "--pki", &pki, "--host", "host-b", "--play", &play.name()];
    let command = scene.lab().client_command(args)?.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut peer = command.spawn().context("starting the peer")?;
    let mut line = String::new();
    if let Some(stdout) = peer.stdout.take() {
        BufReader::new(stdout).read_line(&mut line)?;
    }
    let ended = scene.tranship("host-a", &["migrate", "coveted", "--to", "host-b", "--output", "json"], MOVE);
    let _ = peer.kill();
    peer.wait()?;
    ensure!(line.contains("ready"), "the peer did not start");
    let ended = ended?;
    let code = if play == Play::OtherVersion { 9 } else { 5 };
    println!("  {}: {}", play.name(), said_well(&ended, code, "")?);
    Ok(())
}
