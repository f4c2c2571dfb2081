//! What may stand in a container's configuration: an allow list.
//!
//! The same list judges a bundle of the operator's and a configuration that a peer sends. A field nobody
//! has thought about is refused by name; that is the point. Rejected: a typed view (oci-spec), which
//! drops unknown fields silently and lets the runtime see what we did not.

use serde_json::{Map, Value};

use super::config::{CAPABILITIES, EXTRA_CAPABILITIES, MASKED, NAMESPACES, READ_ONLY, seccomp};
use super::model::Volume;
use super::mounts::mounts;

/// A field that is not acceptable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Path of the field, like `linux.devices`.
    pub field: String,
    /// What is wrong with it.
    pub why: String,
    /// What to do, if something can be done.
    pub hint: Option<String>,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.why)
    }
}

pub(super) type Check = Result<(), Violation>;

/// Bytes of all arguments and variables together.
const MAX_STRINGS: usize = 512 * 1024;
const MAX_ITEMS: usize = 4096;

pub(super) fn bad(field: impl Into<String>, why: impl Into<String>) -> Violation {
    let clip = |s: String| if s.len() > 300 { s.chars().take(200).collect() } else { s };
    Violation { field: clip(field.into()), why: clip(why.into()), hint: None }
}

pub(super) fn no(field: impl Into<String>) -> Violation {
    bad(field, "is not supported")
}

pub(super) fn object<'a>(value: &'a Value, field: &str) -> Result<&'a Map<String, Value>, Violation> {
    value.as_object().ok_or_else(|| bad(field, "must be an object"))
}

fn array<'a>(value: &'a Value, field: &str) -> Result<&'a Vec<Value>, Violation> {
    value
        .as_array()
        .filter(|a| a.len() <= MAX_ITEMS)
        .ok_or_else(|| bad(field, "must be a list of reasonable length"))
}

pub(super) fn text<'a>(value: &'a Value, field: &str) -> Result<&'a str, Violation> {
    match value.as_str() {
        Some(s) if !s.contains('\0') && s.len() <= MAX_STRINGS => Ok(s),
        _ => Err(bad(field, "must be a string without NUL bytes")),
    }
}

pub(super) fn texts<'a>(value: &'a Value, field: &str) -> Result<Vec<&'a str>, Violation> {
    let list = array(value, field)?.iter().map(|v| text(v, field)).collect::<Result<Vec<_>, _>>()?;
    if list.iter().map(|s| s.len()).sum::<usize>() > MAX_STRINGS {
        return Err(bad(field, "is too long"));
    }
    Ok(list)
}

fn boolean(value: &Value, field: &str) -> Check {
    value.as_bool().map(drop).ok_or_else(|| bad(field, "must be true or false"))
}

fn empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        Value::Number(n) => n.as_f64() == Some(0.0),
    }
}

/// An absolute path of plain components, as a mount destination or working directory.
pub(super) fn plain_path(path: &str) -> bool {
    path.starts_with('/')
        && path.len() < 4096
        && !path.contains(|c: char| c.is_control())
        && path[1..].split('/').all(|part| part != "." && part != "..")
        && (path == "/" || path[1..].split('/').all(|part| !part.is_empty()))
}

/// Judges a configuration. Fields that belong to one host (paths of root, network namespace, cgroup,
/// volume sources, annotations) are not judged: [`super::config::localize`] replaces them.
///
/// # Errors
/// The first field that is not acceptable.
pub fn check_config(config: &Value, volumes: &[Volume]) -> Check {
    for (key, value) in object(config, "config.json")? {
        match key.as_str() {
            "ociVersion" if text(value, key)?.starts_with("1.") => {}
            "process" => process(object(value, key)?)?,
            "root" => root(object(value, key)?)?,
            "hostname" | "domainname" => host_name(text(value, key)?, key)?,
            "mounts" => mounts(array(value, key)?, volumes)?,
            "linux" => linux(object(value, key)?)?,
            "annotations" => annotations(object(value, key)?)?,
            "hooks" if object(value, key)?.values().all(empty) => {}
            "hooks" => return Err(bad("hooks", "programs of the host may not be called for a container")),
            _ if empty(value) => {}
            _ => return Err(no(key)),
        }
    }
    for key in ["process", "root", "mounts", "linux"] {
        if config.get(key).is_none() {
            return Err(bad(key, "is missing"));
        }
    }
    Ok(())
}

fn host_name(name: &str, field: &str) -> Check {
    let good = name.len() <= 64 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    if good { Ok(()) } else { Err(bad(field, "is not a host name")) }
}

fn annotations(map: &Map<String, Value>) -> Check {
    // org.criu.config names a file of options for CRIU; run.oci.* steers crun.
    match map.keys().find(|k| !k.starts_with("tranship.")) {
        Some(key) => Err(bad(format!("annotations.{key}"), "only the engine's own annotations are allowed")),
        None => Ok(()),
    }
}

fn root(map: &Map<String, Value>) -> Check {
    for (key, value) in map {
        match key.as_str() {
            "path" => drop(text(value, "root.path")?),
            "readonly" => boolean(value, "root.readonly")?,
            _ => return Err(no(format!("root.{key}"))),
        }
    }
    Ok(())
}

fn process(map: &Map<String, Value>) -> Check {
    for (key, value) in map {
        let field = format!("process.{key}");
        match key.as_str() {
            "terminal" if value == &Value::Bool(false) => {}
            "terminal" => return Err(bad(field, "containers with a terminal cannot be moved")),
            "user" => user(object(value, &field)?)?,
            "args" if texts(value, &field)?.first().is_some_and(|a| !a.is_empty()) => {}
            "args" => return Err(bad(field, "must name a program")),
            "env" => {
                if let Some(v) = texts(value, &field)?.iter().find(|v| v.find('=').is_none_or(|i| i == 0)) {
                    return Err(bad(field, format!("{v:?} is not NAME=value")));
                }
            }
            "cwd" if plain_path(text(value, &field)?) => {}
            "cwd" => return Err(bad(field, "must be an absolute path without ..")),
            "capabilities" => capabilities(object(value, &field)?)?,
            "rlimits" => rlimits(array(value, &field)?)?,
            "noNewPrivileges" => boolean(value, &field)?,
            "oomScoreAdj" if value.as_i64().is_some_and(|n| (0..=1000).contains(&n)) => {}
            _ if empty(value) => {}
            _ => return Err(no(field)),
        }
    }
    for key in ["args", "cwd", "user"] {
        if !map.contains_key(key) {
            return Err(bad(format!("process.{key}"), "is missing"));
        }
    }
    Ok(())
}

fn user(map: &Map<String, Value>) -> Check {
    let id = |v: &Value| v.as_u64().is_some_and(|n| n < u64::from(u32::MAX));
    for (key, value) in map {
        let good = match key.as_str() {
            "uid" | "gid" => id(value),
            "umask" => value.as_u64().is_some_and(|n| n <= 0o777),
            "additionalGids" => array(value, "process.user.additionalGids")?.iter().all(id),
            _ => false,
        };
        if !good {
            return Err(bad(format!("process.user.{key}"), "is not acceptable"));
        }
    }
    Ok(())
}

fn capabilities(map: &Map<String, Value>) -> Check {
    for (key, value) in map {
        let field = format!("process.capabilities.{key}");
        if !["bounding", "effective", "inheritable", "permitted", "ambient"].contains(&key.as_str()) {
            return Err(no(field));
        }
        let allowed = |c: &&str| !CAPABILITIES.contains(c) && !EXTRA_CAPABILITIES.contains(c);
        if let Some(name) = texts(value, &field)?.iter().find(|c| allowed(c)) {
            return Err(bad(field, format!("{name} gives power over the host")));
        }
    }
    Ok(())
}

fn rlimits(list: &[Value]) -> Check {
    for entry in list {
        let field = "process.rlimits";
        let map = object(entry, field)?;
        let kind = map.get("type").and_then(Value::as_str).unwrap_or_default();
        let known = kind
            .strip_prefix("RLIMIT_")
            .is_some_and(|k| !k.is_empty() && k.bytes().all(|b| b.is_ascii_uppercase()));
        let number = |k: &str| map.get(k).and_then(Value::as_u64);
        match (number("soft"), number("hard")) {
            (Some(soft), Some(hard)) if known && soft <= hard && map.len() == 3 => {}
            _ => return Err(bad(field, "must have type, soft and hard, soft not above hard")),
        }
    }
    Ok(())
}

fn linux(map: &Map<String, Value>) -> Check {
    for (key, value) in map {
        let field = format!("linux.{key}");
        match key.as_str() {
            "cgroupsPath" | "rootfsPropagation" if value.is_string() => {
                if key == "rootfsPropagation" && !["", "private", "rprivate"].contains(&text(value, &field)?)
                {
                    return Err(no(field));
                }
            }
            "namespaces" => namespaces(array(value, &field)?)?,
            "maskedPaths" => covers(value, &field, MASKED)?,
            "readonlyPaths" => covers(value, &field, READ_ONLY)?,
            "resources" => resources(object(value, &field)?)?,
            "sysctl" => sysctl(object(value, &field)?)?,
            "seccomp" if *value == seccomp() => {}
            "seccomp" => return Err(bad(field, "only the engine's own filter is supported")),
            "devices" if empty(value) => {}
            "devices" => return Err(bad(field, "devices of a host cannot be moved")),
            _ if empty(value) => {}
            _ => return Err(no(field)),
        }
    }
    for key in ["namespaces", "maskedPaths", "readonlyPaths"] {
        if !map.contains_key(key) {
            return Err(bad(format!("linux.{key}"), "is missing"));
        }
    }
    Ok(())
}

fn namespaces(list: &[Value]) -> Check {
    let mut kinds = Vec::new();
    for entry in list {
        let map = object(entry, "linux.namespaces")?;
        let kind = map.get("type").and_then(Value::as_str).unwrap_or_default();
        let path = map.get("path").is_some_and(|p| !empty(p));
        if (path && kind != "network") || map.keys().any(|k| k != "type" && k != "path") {
            return Err(bad("linux.namespaces", format!("{kind} may not be shared")));
        }
        kinds.push(kind);
    }
    kinds.sort_unstable();
    let mut wanted = NAMESPACES.to_vec();
    wanted.sort_unstable();
    if kinds != wanted {
        return Err(bad("linux.namespaces", format!("must be {}", wanted.join(", "))));
    }
    Ok(())
}

fn covers(value: &Value, field: &str, needed: &[&str]) -> Check {
    let paths = texts(value, field)?;
    if let Some(p) = paths.iter().find(|p| !plain_path(p)) {
        return Err(bad(field, format!("{p:?} is not an absolute path without ..")));
    }
    match needed.iter().find(|p| !paths.contains(p)) {
        Some(p) => Err(bad(field, format!("{p} is missing"))),
        None => Ok(()),
    }
}

fn resources(map: &Map<String, Value>) -> Check {
    for (key, value) in map {
        let field = format!("linux.resources.{key}");
        let allowed: &[&str] = match key.as_str() {
            "devices" => {
                let deny_all = |d: &Value| {
                    d["allow"] == Value::Bool(false)
                        && d.as_object().is_some_and(|m| m.keys().all(|k| k == "allow" || k == "access"))
                };
                if !array(value, &field)?.iter().all(deny_all) {
                    return Err(bad(field, "devices of a host cannot be moved"));
                }
                continue;
            }
            "memory" => &["limit", "reservation", "swap"],
            "pids" => &["limit"],
            "cpu" => &["shares", "quota", "period", "burst"],
            _ if empty(value) => continue,
            _ => return Err(no(field)),
        };
        for (name, number) in object(value, &field)? {
            if !allowed.contains(&name.as_str()) || !(number.is_i64() || number.is_u64()) {
                return Err(no(format!("{field}.{name}")));
            }
        }
    }
    Ok(())
}

fn sysctl(map: &Map<String, Value>) -> Check {
    // Names that belong to the container's own namespaces (runc validate/validator.go).
    const IPC: &[&str] = &[
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    for (name, value) in map {
        let field = format!("linux.sysctl.{name}");
        let plain = !name.contains("..") && !name.contains('/') && name.len() < 128;
        if !plain
            || !(IPC.contains(&name.as_str()) || name.starts_with("fs.mqueue.") || name.starts_with("net."))
        {
            return Err(bad(field, "is not a setting of the container's own"));
        }
        let value = text(value, &field)?;
        if value.len() > 128 || value.contains(|c: char| c.is_control() && c != '\t') {
            return Err(bad(field, "has an odd value"));
        }
    }
    Ok(())
}
