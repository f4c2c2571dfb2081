//! Removing a lab: whatever carries its name, in an order that leaves nothing behind.
//!
//! Nothing is looked up in the lab's own records, so this works after a crash at any point.
//! Processes go first: with a host's first process its mounts and namespaces are gone.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};

use crate::cgroup;
use crate::error::{LabError, Result};
use crate::names::LabName;
use crate::state::{Lock, restore_sysctls};
use crate::topology::netns_file;

/// How long processes and groups get to disappear.
const PATIENCE: Duration = Duration::from_secs(20);

/// Removes every trace of the lab; does nothing when there is none. Says whether there was any.
pub fn down(name: &LabName) -> Result<bool> {
    let lock = Lock::take()?;
    let found = remove(name)?;
    restore_sysctls(&lock)?;
    Ok(found)
}

/// Like [`down`], for a caller that holds the lock and goes on using the base directory.
pub(crate) fn remove(name: &LabName) -> Result<bool> {
    let group = name.cgroup();
    let mut rest = Vec::new();
    let mut found = name.dir().exists();

    for pid in cgroup::kill_all(&group, PATIENCE)? {
        rest.push(format!("process {pid}"));
    }
    for hierarchy in cgroup::hierarchies()? {
        found |= hierarchy.mount.join(&group).exists();
    }
    for dir in cgroup::remove(&group, PATIENCE)? {
        rest.push(format!("cgroup {}", dir.display()));
    }
    for file in netns_files(name)? {
        found = true;
        if let Err(e) = remove_netns(&file) {
            rest.push(format!("namespace {}: {e}", file.display()));
        }
    }
    // Gone if it is empty and not somebody's mount.
    let _ = fs::remove_dir(netns_file(""));

    let dir = name.dir();
    unmount_below(&dir)?;
    match fs::remove_dir_all(&dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            rest.push(format!("directory {}: {e}", dir.display()));
        }
        _ => {}
    }
    if rest.is_empty() { Ok(found) } else { Err(LabError::NotRemoved { lab: name.to_string(), rest }) }
}

fn netns_files(name: &LabName) -> Result<Vec<PathBuf>> {
    let dir = netns_file("");
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(LabError::io("list", dir)(e)),
    };
    let prefix = name.netns_prefix();
    Ok(entries
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(|n| n.starts_with(&prefix)))
        .map(|entry| entry.path())
        .collect())
}

fn remove_netns(file: &Path) -> io::Result<()> {
    match umount2(file, MntFlags::MNT_DETACH) {
        // Not mounted: the lab was killed between making the file and binding to it.
        Ok(()) | Err(nix::errno::Errno::EINVAL) => {}
        Err(e) => return Err(e.into()),
    }
    // A host of another lab that is being made has a copy of every mount for a moment.
    let deadline = Instant::now() + PATIENCE;
    loop {
        match fs::remove_file(file) {
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            other => return other,
        }
    }
}

/// Detaches every mount at or below `dir`, and makes sure that none is left: what is removed
/// afterwards must not reach through a mount.
pub(crate) fn unmount_below(dir: &Path) -> Result<()> {
    let path = "/proc/self/mountinfo";
    let read = || fs::read_to_string(path).map_err(LabError::io("read", path));
    for mount in mounts_below(&read()?, dir).into_iter().rev() {
        umount2(&mount, MntFlags::MNT_DETACH).map_err(|e| LabError::io("unmount", &mount)(e.into()))?;
    }
    match mounts_below(&read()?, dir).first() {
        None => Ok(()),
        Some(mount) => Err(LabError::Io {
            what: "unmount",
            path: mount.clone(),
            source: io::Error::other("it is still mounted"),
        }),
    }
}

fn mounts_below(mountinfo: &str, dir: &Path) -> Vec<PathBuf> {
    mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|field| PathBuf::from(unescape(field)))
        .filter(|mount| mount.starts_with(dir))
        .collect()
}

/// Undoes the octal escapes of proc_pid_mountinfo(5).
pub(crate) fn unescape(field: &str) -> String {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let code = tail
            .get(..3)
            .filter(|_| first == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        if let Some(code) = code {
            bytes.push(code);
            rest = &tail[3..];
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_below_are_found_and_blanks_are_understood() {
        let text = "\
1 0 8:1 / / rw - ext4 /dev/vda rw
2 1 8:1 / /lab rw - tmpfs t rw
3 2 8:1 / /lab/a\\040b rw - tmpfs t rw
4 1 8:1 / /labx rw - tmpfs t rw
";
        assert_eq!(mounts_below(text, Path::new("/lab")), [PathBuf::from("/lab"), PathBuf::from("/lab/a b")]);
        assert_eq!(unescape("a\\134040\\"), "a\\040\\");
    }
}
