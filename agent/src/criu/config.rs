//! Configuration files for CRIU, named to it by `CRIU_CONFIG_FILE`.
//!
//! The OCI runtime has no flags for most of CRIU's options. The variable works for one call and needs no
//! change of the bundle. Rejected: the annotation `org.criu.config`, read as the RPC configuration file,
//! where CRIU 4.2 crashes on `network-lock`.

use std::fs;
use std::io::{self, Write};
use std::os::fd::RawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Deleted files that are still open travel inside the images up to this size, in bytes.
const GHOST_LIMIT: u64 = 4 << 30;

/// Options for one dump or restore.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CriuConfig {
    /// Called at every step; see [`crate::hook`].
    pub action_script: Option<PathBuf>,
    /// Seconds until CRIU gives up on stopping the processes. CRIU's default is 10.
    pub freeze_timeout: Option<u32>,
    /// Descriptor, inherited, over which pages are served that a dump leaves out. Without it CRIU would
    /// listen on a port, where any user of the host could ask for them.
    pub page_socket: Option<RawFd>,
}

impl CriuConfig {
    /// The text of the file. One option a line, without dashes (criu(8), "Configuration files").
    ///
    /// # Errors
    /// When the path of the script cannot be written in that format.
    pub fn render(&self) -> io::Result<String> {
        // No link-remap: CRIU removes the extra names at the end of a dump that leaves the container running,
        // before the files are copied.
        // skip: the agent's own fence and gate stand in for CRIU's firewall rules.
        let mut text = format!("network-lock skip\nghost-limit {GHOST_LIMIT}\n");
        if let Some(seconds) = self.freeze_timeout {
            text.push_str(&format!("timeout {seconds}\n"));
        }
        if let Some(socket) = self.page_socket {
            text.push_str(&format!("ps-socket {socket}\n"));
        }
        if let Some(script) = &self.action_script {
            let path = script.to_str().filter(|p| {
                p.starts_with('/')
                    && !p.contains(|c: char| c.is_whitespace() || c.is_control() || "#\"'\\".contains(c))
            });
            let path = path.ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("{} cannot stand in a criu configuration file", script.display()),
                )
            })?;
            text.push_str(&format!("action-script {path}\n"));
        }
        Ok(text)
    }

    /// Writes the file, readable for root only.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let text = self.render()?;
        let _ = fs::remove_file(path);
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_options() {
        let text = CriuConfig {
            action_script: Some("/run/tranship/hooks/m/script".into()),
            freeze_timeout: Some(5),
            page_socket: Some(64),
        }
        .render()
        .unwrap();
        assert_eq!(
            text,
            "network-lock skip\nghost-limit 4294967296\ntimeout 5\nps-socket 64\naction-script /run/tranship/hooks/m/script\n"
        );
    }

    #[test]
    fn refuses_paths_that_would_add_options() {
        for path in ["/a b", "/a\nlog-file /etc/passwd", "relative", "/a#b", "/a\"b"] {
            assert!(
                CriuConfig { action_script: Some(path.into()), ..Default::default() }.render().is_err(),
                "{path:?}"
            );
        }
    }
}
