//! `tranship-lab demo`: what tranship does, shown in a minute.

use crate::client::LoadReport;
use crate::scenario::{Container, Scene};
use anyhow::Context;
use std::process::ExitCode;
use std::time::Duration;

const IP: &str = "10.77.1.1";

/// Options of the demo.
#[derive(Debug, clap::Args)]
pub struct Demo {
    /// Leave the two hosts up, with Redis running on the second
    #[arg(long)]
    pub keep: bool,
    /// Name of the lab
    #[arg(long, default_value = "demo")]
    pub lab: String,
}

impl Demo {
    /// Runs it. Fails when the move fails or the client saw anything but a pause.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        say("Two hosts on this machine, each with its own runc, CRIU and agent (transhipd):");
        let scene = Scene::with_progress(&self.lab, 2, std::env::current_exe()?)?;
        let result = show(&scene);
        if self.keep {
            say(&format!(
                "The hosts stay. Look around, then remove them:\n\
                 \n    tranship-lab enter --name {0} host-b -- tranship ps\
                 \n    tranship-lab enter --name {0} host-b -- tranship migrate redis --to host-a\
                 \n    tranship-lab down --name {0}\n",
                self.lab
            ));
        } else {
            if result.is_err() {
                eprintln!("{}", scene.logs());
            }
            scene.lab().down()?;
            say("Both hosts are gone; nothing is left running.");
        }
        Ok(if result? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn show(scene: &Scene) -> anyhow::Result<bool> {
    scene.remove_all()?;
    scene.image("redis")?;
    say(&format!("Redis starts in a container on host-a, at {IP}:"));
    scene.start("host-a", &Container::redis("redis", &format!("{IP}/16")))?;
    scene.wait_port(IP, 6379)?;
    list(scene, "host-a")?;
    say("A client connects once and counts up, a thousand times a second:");
    let mut client = scene.load(&["redis", "--addr", &format!("{IP}:6379")])?;
    std::thread::sleep(Duration::from_secs(2));
    let before = scene.neighbour(IP)?;
    let window = client.mark("move")?;
    println!("    {} replies so far, longest gap {} ms", window.replies, window.longest_gap_us / 1000);

    say("While it counts, the container moves:\n\n    host-a# tranship migrate redis --to host-b");
    let status = scene
        .host("host-a")?
        .command(["tranship", "migrate", "redis", "--to", "host-b"])?
        .stdin(std::process::Stdio::null())
        .status()
        .context("running tranship")?;
    if !status.success() {
        say(&format!("The move failed ({status}); this should not happen."));
        return Ok(false);
    }
    std::thread::sleep(Duration::from_secs(2));
    let report = client.stop()?;
    let after = scene.neighbour(IP)?;
    list(scene, "host-b")?;
    say("What the client saw:");
    Ok(tell(&report, &before, &after))
}

fn tell(report: &LoadReport, before: &str, after: &str) -> bool {
    let in_sequence = report.last_value == i64::try_from(report.replies).ok() && report.failures.is_empty();
    println!("    requests              {}", report.requests);
    println!(
        "    replies in sequence   {}{}",
        report.replies,
        if in_sequence { ", none missing" } else { "" }
    );
    println!("    connections opened    {}", report.connections);
    println!("    resets                {}", report.resets);
    println!("    longest gap           {} ms", report.longest_gap_us / 1000);
    println!("    usual latency         {} us", report.latency.p50_us);
    println!("    address               {IP}, before and after");
    println!("    MAC address           {before} before, {after} after");
    for failure in &report.failures {
        println!("    FAILURE               {failure}");
    }
    in_sequence && report.resets == 0 && before == after
}

fn list(scene: &Scene, host: &str) -> anyhow::Result<()> {
    let text = scene.tranship(host, &["ps"], Duration::from_secs(20))?.ok()?;
    println!("\n    {host}# tranship ps");
    for line in text.lines() {
        println!("    {line}");
    }
    Ok(())
}

fn say(text: &str) {
    println!("\n{text}");
}
