//! Names and numbers, parsed once and then trusted.

use crate::error::WireError;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $field:literal, $max:expr, $extra:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = WireError;

            fn from_str(s: &str) -> Result<Self, WireError> {
                let good_first = s.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
                let good_rest = s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || $extra.contains(&b));
                if s.len() > $max || !good_first || !good_rest {
                    let why = format!(
                        "{:?}: use 1 to {} of a-z, 0-9, {:?}, starting with a letter or digit",
                        s.chars().take(80).collect::<String>(),
                        $max,
                        std::str::from_utf8($extra).unwrap_or_default(),
                    );
                    return Err(WireError::invalid($field, why));
                }
                Ok(Self(s.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = WireError;

            fn try_from(s: String) -> Result<Self, WireError> {
                s.parse()
            }
        }

        impl From<$name> for String {
            fn from(n: $name) -> String {
                n.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name_type!(
    /// A container's name: safe as a file name, a cgroup name and an OCI container id.
    ContainerName,
    "container name",
    63,
    b"_.-"
);
name_type!(
    /// A host's name in the fleet, as in its certificate.
    HostName,
    "host name",
    63,
    b".-"
);

/// Identity of one migration: UUID version 7, so that ids sort by time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MigrationId(pub uuid::Uuid);

impl MigrationId {
    /// The first eight characters of the random tail: enough for people to tell two apart.
    pub fn short(&self) -> String {
        let text = self.0.simple().to_string();
        text[24..].to_owned()
    }

    /// Whether `text` names this id: the whole of it, or what [`Self::short`] prints.
    pub fn matches(&self, text: &str) -> bool {
        text == self.0.to_string() || text == self.0.simple().to_string() || text == self.short()
    }
}

impl fmt::Display for MigrationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl FromStr for MigrationId {
    type Err = WireError;

    fn from_str(s: &str) -> Result<Self, WireError> {
        uuid::Uuid::parse_str(s).map(Self).map_err(|e| WireError::invalid("migration id", e.to_string()))
    }
}

/// Ownership epoch of a container: grows by one with every committed migration. An agent refuses
/// anything about an epoch older than the one it has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch that a migration away from this one proposes.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_climb_or_hide_are_refused() {
        for good in ["web", "a", "0x", "a.b-c_d", &"a".repeat(63)] {
            assert!(good.parse::<ContainerName>().is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "-a", "a/b", "A", "a b", "a\0", "ä", "a\n", &"a".repeat(64)] {
            assert!(bad.parse::<ContainerName>().is_err(), "{bad:?}");
        }
        assert!("host_a".parse::<HostName>().is_err());
    }

    #[test]
    fn a_decoded_name_is_checked_too() {
        let bytes = crate::codec::encode("name", &"../x", 100).unwrap();
        assert!(crate::codec::decode::<ContainerName>("name", &bytes).is_err());
    }
}
