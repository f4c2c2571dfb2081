//! Names of what a fill process has below the agent's run directory.

use std::path::{Path, PathBuf};
use tranship_proto::ids::ContainerName;

/// Files of one container's fill process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FillFiles {
    /// Where all of them are.
    pub dir: PathBuf,
    /// The container.
    pub name: ContainerName,
}

impl FillFiles {
    /// Below the agent's run directory.
    pub fn new(run_dir: &Path, name: &ContainerName) -> Self {
        Self { dir: Self::dir(run_dir), name: name.clone() }
    }

    /// Where those of all containers are.
    pub(super) fn dir(run_dir: &Path) -> PathBuf {
        run_dir.join("fills")
    }

    /// Who connects is told how far it is.
    pub fn socket(&self) -> PathBuf {
        self.dir.join(format!("{}.sock", self.name))
    }

    /// Why the container was killed, when it was.
    pub fn failure(&self) -> PathBuf {
        self.dir.join(format!("{}.failed", self.name))
    }

    pub(super) fn remove_socket(&self) {
        if let Err(e) = std::fs::remove_file(self.socket())
            && e.kind() != std::io::ErrorKind::NotFound
        {
            super::say(self, &format!("cannot remove {}: {e}", self.socket().display()));
        }
    }
}
