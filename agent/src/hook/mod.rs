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

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::os::fd::RawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tranship_proto::ids::MigrationId;

pub use ahead::{RestoreAhead, RestoringCriu};
pub use client::hook_main;
pub use dump::{DumpHold, LeaveOut};
pub use server::{HeldHandle, HookError, HookServer};

use crate::command::{CHILD_PATH, find};
use crate::criu::{CriuConfig, Preload};

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

/// What becomes of memory in a dump.
#[derive(Clone, Copy, Debug)]
pub enum DumpMemory<'a> {
    /// CRIU talks about it over the socket that has this number there.
    Socket(RawFd),
    /// What the agent names is left out, with the help of the library.
    LeftOut(&'a Preload),
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
        let socket = self.dir.join("images.sock");
        let text = format!(
            "#!/bin/sh\n# Called by the runtime in place of criu; waits for the images before a restore.\n\
             exec {} hook --socket {} --become {} \"$@\"\n",
            quote(program)?,
            quote(&socket)?,
            quote(&real_criu()?)?,
        );
        RestoreAhead::new(self.write_criu(&text)?, &socket)
    }

    /// Writes script and configuration for a dump that waits, and listens for the script. Must be called on
    /// a tokio runtime.
    pub fn hold_dump(&self, program: &Path, memory: DumpMemory<'_>) -> io::Result<DumpHold> {
        self.make_dir()?;
        let (script, socket) = (self.dir.join("dump-script"), self.dir.join("dump.sock"));
        write_script(&script, &dump_script(program, &socket)?)?;
        let config = self.dir.join("dump.conf");
        let (page_socket, left_out) = match memory {
            DumpMemory::Socket(number) => (Some(number), None),
            DumpMemory::LeftOut(preload) => {
                let left_out = self.dir.join("left-out");
                let programs = self.write_criu(&loaded_criu(preload, &left_out, &real_criu()?)?)?;
                (None, Some(LeaveOut { file: left_out, search_path: search_path(&programs) }))
            }
        };
        CriuConfig { action_script: Some(script), page_socket, ..Default::default() }.write(&config)?;
        DumpHold::new(config, left_out, &socket)
    }

    /// Writes a `criu` for the runtime to find; answers the directory that it is in.
    fn write_criu(&self, text: &str) -> io::Result<PathBuf> {
        let programs = self.dir.join("bin");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&programs)?;
        write_script(&programs.join("criu"), text)?;
        Ok(programs)
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

fn real_criu() -> io::Result<PathBuf> {
    find("criu").ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "criu is not installed"))
}

fn loaded_criu(preload: &Preload, left_out: &Path, criu: &Path) -> io::Result<String> {
    let mut text =
        "#!/bin/sh\n# Called by the runtime in place of criu; loads tranship's library into it.\n".to_owned();
    for (name, value) in preload.environment(Some(left_out)) {
        text.push_str(&format!("export {name}={}\n", quote(Path::new(&value))?));
    }
    text.push_str(&format!("PATH={CHILD_PATH}\nexec {} \"$@\"\n", quote(criu)?));
    Ok(text)
}

/// `PATH` of a runtime that finds what is in this directory first.
fn search_path(programs: &Path) -> OsString {
    let mut path = programs.as_os_str().to_owned();
    path.push(":");
    path.push(CHILD_PATH);
    path
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
        let hold = files.hold_dump(Path::new("/bin/false"), DumpMemory::Socket(64)).unwrap();
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
    fn a_dump_that_leaves_memory_out_has_a_criu_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("libtranship_preload.so"), "").unwrap();
        let preload = Preload::find(&dir.path().join("transhipd")).unwrap();
        // In place of CRIU, one that says what it finds.
        let text = loaded_criu(&preload, Path::new("/run/left-out"), Path::new("/usr/bin/printenv")).unwrap();
        let script = dir.path().join("criu");
        write_script(&script, &text).unwrap();
        let run = |name: &str| {
            let output = std::process::Command::new("/bin/sh").arg(&script).arg(name).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        assert_eq!(run("TRANSHIP_LEFT_OUT"), "/run/left-out\n");
        assert_eq!(run("LD_PRELOAD"), format!("{}/libtranship_preload.so\n", dir.path().display()));
        assert_eq!(run("PATH"), format!("{CHILD_PATH}\n"));
    }

    #[test]
    fn odd_paths_are_refused() {
        assert!(restore_script(Path::new("/a'b"), Path::new("/s"), id()).is_err());
        assert!(dump_script(Path::new("/a"), Path::new("/s\n")).is_err());
    }
}
