//! `audit`.

use std::process::ExitCode;

use anyhow::Result;
use comfy_table::Table;
use comfy_table::presets::NOTHING;

use super::Which;
use crate::audit::AuditOptions;

/// Arguments of `audit`.
#[derive(Debug, clap::Args)]
pub struct Audit {
    #[command(flatten)]
    which: Which,
    /// One JSON array of {host, kind, what, detail}
    #[arg(long)]
    json: bool,
    /// Take containers that do not run for stopped on purpose
    #[arg(long)]
    allow_stopped: bool,
}

impl Audit {
    /// Looks and tells. Exit code 1 when something was found.
    pub fn run(&self) -> Result<ExitCode> {
        let lab = self.which.attach()?;
        let findings = lab.audit_with(AuditOptions { allow_stopped: self.allow_stopped })?;
        if self.json {
            println!("{}", serde_json::to_string(&findings)?);
        } else if findings.is_empty() {
            println!("{} hosts looked at, nothing left over", lab.hosts().len());
        } else {
            let mut table = Table::new();
            table.load_style(NOTHING);
            table.set_header(["HOST", "KIND", "WHAT", "DETAIL"]);
            for finding in &findings {
                let kind = finding.kind.to_string();
                table.add_row([&finding.host, &kind, &finding.what, &finding.detail]);
            }
            println!("{table}");
        }
        Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
