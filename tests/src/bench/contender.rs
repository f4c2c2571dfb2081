//! Who is measured: tranship, and other ways to move a container that hosts Redis.

use super::{podman, runc};
use crate::scenario::{Container, Scene};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Address of tranship's container. A rival's differs: the client must not wait until it has
/// forgotten where the other was.
pub(super) const IP: &str = "10.77.1.78";
/// Name of the container.
pub(super) const NAME: &str = "redis";

/// A way to move a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Contender {
    /// tranship
    #[value(skip)]
    Tranship,
    /// `podman container checkpoint --export` and `restore --import`, archive handed over for free
    Podman,
    /// The same with `--compress none`
    PodmanPlain,
    /// `runc checkpoint` and `runc restore` by hand, images in memory and handed over for free
    Runc,
    /// CRIU's post-copy by hand: `--lazy-pages` on both hosts, memory fetched when it is used
    Postcopy,
}

impl Contender {
    /// Its name in tables and files.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Tranship => "tranship",
            Self::Podman => "podman",
            Self::PodmanPlain => "podman-plain",
            Self::Runc => "runc",
            Self::Postcopy => "postcopy",
        }
    }

    /// Address of its container.
    pub(super) fn ip(self) -> &'static str {
        if self == Self::Tranship { IP } else { super::netns::IP }
    }

    /// What it needs on both hosts, once.
    pub(super) fn prepare(self, scene: &Scene) -> anyhow::Result<()> {
        match self {
            Self::Tranship => Ok(()),
            Self::Podman | Self::PodmanPlain => podman::prepare(scene),
            Self::Runc | Self::Postcopy => runc::prepare(scene),
        }
    }

    /// Starts Redis on host-a, whatever ran before being removed.
    pub(super) fn start(self, scene: &Scene) -> anyhow::Result<()> {
        match self {
            Self::Tranship => {
                scene.remove_all()?;
                scene.start("host-a", &Container::redis(NAME, &format!("{IP}/16")))
            }
            Self::Podman | Self::PodmanPlain => podman::start(scene),
            Self::Runc | Self::Postcopy => runc::start(scene),
        }
    }

    /// Moves it to host-b. Answers what it says of the move, or how long its parts took.
    pub(super) fn migrate(self, scene: &Scene) -> anyhow::Result<serde_json::Value> {
        match self {
            Self::Tranship => {
                let mut summary = scene.migrate("host-a", NAME, "host-b")?.summary;
                Ok(summary.get_mut("summary").map(serde_json::Value::take).unwrap_or_default())
            }
            Self::Podman => podman::migrate(scene, true),
            Self::PodmanPlain => podman::migrate(scene, false),
            Self::Runc => runc::migrate(scene),
            Self::Postcopy => runc::migrate_lazily(scene),
        }
    }

    /// Removes it from both hosts.
    pub(super) fn remove(self, scene: &Scene) -> anyhow::Result<()> {
        match self {
            Self::Tranship => scene.remove_all(),
            Self::Podman | Self::PodmanPlain => podman::remove(scene),
            Self::Runc | Self::Postcopy => runc::remove(scene),
        }
    }
}
