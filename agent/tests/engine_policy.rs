//! The allow list: what our own containers and plain bundles need passes, every hostile field is refused
//! by name.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use serde_json::{Value, json};
use tranship_agent::engine::{
    ConfigInput, Rootfs, RunSpec, Volume, VolumeSource, check_config, default_config,
};

fn spec() -> RunSpec {
    RunSpec {
        name: "web".parse().unwrap(),
        rootfs: Rootfs::Template("/srv/template".into()),
        netns: "/run/tranship/netns/web".into(),
        network: Value::Null,
        volumes: vec![
            Volume {
                source: VolumeSource::Managed("data".into()),
                destination: "/data".into(),
                read_only: false,
            },
            Volume {
                source: VolumeSource::Path("/srv/static".into()),
                destination: "/static".into(),
                read_only: true,
            },
        ],
        env: vec!["A=1".into(), "PATH=/bin".into()],
        cwd: Some("/data".into()),
        user: Some("33:33".into()),
        hostname: None,
        args: vec!["/bin/server".into(), "--x".into()],
    }
}

fn good() -> Value {
    default_config(&ConfigInput { spec: &spec(), open_files: 1024 }).unwrap()
}

fn judge(config: &Value) -> Result<(), String> {
    check_config(config, &spec().volumes).map_err(|v| v.field)
}

#[test]
fn what_is_made_here_passes() {
    let config = good();
    assert_eq!(judge(&config), Ok(()));
    assert_eq!(config["process"]["env"], json!(["A=1", "PATH=/bin"]));
    assert_eq!(config["process"]["user"], json!({ "uid": 33, "gid": 33 }));
    assert_eq!(config["hostname"], "web");
}

#[test]
fn senseless_requests_are_refused() {
    let with = |change: fn(&mut RunSpec)| {
        let mut spec = spec();
        change(&mut spec);
        default_config(&ConfigInput { spec: &spec, open_files: 1024 })
    };
    assert!(with(|s| s.args.clear()).is_err());
    assert!(with(|s| s.user = Some("www-data".into())).is_err());
    assert!(with(|s| s.user = Some("-1".into())).is_err());
    assert!(with(|s| s.env.push("NOVALUE".into())).is_err());
    assert!(with(|s| s.env.push("=x".into())).is_err());
}

/// Every change alone turns the good configuration into one that must be refused at that field.
#[test]
fn every_hostile_field_is_refused_by_name() {
    let mount = |kind: &str, destination: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": "x", "options": options });
    let cases: Vec<(&str, Value, &str)> = vec![
        ("/hooks", json!({ "prestart": [{ "path": "/bin/sh" }] }), "hooks"),
        ("/hooks", json!({ "createRuntime": [{ "path": "/bin/sh" }] }), "hooks"),
        ("/annotations", json!({ "org.criu.config": "/etc/shadow" }), "annotations.org.criu.config"),
        ("/annotations", json!({ "run.oci.handler": "wasm" }), "annotations.run.oci.handler"),
        ("/vm", json!({ "kernel": { "path": "/x" } }), "vm"),
        ("/windows", json!({ "x": 1 }), "windows"),
        ("/newfield", json!("x"), "newfield"),
        ("/ociVersion", json!("2.0"), "ociVersion"),
        ("/hostname", json!("a b"), "hostname"),
        ("/hostname", json!("a\nb"), "hostname"),
        ("/root/newfield", json!(true), "root.newfield"),
        ("/process", json!([]), "process"),
        ("/process/terminal", json!(true), "process.terminal"),
        ("/process/args", json!([]), "process.args"),
        ("/process/args", json!([""]), "process.args"),
        ("/process/args", json!(["a\u{0}b"]), "process.args"),
        ("/process/args", json!([1]), "process.args"),
        ("/process/env", json!(["=x"]), "process.env"),
        ("/process/cwd", json!("relative"), "process.cwd"),
        ("/process/cwd", json!("/a/../../b"), "process.cwd"),
        ("/process/user", json!({ "uid": -1, "gid": 0 }), "process.user.uid"),
        ("/process/user", json!({ "uid": 4294967295u64, "gid": 0 }), "process.user.uid"),
        ("/process/user", json!({ "uid": 0, "gid": 0, "username": "x" }), "process.user.username"),
        ("/process/capabilities/bounding", json!(["CAP_SYS_ADMIN"]), "process.capabilities.bounding"),
        ("/process/capabilities/ambient", json!(["CAP_SYS_PTRACE"]), "process.capabilities.ambient"),
        ("/process/capabilities/effective", json!(["CAP_NET_ADMIN"]), "process.capabilities.effective"),
        ("/process/rlimits", json!([{ "type": "RLIMIT_NOFILE", "soft": 5, "hard": 1 }]), "process.rlimits"),
        ("/process/rlimits", json!([{ "type": "x", "soft": 1, "hard": 1 }]), "process.rlimits"),
        ("/process/oomScoreAdj", json!(-1000), "process.oomScoreAdj"),
        ("/process/apparmorProfile", json!("unconfined"), "process.apparmorProfile"),
        ("/process/selinuxLabel", json!("x"), "process.selinuxLabel"),
        ("/process/scheduler", json!({ "policy": "SCHED_FIFO" }), "process.scheduler"),
        ("/process/ioPriority", json!({ "class": "IOPRIO_CLASS_RT" }), "process.ioPriority"),
        (
            "/linux/devices",
            json!([{ "path": "/dev/sda", "type": "b", "major": 8, "minor": 0 }]),
            "linux.devices",
        ),
        ("/linux/cgroupsPath", json!(5), "linux.cgroupsPath"),
        ("/linux/rootfsPropagation", json!("shared"), "linux.rootfsPropagation"),
        ("/linux/maskedPaths", json!([]), "linux.maskedPaths"),
        ("/linux/readonlyPaths", json!(["/proc/bus"]), "linux.readonlyPaths"),
        ("/linux/seccomp", json!({ "defaultAction": "SCMP_ACT_ALLOW" }), "linux.seccomp"),
        (
            "/linux/seccomp",
            json!({ "defaultAction": "SCMP_ACT_NOTIFY", "listenerPath": "/run/x" }),
            "linux.seccomp",
        ),
        ("/linux/uidMappings", json!([{ "containerID": 0, "hostID": 0, "size": 1 }]), "linux.uidMappings"),
        ("/linux/mountLabel", json!("x"), "linux.mountLabel"),
        ("/linux/intelRdt", json!({ "closID": "x" }), "linux.intelRdt"),
        ("/linux/personality", json!({ "domain": "LINUX32" }), "linux.personality"),
        ("/linux/timeOffsets", json!({ "boottime": { "secs": 5 } }), "linux.timeOffsets"),
        ("/linux/netDevices", json!({ "eth0": {} }), "linux.netDevices"),
        ("/linux/sysctl", json!({ "kernel.core_pattern": "|/x" }), "linux.sysctl.kernel.core_pattern"),
        (
            "/linux/sysctl",
            json!({ "net/../kernel/core_pattern": "|/x" }),
            "linux.sysctl.net/../kernel/core_pattern",
        ),
        ("/linux/sysctl", json!({ "net.x": "a\nb" }), "linux.sysctl.net.x"),
        ("/linux/sysctl", json!({ "vm.overcommit_memory": "1" }), "linux.sysctl.vm.overcommit_memory"),
        ("/linux/resources/devices", json!([{ "allow": true, "access": "rwm" }]), "linux.resources.devices"),
        ("/linux/resources/unified", json!({ "cgroup.procs": "1" }), "linux.resources.unified"),
        ("/linux/resources/blockIO", json!({ "weight": 10 }), "linux.resources.blockIO"),
        (
            "/linux/resources/memory",
            json!({ "disableOOMKiller": true }),
            "linux.resources.memory.disableOOMKiller",
        ),
        ("/linux/resources/cpu", json!({ "realtimeRuntime": 95000 }), "linux.resources.cpu.realtimeRuntime"),
        ("/linux/namespaces", json!([]), "linux.namespaces"),
        ("/linux/namespaces/0/path", json!("/proc/1/ns/pid"), "linux.namespaces"),
        ("/linux/namespaces/0/type", json!("user"), "linux.namespaces"),
        ("/mounts/-", mount("bind", "/host", &["rbind"]), "mounts[9].source"),
        ("/mounts/-", mount("ext4", "/host", &[]), "mounts[9].type"),
        ("/mounts/-", mount("overlay", "/host", &["lowerdir=/"]), "mounts[9].options"),
        ("/mounts/-", mount("none", "/host", &["bind"]), "mounts[9].type"),
        ("/mounts/-", mount("", "/host", &["rbind"]), "mounts[9].type"),
        ("/mounts/-", mount("tmpfs", "/proc/x", &[]), "mounts[9].type"),
        ("/mounts/-", mount("tmpfs", "/sys/x", &[]), "mounts[9].type"),
        ("/mounts/-", mount("tmpfs", "/a/../../b", &[]), "mounts[9].destination"),
        ("/mounts/-", mount("tmpfs", "/", &[]), "mounts[9].destination"),
        ("/mounts/-", mount("tmpfs", "rel", &[]), "mounts[9].destination"),
        ("/mounts/-", mount("tmpfs", "/proc", &[]), "mounts[9].destination"),
        ("/mounts/-", mount("tmpfs", "/t", &["shared"]), "mounts[9].options"),
        ("/mounts/-", mount("tmpfs", "/t", &["idmap"]), "mounts[9].options"),
        ("/mounts/-", mount("tmpfs", "/t", &["suid"]), "mounts[9].options"),
        ("/mounts/-", mount("tmpfs", "/t", &["size=1,nosuid"]), "mounts[9].options"),
        ("/mounts/-", mount("sysfs", "/sys2", &["ro"]), "mounts[9].type"),
        ("/mounts/-", mount("proc", "/proc2", &[]), "mounts[9].type"),
        ("/mounts/-", mount("cgroup", "/cg", &["ro"]), "mounts[9].type"),
        (
            "/mounts/-",
            json!({ "destination": "/t", "type": "tmpfs", "uidMappings": [] }),
            "mounts[9].uidMappings",
        ),
        ("/mounts/5/options", json!(["nosuid", "rw"]), "mounts[5].type"),
        ("/mounts/7/options", json!(["rbind", "ro"]), "mounts[7].type"),
        ("/mounts/8/options", json!(["rbind", "rw"]), "mounts[8].type"),
        ("/mounts/8/destination", json!("/elsewhere"), "mounts[8].source"),
    ];
    for (pointer, value, field) in cases {
        let mut config = good();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        match config.pointer_mut(parent).unwrap_or_else(|| panic!("{pointer}")) {
            Value::Object(map) => drop(map.insert(key.to_owned(), value.clone())),
            Value::Array(list) if key == "-" => list.push(value.clone()),
            Value::Array(list) => list[key.parse::<usize>().unwrap()] = value.clone(),
            _ => panic!("{pointer}"),
        }
        assert_eq!(judge(&config), Err(field.to_owned()), "{pointer} = {value}");
    }
}

#[test]
fn missing_parts_are_refused() {
    for pointer in [
        "/process",
        "/root",
        "/mounts",
        "/linux",
        "/process/args",
        "/process/cwd",
        "/process/user",
        "/linux/namespaces",
        "/linux/maskedPaths",
        "/linux/readonlyPaths",
    ] {
        let mut config = good();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        config.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(key);
        assert_eq!(judge(&config), Err(pointer[1..].replace('/', ".")));
    }
    let mut config = good();
    config["mounts"].as_array_mut().unwrap().pop();
    assert_eq!(judge(&config), Err("mounts".to_owned()), "a volume without its mount");
}

#[test]
fn limits_on_length_hold_on_both_sides() {
    let with = |bytes: usize| {
        let mut config = good();
        config["process"]["args"] = json!(["x".repeat(bytes)]);
        judge(&config)
    };
    assert_eq!(with(512 * 1024), Ok(()));
    assert_eq!(with(512 * 1024 + 1), Err("process.args".to_owned()));
    let many = |n: usize| {
        let mut config = good();
        config["process"]["env"] = json!(vec!["A=1"; n]);
        judge(&config)
    };
    assert_eq!(many(4096), Ok(()));
    assert_eq!(many(4097), Err("process.env".to_owned()));
}

#[test]
fn ordinary_additions_pass() {
    for (pointer, value) in [
        ("/linux/resources/memory", json!({ "limit": 1073741824 })),
        ("/linux/resources/pids", json!({ "limit": 100 })),
        ("/linux/sysctl", json!({ "net.ipv4.ip_unprivileged_port_start": "0", "kernel.shmmax": "1" })),
        ("/process/oomScoreAdj", json!(100)),
        ("/process/noNewPrivileges", json!(true)),
        ("/process/capabilities/bounding", json!(["CAP_NET_RAW"])),
        ("/hooks", json!({})),
        ("/linux/devices", json!([])),
        ("/annotations", json!({ "tranship.engine": "bare" })),
    ] {
        let mut config = good();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        config.pointer_mut(parent).unwrap().as_object_mut().unwrap().insert(key.to_owned(), value);
        assert_eq!(judge(&config), Ok(()), "{pointer}");
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from)
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(".{0,8}", inner, 0..4)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn any_value_in_any_place_is_survived(value in any_json(), at in 0usize..40) {
        let mut config = good();
        let places = ["", "/process", "/root", "/mounts", "/mounts/0", "/mounts/7", "/linux", "/linux/namespaces", "/linux/resources", "/linux/seccomp",
            "/process/user", "/process/args", "/process/env", "/process/capabilities", "/process/rlimits", "/linux/maskedPaths", "/hostname"];
        if let Some(place) = config.pointer_mut(places[at % places.len()]) {
            *place = value;
        }
        let _ = judge(&config);
    }
}
