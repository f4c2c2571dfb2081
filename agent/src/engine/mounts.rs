//! Which mounts a container may have.

use serde_json::Value;

use super::model::Volume;
use super::policy::{Check, bad, no, object, plain_path, text, texts};

const PLAIN_OPTIONS: &[&str] = &[
    "nosuid",
    "noexec",
    "nodev",
    "ro",
    "rw",
    "exec",
    "relatime",
    "norelatime",
    "noatime",
    "nodiratime",
    "strictatime",
    "newinstance",
    "bind",
    "rbind",
    "private",
    "rprivate",
];
const VALUE_OPTIONS: &[&str] = &["mode", "size", "nr_inodes", "uid", "gid", "ptmxmode"];

fn mount_option(option: &str) -> bool {
    match option.split_once('=') {
        None => PLAIN_OPTIONS.contains(&option),
        Some((name, value)) => {
            VALUE_OPTIONS.contains(&name)
                && !value.is_empty()
                && value.len() < 20
                && value.bytes().all(|b| b.is_ascii_alphanumeric())
        }
    }
}

pub(super) fn mounts(list: &[Value], volumes: &[Volume]) -> Check {
    let mut seen = std::collections::HashSet::new();
    for (i, entry) in list.iter().enumerate() {
        let map = object(entry, "mounts")?;
        let at = |key: &str| format!("mounts[{i}].{key}");
        let get = |key: &str| map.get(key).map_or(Ok(""), |v| text(v, &at(key)));
        let (destination, kind) = (get("destination")?, get("type")?);
        if let Some(key) =
            map.keys().find(|k| !["destination", "type", "source", "options"].contains(&k.as_str()))
        {
            return Err(no(at(key)));
        }
        if !plain_path(destination) || destination == "/" {
            return Err(bad(
                at("destination"),
                format!("{destination:?} is not an absolute path without .."),
            ));
        }
        if !seen.insert(destination) {
            return Err(bad(at("destination"), format!("{destination} is mounted twice")));
        }
        let options = map.get("options").map_or(Ok(Vec::new()), |v| texts(v, &at("options")))?;
        if let Some(option) = options.iter().find(|o| !mount_option(o)) {
            return Err(bad(at("options"), format!("{option:?} is not supported")));
        }
        let below_system =
            ["/proc", "/sys"].iter().any(|d| destination == *d || destination.starts_with(&format!("{d}/")));
        let good = match kind {
            "proc" => destination == "/proc",
            "sysfs" => destination == "/sys" && options.contains(&"ro"),
            "cgroup" | "cgroup2" => destination == "/sys/fs/cgroup" && options.contains(&"ro"),
            "mqueue" => destination == "/dev/mqueue",
            "devpts" => destination == "/dev/pts" && options.contains(&"newinstance"),
            "tmpfs" => !below_system,
            "bind" => {
                let volume = volumes.iter().find(|v| v.destination == destination);
                let Some(volume) = volume else {
                    let mut violation = bad(
                        at("source"),
                        format!("{destination} is bound from a path of the host that is no volume"),
                    );
                    violation.hint =
                        Some("take the mount out of config.json and give it as --volume".to_owned());
                    return Err(violation);
                };
                !below_system && volume.read_only == options.contains(&"ro")
            }
            _ => return Err(bad(at("type"), format!("{kind:?} is not supported"))),
        };
        if !good {
            return Err(bad(at("type"), format!("{kind} on {destination} is not allowed in this way")));
        }
    }
    for volume in volumes {
        if !seen.contains(volume.destination.as_str()) {
            return Err(bad("mounts", format!("volume {} has no mount", volume.destination)));
        }
    }
    Ok(())
}
