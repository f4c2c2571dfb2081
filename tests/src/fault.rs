//! Faults of the network, made where the wires are: in the switch namespace.
//!
//! The wished-for faults are kept in one file, and all rules are made anew from it at each change,
//! in one nft transaction. Cuts are rules of the bridge family for frames forwarded from one
//! host's port to the other's: those two cannot talk, everybody else still can. Rates are an HTB
//! class on the receiver's port, chosen by the priority those same rules set on a frame; this way
//! a slow wire is one pair of hosts too.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{LabError, Result};
use crate::lab::Lab;
use crate::names::Network;
use crate::run::tool;
use crate::state::write_json;

const TABLE: &str = "tranship_lab";

/// A wire between two nodes that is slower than it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Slow {
    pair: (String, String),
    bits_per_second: u64,
    delay_ms: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Faults {
    cuts: Vec<(String, String)>,
    slow: Vec<Slow>,
}

/// Bits a second in tc's notation: `100mbit`, `1gbit`, `500kbit`, `9600bit`.
pub fn parse_rate(text: &str) -> Result<u64> {
    let wrong = || LabError::Invalid {
        what: format!("{text:?} is not a rate"),
        hint: "give bits a second, such as 500kbit, 100mbit, 1gbit".into(),
    };
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let factor = match unit {
        "bit" => 1,
        "kbit" => 1_000,
        "mbit" => 1_000_000,
        "gbit" => 1_000_000_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(factor).filter(|rate| *rate >= 8).ok_or_else(wrong)
}

/// A delay such as `20ms` or `1s`, whole milliseconds, at most 10 s.
pub fn parse_delay(text: &str) -> Result<Duration> {
    let wrong = || LabError::Invalid {
        what: format!("{text:?} is not a delay"),
        hint: "give milliseconds or seconds, such as 20ms, 1s; at most 10s".into(),
    };
    let (number, factor) = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
        (Some(number), _) => (number, 1),
        (None, Some(number)) => (number, 1000),
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(factor).filter(|ms| *ms <= 10_000).map(Duration::from_millis).ok_or_else(wrong)
}

impl Lab {
    /// Drops everything between two nodes (hosts, or `client`), both ways and on both networks.
    pub fn cut(&self, a: &str, b: &str) -> Result<()> {
        let pair = self.pair(a, b)?;
        self.change_faults(|faults| {
            if !faults.cuts.contains(&pair) {
                faults.cuts.push(pair);
            }
        })
    }

    /// Undoes `cut` and `slow` between two nodes.
    pub fn heal(&self, a: &str, b: &str) -> Result<()> {
        let pair = self.pair(a, b)?;
        self.change_faults(|faults| {
            faults.cuts.retain(|cut| *cut != pair);
            faults.slow.retain(|slow| slow.pair != pair);
        })
    }

    /// Undoes every `cut` and `slow`.
    pub fn heal_all(&self) -> Result<()> {
        self.change_faults(|faults| *faults = Faults::default())
    }

    /// Limits what goes between two nodes to `bits_per_second` each way, and holds it back by
    /// `delay` each way.
    ///
    /// # Errors
    /// [`LabError::Unsupported`] for a delay on a kernel without the netem scheduler; nothing is
    /// changed then.
    pub fn slow(&self, a: &str, b: &str, bits_per_second: u64, delay: Duration) -> Result<()> {
        let pair = self.pair(a, b)?;
        let before = self.faults()?;
        let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        let changed = self.change_faults(|faults| {
            faults.slow.retain(|slow| slow.pair != pair);
            faults.slow.push(Slow { pair, bits_per_second, delay_ms });
        });
        if let Err(e) = changed {
            self.change_faults(|faults| *faults = before)?;
            return Err(match e {
                LabError::Command { stderr, .. } if delay_ms > 0 => LabError::Unsupported {
                    what: format!("this kernel cannot delay packets (sch_netem): {stderr}"),
                    hint: "leave --delay out; --rate works without it".into(),
                },
                e => e,
            });
        }
        Ok(())
    }

    /// Cuts and slow wires in force, one line each.
    pub fn faults_in_force(&self) -> Result<Vec<String>> {
        let faults = self.faults()?;
        let cuts = faults.cuts.iter().map(|(a, b)| format!("cut {a} {b}"));
        let slow = faults.slow.iter().map(|slow| {
            let (a, b) = &slow.pair;
            format!("slow {a} {b}: {} bit/s, {} ms", slow.bits_per_second, slow.delay_ms)
        });
        Ok(cuts.chain(slow).collect())
    }

    fn pair(&self, a: &str, b: &str) -> Result<(String, String)> {
        for node in [a, b] {
            if node != "client" {
                self.find_host(node)?;
            }
        }
        if a == b {
            return Err(LabError::Invalid {
                what: format!("{a} is named twice"),
                hint: "name two different nodes".into(),
            });
        }
        let (a, b) = if a < b { (a, b) } else { (b, a) };
        Ok((a.to_owned(), b.to_owned()))
    }

    fn fault_file(&self) -> PathBuf {
        self.name().dir().join("faults.json")
    }

    fn faults(&self) -> Result<Faults> {
        let path = self.fault_file();
        match fs::read(&path) {
            Ok(text) => {
                serde_json::from_slice(&text).map_err(|e| LabError::Malformed { path, reason: e.to_string() })
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Faults::default()),
            Err(e) => Err(LabError::io("read", path)(e)),
        }
    }

    fn change_faults(&self, change: impl FnOnce(&mut Faults)) -> Result<()> {
        let before = self.faults()?;
        let mut faults = before.clone();
        change(&mut faults);
        if faults == before {
            return Ok(());
        }
        write_json(&self.fault_file(), &faults)?;
        let netns = self.name().switch_netns();
        let mut nodes: Vec<String> = self.hosts().iter().map(|h| h.name().to_owned()).collect();
        nodes.push("client".into());
        let rules = rules(&faults, &nodes);
        let file = crate::topology::netns_file(&netns);
        let net = format!("--net={}", file.display());
        tool(&["nsenter", &net, "nft", "-f", "-"], Some(&rules))?.ok()?;
        for port in ports(&before, &faults) {
            // Fails when there was none, which is as good.
            let _ = tool(&["tc", "-n", &netns, "qdisc", "del", "dev", &port, "root"], None)?;
        }
        let shaping = shaping(&faults, &nodes);
        if !shaping.is_empty() {
            tool(&["tc", "-n", &netns, "-batch", "-"], Some(&shaping))?.ok()?;
        }
        Ok(())
    }
}

fn both_ways(pair: &(String, String)) -> [(&str, &str); 2] {
    [(&pair.0, &pair.1), (&pair.1, &pair.0)]
}

fn class(nodes: &[String], from: &str) -> usize {
    0x10 + nodes.iter().position(|node| node == from).unwrap_or(0)
}

fn rules(faults: &Faults, nodes: &[String]) -> String {
    // Naming the table first makes the deletion good whether it was there or not.
    let mut text = format!("table bridge {TABLE}\ndelete table bridge {TABLE}\n");
    if faults.cuts.is_empty() && faults.slow.is_empty() {
        return text;
    }
    let _ = writeln!(text, "table bridge {TABLE} {{\n chain forward {{");
    let _ = writeln!(text, "  type filter hook forward priority 0; policy accept;");
    for network in Network::ALL {
        let ends = |from: &str, to: &str| {
            format!("iifname \"{}\" oifname \"{}\"", network.port(from), network.port(to))
        };
        for (from, to) in faults.cuts.iter().flat_map(both_ways) {
            let _ = writeln!(text, "  {} drop", ends(from, to));
        }
        for (from, to) in faults.slow.iter().flat_map(|slow| both_ways(&slow.pair)) {
            let class = class(nodes, from);
            let _ = writeln!(text, "  {} meta priority set 1:{class:x}", ends(from, to));
        }
    }
    text.push_str(" }\n}\n");
    text
}

/// Ports that have a scheduler before or after the change.
fn ports(before: &Faults, after: &Faults) -> Vec<String> {
    let mut ports: Vec<String> = before
        .slow
        .iter()
        .chain(&after.slow)
        .flat_map(|slow| [&slow.pair.0, &slow.pair.1])
        .flat_map(|node| Network::ALL.map(|network| network.port(node)))
        .collect();
    ports.sort();
    ports.dedup();
    ports
}

fn shaping(faults: &Faults, nodes: &[String]) -> String {
    let mut text = String::new();
    // Frames without a class of their own go straight through: default 0.
    for port in ports(&Faults::default(), faults) {
        let _ = writeln!(text, "qdisc add dev {port} root handle 1: htb default 0");
    }
    for slow in &faults.slow {
        for (from, to) in both_ways(&slow.pair) {
            for network in Network::ALL {
                let (port, class) = (network.port(to), class(nodes, from));
                let rate = slow.bits_per_second;
                // 10 ms worth, so that a short exchange is slow too.
                let burst = (rate / 8 / 100).max(16 << 10);
                let _ = writeln!(
                    text,
                    "class add dev {port} parent 1: classid 1:{class:x} htb rate {rate}bit \
                     burst {burst} cburst {burst} quantum 15140"
                );
                if slow.delay_ms > 0 {
                    let delay = slow.delay_ms;
                    let _ = writeln!(
                        text,
                        "qdisc add dev {port} parent 1:{class:x} handle {class:x}0: netem \
                         delay {delay}ms limit 100000"
                    );
                }
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults() -> (Faults, Vec<String>) {
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let faults = Faults {
            cuts: vec![pair("host-a", "host-b")],
            slow: vec![Slow { pair: pair("host-a", "host-c"), bits_per_second: 5_000_000, delay_ms: 0 }],
        };
        let nodes = ["host-a", "host-b", "host-c", "client"];
        (faults, nodes.map(str::to_owned).to_vec())
    }

    #[test]
    fn a_cut_names_both_directions_on_both_networks_and_no_other_pair() {
        let (faults, nodes) = faults();
        let text = rules(&faults, &nodes);
        for (from, to) in [
            ("host-a-0", "host-b-0"),
            ("host-b-0", "host-a-0"),
            ("host-a-1", "host-b-1"),
            ("host-b-1", "host-a-1"),
        ] {
            let rule = format!("iifname \"{from}\" oifname \"{to}\" drop");
            assert!(text.contains(&rule), "{text}");
        }
        assert_eq!(text.matches("drop").count(), 4);
        assert!(!rules(&Faults::default(), &nodes).contains("chain"));
    }

    #[test]
    fn the_class_of_a_frame_is_that_of_its_sender_at_the_receiver() {
        let (faults, nodes) = faults();
        let rules = rules(&faults, &nodes);
        assert!(rules.contains("iifname \"host-c-0\" oifname \"host-a-0\" meta priority set 1:12"));
        let text = shaping(&faults, &nodes);
        assert!(text.contains("class add dev host-a-0 parent 1: classid 1:12 htb rate 5000000bit"));
        assert!(text.contains("class add dev host-c-1 parent 1: classid 1:10 htb rate 5000000bit"));
        assert_eq!(text.matches("qdisc add").count(), 4);
    }

    #[test]
    fn rates_and_delays_are_read() {
        assert_eq!(parse_rate("100mbit").unwrap(), 100_000_000);
        assert_eq!(parse_rate("9600bit").unwrap(), 9600);
        for bad in ["", "mbit", "100", "100MB", "-1mbit", "0bit", "99999999999gbit"] {
            assert!(parse_rate(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_delay("20ms").unwrap(), Duration::from_millis(20));
        assert_eq!(parse_delay("1s").unwrap(), Duration::from_secs(1));
        for bad in ["", "ms", "20", "11s", "1.5s"] {
            assert!(parse_delay(bad).is_err(), "{bad}");
        }
    }
}
