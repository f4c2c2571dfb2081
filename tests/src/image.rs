//! Root file systems of hosts and containers, built by the recipes in `deploy/lab` and cached.
//!
//! A root file system is kept under the hash of its recipe (the script's text and its arguments),
//! outside the checkout: a second start costs nothing, and a changed recipe is built anew. It is
//! built in a directory beside and moved into place when complete.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::{LabError, Result};
use crate::names::cache_dir;
use crate::progress::Progress;
use crate::state::write_json;
use crate::teardown::unmount_below;

const HOST_RECIPE: &str = include_str!("../../deploy/lab/host-rootfs.sh");
const CONTAINER_RECIPE: &str = include_str!("../../deploy/lab/container-rootfs.sh");

/// How a root file system is made.
#[derive(Debug, Clone)]
pub struct Recipe {
    script: &'static str,
    packages: Vec<String>,
    /// For messages.
    what: String,
}

/// A cached container image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// The name it was built under.
    pub name: String,
    /// Hash of the recipe.
    pub key: String,
    /// Debian packages in it, beside the minimal base.
    pub packages: Vec<String>,
}

impl Recipe {
    /// The root file system of the lab's hosts.
    #[must_use]
    pub fn host() -> Self {
        Self { script: HOST_RECIPE, packages: Vec::new(), what: "host root file system".into() }
    }

    /// A container root file system with these Debian packages.
    pub fn container(name: &str, packages: &[String]) -> Result<Self> {
        check_name("image", name, |b| b == b'-' || b == b'_')?;
        let mut packages = packages.to_vec();
        packages.sort();
        packages.dedup();
        for package in &packages {
            check_name("Debian package", package, |b| b"+-.:".contains(&b))?;
        }
        Ok(Self { script: CONTAINER_RECIPE, packages, what: format!("image {name}") })
    }

    /// What it is cached under: 16 hexadecimal digits.
    #[must_use]
    pub fn key(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.script.as_bytes());
        for package in &self.packages {
            hasher.update(b"\0");
            hasher.update(package.as_bytes());
        }
        hasher.finalize().to_hex()[..16].to_owned()
    }

    fn build(&self, target: &Path, lock: &File, progress: &dyn Progress) -> Result<()> {
        let key = self.key();
        require("debootstrap")?;
        let work = make_dir(cache_dir().join("build"))?.join(&key);
        discard(&work)?;
        let log = make_dir(cache_dir().join("log"))?.join(format!("{key}.log"));
        progress.step(&format!(
            "building {} with debootstrap, a few minutes, once (log: {})",
            self.what,
            log.display()
        ));
        let started = Instant::now();
        if let Err(e) = self.run_script(&work, &log, lock, progress) {
            return match discard(&work) {
                Ok(()) => Err(e),
                Err(left) => Err(LabError::System {
                    what: format!("build {}", self.what),
                    source: io::Error::other(format!("{e}; and cleaning up after it: {left}")),
                }),
            };
        }
        // An older build under the same name makes room only now that there is a new one.
        discard(target)?;
        fs::rename(&work, target).map_err(LabError::io("move into place", target))?;
        progress.step(&format!("built {} in {} s", self.what, started.elapsed().as_secs()));
        Ok(())
    }

    fn run_script(&self, work: &Path, log: &Path, lock: &File, progress: &dyn Progress) -> Result<()> {
        let script = log.with_extension("sh");
        fs::write(&script, self.script).map_err(LabError::io("write", &script))?;
        let output = File::create(log).map_err(LabError::io("create", log))?;
        let errors = output.try_clone().map_err(LabError::io("open", log))?;
        // The script keeps the lock as its (empty) input: if this process is killed, nobody else
        // builds in the same place before the script's last program has ended.
        let lock = lock.try_clone().map_err(LabError::system("share the lock"))?;
        let mut child = Command::new("bash")
            .arg(&script)
            .arg(work)
            .args(&self.packages)
            .stdin(lock)
            .stdout(output)
            .stderr(errors)
            .spawn()
            .map_err(LabError::system("start bash"))?;
        let mut told = Instant::now();
        let status = loop {
            match child.try_wait().map_err(LabError::system("wait for bash"))? {
                Some(status) => break status,
                None => std::thread::sleep(Duration::from_millis(200)),
            }
            if told.elapsed() > Duration::from_secs(15) {
                told = Instant::now();
                progress.step(&format!("  ... {}", last_line(log)));
            }
        };
        let _ = fs::remove_file(&script);
        if status.success() {
            return Ok(());
        }
        Err(LabError::Command {
            what: format!("the recipe of the {}", self.what),
            status: status.to_string(),
            stderr: format!("its log, {}, ends with\n{}", log.display(), tail(log, 20)),
        })
    }
}

/// The hosts' root file system, built if it is not cached.
pub fn host_rootfs(progress: &dyn Progress) -> Result<PathBuf> {
    let recipe = Recipe::host();
    let path = host_rootfs_path();
    if !path.exists() {
        let lock = lock(&recipe.key(), &recipe.what, progress)?;
        if !path.exists() {
            make_dir(cache_dir().join("hosts"))?;
            recipe.build(&path, &lock, progress)?;
        }
    }
    Ok(path)
}

/// Where the hosts' root file system is, or will be.
#[must_use]
pub fn host_rootfs_path() -> PathBuf {
    cache_dir().join("hosts").join(Recipe::host().key())
}

/// Container images, one directory each; visible in every host as /lab/images.
pub fn images_dir() -> Result<PathBuf> {
    make_dir(cache_dir().join("images"))
}

/// A container root file system called `name` with these packages, built if it is not cached.
///
/// A name stands for one list of packages at a time: another list replaces it.
pub fn build(name: &str, packages: &[String], progress: &dyn Progress) -> Result<PathBuf> {
    let recipe = Recipe::container(name, packages)?;
    let path = images_dir()?.join(name);
    let current = |key: &str| path.exists() && matches!(read(name), Ok(Some(image)) if image.key == key);
    if current(&recipe.key()) {
        return Ok(path);
    }
    let lock = lock(name, &recipe.what, progress)?;
    if !current(&recipe.key()) {
        let record = record_file(name)?;
        let _ = fs::remove_file(&record);
        recipe.build(&path, &lock, progress)?;
        write_json(&record, &Image { name: name.to_owned(), key: recipe.key(), packages: recipe.packages })?;
    }
    Ok(path)
}

/// All cached container images, by name.
pub fn list() -> Result<Vec<Image>> {
    let dir = images_dir()?;
    let mut images = Vec::new();
    for entry in fs::read_dir(&dir).map_err(LabError::io("list", &dir))? {
        let entry = entry.map_err(LabError::io("list", &dir))?;
        if let Some(image) = entry.file_name().to_str().and_then(|n| read(n).ok()?) {
            images.push(image);
        }
    }
    images.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(images)
}

/// Directory of a cached image.
pub fn path(name: &str) -> Result<PathBuf> {
    check_name("image", name, |b| b == b'-' || b == b'_')?;
    let path = images_dir()?.join(name);
    if path.exists() && read(name)?.is_some() {
        return Ok(path);
    }
    Err(LabError::Missing {
        what: format!("there is no image {name}"),
        hint: format!("build it: `tranship-lab image build {name} --packages \"...\"`"),
    })
}

fn record_file(name: &str) -> Result<PathBuf> {
    Ok(make_dir(cache_dir().join("recipes"))?.join(format!("{name}.json")))
}

fn read(name: &str) -> Result<Option<Image>> {
    let path = record_file(name)?;
    match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|e| LabError::Malformed { path, reason: e.to_string() }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(LabError::io("read", &path)(e)),
    }
}

fn check_name(what: &str, name: &str, also: impl Fn(u8) -> bool) -> Result<()> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let first = name.bytes().next().is_some_and(plain);
    if first && name.len() <= 64 && name.bytes().all(|b| plain(b) || also(b)) {
        return Ok(());
    }
    Err(LabError::Invalid {
        what: format!("{name:?} is not a name for a {what}"),
        hint: "lower-case letters, digits and dashes, at most 64".into(),
    })
}

fn make_dir(path: PathBuf) -> Result<PathBuf> {
    fs::create_dir_all(&path).map_err(LabError::io("create", &path))?;
    // What is built is for every user of the hosts to see; the umask may say otherwise.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(LabError::io("open up", &path))?;
    Ok(path)
}

/// One builder of a thing at a time; the others wait and find it built.
fn lock(key: &str, what: &str, progress: &dyn Progress) -> Result<File> {
    let path = make_dir(cache_dir().join("lock"))?.join(key);
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)
        .map_err(LabError::io("create", &path))?;
    if file.try_lock().is_err() {
        progress.step(&format!("waiting for another build of the {what}"));
        file.lock().map_err(LabError::io("lock", &path))?;
    }
    Ok(file)
}

/// Removes a root file system; one whose build was killed still has mounts in it.
fn discard(dir: &Path) -> Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    unmount_below(dir)?;
    fs::remove_dir_all(dir).map_err(LabError::io("remove", dir))
}

fn require(program: &str) -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|dir| dir.join(program).is_file()) {
        return Ok(());
    }
    Err(LabError::Missing {
        what: format!("the program {program} is not installed"),
        hint: format!("install it: `apt-get install {program}`"),
    })
}

fn last_line(log: &Path) -> String {
    tail(log, 1)
}

/// The last lines of a log; empty when it cannot be read.
pub(crate) fn tail(log: &Path, count: usize) -> String {
    let Ok(file) = File::open(log) else {
        return String::new();
    };
    let mut lines = std::collections::VecDeque::new();
    for line in BufReader::new(file).split(b'\n').map_while(Result::ok) {
        if lines.len() == count {
            lines.pop_front();
        }
        lines.push_back(String::from_utf8_lossy(&line).into_owned());
    }
    Vec::from(lines).join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_follows_script_and_packages() {
        let key = |packages: &[&str]| {
            let packages: Vec<String> = packages.iter().map(|p| (*p).to_owned()).collect();
            Recipe::container("x", &packages).unwrap().key()
        };
        assert_eq!(key(&["b", "a"]), key(&["a", "b", "a"]));
        assert_ne!(key(&["a"]), key(&["a", "b"]));
        assert_ne!(key(&["ab"]), key(&["a", "b"]));
        assert_ne!(key(&[]), Recipe::host().key());
        assert_eq!(key(&[]).len(), 16);
    }

    #[test]
    fn names_cannot_leave_the_cache_or_become_options() {
        for bad in ["..", "a/b", "-x", "", "A"] {
            assert!(Recipe::container(bad, &[]).is_err(), "{bad}");
            assert!(Recipe::container("x", &[bad.to_owned()]).is_err(), "{bad}");
        }
        assert!(Recipe::container("redis-7", &["libstdc++6".into()]).is_ok());
    }

    #[test]
    fn the_tail_is_the_last_lines() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        fs::write(&log, "a\nb\nc\n").unwrap();
        assert_eq!(tail(&log, 2), "b\nc");
        assert_eq!(tail(&dir.path().join("none"), 2), "");
    }
}
