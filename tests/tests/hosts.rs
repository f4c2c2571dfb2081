//! What a lab promises: hosts that are apart, wires that can be cut, and no trace afterwards.

#![allow(clippy::unwrap_used)] // helpers of tests, which clippy does not take for tests

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tranship_lab::progress::Quiet;
use tranship_lab::{Lab, LabError, LabName, LabOptions, cgroup, teardown, topology};

fn root() -> bool {
    let root = nix::unistd::Uid::effective().is_root();
    if !root {
        println!("a lab needs root: nothing was tested");
    }
    root
}

fn options(name: &str, hosts: usize) -> LabOptions {
    LabOptions { name: LabName::new(name).unwrap(), hosts, agents: false }
}

fn traces(name: &str) -> Vec<String> {
    let name = LabName::new(name).unwrap();
    let mut traces = Vec::new();
    let mut look = |path: &Path| {
        if path.exists() {
            traces.push(path.display().to_string());
        }
    };
    look(&name.dir());
    look(&topology::netns_file(&name.switch_netns()));
    look(&topology::netns_file(&name.client_netns()));
    for hierarchy in cgroup::hierarchies().unwrap() {
        look(&hierarchy.mount.join(name.cgroup()));
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    traces.extend(mounts.lines().filter(|l| l.contains(&*name.dir().to_string_lossy())).map(str::to_owned));
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(&format!("/{name}/host-")) {
            traces.push(line);
        }
    }
    traces
}

#[test]
fn hosts_are_apart_and_wires_can_be_cut() {
    if !root() {
        return;
    }
    let options = options("hoststest", 3);
    teardown::down(&options.name).unwrap();
    let lab = Lab::up(&options, &Quiet).unwrap();
    let outcome = std::panic::catch_unwind(|| {
        let (a, b) = (lab.host("host-a"), lab.host("host-b"));
        assert!(matches!(Lab::up(&options, &Quiet), Err(LabError::AlreadyUp(_))));
        assert!(matches!(lab.find_host("host-d"), Err(LabError::Missing { .. })));

        // Each has its own files, processes and names.
        a.run(["touch", "/root/mine"]).unwrap().ok().unwrap();
        assert!(!b.run(["test", "-e", "/root/mine"]).unwrap().success());
        assert_eq!(b.run(["hostname"]).unwrap().ok().unwrap(), "host-b\n");
        assert_eq!(a.run(["sh", "-c", "kill -0 2"]).unwrap().status.code(), Some(1));
        assert_eq!(a.run(["sh", "-c", "exit 7"]).unwrap().status.code(), Some(7));
        let criu = a.run(["criu", "check"]).unwrap();
        assert!(criu.stdout.contains("Looks good") || criu.stderr.contains("Looks good"), "{criu:?}");
        let text = a.command(["cat"]).unwrap().run_with_input(Some(b"in and out")).unwrap();
        assert_eq!(text.stdout, "in and out");

        // A child is the program itself: killing it ends it.
        let mut child = a.spawn(["sleep", "3600"]).unwrap();
        let stat = format!("/proc/{}/comm", child.id());
        assert_eq!(fs::read_to_string(stat).unwrap(), "sleep\n");
        child.kill().unwrap();
        child.wait().unwrap();

        // Orphans are reaped.
        a.run(["sh", "-c", "sleep 0.1 >/dev/null 2>&1 &"]).unwrap().ok().unwrap();
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(a.processes().unwrap().len(), 1);

        let reach = |from: &tranship_lab::Host, to: &str| {
            from.run(["ping", "-c1", "-W1", "-q", to]).unwrap().success()
        };
        for to in ["10.77.0.2", "10.78.0.3", "fd77::2", "fd78::3", "10.77.254.1", "fd78::fe:1", "host-c"] {
            assert!(reach(&a, to), "{to}");
        }
        let addresses = lab.client_run(["ip", "-br", "addr"]).unwrap().ok().unwrap();
        assert!(addresses.contains("10.77.254.1/16") && addresses.contains("fd78::fe:1/64"));

        lab.cut("host-b", "host-a").unwrap();
        assert!(!reach(&a, "10.77.0.2") && !reach(&b, "fd78::1"));
        assert!(reach(&a, "10.77.0.3") && reach(&b, "10.77.0.3") && reach(&b, "10.77.254.1"));
        lab.heal("host-a", "host-b").unwrap();
        assert!(reach(&a, "10.77.0.2"));

        // 60 kB both ways at 1 Mbit/s take most of a second; elsewhere nothing changes.
        lab.slow("host-a", "host-b", 1_000_000, Duration::ZERO).unwrap();
        let ping = |to: &str| {
            let started = Instant::now();
            a.run(["ping", "-c1", "-W5", "-s60000", "-q", to]).unwrap().ok().unwrap();
            started.elapsed()
        };
        assert!(ping("host-b") > Duration::from_millis(400));
        assert!(ping("host-c") < Duration::from_millis(400));
        match lab.slow("host-a", "host-b", 1_000_000_000, Duration::from_millis(50)) {
            Ok(()) => assert!(ping("host-b") >= Duration::from_millis(100)),
            Err(LabError::Unsupported { .. }) => {
                let slow = lab.faults_in_force().unwrap();
                assert_eq!(slow, ["slow host-a host-b: 1000000 bit/s, 0 ms"], "it is as it was");
            }
            Err(e) => panic!("{e}"),
        }
        lab.heal_all().unwrap();
        assert!(ping("host-b") < Duration::from_millis(400));
        assert!(matches!(a.kill_agent(), Err(LabError::Agent { .. })));
    });
    // A process that runs, one that ended and was not waited for, a frozen one, a mount.
    let mut running = lab.host("host-a").spawn(["sleep", "3600"]).unwrap();
    let mut zombie = lab.host("host-b").spawn(["true"]).unwrap();
    let freeze = "mkdir /sys/fs/cgroup/x && echo $$ > /sys/fs/cgroup/x/cgroup.procs &&
                  { sleep 3600 >/dev/null 2>&1 & } && sleep 0.2 && echo $$ > /sys/fs/cgroup/init/cgroup.procs &&
                  echo 1 > /sys/fs/cgroup/x/cgroup.freeze && mount -t tmpfs t /mnt";
    lab.host("host-b").run(["sh", "-c", freeze]).unwrap().ok().unwrap();
    let mut client = lab.client_spawn(["sleep", "3600"]).unwrap();
    lab.down().unwrap();
    assert_eq!(traces("hoststest"), Vec::<String>::new());
    assert!(!teardown::down(&options.name).unwrap(), "a second time there is nothing");
    for child in [&mut running, &mut client, &mut zombie] {
        child.wait().unwrap();
    }
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn down_finds_everything_after_a_kill_at_any_moment() {
    if !root() {
        return;
    }
    let name = LabName::new("killtest").unwrap();
    // The root file system must be there, or the first kill hits its build.
    teardown::down(&name).unwrap();
    Lab::up(&options("killtest", 1), &Quiet).unwrap().down().unwrap();
    for wait in (0..12).map(|n| Duration::from_millis(n * 25)) {
        let mut up = Command::new(env!("CARGO_BIN_EXE_tranship-lab"))
            .args(["up", "--no-agent", "--hosts", "2", "--name", "killtest"])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(wait);
        let _ = up.kill();
        up.wait().unwrap();
        teardown::down(&name).unwrap();
        assert_eq!(traces("killtest"), Vec::<String>::new(), "killed after {wait:?}");
    }
}

/// Stands in for the agent: listens at its socket, says a word, ends on SIGTERM.
const FAKE_AGENT: &str = r#"#!/bin/bash
mkdir -p /run/tranship
grep -q 'host = "host-' /etc/tranship/transhipd.toml || exit 3
[ -e /srv/broken ] && { echo cannot start; exit 4; }
exec -a transhipd perl -MIO::Socket::UNIX -e '
unlink "/run/tranship/agent.sock";
my $s = IO::Socket::UNIX->new(Local => "/run/tranship/agent.sock", Listen => 5) or die;
$| = 1; print "agent listens\n";
$SIG{TERM} = sub { print "agent ends\n"; exit 0 };
while (1) { $s->accept }'
"#;

#[test]
fn agents_are_started_killed_and_stopped() {
    if !root() {
        return;
    }
    let name = LabName::new("agenttest").unwrap();
    teardown::down(&name).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for program in ["transhipd", "tranship"] {
        let path = dir.path().join(program);
        fs::write(&path, FAKE_AGENT).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    let lab = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_tranship-lab"))
            .args(args)
            .env("TRANSHIP_LAB", "agenttest")
            .env("TRANSHIP_LAB_BIN", dir.path())
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let outcome = std::panic::catch_unwind(|| {
        let (code, text) = lab(&["up"]);
        assert_eq!(code, Some(0), "{text}");
        assert!(text.contains("criu 4.") && text.contains("runc 1.") && text.contains("conmon 2."), "{text}");
        let host = Lab::attach(&name).unwrap().host("host-b");
        let first = host.agent_pid().unwrap().expect("the agent runs");
        assert_eq!(lab(&["start", "host-b", "agent"]).0, Some(1), "it runs already");
        assert_eq!(lab(&["kill", "host-b", "agent"]).0, Some(0));
        assert_eq!(host.agent_pid().unwrap(), None);
        assert_eq!(lab(&["start", "host-b", "agent"]).0, Some(0));
        assert_ne!(host.agent_pid().unwrap(), Some(first));
        assert_eq!(lab(&["stop", "host-b", "agent"]).0, Some(0));
        let (_, log) = lab(&["logs", "host-b"]);
        assert_eq!(log, "agent listens\nagent listens\nagent ends\n");
        host.run(["touch", "/srv/broken"]).unwrap().ok().unwrap();
        let (code, text) = lab(&["start", "host-b", "agent"]);
        assert!(code == Some(1) && text.contains("cannot start"), "{text}");
        assert_eq!(lab(&["enter", "host-a", "--", "sh", "-c", "kill -9 $$"]).0, Some(137));
        assert_eq!(lab(&["enter", "host-a", "--", "test", "-x", "/usr/local/bin/migrate"]).0, Some(0));
        assert_eq!(lab(&["client", "--", "sh", "-c", "command -v migrate >/dev/null; exit $?"]).0, Some(0));
        let (code, text) = lab(&["audit"]);
        assert_eq!(code, Some(0), "{text}");
    });
    let (code, text) = lab(&["down"]);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(traces("agenttest"), Vec::<String>::new());
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn programs_that_are_not_built_are_named_with_a_hint() {
    if !root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("tranship-lab");
    fs::copy(env!("CARGO_BIN_EXE_tranship-lab"), &program).unwrap();
    let output = Command::new(&program).args(["up", "--name", "nobin"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("transhipd") && text.contains("cargo build --workspace"), "{text}");
    assert_eq!(traces("nobin"), Vec::<String>::new());
}
