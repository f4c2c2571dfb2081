//! Links, addresses, firewall rules and schedulers of a host.
//!
//! A container's link is recognised from both ends: the host's end is in order when a namespace
//! with a live process has a link whose peer it is. Namespace ids in ip(8)'s output are not used,
//! since they differ from one viewer to the next.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::mounts::KeptNetns;
use super::{Kind, Report, Snapshot};
use crate::error::{LabError, Result};
use crate::host::Host;
use crate::names::Network;

/// Links every host has.
const OWN: [&str; 5] = ["lo", "eth0", "eth1", "br0", "br1"];
/// Schedulers that links have by default.
const DEFAULT_QDISCS: [&str; 5] = ["noqueue", "mq", "pfifo_fast", "fq_codel", "fq"];

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Link {
    ifindex: u32,
    ifname: String,
    #[serde(default)]
    link_index: Option<u32>,
    #[serde(default)]
    flags: Vec<String>,
    #[serde(default)]
    master: Option<String>,
    #[serde(default)]
    linkinfo: Option<LinkInfo>,
    #[serde(default)]
    addr_info: Vec<Address>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct LinkInfo {
    #[serde(default)]
    info_kind: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Address {
    #[serde(default)]
    local: Option<String>,
    #[serde(default)]
    scope: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Qdisc {
    kind: String,
    #[serde(default)]
    dev: Option<String>,
}

impl Link {
    fn kind(&self) -> &str {
        self.linkinfo.as_ref().and_then(|info| info.info_kind.as_deref()).unwrap_or("")
    }

    fn is_up(&self) -> bool {
        self.flags.iter().any(|flag| flag == "UP")
    }
}

pub(super) fn check(host: &Host, snapshot: &Snapshot, kept: &[KeptNetns], report: &mut Report) -> Result<()> {
    let own = snapshot.processes.iter().find(|p| p.pid == 1).map_or(0, |p| p.netns);
    let (mut inside, mut namespaces) = (Vec::new(), BTreeMap::new());
    for process in &snapshot.processes {
        if process.netns != 0 && process.netns != own {
            namespaces.entry(process.netns).or_insert((format!("/proc/{}/ns/net", process.pid), true));
        }
    }
    for netns in kept {
        namespaces.entry(netns.inode).or_insert((netns.path.clone(), false));
    }
    check_firewall(host, None, report)?;
    for (path, live) in namespaces.values() {
        // A namespace whose last process has just ended is none.
        let Ok(links) = links(host, Some(path)) else {
            continue;
        };
        if *live {
            inside.extend(links);
        }
        check_firewall(host, Some(path), report)?;
    }
    let outside = links(host, None)?;
    check_links(&outside, &inside, report);
    check_addresses(host.index(), &outside, report);
    check_qdiscs(host, report)
}

fn check_links(outside: &[Link], inside: &[Link], report: &mut Report) {
    for link in outside {
        let (name, kind) = (link.ifname.as_str(), link.kind());
        if OWN.contains(&name) {
            if !link.is_up() {
                report.add(Kind::FencedLink, name, "a link of the host itself is down");
            }
            continue;
        }
        let master = link.master.as_deref().unwrap_or("no bridge");
        let on_bridge = Network::ALL.iter().any(|n| n.bridge() == master);
        let used = kind == "veth"
            && inside
                .iter()
                .any(|peer| peer.link_index == Some(link.ifindex) && link.link_index == Some(peer.ifindex));
        if used {
            if !link.is_up() {
                report.add(
                    Kind::FencedLink,
                    name,
                    format!("the host's end of a container's link is down (on {master})"),
                );
            }
        } else if kind == "veth" || on_bridge || name.starts_with("ts") || name.contains("tranship") {
            report.add(
                Kind::StrayLink,
                name,
                format!("{kind} on {master}, with no running container behind it"),
            );
        }
    }
}

fn check_addresses(index: usize, links: &[Link], report: &mut Report) {
    let own: BTreeSet<String> = Network::ALL
        .iter()
        .flat_map(|n| [n.host_v4(index).to_string(), n.host_v6(index).to_string()])
        .collect();
    for link in links.iter().filter(|link| OWN.contains(&link.ifname.as_str()) && link.ifname != "lo") {
        for address in &link.addr_info {
            let Some(local) = &address.local else {
                continue;
            };
            if address.scope.as_deref() != Some("link") && !own.contains(local) {
                report.add(Kind::StrayAddress, local, format!("on {}", link.ifname));
            }
        }
    }
}

fn check_qdiscs(host: &Host, report: &mut Report) -> Result<()> {
    let text = host.run(["tc", "-j", "qdisc", "show"])?.ok()?;
    for qdisc in parse::<Qdisc>("tc", &text)? {
        if !DEFAULT_QDISCS.contains(&qdisc.kind.as_str()) {
            let dev = qdisc.dev.as_deref().unwrap_or("?");
            report.add(Kind::TrafficControl, dev, format!("it has a scheduler of kind {}", qdisc.kind));
        }
    }
    Ok(())
}

fn check_firewall(host: &Host, netns: Option<&str>, report: &mut Report) -> Result<()> {
    let output = in_netns(host, netns, &["nft", "list", "ruleset"])?;
    // The namespace may have ended with its process meanwhile.
    let text = if netns.is_some() && !output.success() { String::new() } else { output.ok()? };
    let place = netns.map_or(String::new(), |path| format!(" in the namespace of {path}"));
    for (what, detail) in parse_ruleset(&text) {
        report.add(Kind::Firewall, what, format!("{detail}{place}"));
    }
    Ok(())
}

/// Tables, chains and sets that CRIU or tranship have made, from `nft list ruleset`.
fn parse_ruleset(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut table = String::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["table", family, name, ..] => {
                table = format!("{family} {name}");
                if is_ours(name) {
                    found.push((format!("table {table}"), "a table".to_owned()));
                }
            }
            [object @ ("chain" | "set" | "map"), name, ..] if is_ours(name) => {
                found.push((format!("{object} {name}"), format!("a {object} in table {table}")));
            }
            _ => {}
        }
    }
    found
}

fn is_ours(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.starts_with("criu") || name.starts_with("tranship")
}

fn links(host: &Host, netns: Option<&str>) -> Result<Vec<Link>> {
    let text = in_netns(host, netns, &["ip", "-j", "-d", "address", "show"])?.ok()?;
    parse("ip", &text)
}

fn in_netns(host: &Host, netns: Option<&str>, command: &[&str]) -> Result<crate::run::Output> {
    let net = netns.map(|path| format!("--net={path}"));
    let before = net.as_deref().map_or(Vec::new(), |net| vec!["nsenter", net]);
    host.run(before.iter().chain(command))
}

fn parse<T: serde::de::DeserializeOwned>(program: &str, text: &str) -> Result<Vec<T>> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_str(text).map_err(|e| LabError::System {
        what: format!("make sense of what {program} says"),
        source: e.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report { host: "host-a".into(), findings: Vec::new() }
    }

    fn kinds(report: &Report) -> Vec<(Kind, &str)> {
        report.findings.iter().map(|f| (f.kind, f.what.as_str())).collect()
    }

    #[test]
    fn a_link_is_judged_by_what_is_behind_it() {
        let outside: Vec<Link> = parse(
            "ip",
            r#"[{"ifindex":1,"ifname":"lo","flags":["LOOPBACK","UP"]},
                {"ifindex":4,"ifname":"br0","flags":["UP"],"linkinfo":{"info_kind":"bridge"}},
                {"ifindex":7,"ifname":"ts1","link_index":2,"flags":["UP"],"master":"br0","linkinfo":{"info_kind":"veth"}},
                {"ifindex":8,"ifname":"ts2","link_index":3,"flags":["BROADCAST"],"master":"br0","linkinfo":{"info_kind":"veth"}},
                {"ifindex":9,"ifname":"ts3","link_index":4,"flags":["UP"],"master":"br1","linkinfo":{"info_kind":"veth"}},
                {"ifindex":10,"ifname":"tap0","flags":["UP"],"master":"br0","linkinfo":{"info_kind":"tun"}},
                {"ifindex":11,"ifname":"podman1","flags":["UP"],"linkinfo":{"info_kind":"bridge"}}]"#,
        )
        .unwrap();
        let inside: Vec<Link> = parse(
            "ip",
            r#"[{"ifindex":2,"ifname":"eth0","link_index":7},{"ifindex":3,"ifname":"eth1","link_index":8},
                {"ifindex":5,"ifname":"eth2","link_index":9}]"#,
        )
        .unwrap();
        let mut report = report();
        check_links(&outside, &inside, &mut report);
        assert_eq!(
            kinds(&report),
            [(Kind::FencedLink, "ts2"), (Kind::StrayLink, "ts3"), (Kind::StrayLink, "tap0")]
        );
    }

    #[test]
    fn a_containers_address_on_the_hosts_bridge_is_found() {
        let links: Vec<Link> = parse(
            "ip",
            r#"[{"ifindex":4,"ifname":"br0","flags":["UP"],"addr_info":[
                {"local":"10.77.0.1","scope":"global"},{"local":"fe80::1","scope":"link"},
                {"local":"fd77::1","scope":"global"},{"local":"10.77.1.5","scope":"global"}]}]"#,
        )
        .unwrap();
        let mut report = report();
        check_addresses(0, &links, &mut report);
        assert_eq!(kinds(&report), [(Kind::StrayAddress, "10.77.1.5")]);
    }

    #[test]
    fn tables_and_chains_are_known_by_name() {
        let text = "\
table inet CRIU-42 {
\tchain output {
\t}
}
table ip filter {
\tchain CRIU {
\t\tcounter packets 0 bytes 0 drop
\t}
\tchain INPUT {
\t\tcomment \"table inet tranship\"
\t}
}
table bridge tranship_gate {
}
";
        let found: Vec<String> = parse_ruleset(text).into_iter().map(|(what, _)| what).collect();
        assert_eq!(found, ["table inet CRIU-42", "chain CRIU", "table bridge tranship_gate"]);
    }
}
