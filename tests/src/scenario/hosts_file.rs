//! A host with another configuration or other certificates for a while.

use super::identity::Identity;
use super::scene::Scene;
use anyhow::Context;

const CONFIG: &str = "/etc/tranship/transhipd.toml";

/// Runs `body` while the agent of `host` runs with an edited configuration.
pub(super) fn with_config<T>(
    scene: &Scene,
    host: &str,
    edit: &dyn Fn(&mut toml::Table),
    body: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let file = scene.host(host)?.path(CONFIG);
    let before = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    let mut table: toml::Table = before.parse()?;
    edit(&mut table);
    with_files(scene, host, &[(CONFIG, toml::to_string(&table)?)], body)
}

/// Runs `body` while the agent of `host` has other certificates.
pub(super) fn with_pki<T>(
    scene: &Scene,
    host: &str,
    ca: &str,
    identity: &Identity,
    body: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let files = [
        ("/etc/tranship/pki/ca.pem", ca.to_owned()),
        ("/etc/tranship/pki/host.pem", identity.cert.clone()),
        ("/etc/tranship/pki/host.key", identity.key.clone()),
    ];
    with_files(scene, host, &files, body)
}

/// Replaces the contents of files, keeping their modes, restarts the agent, runs `body`, and
/// puts everything back, whatever `body` came to.
fn with_files<T>(
    scene: &Scene,
    host: &str,
    files: &[(&str, String)],
    body: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let handle = scene.host(host)?;
    let mut before = Vec::new();
    for (path, _) in files {
        let path = handle.path(path);
        before.push((
            path.clone(),
            std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?,
        ));
    }
    handle.stop_agent()?;
    let changed = files.iter().try_for_each(|(path, text)| std::fs::write(handle.path(path), text));
    let result =
        changed.map_err(anyhow::Error::from).and_then(|()| Ok(handle.start_agent()?)).and_then(|()| body());
    if handle.agent_pid()?.is_some() {
        handle.stop_agent()?;
    }
    for (path, contents) in before {
        std::fs::write(&path, contents).with_context(|| format!("restoring {}", path.display()))?;
    }
    handle.start_agent()?;
    result
}
