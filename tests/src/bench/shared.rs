//! One tmpfs in two hosts, so that a rival's archive is handed over for free.
//!
//! The hosts' mount namespaces are private, so the mount is made in the first and a clone of it
//! attached in the second. It ends with the lab.

use crate::host::Host;
use anyhow::{Context, bail};
use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};
use std::fs::File;
use std::os::fd::AsFd;

/// Where it is mounted.
pub(super) const PLACE: &str = "/mnt/handover";

/// Mounts it in both hosts, unless it is there already.
pub(super) fn mount(first: &Host, second: &Host) -> anyhow::Result<()> {
    let path = PLACE;
    if first.path(path).join("shared").exists() {
        return Ok(());
    }
    for host in [first, second] {
        std::fs::create_dir_all(host.path(path))
            .with_context(|| format!("creating {path} on {}", host.name()))?;
    }
    let spaces = [first, second].map(|h| File::open(format!("/proc/{}/ns/mnt", h.init_pid())));
    let [Ok(first_space), Ok(second_space)] = spaces else {
        bail!("the hosts' mount namespaces cannot be opened")
    };
    // A thread of its own: it never comes back from the hosts' namespaces.
    let work = std::thread::spawn(move || -> anyhow::Result<()> {
        unshare(CloneFlags::CLONE_FS).context("leaving the shared file system attributes")?;
        enter(&first_space)?;
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).context("opening tmpfs")?;
        fsconfig_set_string(context.as_fd(), "size", "90%").context("setting the size of a tmpfs")?;
        fsconfig_create(context.as_fd()).context("making a tmpfs")?;
        let mount = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
            .context("mounting a tmpfs")?;
        attach(mount.as_fd(), path)?;
        std::fs::write(format!("{path}/shared"), "")?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let copy = open_tree(CWD, path, flags).context("cloning a mount")?;
        enter(&second_space)?;
        attach(copy.as_fd(), path)
    });
    work.join().map_err(|_| anyhow::anyhow!("the mounting thread panicked"))?
}

fn enter(space: &File) -> anyhow::Result<()> {
    setns(space.as_fd(), CloneFlags::CLONE_NEWNS).context("entering a host")
}

fn attach(mount: std::os::fd::BorrowedFd<'_>, path: &str) -> anyhow::Result<()> {
    move_mount(mount, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .with_context(|| format!("attaching a tmpfs at {path}"))
}
