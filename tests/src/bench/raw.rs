//! The file with the raw data: what was measured where, one measurement a line.

use crate::lab;
use crate::scenario::{Scene, bounded};
use anyhow::{Context, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

const SCHEMA: u32 = 2;

/// All measurements of one benchmark.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Raw<M> {
    schema: u32,
    /// Machine and versions.
    pub(super) environment: serde_json::Value,
    /// In the order in which they were taken.
    pub(super) measurements: Vec<M>,
    #[serde(skip)]
    file: Option<PathBuf>,
}

impl<M: Serialize + DeserializeOwned> Raw<M> {
    /// No measurements yet; each one taken is written to `file` at once.
    pub(super) fn new(scene: &Scene, file: Option<&Path>) -> anyhow::Result<Self> {
        let environment = environment(scene)?;
        Ok(Self { schema: SCHEMA, environment, measurements: Vec::new(), file: file.map(Path::to_owned) })
    }

    /// Reads a file.
    pub(super) fn load(file: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
        let raw: Self =
            serde_json::from_slice(&text).with_context(|| format!("{} is no raw data", file.display()))?;
        ensure!(
            raw.schema == SCHEMA,
            "{} has schema {}, this program knows {SCHEMA}",
            file.display(),
            raw.schema
        );
        Ok(raw)
    }

    /// Adds one and writes the file: an hour's figures must not go with the one that fails.
    pub(super) fn push(&mut self, measured: M) -> anyhow::Result<()> {
        self.measurements.push(measured);
        let Some(file) = &self.file else { return Ok(()) };
        std::fs::write(file, self.text()?).with_context(|| format!("writing {}", file.display()))
    }

    fn text(&self) -> anyhow::Result<String> {
        let environment = serde_json::to_string(&self.environment)?;
        let mut text = format!("{{\"schema\":{SCHEMA},\n\"environment\":{environment},\n\"measurements\":[");
        for (i, one) in self.measurements.iter().enumerate() {
            write!(text, "{}\n{}", if i == 0 { "" } else { "," }, serde_json::to_string(one)?)?;
        }
        text.push_str("\n]}\n");
        Ok(text)
    }
}

fn environment(scene: &Scene) -> anyhow::Result<serde_json::Value> {
    let host = scene.host("host-a")?;
    let podman =
        bounded::run("podman --version", host.command(["podman", "--version"])?, Duration::from_secs(20))?;
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or_default();
    Ok(serde_json::json!({
        "versions": lab::versions(&host)?,
        "podman": podman.stdout.trim(),
        "cpu": model.trim_start_matches(['\t', ' ', ':']),
        "cpus": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "build": if cfg!(debug_assertions) { "debug" } else { "release" },
        "at": jiff::Timestamp::now().to_string(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("raw.json");
        let mut raw = Raw::<(u32, String)> {
            schema: SCHEMA,
            environment: serde_json::json!({ "cpus": 2 }),
            measurements: Vec::new(),
            file: Some(file.clone()),
        };
        raw.push((1, "a".into())).unwrap();
        raw.push((2, "b".into())).unwrap();
        let again = Raw::<(u32, String)>::load(&file).unwrap();
        assert_eq!(again.measurements, raw.measurements);
        assert_eq!(again.environment, raw.environment);
        std::fs::write(&file, r#"{"schema":1,"environment":{},"measurements":[]}"#).unwrap();
        assert!(Raw::<(u32, String)>::load(&file).is_err());
    }
}
