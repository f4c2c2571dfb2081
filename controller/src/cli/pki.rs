//! `tranship pki`

use crate::error::Error;
use crate::exit;
use crate::output::Output;
use crate::pki::{self, Ca, Issued, Subject};
use serde_json::json;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use tranship_proto::ids::HostName;

const EXAMPLES: &str = "\
Examples:
  A CA, a certificate for each host, one for an operator:
    tranship pki init --dir /root/pki
    tranship pki issue --dir /root/pki --agent host-a --ip 10.77.0.1 --out /root/pki/host-a
    tranship pki issue --dir /root/pki --operator alice

  With --out the directory holds what goes to /etc/tranship/pki on the host:
    ca.pem, host.pem, host.key (operator.pem, operator.key)
";

/// Make the fleet's CA and certificates
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES, arg_required_else_help = true)]
pub struct Pki {
    #[command(subcommand)]
    command: PkiCommand,
}

#[derive(Debug, clap::Subcommand)]
enum PkiCommand {
    Init(Init),
    Issue(Issue),
}

fn days() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=i64::from(pki::MAX_DAYS))
}

/// Make a CA: ca.pem and ca.key
///
/// Who has ca.key can pass for every host and operator of the fleet: keep it off the hosts.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
struct Init {
    /// Directory for the files; made with mode 0700 when it is not there
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Name in the CA's certificate
    #[arg(long, value_name = "NAME", default_value = "tranship CA", value_parser = ca_name)]
    name: String,
    /// Validity in days
    #[arg(long, value_name = "N", default_value_t = pki::CA_DAYS, value_parser = days())]
    days: u32,
    /// Replace a CA that is there
    #[arg(long)]
    force: bool,
}

/// Issue a certificate with a new key
///
/// Without --out the files are agent-HOST.pem and agent-HOST.key (operator-NAME.pem and .key) in
/// the CA's directory. Keys have mode 0600.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
#[command(group(clap::ArgGroup::new("whom").required(true).args(["agent", "operator"])))]
struct Issue {
    /// Directory of the CA
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// For the agent of this host
    #[arg(long, value_name = "HOST", value_parser = host)]
    agent: Option<HostName>,
    /// For a person or program that gives orders
    #[arg(long, value_name = "NAME", value_parser = pki::operator_name)]
    operator: Option<String>,
    /// Address of the host to name in its certificate; can be repeated
    #[arg(long, value_name = "IP", conflicts_with = "operator")]
    ip: Vec<IpAddr>,
    /// Validity in days
    #[arg(long, value_name = "N", default_value_t = pki::LEAF_DAYS, value_parser = days())]
    days: u32,
    /// Write a directory as /etc/tranship/pki has to be on the host, with a copy of ca.pem
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Replace files that are there
    #[arg(long)]
    force: bool,
}

fn host(text: &str) -> Result<HostName, String> {
    text.parse().map_err(|e| format!("{e}"))
}

fn ca_name(text: &str) -> Result<String, String> {
    let good = (1..=64).contains(&text.chars().count()) && !text.contains(char::is_control);
    if good { Ok(text.into()) } else { Err("use 1 to 64 characters".into()) }
}

impl Pki {
    pub(super) fn execute(self, output: Output) -> Result<u8, Error> {
        match self.command {
            PkiCommand::Init(init) => init.execute(output),
            PkiCommand::Issue(issue) => issue.execute(output),
        }
    }
}

impl Init {
    fn execute(self, output: Output) -> Result<u8, Error> {
        let ca = pki::new_ca(&self.name, self.days)?;
        let files = [("ca.key", ca.key.as_str(), 0o600), ("ca.pem", ca.cert.as_str(), 0o644)];
        pki::write_new(&self.dir, &files, self.force)?;
        report(output, "ca", &self.name, &self.dir, ["ca.pem", "ca.key"], &ca);
        Ok(exit::DONE)
    }
}

impl Issue {
    fn execute(self, output: Output) -> Result<u8, Error> {
        let (subject, short) = match (self.agent, self.operator) {
            (Some(host), _) => (Subject::Agent(host, self.ip), "host"),
            (None, Some(name)) => (Subject::Operator(name), "operator"),
            // clap asks for one of them.
            (None, None) => return Err(Error::usage("neither --agent nor --operator is given")),
        };
        let issued = Ca::load(&self.dir)?.issue(&subject, self.days)?;
        let stem = if self.out.is_some() { short.to_owned() } else { subject.stem() };
        let (pem, key) = (format!("{stem}.pem"), format!("{stem}.key"));
        let mut files =
            vec![(key.as_str(), issued.key.as_str(), 0o600), (pem.as_str(), issued.cert.as_str(), 0o644)];
        let ca = pki::read_pem(&self.dir.join("ca.pem"))?;
        let dir = self.out.as_ref().unwrap_or(&self.dir);
        let had_same_ca = pki::read_pem(&dir.join("ca.pem")).is_ok_and(|there| there == ca);
        if self.out.is_some() && !had_same_ca {
            files.push(("ca.pem", ca.as_str(), 0o644));
        }
        pki::write_new(dir, &files, self.force)?;
        report(output, short, &subject.uri(), dir, [&pem, &key], &issued);
        Ok(exit::DONE)
    }
}

fn report(output: Output, kind: &str, name: &str, dir: &Path, [pem, key]: [&str; 2], issued: &Issued) {
    let (pem, key) = (dir.join(pem), dir.join(key));
    if output.is_json() {
        let fields = json!({
            "kind": kind, "name": name, "cert": pem.to_string_lossy(), "key": key.to_string_lossy(),
            "not_after_unix_s": issued.not_after,
        });
        output.json("certificate", &fields);
        return;
    }
    let until = crate::output::time(issued.not_after.saturating_mul(1000));
    output.text(&format!(
        "{name}, valid until {until}\n  certificate  {}\n  key          {}",
        pem.display(),
        key.display()
    ));
}
