//! The operator's configuration, `/etc/tranship/tranship.toml`. Every part of it is optional.
//!
//! ```toml
//! [tls]                                      # default: these three files
//! ca = "/etc/tranship/pki/ca.pem"
//! cert = "/etc/tranship/pki/operator.pem"
//! key = "/etc/tranship/pki/operator.key"
//!
//! [[hosts]]                                  # default: the local agent's inventory
//! name = "host-a"
//! address = "10.77.0.1:7717"
//! ```

use crate::error::Error;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use tranship_proto::ids::HostName;
use tranship_proto::status::Reason;

/// Where the file is unless `--config` says otherwise.
pub const DEFAULT_PATH: &str = "/etc/tranship/tranship.toml";
/// Largest configuration file that is read.
pub const MAX_FILE: u64 = 1 << 20;

/// The file. Unknown keys are refused: a mistyped one would be silently without effect.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Certificates of the operator.
    #[serde(default)]
    pub tls: TlsPaths,
    /// The inventory.
    #[serde(default)]
    pub hosts: Vec<HostEntry>,
}

/// Certificate files in PEM form.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsPaths {
    /// The fleet's CA.
    pub ca: PathBuf,
    /// The operator's certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Default for TlsPaths {
    fn default() -> Self {
        let dir = Path::new("/etc/tranship/pki");
        Self { ca: dir.join("ca.pem"), cert: dir.join("operator.pem"), key: dir.join("operator.key") }
    }
}

/// A host of the inventory.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostEntry {
    /// Its name, as in its certificate.
    pub name: HostName,
    /// `address:port` of its agent (UDP).
    pub address: String,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read the configuration {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not what it should be.
    #[error("the configuration {path} is not valid")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// It contradicts itself.
    #[error("the configuration {path} is not valid: {why}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

impl From<ConfigError> for Error {
    fn from(e: ConfigError) -> Self {
        let reason = match &e {
            ConfigError::Read { .. } => Reason::Failed,
            _ => Reason::BadRequest,
        };
        Error::from_source(reason, &e)
            .hint("its tables are [tls] (ca, cert, key) and [[hosts]] (name, address); see `tranship --help`")
    }
}

impl Config {
    /// Reads the file. When it is absent and `required` is false, the default is the answer.
    pub fn load(path: &Path, required: bool) -> Result<Self, ConfigError> {
        let text = match read_bounded(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && !required => return Ok(Self::default()),
            Err(source) => return Err(ConfigError::Read { path: path.into(), source }),
        };
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text)
            .map_err(|e| ConfigError::Parse { path: path.into(), source: Box::new(e) })?;
        for (i, host) in config.hosts.iter().enumerate() {
            if config.hosts[..i].iter().any(|h| h.name == host.name) {
                let why = format!("host {} is there twice", host.name);
                return Err(ConfigError::Invalid { path: path.into(), why });
            }
            if let Err(why) = crate::spec::address(&host.address) {
                let why = format!("address of host {}: {why}", host.name);
                return Err(ConfigError::Invalid { path: path.into(), why });
            }
        }
        Ok(config)
    }
}

fn read_bounded(path: &Path) -> std::io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(std::io::Error::other(format!("larger than {MAX_FILE} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("t.toml"), text).map_err(|e| Error::from(e).to_text())
    }

    #[test]
    fn an_empty_file_is_the_default_and_parts_are_optional() {
        assert_eq!(parse("").unwrap(), Config::default());
        let c = parse("[tls]\nca = '/x'\n[[hosts]]\nname = 'host-a'\naddress = '[fd77::1]:7717'").unwrap();
        assert_eq!(c.tls.ca, Path::new("/x"));
        assert_eq!(c.tls.cert, TlsPaths::default().cert);
        assert_eq!(c.hosts[0].name.as_str(), "host-a");
    }

    #[test]
    fn mistakes_are_named() {
        for (text, word) in [
            ("[tsl]", "tsl"),
            ("[tls]\nkeey = 'x'", "keey"),
            ("[[hosts]]\nname = '../a'\naddress = 'x:1'", "host name"),
            ("[[hosts]]\nname = 'a'\naddress = 'x'", "address of host a"),
            ("[[hosts]]\nname='a'\naddress='x:1'\n[[hosts]]\nname='a'\naddress='y:1'", "twice"),
        ] {
            let e = parse(text).unwrap_err();
            assert!(e.contains(word) && e.contains("hint: "), "{e}");
        }
    }

    #[test]
    fn an_absent_file_matters_only_when_it_was_named() {
        let path = Path::new("/nonexistent/tranship.toml");
        assert_eq!(Config::load(path, false).unwrap(), Config::default());
        assert!(matches!(Config::load(path, true), Err(ConfigError::Read { .. })));
    }

    #[test]
    fn a_huge_file_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "#".repeat((MAX_FILE + 1) as usize)).unwrap();
        assert!(Config::load(file.path(), true).is_err());
    }
}
