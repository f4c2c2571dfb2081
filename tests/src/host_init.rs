//! The first process of a host: makes its namespaces and file system, then reaps.
//!
//! `up` runs this program again as the hidden command `host-init`, because the work needs a
//! process with a single thread. Everything of a host hangs on this process: its mounts exist only
//! in its mount namespace, and when it ends the kernel ends every process of the host.
//! chroot would be less work than pivot_root, but CRIU then finds no parent for `/`.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::{Mode, SFlag, mknod};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, chdir, pivot_root, sethostname, setsid};
use serde::{Deserialize, Serialize};

use crate::error::{LabError, Result};

/// What the first process of a host needs to know.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostSpec {
    /// Host name.
    pub name: String,
    /// Read-only root file system below the host's own layer.
    pub rootfs: PathBuf,
    /// The host's directory in the lab: `upper`, `work`, `root` and `store` below it.
    pub dir: PathBuf,
    /// Container root file systems, shown read-only at /lab/images.
    pub images: PathBuf,
    /// `cgroup.procs` of the host's root group, one for each hierarchy.
    pub groups: Vec<PathBuf>,
    /// `cgroup.procs` of the v2 group for the host's own processes.
    pub init_group: PathBuf,
}

impl HostSpec {
    /// Reads the description that `up` has written.
    pub fn load(path: &Path) -> Result<Self> {
        let text = fs::read(path).map_err(LabError::io("read", path))?;
        serde_json::from_slice(&text)
            .map_err(|e| LabError::Malformed { path: path.to_path_buf(), reason: e.to_string() })
    }
}

/// Directories of the host that are bind mounts from real disk, and their places in `store`:
/// an overlay cannot be stacked on the host's overlay, and snapshots need a real file system.
pub const STORES: [(&str, &str); 3] =
    [("var/lib/tranship", "tranship"), ("var/lib/containers", "containers"), ("srv", "srv")];

/// Device nodes a host gets, copied from the machine as far as it has them.
const DEVICES: [&str; 9] =
    ["null", "zero", "full", "random", "urandom", "tty", "net/tun", "fuse", "userfaultfd"];

/// Makes the host and stays as its first process. Prints `pid N`, as the machine sees it, then
/// `ready`; whatever goes wrong is returned before `ready`.
pub fn run(spec: &HostSpec) -> Result<()> {
    for group in &spec.groups {
        fs::write(group, "0").map_err(LabError::io("join", group))?;
    }
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWCGROUP,
    )
    .map_err(LabError::system("make namespaces"))?;
    fs::write(&spec.init_group, "0").map_err(LabError::io("join", &spec.init_group))?;
    match crate::sys::fork().map_err(LabError::system("fork"))? {
        ForkResult::Parent { child } => {
            say(&format!("pid {child}"))?;
            Ok(())
        }
        ForkResult::Child => {
            // Children must not have ended before their end can be noticed.
            let signals: SigSet = [Signal::SIGCHLD, Signal::SIGTERM].into_iter().collect();
            signals.thread_block().map_err(LabError::system("block signals"))?;
            setsid().map_err(LabError::system("start a session"))?;
            build(spec)?;
            say("ready")?;
            detach()?;
            reap(&signals)
        }
    }
}

fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(LabError::system("report to the lab"))
}

fn build(spec: &HostSpec) -> Result<()> {
    let root = spec.dir.join("root");
    attach(None, Path::new("/"), None, MsFlags::MS_REC | MsFlags::MS_PRIVATE, "")?;
    let layers = format!(
        "lowerdir={},upperdir={},workdir={}",
        spec.rootfs.display(),
        spec.dir.join("upper").display(),
        spec.dir.join("work").display()
    );
    attach(Some("overlay"), &root, Some("overlay"), MsFlags::empty(), &layers)?;
    for dir in ["proc", "sys", "dev", "run", "tmp", "lab/images", ".old"] {
        make_dir(&root.join(dir))?;
    }
    attach(Some("proc"), &root.join("proc"), Some("proc"), MsFlags::empty(), "")?;
    attach(Some("sysfs"), &root.join("sys"), Some("sysfs"), MsFlags::empty(), "")?;
    let cgroup = root.join("sys/fs/cgroup");
    attach(Some("cgroup2"), &cgroup, Some("cgroup2"), MsFlags::empty(), "")?;
    attach(Some("tmpfs"), &root.join("run"), Some("tmpfs"), MsFlags::empty(), "mode=755")?;
    attach(Some("tmpfs"), &root.join("tmp"), Some("tmpfs"), MsFlags::empty(), "mode=1777")?;
    devices(&root.join("dev"))?;
    for (place, store) in STORES {
        let place = root.join(place);
        make_dir(&place)?;
        bind(&spec.dir.join("store").join(store), &place)?;
    }
    let images = root.join("lab/images");
    bind(&spec.images, &images)?;
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    attach(None, &images, None, read_only, "")?;

    chdir(&root).map_err(|e| LabError::io("enter", &root)(e.into()))?;
    pivot_root(".", ".old").map_err(|e| LabError::io("make the root of", &root)(e.into()))?;
    chdir("/").map_err(|e| LabError::io("enter", "/")(e.into()))?;
    umount2("/.old", MntFlags::MNT_DETACH).map_err(|e| LabError::io("unmount", "/.old")(e.into()))?;
    let _ = fs::remove_dir("/.old");
    sethostname(&spec.name).map_err(LabError::system("set the host name"))?;
    quick_addresses();
    Ok(())
}

/// IPv6 addresses usable at once: the lab hands them out itself, none can be taken.
pub fn quick_addresses() {
    for file in ["all", "default"] {
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{file}/accept_dad"), "0");
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{file}/accept_ra"), "0");
    }
}

fn devices(dev: &Path) -> Result<()> {
    attach(Some("tmpfs"), dev, Some("tmpfs"), MsFlags::MS_NOSUID, "mode=755")?;
    for dir in ["net", "pts", "shm", "mqueue"] {
        make_dir(&dev.join(dir))?;
    }
    for name in DEVICES {
        let Ok(device) = fs::metadata(Path::new("/dev").join(name)) else {
            continue;
        };
        let path = dev.join(name);
        mknod(&path, SFlag::S_IFCHR, Mode::empty(), device.rdev())
            .map_err(|e| LabError::io("make the device", &path)(e.into()))?;
        fs::set_permissions(&path, device.permissions()).map_err(LabError::io("open up", &path))?;
    }
    let pts = "newinstance,ptmxmode=0666,mode=0620,gid=5";
    attach(Some("devpts"), &dev.join("pts"), Some("devpts"), MsFlags::empty(), pts)?;
    attach(Some("tmpfs"), &dev.join("shm"), Some("tmpfs"), MsFlags::empty(), "mode=1777")?;
    // Not every kernel has message queues; nothing here needs them.
    let _ = attach(Some("mqueue"), &dev.join("mqueue"), Some("mqueue"), MsFlags::empty(), "");
    for (name, target) in [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        symlink(target, dev.join(name)).map_err(LabError::io("link", dev.join(name)))?;
    }
    Ok(())
}

fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(LabError::io("create", path))
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(|e| LabError::io("bind a directory to", to)(e.into()))
}

fn attach(
    source: Option<&str>,
    target: &Path,
    kind: Option<&str>,
    flags: MsFlags,
    options: &str,
) -> Result<()> {
    let options = (!options.is_empty()).then_some(options);
    mount(source, target, kind, flags, options).map_err(|e| {
        let what = if kind.is_some() { "mount" } else { "remount" };
        LabError::io(what, target)(e.into())
    })
}

/// Lets go of the pipes to the program that made the host.
fn detach() -> Result<()> {
    let null = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(LabError::io("open", "/dev/null"))?;
    nix::unistd::dup2_stdin(&null)
        .and_then(|()| nix::unistd::dup2_stdout(&null))
        .and_then(|()| nix::unistd::dup2_stderr(&null))
        .map_err(LabError::system("let go of the output"))?;
    let _ = nix::sys::prctl::set_name(c"lab-init");
    Ok(())
}

/// conmon and containers that lose their parent become children of this process.
fn reap(signals: &SigSet) -> Result<()> {
    loop {
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            if status == WaitStatus::StillAlive {
                break;
            }
        }
        if signals.wait() == Ok(Signal::SIGTERM) {
            return Ok(());
        }
    }
}
