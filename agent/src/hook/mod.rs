//! The hold at the destination: CRIU's action script waits here until the agent says go.
//!
//! CRIU calls the script at every step of a restore. At `post-restore` everything exists and nothing has
//! run; the script then connects to the agent's `hook.sock` and blocks. Only the word `go` makes it return
//! success. Whatever else happens (the agent dies, the socket vanishes, nonsense arrives) it tries again
//! for ever: it fails closed, and the container neither starts nor dies. `abort` makes it fail, and CRIU
//! then kills what it restored. It ends with its CRIU, so that a connected script is a restore that is held.
//!
//! Rejected: signals (lost when the agent restarts), files as flags (a poll in the blackout), and a FIFO
//! (no peer identity).
//!
//! On the wire, one line each: `held MIGRATION PID` from the script, `go` or `abort` back, `ok` at last.
//!
//! Two other waits have nothing to protect and so fail open: of a dump before the freeze ([`DumpHold`]), and
//! of a restore before its images are there ([`RestoreAhead`]).

mod ahead;
mod client;
mod dump;
mod gate;
mod server;

use std::fs;
use std::io::{self, Write};
use std::os::fd::RawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tranship_proto::ids::MigrationId;

pub use ahead::{RestoreAhead, RestoringCriu};
pub use client::hook_main;
pub use dump::DumpHold;
pub use server::{HeldHandle, HookError, HookServer};

use crate::command::find;
use crate::criu::CriuConfig;

/// Longest line, in bytes.
const MAX_LINE: usize = 256;

/// A decision about a held container. It is final.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The container may run.
    Go,
    /// The restore is called off.
    Abort,
}

impl Decision {
    fn word(self) -> &'static str {
        match self {
            Decision::Go => "go",
            Decision::Abort => "abort",
        }
    }

    fn parse(line: &str) -> Option<Self> {
        [Decision::Go, Decision::Abort].into_iter().find(|d| d.word() == line)
    }
}

/// Where the files of one migration's hook are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookFiles {
    dir: PathBuf,
    socket: PathBuf,
}

impl HookFiles {
    /// Of a migration, below the agent's run directory.
    pub fn new(run_dir: &Path, migration: MigrationId) -> Self {
        HookFiles {
            dir: run_dir.join("hooks").join(migration.to_string()),
            socket: run_dir.join("hook.sock"),
        }
    }

    /// Writes script and configuration for a held restore; returns the path of the configuration.
    /// `program` is the agent's own binary.
    pub fn write_restore(&self, program: &Path, migration: MigrationId) -> io::Result<PathBuf> {
        self.make_dir()?;
        let script = self.dir.join("script");
        write_script(&script, &restore_script(program, &self.socket, migration)?)?;
        let config = self.dir.join("criu.conf");
        CriuConfig { action_script: Some(script), ..Default::default() }.write(&config)?;
        Ok(config)
    }

    /// Writes a `criu` that waits for its images before a restore, for the runtime to find, and listens for
    /// it. Must be called on a tokio runtime.
    pub fn restore_ahead(&self, program: &Path) -> io::Result<RestoreAhead> {
        let real =
            find("criu").ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "criu is not installed"))?;
        let (programs, socket) = (self.dir.join("bin"), self.dir.join("images.sock"));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&programs)?;
        let text = format!(
            "#!/bin/sh\n# Called by the runtime in place of criu; waits for the images before a restore.\n\
             exec {} hook --socket {} --become {} \"$@\"\n",
            quote(program)?,
            quote(&socket)?,
            quote(&real)?,
        );
        write_script(&programs.join("criu"), &text)?;
        RestoreAhead::new(programs, &socket)
    }

    /// Writes script and configuration for a dump that waits, with the descriptor of its page socket, and
    /// listens for the script. Must be called on a tokio runtime.
    pub fn hold_dump(&self, program: &Path, page_socket: RawFd) -> io::Result<DumpHold> {
        self.make_dir()?;
        let (script, socket) = (self.dir.join("dump-script"), self.dir.join("dump.sock"));
        write_script(&script, &dump_script(program, &socket)?)?;
        let config = self.dir.join("dump.conf");
        CriuConfig { action_script: Some(script), page_socket: Some(page_socket), ..Default::default() }
            .write(&config)?;
        DumpHold::new(config, &socket)
    }

    /// Removes all files. Nothing to do when there are none.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    fn make_dir(&self) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)
    }
}

/// The agent's binary, also after it was replaced by an upgrade.
pub fn own_program() -> io::Result<PathBuf> {
    let path = std::env::current_exe()?;
    match path.to_str().and_then(|p| p.strip_suffix(" (deleted)")) {
        Some(original) if !path.exists() => Ok(original.into()),
        _ => Ok(path),
    }
}

fn write_script(path: &Path, text: &str) -> io::Result<()> {
    let _ = fs::remove_file(path);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o700).open(path)?;
    file.write_all(text.as_bytes())
}

fn restore_script(program: &Path, socket: &Path, migration: MigrationId) -> io::Result<String> {
    Ok(format!(
        "#!/bin/sh\n# Called by criu at each step of a restore; waits for the agent at one of them.\n\
         [ \"$CRTOOLS_SCRIPT_ACTION\" = post-restore ] || exit 0\n\
         exec {} hook --socket {} --migration {migration}\n",
        quote(program)?,
        quote(socket)?,
    ))
}

fn dump_script(program: &Path, socket: &Path) -> io::Result<String> {
    Ok(format!(
        "#!/bin/sh\n# Called by criu at each step of a dump; asks the agent before the first and after the last.\n\
         case \"$CRTOOLS_SCRIPT_ACTION\" in pre-dump | post-dump) ;; *) exit 0 ;; esac\n\
         exec {} hook --socket {} --dump \"$CRTOOLS_SCRIPT_ACTION\"\n",
        quote(program)?,
        quote(socket)?,
    ))
}

fn quote(path: &Path) -> io::Result<String> {
    match path.to_str() {
        Some(p) if !p.contains(|c: char| c == '\'' || c.is_control()) => Ok(format!("'{p}'")),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{} cannot stand in a script", path.display()),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> MigrationId {
        "01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap()
    }

    #[test]
    fn files_are_private_and_removable() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let files = HookFiles::new(dir.path(), id());
        let config = files.write_restore(Path::new("/usr/bin/transhipd"), id()).unwrap();
        assert!(fs::read_to_string(&config).unwrap().contains("action-script "));
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&config), mode(&files.dir.join("script")), mode(&files.dir)), (0o600, 0o700, 0o700));
        files.write_restore(Path::new("/usr/bin/transhipd"), id()).unwrap();
        files.remove().unwrap();
        files.remove().unwrap();
        assert!(!config.exists());
    }

    #[test]
    fn the_script_lets_all_other_steps_pass() {
        let dir = tempfile::tempdir().unwrap();
        let files = HookFiles::new(dir.path(), id());
        files.write_restore(Path::new("/bin/false"), id()).unwrap();
        let run = |action: &str| {
            std::process::Command::new("/bin/sh")
                .arg(files.dir.join("script"))
                .env("CRTOOLS_SCRIPT_ACTION", action)
                .status()
                .unwrap()
                .success()
        };
        for action in ["pre-restore", "setup-namespaces", "network-unlock", "pre-resume", "post-resume", ""] {
            assert!(run(action), "{action}");
        }
        assert!(!run("post-restore"));
    }

    #[tokio::test]
    async fn the_script_of_a_dump_asks_twice() {
        let dir = tempfile::tempdir().unwrap();
        let files = HookFiles::new(dir.path(), id());
        let hold = files.hold_dump(Path::new("/bin/false"), 64).unwrap();
        let config = fs::read_to_string(hold.config()).unwrap();
        assert!(config.contains("dump-script") && config.contains("ps-socket 64"), "{config}");
        let run = |action: &str| {
            std::process::Command::new("/bin/sh")
                .arg(files.dir.join("dump-script"))
                .env("CRTOOLS_SCRIPT_ACTION", action)
                .status()
                .unwrap()
                .success()
        };
        for action in ["network-lock", "query-ext-files", "network-unlock", ""] {
            assert!(run(action), "{action}");
        }
        assert!(!run("pre-dump") && !run("post-dump"));
    }

    #[test]
    fn odd_paths_are_refused() {
        assert!(restore_script(Path::new("/a'b"), Path::new("/s"), id()).is_err());
        assert!(dump_script(Path::new("/a"), Path::new("/s\n")).is_err());
    }
}
