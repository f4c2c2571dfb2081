//! The library that is loaded into CRIU (`preload/`): where it is, and what it is told by the environment.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Its file.
const LIBRARY: &str = "libtranship_preload.so";
/// Where it is looked for when it is not beside the agent's program.
const DIRECTORIES: [&str; 2] = ["/usr/local/lib/tranship", "/usr/lib/tranship"];
/// Errors and warnings: what is read when CRIU has failed.
const LOG_LEVEL: &str = "2";

/// The library, to be loaded into one CRIU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preload {
    library: PathBuf,
}

impl Preload {
    /// The one that came with the agent whose program this is; none when it is not installed.
    pub fn find(program: &Path) -> Option<Self> {
        let beside = program.parent().into_iter().map(Path::to_path_buf);
        let all = beside.chain(DIRECTORIES.map(PathBuf::from)).map(|dir| dir.join(LIBRARY));
        all.into_iter().find(|library| library.is_file()).map(|library| Self { library })
    }

    /// What CRIU finds in its environment, for a restore, or for a dump with the file that names what is
    /// left out.
    pub fn environment(&self, left_out: Option<&Path>) -> Vec<(&'static str, OsString)> {
        let mut all = vec![
            ("LD_PRELOAD", self.library.clone().into_os_string()),
            ("TRANSHIP_CRIU_LOG_LEVEL", LOG_LEVEL.into()),
        ];
        all.extend(left_out.map(|path| ("TRANSHIP_LEFT_OUT", path.into())));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_beside_the_program_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("transhipd");
        let found = || Preload::find(&program).filter(|p| p.library.starts_with(dir.path()));
        assert_eq!(found(), None);
        std::fs::write(dir.path().join(LIBRARY), "").unwrap();
        let environment = found().unwrap().environment(Some(Path::new("/run/x")));
        assert_eq!(environment[0], ("LD_PRELOAD", dir.path().join(LIBRARY).into()));
        assert_eq!(environment[2], ("TRANSHIP_LEFT_OUT", "/run/x".into()));
        assert_eq!(found().unwrap().environment(None).len(), 2);
    }
}
