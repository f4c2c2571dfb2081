//! A root file system with this program in it and nothing else, so that a move of it is a move of
//! memory.

use crate::host::Host;
use anyhow::{Context, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where it lies on the host.
pub(crate) const ROOTFS: &str = "/srv/workload";
/// The program in it.
pub(crate) const PATH: &str = "/tranship-lab";

/// Puts it on a host, unless it is there already.
pub(crate) fn install(host: &Host) -> anyhow::Result<()> {
    let root = host.path(ROOTFS);
    if root.join("complete").exists() {
        return Ok(());
    }
    for dir in ["proc", "sys", "dev", "tmp", "etc"] {
        let dir = root.join(dir);
        std::fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    }
    let exe = std::env::current_exe()?;
    copy(&exe, &root, Path::new(PATH))?;
    // Of 50 MB most is for debuggers, and would count as memory on the wire.
    let stripped = Command::new("strip").arg(root.join("tranship-lab")).status().context("running strip")?;
    ensure!(stripped.success(), "strip failed: {stripped}");
    for library in libraries(&exe)? {
        copy(&library, &root, &library)?;
    }
    std::fs::write(root.join("complete"), "").context("finishing a root file system")
}

/// What the dynamic linker loads for a program: `NAME => PATH (ADDRESS)` or `PATH (ADDRESS)`.
fn libraries(exe: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(exe).output().context("running ldd")?;
    ensure!(output.status.success(), "ldd {} failed: {}", exe.display(), output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    let words = text.lines().filter_map(|l| l.split_whitespace().find(|w| w.starts_with('/')));
    Ok(words.map(PathBuf::from).collect())
}

fn copy(from: &Path, root: &Path, to: &Path) -> anyhow::Result<()> {
    let to = root.join(to.strip_prefix("/").unwrap_or(to));
    if let Some(parent) = to.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    }
    std::fs::copy(from, &to).with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
    Ok(())
}
