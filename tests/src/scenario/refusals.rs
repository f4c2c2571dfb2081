//! What must be refused before anything is touched, and what fails later and costs a pause only.
//!
//! Each case checks four things: the documented exit code, a message with a hint, that the
//! counting client noticed nothing, and that nothing is left on any host.

use super::bounded::Ended;
use super::hosts_file::{with_config, with_pki};
use super::identity::{Authority, Role};
use super::redis::{counted_on, finish};
use super::scene::{Container, MOVE, Scene};
use super::versions;
use crate::client::LoadClient;
use anyhow::{Context, ensure};
use std::time::Duration;
use time::Duration as Span;

/// A client that is left alone sees no silence longer than this.
const UNTOUCHED_US: u64 = 50_000;
/// A machine under load may pause the client itself; what a refusal does is the same each time.
const TRIES: usize = 4;
/// A control is as long as what it is held against, but no longer than this.
const LONGEST_CONTROL: Duration = Duration::from_secs(6);

const USAGE: i32 = 2;
const UNREACHABLE: i32 = 5;
const REFUSED: i32 = 6;
const NOT_AUTHORIZED: i32 = 9;

/// A case: what it is called, the exit code, and a word that the message has to hold.
type Case<'a> = (&'a str, i32, &'a str);

/// All refusals, with one container that never moves and one client that never pauses.
pub(super) fn bad_input(scene: &mut Scene) -> anyhow::Result<()> {
    let mut container = Container::redis("web", "10.77.1.10/16");
    container.links = vec![("lan".into(), vec!["10.77.1.10/16".into(), "fd77::1:10/64".into()])];
    scene.start("host-a", &container)?;
    scene.wait_port("10.77.1.10", 6379)?;
    let mut client = scene.load(&["redis", "--addr", "10.77.1.10:6379"])?;
    let c = &mut client;
    requests(scene, c)?;
    unreachable(scene, c)?;
    taken(scene, c)?;
    unfit_destination(scene, c)?;
    certificates(scene, c)?;
    operators(scene, c)?;
    versions::refused(scene)?;
    // After all of that it still can be moved.
    scene.migrate("host-a", "web", "host-b")?;
    counted_on(&mut client, "end")?;
    finish(client).map(drop)
}

fn requests(scene: &Scene, client: &mut LoadClient) -> anyhow::Result<()> {
    refused(scene, client, ("an unknown container", USAGE, "nosuch"), || migrate(scene, "nosuch", "host-b"))?;
    refused(scene, client, ("an unknown host", USAGE, "host-z"), || migrate(scene, "web", "host-z"))?;
    refused(scene, client, ("the host it is on", USAGE, "host-a"), || migrate(scene, "web", "host-a"))?;
    refused(scene, client, ("a name that cannot be one", USAGE, ".."), || migrate(scene, "../web", "host-b"))
}

fn unreachable(scene: &Scene, client: &mut LoadClient) -> anyhow::Result<()> {
    let host = scene.host("host-b")?;
    host.kill_agent()?;
    let dead =
        refused(scene, client, ("a dead agent", UNREACHABLE, "host-b"), || migrate(scene, "web", "host-b"));
    host.start_agent()?;
    dead?;
    scene.lab().cut("host-a", "host-b")?;
    let cut =
        refused(scene, client, ("a cut link", UNREACHABLE, "host-b"), || migrate(scene, "web", "host-b"));
    scene.lab().heal("host-a", "host-b")?;
    cut
}

fn taken(scene: &Scene, client: &mut LoadClient) -> anyhow::Result<()> {
    scene.start("host-b", &Container::new("web", "redis", "10.77.1.11/16", &["sleep", "1000"]))?;
    let name = refused(scene, client, ("a taken name", REFUSED, "web"), || migrate(scene, "web", "host-b"));
    scene.tranship("host-b", &["rm", "--force", "web"], Duration::from_secs(30))?.ok()?;
    name?;
    scene.audit().context("after a taken name")?;
    for (what, address, word) in [
        ("a taken IPv4 address", "10.77.1.10/16", "10.77.1.10"),
        ("a taken IPv6 address", "fd77::1:10/64", "fd77::1:10"),
    ] {
        // host-c answers for the container's address with a MAC address of its own.
        let v6: &[&str] = if address.contains(':') { &["nodad"] } else { &[] };
        let change = |verb| {
            let flags = if verb == "add" { v6 } else { &[] };
            scene.on_ok("host-c", &[&["ip", "addr", verb, address, "dev", "br0"], flags].concat())
        };
        change("add")?;
        let result = refused(scene, client, (what, REFUSED, word), || migrate(scene, "web", "host-b"));
        change("del")?;
        result?;
        scene.audit().context(what)?;
    }
    Ok(())
}

fn unfit_destination(scene: &Scene, client: &mut LoadClient) -> anyhow::Result<()> {
    let mut case = |case: Case<'_>, edit: &dyn Fn(&mut toml::Table)| {
        let what = case.0;
        with_config(scene, "host-b", edit, || {
            refused(scene, client, case, || migrate(scene, "web", "host-b"))
        })
        .with_context(|| format!("with {what}"))
    };
    case(("a missing network", REFUSED, "lan"), &|config| {
        if let Some(networks) = config.get_mut("networks").and_then(toml::Value::as_table_mut)
            && let Some(lan) = networks.remove("lan")
        {
            networks.insert("elsewhere".into(), lan);
        }
    })?;
    for (what, script) in [
        ("CRIU missing", None),
        ("CRIU too old", Some("#!/bin/sh\necho Version: 3.17.1\nexit 0\n")),
        ("CRIU broken", Some("#!/bin/sh\necho 'criu: cannot execute' >&2\nexit 1\n")),
    ] {
        let path = "/usr/local/lib/other-criu";
        let file = scene.host("host-b")?.path(path);
        let _ = std::fs::remove_file(&file);
        if let Some(script) = script {
            std::fs::write(&file, script)?;
            scene.on_ok("host-b", &["chmod", "755", path])?;
        }
        let result = case((what, REFUSED, "riu"), &|config| set(config, "runtime", "criu", path.into()));
        let _ = std::fs::remove_file(&file);
        result?;
    }
    case(("too little memory", REFUSED, "emory"), &|config| {
        set(config, "limits", "image_memory_mib", toml::Value::Integer(1));
    })?;
    // Another state directory has another journal, and the agent would miss the decisions of its own.
    let mount = "mkdir -p /mnt/small && mount -t tmpfs -o size=24m,mode=755 tmpfs /mnt/small \
                 && rm -f /run/tranship/journal.at";
    scene.on_ok("host-b", &["sh", "-c", mount])?;
    let disk = case(("too little disk", REFUSED, "disk"), &|config| {
        config.insert("state_dir".into(), "/mnt/small".into());
    });
    scene.on_ok("host-b", &["sh", "-c", "umount -l /mnt/small && rmdir /mnt/small"])?;
    disk?;
    scene.audit().context("after too little disk")
}

fn certificates(scene: &Scene, client: &mut LoadClient) -> anyhow::Result<()> {
    let ours = Authority::new()?;
    let long = Span::days(10);
    let agent = |name: &str, ends| ours.issue(Role::Agent, name, name, ends);
    let source = agent("host-a", long)?;
    // host-a belongs to the scenario's own authority in each case; host-b is the odd one.
    let odd = [
        ("another authority", None),
        ("an expired certificate", Some(agent("host-b", -Span::days(1))?)),
        ("an operator's certificate", Some(ours.issue(Role::Operator, "host-b", "host-b", long)?)),
        ("another host's certificate", Some(agent("host-c", long)?)),
    ];
    for (what, identity) in odd {
        let case = (what, NOT_AUTHORIZED, "host-b");
        let mut attempt = || refused(scene, client, case, || migrate(scene, "web", "host-b"));
        with_pki(scene, "host-a", &ours.ca_pem, &source, || match &identity {
            Some(identity) => with_pki(scene, "host-b", &ours.ca_pem, identity, attempt),
            None => attempt(),
        })
        .with_context(|| format!("with {what}"))?;
    }
    Ok(())
}

/// Orders over the network from somebody who must not give any.
fn operators(scene: &Scene, client: &mut LoadClient) -> anyhow::Result<()> {
    let other = Authority::new()?;
    let stranger = other.issue(Role::Operator, "mallory", "mallory", Span::days(10))?;
    let host = scene.host("host-b")?;
    let dir = "/tmp/operators";
    std::fs::create_dir_all(host.path(dir))?;
    std::fs::write(host.path(format!("{dir}/stranger.pem")), &stranger.cert)?;
    std::fs::write(host.path(format!("{dir}/stranger.key")), &stranger.key)?;
    let mut result = Ok(());
    for (what, cert) in [
        ("an agent's certificate giving orders", "/etc/tranship/pki/host"),
        ("an operator of another authority", "/tmp/operators/stranger"),
    ] {
        let config = format!(
            "[tls]\nca = \"/etc/tranship/pki/ca.pem\"\ncert = \"{cert}.pem\"\nkey = \"{cert}.key\"\n"
        );
        std::fs::write(host.path(format!("{dir}/tranship.toml")), config)?;
        let args = [
            "--config",
            "/tmp/operators/tranship.toml",
            "--host",
            "host-a=10.77.0.1:7717",
            "--output",
            "json",
        ];
        result = refused(scene, client, (what, NOT_AUTHORIZED, "certificate"), || {
            scene.tranship("host-b", &[&args[..], &["rm", "--force", "web"]].concat(), MOVE)
        });
        if result.is_err() {
            break;
        }
    }
    std::fs::remove_dir_all(host.path(dir))?;
    result
}

fn migrate(scene: &Scene, name: &str, to: &str) -> anyhow::Result<Ended> {
    scene.tranship("host-a", &["migrate", name, "--to", to, "--output", "json"], MOVE)
}

/// One case.
///
/// That nothing was touched is seen in three ways: by the kernel's count of the link's ups and
/// downs, by its account of frozen time (where it keeps one), and by the client's silence. The
/// last is worth nothing on a machine so busy that the client is not heard when nothing happens
/// either, so a silence is held against one of the same length without an attempt.
fn refused(
    scene: &Scene,
    client: &mut LoadClient,
    (what, code, word): Case<'_>,
    attempt: impl Fn() -> anyhow::Result<Ended>,
) -> anyhow::Result<()> {
    let mut silence = Vec::new();
    for _ in 0..TRIES {
        let before = traces(scene)?;
        client.mark(what)?;
        let ended = attempt()?;
        let message = said_well(&ended, code, word).with_context(|| what.to_owned())?;
        scene.runs_only_on("web", "host-a").or_else(|e| match what {
            // That one is there on purpose.
            "a taken name" => Ok(()),
            _ => Err(e),
        })?;
        let after = traces(scene)?;
        ensure!(before == after, "{what}: link changes and frozen time went from {before:?} to {after:?}");
        // What the case itself has put on a host is taken away, and looked for, after it.
        if !what.starts_with("a taken") && what != "too little disk" {
            scene.audit().with_context(|| what.to_owned())?;
        }
        let window = counted_on(client, "control").with_context(|| what.to_owned())?;
        let seen = window.longest_gap_us;
        let mut note = String::new();
        if seen >= UNTOUCHED_US {
            std::thread::sleep(Duration::from_micros(window.length_us).min(LONGEST_CONTROL));
            let control = client.mark("between")?.longest_gap_us;
            silence.push((seen / 1000, control / 1000));
            if control < UNTOUCHED_US {
                continue;
            }
            note = format!(
                " (a busy machine: silent for {} ms, and {} ms by itself)",
                seen / 1000,
                control / 1000
            );
        }
        println!("  {what}: refused in {:.2} s: {message}{note}", ended.took.as_secs_f64());
        return Ok(());
    }
    anyhow::bail!(
        "{what}: the client was not left alone: silences in ms, with the attempt and without, were {silence:?}"
    )
}

/// Checks exit code and words of a refusal; answers its message.
pub(super) fn said_well(ended: &Ended, code: i32, word: &str) -> anyhow::Result<String> {
    let said = ended.said();
    ensure!(ended.code == Some(code), "the exit code is {:?} instead of {code}: {said}", ended.code);
    let error = last_error(&ended.stdout).with_context(|| format!("no error in JSON: {said}"))?;
    let text = |field: &str| error.get(field).and_then(|v| v.as_str()).unwrap_or_default().to_owned();
    let causes = error.get("causes").map(ToString::to_string).unwrap_or_default();
    ensure!(
        format!("{} {causes}", text("message")).contains(word),
        "the message does not name {word:?}: {said}"
    );
    ensure!(!text("hint").is_empty(), "no hint: {said}");
    Ok(text("message"))
}

/// What a fence and a freeze leave behind in the kernel for as long as the container lives.
fn traces(scene: &Scene) -> anyhow::Result<String> {
    scene.on_ok(
        "host-a",
        &[
            "sh",
            "-c",
            "cat /sys/class/net/ts*/carrier_changes; \
             grep -s frozen /sys/fs/cgroup/tranship/web/cgroup.stat.local || true",
        ],
    )
}

/// The last JSON object that is an error.
fn last_error(text: &str) -> Option<serde_json::Value> {
    let lines = text.lines().rev().filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok());
    lines.into_iter().find_map(|v| match v.get("failure").or_else(|| v.pointer("/body/failed/failure")) {
        Some(failure) => Some(failure.clone()),
        None if v.get("message").is_some() => Some(v),
        None => None,
    })
}

pub(super) fn set(config: &mut toml::Table, table: &str, key: &str, value: toml::Value) {
    let entry = config.entry(table).or_insert_with(|| toml::Value::Table(toml::Table::new()));
    if let Some(table) = entry.as_table_mut() {
        table.insert(key.into(), value);
    }
}

/// The restore fails at the destination: the container saw a pause, and can be moved at once.
pub(super) fn late_failure(scene: &mut Scene) -> anyhow::Result<()> {
    scene.start("host-a", &Container::redis("late", "10.77.1.12/16"))?;
    scene.wait_port("10.77.1.12", 6379)?;
    let mut client = scene.load(&["redis", "--addr", "10.77.1.12:6379"])?;
    // runc finds CRIU in PATH. Every use but a restore goes through to the real one.
    let wrapper = "#!/bin/sh\n\
        if [ \"$1\" = swrk ] && find /run/tranship/images -name inventory.img 2>/dev/null | grep -q .; then\n\
        echo 'made to fail' >&2; exit 1\nfi\n\
        R=/usr/local/sbin/criu.real; [ -x $R ] || R=/usr/sbin/criu; exec $R \"$@\"\n";
    let host = scene.host("host-b")?;
    let path = "/usr/local/sbin/criu";
    scene
        .on_ok("host-b", &["sh", "-c", "cd /usr/local/sbin && if [ -e criu ]; then mv criu criu.real; fi"])?;
    std::fs::write(host.path(path), wrapper)?;
    scene.on_ok("host-b", &["chmod", "755", path])?;
    client.mark("late failure")?;
    let ended = migrate(scene, "late", "host-b");
    scene.on_ok(
        "host-b",
        &["sh", "-c", "cd /usr/local/sbin && rm criu && if [ -e criu.real ]; then mv criu.real criu; fi"],
    )?;
    let ended = ended?;
    ensure!(ended.code == Some(1), "the exit code is {:?}, not 1: {}", ended.code, ended.said());
    scene.runs_only_on("late", "host-a")?;
    let window = counted_on(&mut client, "after")?;
    println!("  the failed move paused the client for {} ms", window.longest_gap_us / 1000);
    scene.audit()?;
    let moved = scene.migrate("host-a", "late", "host-b")?;
    counted_on(&mut client, "moved")?;
    println!("  moved at once afterwards in {:.2} s", moved.took.as_secs_f64());
    finish(client).map(drop)
}
