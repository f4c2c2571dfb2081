//! Network namespaces: made, kept by a bind mount, entered by threads of their own.
//!
//! A thread that has changed its namespace must never serve anything else again, so every entry is
//! a new thread that ends with its work (`spawn_blocking` would put it back into the pool).
//! `rtnetlink::NetworkNamespace::add` is not used: it forks this multi-threaded process and runs
//! Rust code in the child.

use super::error::{Attempt, NetworkError};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use tokio::sync::oneshot;
use tranship_proto::ids::ContainerName;

/// `NSFS_MAGIC` of linux/magic.h: what a pinned namespace's file system says.
const NSFS_MAGIC: i64 = 0x6e73_6673;
/// The namespace of the thread that opens it, not of the process.
const OWN: &str = "/proc/thread-self/ns/net";

/// A network namespace that is pinned by a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Netns {
    path: PathBuf,
}

/// An open namespace; it lives at least as long as this.
pub(super) struct NsFd(OwnedFd);

/// Runs `f` on a new thread; the thread's namespaces die with it.
async fn on_own_thread<T: Send + 'static>(
    name: &str,
    f: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (tx, rx) = oneshot::channel();
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        // Nobody waits any more: the work is done all the same.
        let _ = tx.send(f());
    })?;
    rx.await.map_err(|_| io::Error::other("the thread in the namespace died"))?
}

impl NsFd {
    /// A new namespace that nothing but this keeps alive.
    pub(super) async fn fresh() -> Result<Self, NetworkError> {
        on_own_thread("netns-fresh", || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Ok(Self(File::open(OWN)?.into()))
        })
        .await
        .attempt("make", "a network namespace")
    }

    /// The namespace of the calling thread: the host's.
    pub(super) fn host() -> Result<Self, NetworkError> {
        File::open(OWN).map(|f| Self(f.into())).attempt("open", OWN)
    }

    /// Runs blocking work inside. Not cancelled when the caller goes away.
    pub(super) async fn inside<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let fd = self.0.try_clone()?;
        on_own_thread("netns", move || {
            setns(fd, CloneFlags::CLONE_NEWNET)?;
            f()
        })
        .await
    }

    /// The descriptor, for netlink attributes.
    pub(super) fn fd(&self) -> &OwnedFd {
        &self.0
    }
}

impl Netns {
    /// Where a container's namespace is pinned. Touches nothing.
    pub fn at(run_dir: &Path, container: &ContainerName) -> Self {
        Self { path: run_dir.join("netns").join(container.as_str()) }
    }

    /// Makes and pins a new namespace, or returns the one that is pinned there already.
    ///
    /// # Errors
    /// When the directory, the namespace or the mount cannot be made; nothing is left then.
    pub async fn create(run_dir: &Path, container: &ContainerName) -> Result<Self, NetworkError> {
        let ns = Self::at(run_dir, container);
        if ns.exists() {
            return Ok(ns);
        }
        let path = ns.path.clone();
        on_own_thread("netns-new", move || {
            if let Some(dir) = path.parent() {
                fs::DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
            }
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o444).open(&path)?;
            let made = unshare(CloneFlags::CLONE_NEWNET)
                .and_then(|()| mount(Some(OWN), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>));
            if made.is_err() {
                fs::remove_file(&path)?;
            }
            Ok(made?)
        })
        .await
        .attempt("make network namespace", ns.path.display().to_string())?;
        Ok(ns)
    }

    /// A namespace that is pinned already, or `/proc/<pid>/ns/net`.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, NetworkError> {
        let ns = Self { path: path.into() };
        if ns.exists() {
            return Ok(ns);
        }
        Err(io::Error::from(io::ErrorKind::NotFound)).attempt("open network namespace", ns.name())
    }

    /// Its file, as config.json of the container names it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Is a namespace pinned (and not just a file there)?
    pub fn exists(&self) -> bool {
        rustix::fs::statfs(&self.path).is_ok_and(|s| s.f_type == NSFS_MAGIC)
    }

    /// Unpins the namespace and removes the file. It is gone when the last process and socket in
    /// it are. Repeats are harmless.
    ///
    /// # Errors
    /// When the mount or the file cannot be removed.
    pub fn remove(&self) -> Result<(), NetworkError> {
        loop {
            match umount2(&self.path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                Ok(()) => {}
                Err(Errno::EINVAL | Errno::ENOENT) => break,
                Err(e) => return Err(e).attempt("unmount", self.name()),
            }
        }
        match fs::remove_file(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e).attempt("remove", self.name()),
            _ => Ok(()),
        }
    }

    pub(super) fn name(&self) -> String {
        self.path.display().to_string()
    }

    pub(super) fn fd(&self) -> Result<NsFd, NetworkError> {
        if !self.exists() {
            // Opening the bare file would give a descriptor that setns refuses with EINVAL.
            return Err(io::Error::from(io::ErrorKind::NotFound))
                .attempt("open network namespace", self.name());
        }
        File::open(&self.path).map(|f| NsFd(f.into())).attempt("open network namespace", self.name())
    }
}
