//! A stand-in for a capability that some machines withhold from everybody.
//!
//! Without CAP_SYS_RESOURCE, CRIU cannot ask the kernel for the limits of a process of another
//! user, and every dump of a container with such a process fails (`Can't get rlimit 0: Operation
//! not permitted`). Sandboxes and CI machines are like that; real hosts are not. On such a machine
//! the lab's hosts get a `criu` that reads /proc/PID/limits instead, by a small preloaded library.
//! The alternative, keeping all scenarios to root's processes, would leave out most real servers.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{LabError, Result};
use crate::names::cache_dir;

const SOURCE: &str = include_str!("../../deploy/lab/rlimit-shim.c");
const LIBRARY: &str = "usr/local/lib/tranship-lab-rlimits.so";
const WRAPPER: &str = "#!/bin/sh\n\
    # This machine lacks CAP_SYS_RESOURCE: see the library's source, deploy/lab/rlimit-shim.c.\n\
    # Behind other libraries, for it hands no call on to them.\n\
    LD_PRELOAD=${LD_PRELOAD:+$LD_PRELOAD:}/usr/local/lib/tranship-lab-rlimits.so exec /usr/sbin/criu \"$@\"\n";
/// Bit of CAP_SYS_RESOURCE, from linux/capability.h.
const SYS_RESOURCE: u64 = 1 << 24;

/// Whether processes of this machine's root lack the capability.
#[must_use]
pub fn lacking() -> bool {
    fs::read_to_string("/proc/self/status").is_ok_and(|status| lacks(&status))
}

fn lacks(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & SYS_RESOURCE == 0)
}

/// Puts library and wrapper into a host's upper layer, where they are needed.
///
/// # Errors
/// When there is no C compiler, or the layer cannot be written.
pub fn install(upper: &Path) -> Result<()> {
    if !lacking() {
        return Ok(());
    }
    let library = compiled()?;
    let to = upper.join(LIBRARY);
    place(&to, |to| fs::copy(&library, to).map(drop), 0o644)?;
    let wrapper = upper.join("usr/local/sbin/criu");
    place(&wrapper, |to| fs::write(to, WRAPPER), 0o755)
}

fn place(to: &Path, write: impl FnOnce(&Path) -> std::io::Result<()>, mode: u32) -> Result<()> {
    if let Some(dir) = to.parent() {
        fs::create_dir_all(dir).map_err(LabError::io("create", dir))?;
        for dir in dir.ancestors().take(3) {
            // A layer's directories hide those below: a strict umask would lock others out.
            fs::set_permissions(dir, fs::Permissions::from_mode(0o755))
                .map_err(LabError::io("open up", dir))?;
        }
    }
    write(to).map_err(LabError::io("write", to))?;
    fs::set_permissions(to, fs::Permissions::from_mode(mode)).map_err(LabError::io("open up", to))
}

/// The library, built unless it is cached under its source's hash.
fn compiled() -> Result<PathBuf> {
    let dir = cache_dir().join("rlimits");
    fs::create_dir_all(&dir).map_err(LabError::io("create", &dir))?;
    let key = blake3::hash(SOURCE.as_bytes()).to_hex();
    let library = dir.join(format!("{}.so", &key[..16]));
    if library.exists() {
        return Ok(library);
    }
    let source = dir.join(format!("{}.c", std::process::id()));
    let made = source.with_extension("so");
    fs::write(&source, SOURCE).map_err(LabError::io("write", &source))?;
    let output = Command::new("cc")
        .args(["-shared", "-fPIC", "-O2", "-std=gnu11", "-fno-builtin", "-o"])
        .args([&made, &source])
        .output()
        .map_err(|_| LabError::Missing {
            what: "this machine lacks CAP_SYS_RESOURCE, and there is no C compiler to build what stands in for it"
                .into(),
            hint: "install one: `apt-get install gcc libc6-dev`".into(),
        })?;
    let _ = fs::remove_file(&source);
    if !output.status.success() {
        return Err(LabError::Command {
            what: "cc".into(),
            status: output.status.to_string(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        });
    }
    fs::rename(&made, &library).map_err(LabError::io("move into place", &library))?;
    Ok(library)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_capability_is_read_from_its_bit() {
        assert!(super::lacks("Name:\tx\nCapEff:\t000001fffeffffff\n"));
        assert!(!super::lacks("CapEff:\t000001ffffffffff\n"));
        assert!(!super::lacks("nothing"));
    }
}
