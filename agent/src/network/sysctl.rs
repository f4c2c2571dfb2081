//! Sysctls of a network namespace.
//!
//! `/proc/sys/net` shows the namespace of the task that opens a file, so all of this runs on
//! threads inside. Every value is carried and not only those that differ from a new namespace's:
//! a new namespace takes some values from its host (`net.core.devconf_inherit_init_net`), so
//! "unchanged" means different things on two hosts. What the destination has already is not written.

use super::error::{Attempt, NetworkError};
use super::handle::Rt;
use super::link::EndSpec;
use super::netns::NsFd;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tranship_proto::network::{
    LinkCapture, LinkKind, MAX_SYSCTL_VALUE, MAX_SYSCTLS, Mac, SysctlCapture, check_sysctl_key,
};

/// Other ends of the links in the namespace that is only compared with.
const OTHER_END: &str = "other-end-";
const ROOT: &str = "/proc/sys";
const BRANCHES: [&str; 5] = ["core", "ipv4", "ipv6", "unix", "netfilter"];

type Values = BTreeMap<String, String>;

fn read_value(path: &Path) -> io::Result<String> {
    Ok(fs::read_to_string(path)?.trim_end_matches('\n').to_owned())
}

/// Reads what can be both read and written. Runs inside the namespace.
fn read_all() -> io::Result<Values> {
    let mut found = Values::new();
    let mut todo: Vec<PathBuf> = BRANCHES.iter().map(|b| Path::new(ROOT).join("net").join(b)).collect();
    while let Some(dir) = todo.pop() {
        let entries = match fs::read_dir(&dir) {
            Ok(e) => e,
            // A branch that this kernel does not have, or an interface that has just gone.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        for entry in entries {
            let path = entry?.path();
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            if meta.is_dir() {
                todo.push(path);
                continue;
            }
            let Some(key) = path.strip_prefix(ROOT).ok().and_then(Path::to_str) else { continue };
            if meta.permissions().mode() & 0o600 != 0o600 || check_sysctl_key(key).is_err() {
                continue;
            }
            // Some have no value until they are set (`stable_secret`: EIO).
            if let Ok(value) = read_value(&path) {
                found.insert(key.to_owned(), value);
            }
        }
    }
    Ok(found)
}

/// What a namespace with the same links has on this host if nobody changes anything.
async fn untouched(links: &[LinkCapture]) -> Result<Values, NetworkError> {
    let ns = NsFd::fresh().await?;
    let mut rt = Rt::inside(&ns).await?;
    for (n, l) in links.iter().enumerate().filter(|(_, l)| l.kind != LinkKind::Loopback) {
        // The kind makes no difference to the values.
        let mac = l.mac.unwrap_or(Mac([2, 0, 0, 0, 0, 1]));
        let end = EndSpec { name: &l.name, index: 0, mac, mtu: l.mtu, txqlen: None };
        end.create_loose_pair(&mut rt, &format!("{OTHER_END}{n}")).await?;
    }
    ns.inside(read_all).await.attempt("read", "sysctls of a new namespace")
}

/// All sysctls of a namespace.
pub(super) async fn capture(ns: &NsFd, links: &[LinkCapture]) -> Result<Vec<SysctlCapture>, NetworkError> {
    let (values, untouched) =
        tokio::join!(async { ns.inside(read_all).await.attempt("read", "sysctls") }, untouched(links));
    let (values, untouched) = (values?, untouched?);
    let mut all = Vec::with_capacity(values.len());
    for (key, value) in values {
        // Of an interface that is not carried (a fallback tunnel).
        let Some(usual) = untouched.get(&key) else {
            if !per_interface(&key) || links.iter().any(|l| key.split('/').nth(3) == Some(&l.name)) {
                all.push(SysctlCapture { key, value, changed: true });
            }
            continue;
        };
        let changed = *usual != value;
        if value.len() > MAX_SYSCTL_VALUE || value.contains('\n') {
            if changed {
                return Err(NetworkError::Unsupported {
                    what: format!("sysctl {key}"),
                    why: format!("its value is longer than {MAX_SYSCTL_VALUE} bytes"),
                });
            }
            continue;
        }
        all.push(SysctlCapture { key, value, changed });
    }
    if all.len() > MAX_SYSCTLS {
        return Err(NetworkError::TooMany { what: "sysctls", count: all.len(), limit: MAX_SYSCTLS });
    }
    Ok(all)
}

/// Is it of one interface?
pub(super) fn per_interface(key: &str) -> bool {
    rank(key) == 3
}

/// Writing to one of the former changes all of the latter, so the latter come later.
fn rank(key: &str) -> u8 {
    let parts: Vec<&str> = key.split('/').collect();
    match (parts.get(2), parts.get(3)) {
        (Some(&"conf" | &"neigh"), Some(&"all")) => 1,
        (Some(&"conf" | &"neigh"), Some(&"default")) => 2,
        (Some(&"conf" | &"neigh"), Some(_)) => 3,
        _ => 0,
    }
}

/// Sets those that differ. Runs inside the namespace. Returns what cannot be set.
fn write_all(wanted: &[SysctlCapture]) -> Vec<(SysctlCapture, io::Error)> {
    let mut failed = Vec::new();
    for s in wanted {
        let path = Path::new(ROOT).join(&s.key);
        if read_value(&path).is_ok_and(|v| v == s.value) {
            continue;
        }
        if let Err(e) = fs::write(&path, s.value.as_bytes()) {
            failed.push((s.clone(), e));
        }
    }
    failed
}

/// Sets sysctls in a namespace whose links exist. The list has been checked.
pub(super) async fn apply(ns: &NsFd, wanted: &[SysctlCapture]) -> Result<(), NetworkError> {
    let mut wanted = wanted.to_vec();
    wanted.sort_by_key(|s| rank(&s.key));
    let failed = ns.inside(move || Ok(write_all(&wanted))).await.attempt("set", "sysctls")?;
    for (s, why) in failed {
        if s.changed {
            return Err(NetworkError::Sysctl { key: s.key, value: s.value, why });
        }
        tracing::debug!(key = s.key, value = s.value, %why, "sysctl left as it is");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn general_before_particular() {
        let mut keys = [
            "net/ipv4/conf/eth0/forwarding",
            "net/ipv6/neigh/default/retrans_time_ms",
            "net/ipv4/conf/all/forwarding",
            "net/ipv4/ip_forward",
        ];
        keys.sort_by_key(|k| rank(k));
        assert_eq!(keys.map(rank), [0, 1, 2, 3]);
        assert!(per_interface("net/ipv4/neigh/lo/retrans_time_ms"));
    }
}
