//! A lab as a whole: made, found again, removed.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::unistd::Uid;

use crate::cgroup;
use crate::error::{LabError, Result};
use crate::host::Host;
use crate::host_init::{HostSpec, STORES};
use crate::image;
use crate::names::{LabName, MAX_HOSTS, Network, host_name};
use crate::pki::Authority;
use crate::progress::{Progress, Quiet};
use crate::run::{LabCommand, Output};
use crate::state::{HostState, LabState, Lock, Phase, set_sysctls, start_time, write_json};
use crate::sys::Entrance;
use crate::{agent_config, rlimits, teardown, topology};

/// Programs under test, copied into every host, `tranship` also as `migrate`.
const PROGRAMS: [&str; 3] = ["transhipd", "tranship", "libtranship_preload.so"];

/// What `up` makes.
#[derive(Debug, Clone)]
pub struct LabOptions {
    /// Name of the lab.
    pub name: LabName,
    /// Number of hosts, 1 to 26.
    pub hosts: usize,
    /// Whether to start agents. Without, the programs under test need not exist.
    pub agents: bool,
}

/// A running lab. Dropping it leaves the lab as it is; see [`Lab::down`].
#[derive(Debug, Clone)]
pub struct Lab {
    state: LabState,
}

impl Lab {
    /// Makes a lab. On failure everything made so far is removed again.
    pub fn up(options: &LabOptions, progress: &dyn Progress) -> Result<Self> {
        if !Uid::effective().is_root() {
            return Err(LabError::Missing {
                what: "the lab makes namespaces and mounts, and this is not root".into(),
                hint: "run it as root".into(),
            });
        }
        if !(1..=MAX_HOSTS).contains(&options.hosts) {
            return Err(LabError::Invalid {
                what: format!("a lab cannot have {} hosts", options.hosts),
                hint: format!("from 1 to {MAX_HOSTS}"),
            });
        }
        let programs = find_programs(options.agents)?;
        let builder = find_lab_program()?;
        let rootfs = image::host_rootfs(progress)?;
        let lock = Lock::take()?;
        match LabState::load(&options.name) {
            Ok(Some(state)) if state.alive() => {
                return Err(LabError::AlreadyUp(options.name.to_string()));
            }
            // A state that cannot be read is one more thing to be removed.
            _ => {
                if teardown::remove(&options.name)? {
                    progress.step("removed what an earlier lab of this name had left");
                }
            }
        }
        match build(options, &programs, &builder, &rootfs, &lock, progress) {
            Ok(lab) => Ok(lab),
            Err(e) => {
                drop(lock);
                match teardown::down(&options.name) {
                    Ok(_) => Err(e),
                    Err(left) => Err(LabError::System {
                        what: format!("start lab {}", options.name),
                        source: std::io::Error::other(format!("{e}; and removing it: {left}")),
                    }),
                }
            }
        }
    }

    /// The running lab of this name.
    pub fn attach(name: &LabName) -> Result<Self> {
        match LabState::load(name)? {
            Some(state) if state.alive() => Ok(Self { state }),
            _ => Err(LabError::NotUp(name.to_string())),
        }
    }

    /// For tests: the running lab of this name if it has at least `hosts` hosts and the programs
    /// as they are built now, else a new one with agents. Agents that do not run are started,
    /// faults are healed.
    pub fn attach_or_up(name: &str, hosts: usize) -> Result<Self> {
        let name = LabName::new(name)?;
        let programs = hashes(&find_programs(true)?)?;
        if let Ok(lab) = Self::attach(&name) {
            if lab.state.hosts.len() >= hosts && lab.state.agents && lab.state.programs == programs {
                lab.heal_all()?;
                for host in lab.hosts() {
                    if host.agent_pid()?.is_none() {
                        host.start_agent()?;
                    }
                }
                return Ok(lab);
            }
            lab.down()?;
        }
        Self::up(&LabOptions { name, hosts, agents: true }, &Quiet)
    }

    /// Removes the lab and every trace of it.
    pub fn down(&self) -> Result<()> {
        teardown::down(&self.state.name).map(drop)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &LabName {
        &self.state.name
    }

    /// Whether it was started with agents.
    #[must_use]
    pub fn has_agents(&self) -> bool {
        self.state.agents
    }

    /// All hosts in order.
    #[must_use]
    pub fn hosts(&self) -> Vec<Host> {
        let make = |host: &HostState| Host::new(self.state.name.clone(), host.clone());
        self.state.hosts.iter().map(make).collect()
    }

    /// The host of this name.
    ///
    /// # Errors
    /// [`LabError::Missing`] when the lab has no such host.
    pub fn find_host(&self, name: &str) -> Result<Host> {
        self.hosts().into_iter().find(|host| host.name() == name).ok_or_else(|| LabError::Missing {
            what: format!("lab {} has no host {name}", self.state.name),
            hint: "`tranship-lab status` lists them".into(),
        })
    }

    /// The host of this name, for tests.
    ///
    /// # Panics
    /// When the lab has no such host.
    #[must_use]
    pub fn host(&self, name: &str) -> Host {
        match self.find_host(name) {
            Ok(host) => host,
            Err(e) => panic!("{e}"),
        }
    }

    /// A program to be run in the client namespace: network and cgroup of the lab, files of the
    /// machine, and the programs under test first in PATH.
    pub fn client_command<I>(&self, args: I) -> Result<LabCommand>
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        let group = format!("{}/client", self.state.name.cgroup());
        let entrance = Entrance::network(
            &topology::netns_file(&self.state.name.client_netns()),
            &cgroup::procs_files(&group)?,
        )?;
        let mut path = self.state.name.bin_dir().into_os_string();
        if let Some(rest) = std::env::var_os("PATH") {
            path.push(":");
            path.push(rest);
        }
        Ok(LabCommand::new("client", args, entrance)?.env("PATH", path))
    }

    /// Runs a program in the client namespace to its end.
    pub fn client_run<I>(&self, args: I) -> Result<Output>
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        self.client_command(args)?.run()
    }

    /// Starts a program in the client namespace; streams as for [`Host::spawn`].
    pub fn client_spawn<I>(&self, args: I) -> Result<Child>
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        self.client_command(args)?.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()
    }

    /// File of the client's network namespace, for programs that enter it themselves.
    #[must_use]
    pub fn client_netns(&self) -> PathBuf {
        topology::netns_file(&self.state.name.client_netns())
    }
}

fn build(
    options: &LabOptions,
    programs: &BTreeMap<String, PathBuf>,
    builder: &Path,
    rootfs: &Path,
    lock: &Lock,
    progress: &dyn Progress,
) -> Result<Lab> {
    let name = &options.name;
    let dir = name.dir();
    make_dir(&dir)?;
    let mut state = LabState {
        name: name.clone(),
        phase: Phase::Building,
        agents: options.agents,
        programs: hashes(programs)?,
        hosts: (0..options.hosts)
            .map(|index| HostState { name: host_name(index), index, init_pid: 0, init_start: 0 })
            .collect(),
    };
    state.save()?;
    for sysctl in set_sysctls(lock)? {
        progress.step(&format!("set {sysctl} until the last lab is removed"));
    }
    progress.step("making the networks lan (10.77.0.0/16) and back (10.78.0.0/16)");
    cgroup::create(&format!("{}/client", name.cgroup()))?;
    topology::create(name)?;
    copy_programs(name, programs)?;
    let authority = Authority::new(name.as_str())?;
    let operator = authority.operator("lab")?;
    authority.install(&name.operator_dir(), "operator", &operator)?;

    for index in 0..options.hosts {
        let host = host_name(index);
        progress.step(&format!("making {host} ({})", Network::Lan.host_v4(index)));
        furnish(options, index)?;
        let pki = name.host_dir(&host).join("upper/etc/tranship/pki");
        authority.install(&pki, "host", &authority.agent(&host)?)?;
        authority.install(&pki, "operator", &operator)?;
        let (pid, start) = launch(name, &host, builder, rootfs)?;
        if let Some(entry) = state.hosts.get_mut(index) {
            entry.init_pid = pid;
            entry.init_start = start;
            let handle = Host::new(name.clone(), entry.clone());
            state.save()?;
            topology::connect_host(name, &host, index, pid, handle.entrance()?)?;
        }
    }
    state.phase = Phase::Up;
    state.save()?;
    let lab = Lab { state };
    if let Some(host) = lab.hosts().first() {
        progress.step(&versions(host)?);
    }
    if options.agents {
        for host in lab.hosts() {
            host.start_agent()?;
            progress.step(&format!("agent of {} answers", host.name()));
        }
    }
    Ok(lab)
}

/// Versions of what the hosts run on.
pub fn versions(host: &Host) -> Result<String> {
    let script =
        "uname -r; criu --version | head -n1; runc --version | head -n1; conmon --version | head -n1";
    let text = host.run(["sh", "-c", script])?.ok()?;
    let mut lines = text.lines();
    let kernel = lines.next().unwrap_or("?");
    let rest: Vec<String> =
        lines.map(|line| line.replace("Version: ", "criu ").replace("version ", "")).collect();
    Ok(format!("kernel {kernel}, {}", rest.join(", ")))
}

/// Everything in the host's own layer and stores before it starts.
fn furnish(options: &LabOptions, index: usize) -> Result<()> {
    let name = &options.name;
    let host = host_name(index);
    let dir = name.host_dir(&host);
    let upper = dir.join("upper");
    for sub in ["upper", "work", "root", "store"] {
        make_dir(&dir.join(sub))?;
    }
    for (_, store) in STORES {
        make_dir(&dir.join("store").join(store))?;
    }
    let etc = upper.join("etc");
    make_dir(&etc.join("tranship"))?;
    write(&etc.join("hostname"), &format!("{host}\n"))?;
    let mut names = String::from("127.0.0.1 localhost\n::1 localhost\n");
    for other in 0..options.hosts {
        names.push_str(&format!("{} {}\n", Network::Lan.host_v4(other), host_name(other)));
    }
    write(&etc.join("hosts"), &names)?;
    write(&etc.join("tranship/transhipd.toml"), &agent_config::render(index, options.hosts)?)?;
    rlimits::install(&upper)?;
    let bin = upper.join("usr/local/bin");
    make_dir(&bin)?;
    let copies = name.bin_dir();
    for entry in fs::read_dir(&copies).map_err(LabError::io("list", &copies))? {
        let entry = entry.map_err(LabError::io("list", &copies))?;
        // A link and not a copy: debug builds are large.
        let to = bin.join(entry.file_name());
        fs::hard_link(entry.path(), &to).map_err(LabError::io("link", &to))?;
    }
    let dirs = [&upper, &etc, &upper.join("usr"), &upper.join("usr/local"), &bin];
    for dir in dirs {
        open_up(dir)?;
    }
    Ok(())
}

fn copy_programs(name: &LabName, programs: &BTreeMap<String, PathBuf>) -> Result<()> {
    let bin = name.bin_dir();
    make_dir(&bin)?;
    for (program, from) in programs {
        let to = bin.join(program);
        fs::copy(from, &to).map_err(LabError::io("copy a program to", &to))?;
        if program == "tranship" {
            let link = bin.join("migrate");
            fs::hard_link(&to, &link).map_err(LabError::io("link", &link))?;
        }
    }
    Ok(())
}

/// Runs `host-init` and waits until the host stands. Returns its first process and start time.
fn launch(name: &LabName, host: &str, builder: &Path, rootfs: &Path) -> Result<(i32, u64)> {
    let group = format!("{}/{host}", name.cgroup());
    cgroup::create(&group)?;
    let root_group = |h: &cgroup::Hierarchy| h.mount.join(&group);
    let hierarchies = cgroup::hierarchies()?;
    let v2 = cgroup::v2_mount()?.join(&group);
    let spec = HostSpec {
        name: host.to_owned(),
        rootfs: rootfs.to_path_buf(),
        dir: name.host_dir(host),
        images: image::images_dir()?,
        groups: hierarchies.iter().map(|h| root_group(h).join("cgroup.procs")).collect(),
        init_group: v2.join(cgroup::INIT_GROUP).join("cgroup.procs"),
    };
    let file = name.host_dir(host).join("host.json");
    write_json(&file, &spec)?;
    let log = name.host_dir(host).join("init.log");
    let errors = fs::File::create(&log).map_err(LabError::io("create", &log))?;
    let mut child = Command::new(builder)
        .arg("host-init")
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(errors)
        .spawn()
        .map_err(LabError::system(format!("start {}", builder.display())))?;
    let mut pid = None;
    let mut ready = false;
    if let Some(out) = child.stdout.take() {
        for line in BufReader::new(out).lines().map_while(std::result::Result::ok) {
            match line.strip_prefix("pid ") {
                Some(number) => pid = number.parse::<i32>().ok(),
                None => ready |= line == "ready",
            }
            if ready && pid.is_some() {
                break;
            }
        }
    }
    let _ = child.wait();
    // Now that the root group is empty, it can hand its controllers to containers.
    cgroup::hand_down(&v2);
    match pid.and_then(|pid| Some((pid, start_time(pid)?))) {
        Some(found) if ready => Ok(found),
        _ => Err(LabError::Command {
            what: format!("the first process of {host}"),
            status: "failure".into(),
            stderr: image::tail(&log, 20),
        }),
    }
}

fn directories_to_search() -> Vec<PathBuf> {
    let mut dirs = Vec::new();
    if let Some(dir) = std::env::var_os("TRANSHIP_LAB_BIN") {
        dirs.push(PathBuf::from(dir));
    }
    if let Ok(own) = std::env::current_exe() {
        // Tests run from `deps`, one below the programs.
        dirs.extend(own.ancestors().skip(1).take(2).map(Path::to_path_buf));
    }
    dirs
}

fn find(program: &str) -> Result<PathBuf> {
    directories_to_search().into_iter().map(|dir| dir.join(program)).find(|path| path.is_file()).ok_or_else(
        || LabError::Missing {
            what: format!("the program {program} is not beside this one"),
            hint: "build everything: `cargo build --workspace` (or point TRANSHIP_LAB_BIN to the \
                   directory with the programs)"
                .into(),
        },
    )
}

fn find_programs(agents: bool) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    for program in PROGRAMS {
        match find(program) {
            Ok(path) => drop(found.insert(program.to_owned(), path)),
            Err(e) if agents => return Err(e),
            Err(_) => {}
        }
    }
    Ok(found)
}

fn find_lab_program() -> Result<PathBuf> {
    match std::env::current_exe() {
        Ok(own) if own.file_name() == Some(OsStr::new("tranship-lab")) => Ok(own),
        _ => find("tranship-lab"),
    }
}

fn hashes(programs: &BTreeMap<String, PathBuf>) -> Result<BTreeMap<String, String>> {
    let mut hashes = BTreeMap::new();
    for (program, path) in programs {
        let mut hasher = blake3::Hasher::new();
        let mut file = fs::File::open(path).map_err(LabError::io("open", path))?;
        std::io::copy(&mut file, &mut hasher).map_err(LabError::io("read", path))?;
        hashes.insert(program.clone(), hasher.finalize().to_hex()[..16].to_owned());
    }
    Ok(hashes)
}

fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(LabError::io("create", path))
}

// Directories of the layer hide those below; with a strict umask nobody but root could enter them.
fn open_up(path: &Path) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(LabError::io("open up", path))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(LabError::io("write", path))
}
