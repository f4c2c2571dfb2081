//! `--net` and what belongs to it.
//!
//! `--ip`, `--mac` and `--gateway` belong to the `--net` before them, so their order on the
//! command line counts. clap's derive cannot say that: the values are taken with their indices.

use crate::spec;
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use std::net::IpAddr;
use tranship_proto::control::LinkSpec;

/// Interfaces asked for, `eth0` first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Links(pub Vec<LinkSpec>);

/// Interfaces of one container at most.
const MAX_LINKS: usize = 16;

fn network(text: &str) -> Result<String, String> {
    let good = (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if good { Ok(text.into()) } else { Err("not a network's name; see `tranship hosts`".into()) }
}

impl Args for Links {
    fn augment_args(command: Command) -> Command {
        let option = |name: &'static str, value: &'static str, parser: fn(&str) -> Result<String, String>| {
            Arg::new(name)
                .long(name)
                .value_name(value)
                .action(ArgAction::Append)
                .value_parser(parser)
                .help_heading("Network options")
        };
        command
            .arg(option("net", "NETWORK", network).help("Attach an interface to this network of the fleet").long_help(
                "Attach an interface to this network of the fleet. The first becomes eth0, each further one starts \
                 the next; --ip, --mac and --gateway belong to the --net before them.",
            ))
            .arg(option("ip", "IP/PREFIX", spec::cidr).help("Address of the interface, IPv4 or IPv6; can be repeated"))
            .arg(option("mac", "MAC", spec::mac).help("MAC address of the interface; made up when not given"))
            .arg(option("gateway", "IP", spec::gateway).help("Default gateway through the interface, one per family"))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Links {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut words: Vec<(usize, &str, String)> = Vec::new();
        for name in ["net", "ip", "mac", "gateway"] {
            let indices = matches.indices_of(name).into_iter().flatten();
            let values = matches.get_many::<String>(name).into_iter().flatten();
            words.extend(indices.zip(values).map(|(i, v)| (i, name, v.clone())));
        }
        words.sort_by_key(|(i, ..)| *i);
        collect(words.into_iter().map(|(_, name, value)| (name, value)))
            .map_err(|why| clap::Error::raw(ErrorKind::ValueValidation, format!("{why}\n")))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

fn collect<'a>(words: impl Iterator<Item = (&'a str, String)>) -> Result<Links, String> {
    let mut links: Vec<LinkSpec> = Vec::new();
    for (name, value) in words {
        if name == "net" {
            links.push(LinkSpec { network: value, addresses: Vec::new(), mac: None, gateways: Vec::new() });
            continue;
        }
        let Some(last) = links.last_mut() else {
            return Err(format!(
                "--{name} {value} comes before any --net: it belongs to the --net before it"
            ));
        };
        match name {
            "ip" => last.addresses.push(value),
            "mac" => match &last.mac {
                None => last.mac = Some(value),
                Some(first) => {
                    return Err(format!(
                        "network {} is given two MAC addresses, {first} and {value}",
                        last.network
                    ));
                }
            },
            _ => last.gateways.push(value),
        }
    }
    check(links)
}

fn check(links: Vec<LinkSpec>) -> Result<Links, String> {
    if links.len() > MAX_LINKS {
        return Err(format!("{} networks are more than {MAX_LINKS}", links.len()));
    }
    let mut addresses: Vec<&str> = Vec::new();
    for link in &links {
        for address in &link.addresses {
            let bare = address.split('/').next().unwrap_or(address);
            if addresses.contains(&bare) {
                return Err(format!("address {bare} is given twice"));
            }
            addresses.push(bare);
        }
        let family =
            |ip: &str| ip.split('/').next().and_then(|ip| ip.parse::<IpAddr>().ok()).map(|ip| ip.is_ipv4());
        for (i, gateway) in link.gateways.iter().enumerate() {
            let mine = family(gateway);
            if link.gateways[..i].iter().any(|g| family(g) == mine) {
                return Err(format!("network {} is given two gateways of one family", link.network));
            }
            if !link.addresses.iter().any(|a| family(a) == mine) {
                return Err(format!(
                    "gateway {gateway}: network {} has no address of that family",
                    link.network
                ));
            }
        }
    }
    let macs: Vec<&String> = links.iter().filter_map(|l| l.mac.as_ref()).collect();
    if let Some(i) = (1..macs.len()).find(|i| macs[..*i].contains(&macs[*i])) {
        return Err(format!("MAC address {} is given twice", macs[i]));
    }
    Ok(Links(links))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Vec<LinkSpec>, String> {
        let command = Links::augment_args(Command::new("t"));
        let matches = command.try_get_matches_from(std::iter::once("t").chain(line.split_whitespace()));
        matches.and_then(|m| Links::from_arg_matches(&m)).map(|l| l.0).map_err(|e| e.to_string())
    }

    #[test]
    fn addresses_belong_to_the_network_before_them() {
        let links = parse(
            "--net lan --ip 10.77.1.1/16 --ip fd77::1:1/64 --gateway 10.77.0.1 --mac 02:00:00:00:00:01 \
             --net back --ip=10.78.1.1/16",
        )
        .unwrap();
        assert_eq!(links.len(), 2);
        assert_eq!(links[0].addresses, ["10.77.1.1/16", "fd77::1:1/64"]);
        assert_eq!(links[0].gateways, ["10.77.0.1"]);
        assert_eq!(links[0].mac.as_deref(), Some("02:00:00:00:00:01"));
        assert_eq!(
            (links[1].network.as_str(), &links[1].addresses[..]),
            ("back", &["10.78.1.1/16".to_owned()][..])
        );
        assert_eq!(parse("").unwrap(), []);
        assert_eq!(parse("--net lan").unwrap()[0].addresses, Vec::<String>::new());
    }

    #[test]
    fn contradictions_are_named() {
        for (line, words) in [
            ("--ip 10.0.0.1/8 --net lan", "before any --net"),
            ("--net a --mac 02:00:00:00:00:01 --mac 02:00:00:00:00:02", "two MAC addresses"),
            ("--net a --mac 02:00:00:00:00:01 --net b --mac 02:00:00:00:00:01", "given twice"),
            ("--net a --ip 10.0.0.1/8 --net b --ip 10.0.0.1/16", "given twice"),
            ("--net a --ip 10.0.0.1/8 --gateway 10.0.0.2 --gateway 10.0.0.3", "two gateways"),
            ("--net a --ip 10.0.0.1/8 --gateway fd00::1", "no address of that family"),
            ("--net a --ip 10.0.0.1", "prefix length"),
            ("--net a/b", "not a network's name"),
            (&"--net a ".repeat(17), "more than 16"),
        ] {
            let e = parse(line).unwrap_err();
            assert!(e.contains(words), "{line}: {e}");
        }
    }
}
