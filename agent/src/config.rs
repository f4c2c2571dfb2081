//! The agent's configuration: one TOML file, strict about unknown keys.
//!
//! Everything that can be checked without the network is checked at load, so that
//! `transhipd check-config` and a start refuse the same files.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use tranship_proto::ids::HostName;

/// Where the configuration is looked for when no path is given.
pub const DEFAULT_PATH: &str = "/etc/tranship/transhipd.toml";

/// Largest configuration file read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not valid TOML of the right shape; the text names line and key.
    #[error("the configuration {path} is not valid: {why}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// The parser's words, with line and column.
        why: String,
    },
    /// A value is not acceptable.
    #[error("the configuration {path} is not valid: {key}: {why}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// Why.
        why: String,
    },
}

/// The whole file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of this host; must be the one in its certificate.
    pub host: HostName,
    /// UDP address that peers and controllers reach.
    pub listen: SocketAddr,
    /// Durable state: journal, containers.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// Volatile state; must be memory-backed, images are kept there.
    #[serde(default = "default_run_dir")]
    pub run_dir: PathBuf,
    /// Certificates.
    pub tls: Tls,
    /// Fleet network names and what they are on this host.
    #[serde(default)]
    pub networks: BTreeMap<String, Network>,
    /// Static inventory of the fleet.
    #[serde(default)]
    pub hosts: Vec<Host>,
    /// Volumes.
    #[serde(default)]
    pub volumes: Volumes,
    /// Programs.
    #[serde(default)]
    pub runtime: RuntimePrograms,
    /// Limits.
    #[serde(default)]
    pub limits: Limits,
    /// Logging.
    #[serde(default)]
    pub log: Log,
    /// Faults on purpose.
    #[serde(default)]
    pub faults: crate::faults::FaultConfig,
}

/// Certificate files, PEM.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The fleet's certificate authority.
    pub ca: PathBuf,
    /// This host's certificate chain.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// How a fleet network is reached on this host.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// A Linux bridge on the segment.
    pub bridge: String,
}

/// A host of the fleet.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// Name, as in its certificate.
    pub name: HostName,
    /// Its agent's UDP address.
    pub address: SocketAddr,
}

/// Which host paths may be volumes.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Volumes {
    /// Absolute bind volumes must be below one of these.
    pub roots: Vec<PathBuf>,
}

impl Default for Volumes {
    fn default() -> Self {
        Self { roots: vec![PathBuf::from("/srv")] }
    }
}

/// Programs, by path or by name in PATH.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RuntimePrograms {
    /// runc.
    pub runc: String,
    /// conmon.
    pub conmon: String,
    /// CRIU; runc finds it in PATH, so this is for the probe.
    pub criu: String,
}

impl Default for RuntimePrograms {
    fn default() -> Self {
        Self { runc: "runc".into(), conmon: "conmon".into(), criu: "criu".into() }
    }
}

/// Limits.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Migrations at a time, in and out together.
    pub migrations: u32,
    /// Memory for images of arriving containers, MiB; 0 is half of what is available.
    pub image_memory_mib: u64,
    /// Disk that must stay free after an arriving container's files, MiB.
    pub disk_reserve_mib: u64,
    /// Longest a staging pass, a dump or a restore may take, seconds.
    pub phase_timeout_s: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { migrations: 4, image_memory_mib: 0, disk_reserve_mib: 256, phase_timeout_s: 600 }
    }
}

/// Logging.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// Where and how.
    pub format: LogFormat,
    /// Filter as of `tracing` (`info`, `tranship_agent=debug`).
    pub filter: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Plain, filter: "info".into() }
    }
}

/// Log formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Text on standard error.
    Plain,
    /// JSON lines on standard error.
    Json,
    /// The systemd journal; plain when it cannot be reached.
    Journald,
}

fn default_state_dir() -> PathBuf {
    "/var/lib/tranship".into()
}

fn default_run_dir() -> PathBuf {
    "/run/tranship".into()
}

impl Config {
    /// Reads and checks a configuration file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read { path: path.into(), source };
        if std::fs::metadata(path).map_err(read)?.len() > MAX_FILE {
            return Err(ConfigError::Value {
                path: path.into(),
                key: "file".into(),
                why: format!("larger than {MAX_FILE} bytes"),
            });
        }
        let text = std::fs::read_to_string(path).map_err(read)?;
        Self::parse(&text, path)
    }

    /// Parses and checks a configuration text; `path` is for messages only.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|e| ConfigError::Parse {
            path: path.into(),
            why: e.to_string().trim().replace('\n', "; "),
        })?;
        config.check().map_err(|(key, why)| ConfigError::Value { path: path.into(), key, why })?;
        Ok(config)
    }

    fn check(&self) -> Result<(), (String, String)> {
        let absolute = [
            ("state_dir", &self.state_dir),
            ("run_dir", &self.run_dir),
            ("tls.ca", &self.tls.ca),
            ("tls.cert", &self.tls.cert),
            ("tls.key", &self.tls.key),
        ];
        for (key, path) in absolute {
            plain_absolute(path).map_err(|why| (key.to_owned(), why))?;
        }
        for root in &self.volumes.roots {
            plain_absolute(root).map_err(|why| ("volumes.roots".to_owned(), why))?;
        }
        for (name, network) in &self.networks {
            let key = format!("networks.{name}");
            if name.is_empty() || name.len() > 64 {
                return Err((key, "a network's name has 1 to 64 characters".into()));
            }
            if network.bridge.is_empty() || network.bridge.len() > 15 || network.bridge.contains(['/', ' ']) {
                return Err((key, format!("{:?} is not an interface name", network.bridge)));
            }
        }
        crate::faults::Faults::new(&self.faults).map_err(|why| ("faults.points".to_owned(), why))?;
        let mut seen = std::collections::HashSet::new();
        for host in &self.hosts {
            if !seen.insert(&host.name) {
                return Err(("hosts".into(), format!("{} is listed twice", host.name)));
            }
        }
        if self.limits.migrations == 0 || self.limits.migrations > 64 {
            return Err(("limits.migrations".into(), "must be 1 to 64".into()));
        }
        if !(10..=86_400).contains(&self.limits.phase_timeout_s) {
            return Err(("limits.phase_timeout_s".into(), "must be 10 to 86400 seconds".into()));
        }
        Ok(())
    }

    /// The control socket.
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("agent.sock")
    }

    /// Address of a host of the inventory.
    pub fn address_of(&self, host: &HostName) -> Option<SocketAddr> {
        self.hosts.iter().find(|h| h.name == *host).map(|h| h.address)
    }
}

fn plain_absolute(path: &Path) -> Result<(), String> {
    use std::path::Component;
    let plain = path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    if path.is_absolute() && plain && path.parent().is_some() {
        Ok(())
    } else {
        Err(format!("{} is not an absolute path without `..`", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
host = "host-a"
listen = "10.77.0.1:7717"
[tls]
ca = "/etc/tranship/pki/ca.pem"
cert = "/etc/tranship/pki/host.pem"
key = "/etc/tranship/pki/host.key"
[networks.lan]
bridge = "br0"
[[hosts]]
name = "host-b"
address = "10.77.0.2:7717"
"#;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("/test.toml"))
    }

    #[test]
    fn a_small_file_gets_the_documented_defaults() {
        let c = parse(GOOD).unwrap();
        assert_eq!(c.state_dir, Path::new("/var/lib/tranship"));
        assert_eq!(c.socket(), Path::new("/run/tranship/agent.sock"));
        assert_eq!(c.volumes.roots, [PathBuf::from("/srv")]);
        assert_eq!(c.limits.migrations, 4);
        assert!(c.address_of(&"host-b".parse().unwrap()).is_some());
    }

    #[test]
    fn mistakes_are_named_with_their_key() {
        for (change, word) in [
            ("hots = 1\n", "hots"),
            ("state_dir = \"var\"\n", "state_dir"),
            ("run_dir = \"/run/../etc\"\n", "run_dir"),
            ("limits.migrations = 0\n", "limits.migrations"),
            ("limits.colour = 0\n", "colour"),
        ] {
            let text = format!("{change}{GOOD}");
            let message = parse(&text).unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
        let twice = format!("{GOOD}\n[[hosts]]\nname = \"host-b\"\naddress = \"10.77.0.3:7717\"\n");
        assert!(parse(&twice).unwrap_err().to_string().contains("twice"));
    }
}
