//! Certificate and key files: keys for their owner only, nothing replaced by accident.

use super::PkiError;
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Largest PEM file that is read.
const MAX_PEM: u64 = 1 << 20;

/// Reads a PEM file.
pub fn read_pem(path: &Path) -> Result<String, PkiError> {
    let file = |source| PkiError::File { what: "read", path: path.into(), source };
    let mut text = String::new();
    fs::File::open(path).map_err(file)?.take(MAX_PEM).read_to_string(&mut text).map_err(file)?;
    Ok(text)
}

/// Makes a directory that only its owner can enter, unless it is there.
pub fn make_dir(dir: &Path) -> Result<(), PkiError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|source| PkiError::File {
        what: "make the directory",
        path: dir.into(),
        source,
    })
}

/// Writes files with their modes into `dir`, all or none as far as existing ones are concerned:
/// without `force`, one that is there stops everything before anything is written.
pub fn write_new(dir: &Path, files: &[(&str, &str, u32)], force: bool) -> Result<(), PkiError> {
    make_dir(dir)?;
    if !force
        && let Some((name, ..)) = files.iter().find(|(name, ..)| dir.join(name).symlink_metadata().is_ok())
    {
        return Err(PkiError::Exists { path: dir.join(name) });
    }
    files.iter().try_for_each(|(name, content, mode)| replace(dir, name, content, *mode))
}

/// A new file beside the old one, flushed, then renamed: a key is never half written, and never
/// readable by others, not even for a moment.
fn replace(dir: &Path, name: &str, content: &str, mode: u32) -> Result<(), PkiError> {
    let path = dir.join(name);
    let new = dir.join(format!(".{name}.new"));
    let write = || -> std::io::Result<()> {
        match fs::remove_file(&new) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        fs::File::open(dir)?.sync_all()
    };
    write().map_err(|source| {
        // What is left of a failed attempt is of no use; the first error is the one to report.
        let _ = fs::remove_file(&new);
        PkiError::File { what: "write", path: path.clone(), source }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn nothing_is_replaced_unless_asked_and_keys_are_private() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("a/pki");
        write_new(&dir, &[("ca.pem", "one", 0o644), ("ca.key", "secret", 0o600)], false).unwrap();
        let mode = |name: &str| fs::metadata(dir.join(name)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("ca.key"), mode("."), mode("ca.pem") & 0o600), (0o600, 0o700, 0o600));
        let e = write_new(&dir, &[("new.pem", "x", 0o644), ("ca.key", "two", 0o600)], false).unwrap_err();
        assert!(matches!(e, PkiError::Exists { .. }));
        assert!(!dir.join("new.pem").exists());
        assert_eq!(read_pem(&dir.join("ca.key")).unwrap(), "secret");
        write_new(&dir, &[("ca.key", "two", 0o600)], true).unwrap();
        assert_eq!(read_pem(&dir.join("ca.key")).unwrap(), "two");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 2);
    }

    #[test]
    fn a_dangling_link_counts_as_there() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/nonexistent/x", dir.path().join("ca.key")).unwrap();
        assert!(write_new(dir.path(), &[("ca.key", "x", 0o600)], false).is_err());
    }
}
