//! `config.json` of containers made here, and the parts of it that belong to one host.
//!
//! Written as plain JSON values, since the OCI runtime specification only ever grows and what we do not
//! know must reach [`super::policy`] unchanged. Source: OCI runtime-spec 1.2, config.md and config-linux.md.

use std::path::Path;

use serde_json::{Value, json};

use super::error::EngineError;
use super::model::RunSpec;

/// Capabilities of a container: podman's default.
pub const CAPABILITIES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];
/// Further ones that a bundle may ask for: docker's default.
pub const EXTRA_CAPABILITIES: &[&str] = &["CAP_MKNOD", "CAP_NET_RAW", "CAP_AUDIT_WRITE"];
/// Paths hidden in every container.
pub const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
/// Paths read-only in every container.
pub const READ_ONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
/// Namespaces of every container.
pub const NAMESPACES: &[&str] = &["pid", "network", "ipc", "uts", "mount", "cgroup"];

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the default configuration depends on.
#[derive(Clone, Debug)]
pub struct ConfigInput<'a> {
    /// What was asked for.
    pub spec: &'a RunSpec,
    /// Limit on open files.
    pub open_files: u64,
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Value {
    json!({ "destination": destination, "type": kind, "source": source, "options": options })
}

/// Mounts of every container.
pub fn default_mounts() -> Vec<Value> {
    vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
    ]
}

/// Denies what could never be moved, so that programs fall back to what can: io_uring ("not implemented")
/// and MPTCP sockets ("protocol not supported").
pub fn seccomp() -> Value {
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": architectures(),
        "syscalls": [
            { "names": ["io_uring_setup", "io_uring_enter", "io_uring_register"], "action": "SCMP_ACT_ERRNO", "errnoRet": nix::errno::Errno::ENOSYS as i32 },
            { "names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": nix::errno::Errno::EPROTONOSUPPORT as i32,
              "args": [{ "index": 2, "value": 262, "op": "SCMP_CMP_EQ" }] }
        ]
    })
}

fn architectures() -> Value {
    if cfg!(target_arch = "aarch64") {
        json!(["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"])
    } else {
        json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"])
    }
}

/// `config.json` of a container made from a root file system. Paths of this host are left to
/// [`localize`].
///
/// # Errors
/// When the request makes no sense.
pub fn default_config(input: &ConfigInput<'_>) -> Result<Value, EngineError> {
    let spec = input.spec;
    if spec.args.is_empty() {
        return Err(EngineError::invalid(
            "the command line",
            "is empty; say after -- what the container runs",
        ));
    }
    let mut config = json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": spec.args,
            "env": [DEFAULT_PATH],
            "cwd": "/",
            "capabilities": { "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": input.open_files, "soft": input.open_files }],
            "noNewPrivileges": false
        },
        "root": { "path": "rootfs", "readonly": false },
        "hostname": spec.name.as_str(),
        "mounts": default_mounts(),
        "linux": {
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "namespaces": NAMESPACES.iter().map(|n| json!({ "type": n })).collect::<Vec<_>>(),
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
            "seccomp": seccomp()
        }
    });
    apply(&mut config, spec)?;
    Ok(config)
}

/// Brings the configuration of a bundle into the shape that all containers here have. What it cannot
/// bring into shape is left for the policy to refuse.
///
/// # Errors
/// When it has no shape at all, or the request makes no sense.
pub fn adapt_bundle(mut config: Value, spec: &RunSpec) -> Result<Value, EngineError> {
    let shape = || {
        EngineError::invalid(
            "config.json of the bundle",
            "is not an OCI configuration with process, root and linux",
        )
    };
    for part in ["process", "root", "linux"] {
        config.get(part).and_then(Value::as_object).ok_or_else(shape)?;
    }
    config["process"]["terminal"] = json!(false);
    if let Some(process) = config["process"].as_object_mut() {
        process.remove("consoleSize");
    }
    let linux = config["linux"].as_object_mut().ok_or_else(shape)?;
    linux.insert("namespaces".into(), NAMESPACES.iter().map(|n| json!({ "type": n })).collect());
    linux.remove("cgroupsPath");
    for (key, ours) in [("maskedPaths", MASKED), ("readonlyPaths", READ_ONLY)] {
        let mut paths: Vec<String> =
            linux.get(key).and_then(|v| serde_json::from_value(v.clone()).ok()).unwrap_or_default();
        paths.extend(ours.iter().map(|p| (*p).to_owned()));
        paths.sort();
        paths.dedup();
        linux.insert(key.into(), json!(paths));
    }
    linux.entry("seccomp").or_insert_with(seccomp);
    if spec.hostname.is_none() && config.get("hostname").and_then(Value::as_str).is_none() {
        config["hostname"] = json!(spec.name.as_str());
    }
    apply(&mut config, spec)?;
    Ok(config)
}

/// Puts what the request says over what the configuration says.
fn apply(config: &mut Value, spec: &RunSpec) -> Result<(), EngineError> {
    let process = &mut config["process"];
    if !spec.args.is_empty() {
        process["args"] = json!(spec.args);
    }
    if let Some(cwd) = &spec.cwd {
        process["cwd"] = json!(cwd);
    }
    if let Some(user) = &spec.user {
        let (uid, gid) = user.split_once(':').unwrap_or((user, user));
        match (uid.parse::<u32>(), gid.parse::<u32>()) {
            (Ok(uid), Ok(gid)) => process["user"] = json!({ "uid": uid, "gid": gid }),
            _ => return Err(EngineError::invalid(format!("user {user:?}"), "use numbers: uid or uid:gid")),
        }
    }
    let mut env: Vec<String> =
        process.get("env").and_then(|v| serde_json::from_value(v.clone()).ok()).unwrap_or_default();
    for variable in &spec.env {
        let name = variable.split_once('=').map(|(n, _)| n).filter(|n| !n.is_empty());
        let name = name.ok_or_else(|| {
            EngineError::invalid(format!("environment variable {variable:?}"), "use NAME=value")
        })?;
        env.retain(|v| v.split_once('=').map(|(n, _)| n) != Some(name));
        env.push(variable.clone());
    }
    process["env"] = json!(env);
    if let Some(hostname) = &spec.hostname {
        config["hostname"] = json!(hostname);
    }
    let mounts = config["mounts"]
        .as_array_mut()
        .ok_or_else(|| EngineError::invalid("config.json of the bundle", "has no mounts"))?;
    for volume in &spec.volumes {
        // The source is of one host; see localize.
        let options =
            if volume.read_only { ["rbind", "rprivate", "ro"] } else { ["rbind", "rprivate", "rw"] };
        mounts.push(mount(&volume.destination, "bind", "volume", &options));
    }
    Ok(())
}

/// Puts the paths of this host into a configuration that the policy has accepted: root file system,
/// network namespace, cgroup, sources of the volumes (by destination), the engine's annotations.
pub fn localize(
    config: &mut Value,
    rootfs: &Path,
    netns: &Path,
    cgroup: &str,
    volumes: &[(String, std::path::PathBuf)],
) {
    config["root"]["path"] = json!(rootfs);
    config["linux"]["cgroupsPath"] = json!(cgroup);
    config["linux"]["namespaces"] = NAMESPACES
        .iter()
        .map(|n| if *n == "network" { json!({ "type": n, "path": netns }) } else { json!({ "type": n }) })
        .collect();
    if let Some(mounts) = config["mounts"].as_array_mut() {
        for mount in mounts.iter_mut().filter(|m| m["type"] == "bind") {
            if let Some((_, source)) = volumes.iter().find(|(d, _)| mount["destination"] == json!(d)) {
                mount["source"] = json!(source);
            }
        }
    }
    config["annotations"] = json!({ "tranship.engine": "bare" });
}
