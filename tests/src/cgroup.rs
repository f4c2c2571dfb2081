//! The cgroups of a lab, in every hierarchy of the machine.
//!
//! Each host has `tl-LAB/HOST` in every hierarchy, v1 and v2, whatever the machine boots with.
//! Inside a host only the v2 tree is mounted, but a process that is not in the host's group of
//! every v1 hierarchy too makes CRIU walk out of the host's tree. In the v2 tree the host's own
//! processes live in `tl-LAB/HOST/init`: the group that is the root inside the host stays without
//! processes, so that runtimes may hand controllers down.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::error::{LabError, Result};

/// Name of the v2 group of a host's own processes, below the host's root.
pub const INIT_GROUP: &str = "init";

/// One mounted cgroup hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub mount: PathBuf,
    /// Whether it is the v2 tree.
    pub v2: bool,
}

/// Every hierarchy that is mounted as a whole.
pub fn hierarchies() -> Result<Vec<Hierarchy>> {
    let path = "/proc/self/mountinfo";
    let text = fs::read_to_string(path).map_err(LabError::io("read", path))?;
    let found = parse_hierarchies(&text);
    if found.iter().any(|h| h.v2) {
        Ok(found)
    } else {
        Err(LabError::Missing {
            what: "no cgroup v2 tree is mounted".into(),
            hint: "mount one: `mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified`".into(),
        })
    }
}

/// Where the v2 tree is mounted.
pub fn v2_mount() -> Result<PathBuf> {
    hierarchies()?.into_iter().find(|h| h.v2).map(|h| h.mount).ok_or_else(|| LabError::Missing {
        what: "no cgroup v2 tree is mounted".into(),
        hint: "mount one: `mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified`".into(),
    })
}

fn parse_hierarchies(mountinfo: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let Some(dash) = fields.iter().position(|f| *f == "-") else {
            continue;
        };
        let (Some(root), Some(mount), Some(kind)) = (fields.get(3), fields.get(4), fields.get(dash + 1))
        else {
            continue;
        };
        if *root != "/" || !matches!(*kind, "cgroup" | "cgroup2") {
            continue;
        }
        let hierarchy = Hierarchy { mount: PathBuf::from(mount), v2: *kind == "cgroup2" };
        // The v2 tree may be mounted twice; it is the same tree.
        if !(hierarchy.v2 && found.iter().any(|h| h.v2)) {
            found.push(hierarchy);
        }
    }
    found
}

/// Makes `path` (such as `tl-lab/host-a`) in every hierarchy.
pub fn create(path: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        let mut dir = hierarchy.mount.clone();
        for part in path.split('/') {
            let parent = dir.clone();
            dir.push(part);
            match fs::create_dir(&dir) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(LabError::io("create", &dir)(e));
                }
                _ => {}
            }
            if hierarchy.v2 {
                // What the machine's root hands down is not the lab's to change.
                if parent != hierarchy.mount {
                    hand_down(&parent);
                }
            } else {
                inherit_cpuset(&parent, &dir)?;
            }
        }
        if hierarchy.v2 {
            let init = dir.join(INIT_GROUP);
            fs::create_dir_all(&init).map_err(LabError::io("create", init))?;
        }
    }
    Ok(())
}

/// Lets the children of a v2 group have every controller it has. Best effort: a group with
/// processes in it cannot, and nothing in the lab depends on a controller.
pub fn hand_down(group: &Path) {
    let Ok(controllers) = fs::read_to_string(group.join("cgroup.controllers")) else {
        return;
    };
    for controller in controllers.split_whitespace() {
        let _ = fs::write(group.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

// Without clone_children a restore fails with `Failed writing 0-1 to cpuset`.
fn inherit_cpuset(parent: &Path, dir: &Path) -> Result<()> {
    if !dir.join("cpuset.cpus").exists() {
        return Ok(());
    }
    let clone = dir.join("cgroup.clone_children");
    fs::write(&clone, "1").map_err(LabError::io("write", &clone))?;
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let from = parent.join(file);
        let value = fs::read_to_string(&from).map_err(LabError::io("read", &from))?;
        let to = dir.join(file);
        fs::write(&to, value.trim()).map_err(LabError::io("write", &to))?;
    }
    Ok(())
}

/// The `cgroup.procs` files a process of `path` has to write itself into.
pub fn procs_files(path: &str) -> Result<Vec<PathBuf>> {
    Ok(hierarchies()?
        .into_iter()
        .map(|h| {
            let dir = h.mount.join(path);
            let dir = if h.v2 { dir.join(INIT_GROUP) } else { dir };
            dir.join("cgroup.procs")
        })
        .collect())
}

/// Every process below `path` in any hierarchy, as seen from here.
pub fn processes(path: &str) -> Result<Vec<i32>> {
    let mut pids = Vec::new();
    for hierarchy in hierarchies()? {
        for dir in tree(&hierarchy.mount.join(path)) {
            // A group that goes away in between holds no process.
            let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            // 0 stands for a process of another pid namespace, which cannot be signalled anyway.
            pids.extend(text.lines().filter_map(|l| l.parse::<i32>().ok()).filter(|p| *p > 0));
        }
    }
    pids.sort_unstable();
    pids.dedup();
    Ok(pids)
}

/// A directory and everything below, parents first; empty if it does not exist.
pub fn tree(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![dir.to_path_buf()];
    while let Some(dir) = pending.pop() {
        let Ok(entries) = fs::read_dir(&dir) else {
            continue;
        };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                pending.push(entry.path());
            }
        }
        found.push(dir);
    }
    found
}

/// Kills every process below `path` and waits until none is left. Returns those that stayed.
pub fn kill_all(path: &str, patience: Duration) -> Result<Vec<i32>> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let deadline = Instant::now() + patience;
    loop {
        for hierarchy in hierarchies()? {
            let top = hierarchy.mount.join(path);
            if hierarchy.v2 {
                // Reaches frozen processes and those forked meanwhile. Kernels before 5.14 lack it.
                let _ = fs::write(top.join("cgroup.kill"), "1");
            }
            for dir in tree(&top) {
                let _ = fs::write(dir.join("freezer.state"), "THAWED");
                let _ = fs::write(dir.join("cgroup.freeze"), "0");
            }
        }
        let mut left = processes(path)?;
        left.retain(|pid| *pid != own);
        if left.is_empty() {
            return Ok(left);
        }
        for pid in &left {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        if Instant::now() > deadline {
            return Ok(left);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Removes the groups below and including `path` in every hierarchy. Returns those that stayed.
pub fn remove(path: &str, patience: Duration) -> Result<Vec<PathBuf>> {
    let deadline = Instant::now() + patience;
    loop {
        let mut left = Vec::new();
        for hierarchy in hierarchies()? {
            for dir in tree(&hierarchy.mount.join(path)).into_iter().rev() {
                match fs::remove_dir(&dir) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => left.push(dir),
                    _ => {}
                }
            }
        }
        if left.is_empty() || Instant::now() > deadline {
            return Ok(left);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_v1_and_v2_hierarchies_once_each() {
        let text = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
36 31 0:33 / /sys/fs/cgroup/devices rw,relatime shared:9 - cgroup cgroup rw,devices
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
42 31 0:38 / /mnt/again rw,relatime - cgroup2 cgroup2 rw
43 31 0:38 /tl-x /other/root rw,relatime - cgroup2 cgroup2 rw
garbage
";
        let found = parse_hierarchies(text);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].mount, Path::new("/sys/fs/cgroup/devices"));
        assert!(found[1].v2 && found[1].mount == Path::new("/sys/fs/cgroup/unified"));
    }
}
