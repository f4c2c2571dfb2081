//! `transhipd.toml` as the lab writes it for each host.

use serde::Serialize;

use crate::error::{LabError, Result};
use crate::names::{AGENT_PORT, Network, host_name};

#[derive(Serialize)]
struct Config {
    host: String,
    listen: String,
    tls: Tls,
    networks: Networks,
    hosts: Vec<Peer>,
    volumes: Volumes,
    log: Log,
    faults: Faults,
}

#[derive(Serialize)]
struct Faults {
    allow_faults: bool,
}

#[derive(Serialize)]
struct Tls {
    ca: &'static str,
    cert: &'static str,
    key: &'static str,
}

#[derive(Serialize)]
struct Networks {
    lan: Attachment,
    back: Attachment,
}

#[derive(Serialize)]
struct Attachment {
    bridge: String,
}

#[derive(Serialize)]
struct Peer {
    name: String,
    address: String,
}

#[derive(Serialize)]
struct Volumes {
    roots: [&'static str; 1],
}

#[derive(Serialize)]
struct Log {
    format: &'static str,
}

/// The configuration of host number `index` of `count`: both networks, every host of the lab,
/// volumes below /srv, faults on request.
pub fn render(index: usize, count: usize) -> Result<String> {
    let address = |index| format!("{}:{AGENT_PORT}", Network::Lan.host_v4(index));
    let config = Config {
        host: host_name(index),
        listen: address(index),
        tls: Tls {
            ca: "/etc/tranship/pki/ca.pem",
            cert: "/etc/tranship/pki/host.pem",
            key: "/etc/tranship/pki/host.key",
        },
        networks: Networks {
            lan: Attachment { bridge: Network::Lan.bridge() },
            back: Attachment { bridge: Network::Back.bridge() },
        },
        hosts: (0..count).map(|index| Peer { name: host_name(index), address: address(index) }).collect(),
        volumes: Volumes { roots: ["/srv"] },
        log: Log { format: "plain" },
        faults: Faults { allow_faults: true },
    };
    toml::to_string(&config).map_err(|e| LabError::System {
        what: "write a configuration".into(),
        source: std::io::Error::other(e),
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_host_knows_all() {
        let text = super::render(1, 3).unwrap();
        let table: toml::Table = text.parse().unwrap();
        assert_eq!(table["host"].as_str(), Some("host-b"));
        assert_eq!(table["listen"].as_str(), Some("10.77.0.2:7717"));
        assert_eq!(table["hosts"].as_array().unwrap().len(), 3);
        assert_eq!(table["networks"]["back"]["bridge"].as_str(), Some("br1"));
    }
}
