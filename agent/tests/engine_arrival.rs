//! A container that arrives: judged, received, settled or discarded; and what a crash in between leaves.
//! Files only; processes are the lab's business.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};
use tranship_agent::engine::{
    Arrival, Bare, BareConfig, ConfigInput, Container, ContainerState, Engine, EngineError, MovedContainer,
    Rootfs, RunSpec, Volume, VolumeSource, default_config,
};
use tranship_agent::hook::HookServer;
use tranship_agent::runtime::{Runc, RuncConfig};
use tranship_proto::ids::{ContainerName, Epoch, MigrationId};
use tranship_proto::status::{Reason, Side};

struct Host {
    dir: tempfile::TempDir,
    engine: Bare,
}

fn open(dir: &Path) -> Bare {
    for sub in ["run", "srv", "state"] {
        fs::create_dir_all(dir.join(sub)).unwrap();
    }
    let runc = Runc::new(RuncConfig {
        program: "runc".into(),
        root: dir.join("run/runc"),
        cgroup_parent: dir.join("cg/c"),
    });
    let config = BareConfig {
        state_dir: dir.join("state"),
        run_dir: dir.join("run"),
        volume_roots: vec![dir.join("srv")],
        conmon: "/nonexistent/conmon".into(),
        monitor_cgroup: dir.join("cg/m"),
        hook_program: Some("/bin/false".into()),
    };
    let hooks = Arc::new(HookServer::start(&dir.join("run")).unwrap());
    Bare::open(config, Arc::new(runc), hooks).unwrap()
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let engine = open(dir.path());
        Host { dir, engine }
    }

    fn path(&self, rest: &str) -> PathBuf {
        self.dir.path().join(rest)
    }

    fn volumes(&self) -> Vec<Volume> {
        vec![
            Volume {
                source: VolumeSource::Managed("data".into()),
                destination: "/data".into(),
                read_only: false,
            },
            Volume {
                source: VolumeSource::Path(self.path("srv/db")),
                destination: "/db".into(),
                read_only: false,
            },
        ]
    }

    fn moved(&self) -> MovedContainer {
        moved(self.volumes())
    }

    async fn prepare(&self, moved: &MovedContainer) -> Result<Arrival, EngineError> {
        self.engine.prepare_restore(id(1), &name(), Epoch(2), moved).await
    }

    /// Everything below the directory that containers may leave traces in.
    fn traces(&self) -> Vec<String> {
        let mut found = Vec::new();
        for top in ["state/containers", "state/incoming", "run/hooks", "srv"] {
            walk(&self.path(top), &mut found);
        }
        found
    }
}

fn walk(dir: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        found.push(entry.path().display().to_string());
        walk(&entry.path(), found);
    }
}

fn id(n: u8) -> MigrationId {
    format!("01890a5d-ac96-774b-bcce-b302099a80{n:02x}").parse().unwrap()
}

fn name() -> ContainerName {
    "web".parse().unwrap()
}

fn moved(volumes: Vec<Volume>) -> MovedContainer {
    let spec = RunSpec {
        name: name(),
        rootfs: Rootfs::Template("/t".into()),
        netns: "/n".into(),
        network: Value::Null,
        volumes: volumes.clone(),
        env: vec![],
        cwd: None,
        user: None,
        hostname: None,
        args: vec!["/bin/x".into()],
    };
    let container = Container {
        format: 1,
        name: name(),
        engine: "bare".into(),
        created_unix_ms: 5,
        epoch: Epoch(1),
        image: "/t".into(),
        command: vec!["/bin/x".into()],
        network: json!({ "mine": 1 }),
        volumes,
    };
    MovedContainer {
        container,
        config: default_config(&ConfigInput { spec: &spec, open_files: 100 }).unwrap(),
    }
}

#[tokio::test]
async fn an_arrival_has_only_paths_of_this_host() {
    let host = Host::new();
    let mut moved = host.moved();
    moved.config["root"]["path"] = json!("/etc");
    moved.config["linux"]["cgroupsPath"] = json!("/system.slice/sshd.service");
    moved.config["linux"]["namespaces"][1]["path"] = json!("/proc/1/ns/net");
    moved.config["mounts"][7]["source"] = json!("/");
    moved.config["mounts"][8]["source"] = json!("/etc");
    let arrival = host.prepare(&moved).await.unwrap();
    let config = &arrival.config;
    assert_eq!(config["root"]["path"], json!(host.path("state/containers/web/rootfs")));
    assert_eq!(config["linux"]["cgroupsPath"], "/tranship/web");
    assert_eq!(
        config["linux"]["namespaces"][1],
        json!({ "type": "network", "path": host.path("run/netns/web") })
    );
    assert_eq!(config["mounts"][7]["source"], json!(host.path("state/containers/web/volumes/1")));
    assert_eq!(config["mounts"][8]["source"], json!(host.path("srv/db")));
    assert_eq!(arrival.container.epoch, Epoch(2));
    assert_eq!(arrival.trees.iter().map(|t| t.index).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(host.traces(), Vec::<String>::new(), "judging left something");
}

#[tokio::test]
async fn hostile_descriptions_are_refused() {
    let host = Host::new();
    let path =
        |p: &str| Volume { source: VolumeSource::Path(p.into()), destination: "/v".into(), read_only: false };
    let read_only = |p: &str| Volume { read_only: true, ..path(p) };
    let srv = host.path("srv");
    fs::create_dir_all(srv.join("full/x")).unwrap();
    std::os::unix::fs::symlink("/etc", srv.join("link")).unwrap();
    let below = |p: &str| srv.join(p).display().to_string();
    let managed = |n: &str, d: &str| Volume {
        source: VolumeSource::Managed(n.into()),
        destination: d.into(),
        read_only: false,
    };
    let bad_volumes: Vec<(&str, Vec<Volume>)> = vec![
        ("outside of the roots", vec![path("/etc")]),
        ("the root itself", vec![path(srv.to_str().unwrap())]),
        ("climbing", vec![path(&below("a/../../state"))]),
        ("relative", vec![path("srv/a")]),
        ("a symbolic link", vec![path(&below("link"))]),
        ("behind a symbolic link", vec![path(&below("link/ssh"))]),
        ("not empty", vec![path(&below("full"))]),
        ("read-only and missing", vec![read_only(&below("missing"))]),
        ("read-only outside", vec![read_only("/etc")]),
        ("an odd name", vec![managed("../x", "/v")]),
        ("an odd destination", vec![managed("x", "/v/../..")]),
        ("the root as destination", vec![managed("x", "/")]),
        ("twice", vec![managed("x", "/v"), managed("y", "/v")]),
        (
            "one in the other",
            vec![path(&below("a")), Volume { destination: "/w".into(), ..path(&below("a/b")) }],
        ),
        ("over proc", vec![managed("x", "/proc/x")]),
        ("too many", (0..65).map(|i| managed("x", &format!("/v{i}"))).collect()),
    ];
    for (what, volumes) in bad_volumes {
        assert!(host.prepare(&moved(volumes)).await.is_err(), "{what}");
    }
    type Change = fn(&mut MovedContainer);
    let changes: Vec<(&str, Change)> = vec![
        ("format", |m| m.container.format = 2),
        ("name", |m| m.container.name = "other".parse().unwrap()),
        ("engine", |m| m.container.engine = "podman".into()),
        ("network", |m| m.container.network = json!("x".repeat(300_000))),
        ("image", |m| m.container.image = "x".repeat(5000)),
        ("hooks", |m| m.config["hooks"] = json!({ "poststart": [{ "path": "/x" }] })),
    ];
    for (what, change) in changes {
        let mut moved = host.moved();
        change(&mut moved);
        let error = host.prepare(&moved).await.unwrap_err();
        assert!(error.to_string().contains(what), "{what}: {error}");
    }
    let hooks = {
        let mut m = host.moved();
        m.config["hooks"] = json!({ "poststart": [1] });
        host.prepare(&m).await.unwrap_err()
    };
    assert_eq!(hooks.failure(Side::Destination).reason, Reason::NotMigratable);
    assert!(MovedContainer::from_bytes(&vec![b' '; MovedContainer::MAX_BYTES + 1]).is_err());
    assert!(MovedContainer::from_bytes(b"{\"container\":{},\"config\":{}}").is_err());
    assert!(MovedContainer::from_bytes("[".repeat(100_000).as_bytes()).is_err());
    let mut extra: Value = serde_json::from_slice(&host.moved().to_bytes().unwrap()).unwrap();
    extra["container"]["extra"] = json!(1);
    assert!(MovedContainer::from_bytes(&serde_json::to_vec(&extra).unwrap()).is_err());
}

#[tokio::test]
async fn received_and_settled() {
    let host = Host::new();
    let arrival = host.prepare(&host.moved()).await.unwrap();
    host.engine.make_room(&arrival).await.unwrap();
    host.engine.make_room(&arrival).await.unwrap();
    for tree in &arrival.trees {
        fs::write(tree.receive.join("file"), tree.index.to_string()).unwrap();
    }
    assert!(!host.path("srv/db").exists(), "a volume is not in its place before it is whole");
    let listed = host.engine.list().await.unwrap();
    assert_eq!((listed[0].state, listed[0].migration), (ContainerState::Arriving, Some(id(1))));
    // Not to be touched by hand, nor by another migration.
    assert!(host.engine.remove(&name(), true).await.is_err());
    assert!(host.engine.stop(&name(), std::time::Duration::ZERO).await.is_err());
    assert!(matches!(host.prepare(&host.moved()).await, Err(EngineError::Exists(_))));
    host.engine.discard(id(9), &name()).await.unwrap();
    // What would have been judged at the same moment for another migration.
    let other = Arrival { migration: id(9), trees: arrival.trees[..1].to_vec(), ..arrival.clone() };
    assert!(matches!(host.engine.make_room(&other).await, Err(EngineError::Exists(_))));
    host.engine.discard(id(9), &name()).await.unwrap();

    host.engine.adopt(&arrival).await.unwrap();
    host.engine.adopt(&arrival).await.unwrap();
    for tree in &arrival.trees {
        assert_eq!(fs::read_to_string(tree.home.join("file")).unwrap(), tree.index.to_string());
    }
    assert_eq!(host.engine.find_arrival(id(1)).await.unwrap().as_ref(), Some(&arrival));
    host.engine.settle(&arrival).await.unwrap();
    host.engine.settle(&arrival).await.unwrap();
    assert_eq!(host.engine.find_arrival(id(1)).await.unwrap(), None);
    let (container, summary) = host.engine.inspect(&name()).await.unwrap();
    assert_eq!(
        (container.epoch, summary.state, summary.migration),
        (Epoch(2), ContainerState::Stopped, None)
    );
    // Settled is settled: a late discard of the same migration takes nothing away.
    host.engine.discard(id(1), &name()).await.unwrap();
    assert!(host.path("srv/db/file").exists() && host.path("state/containers/web/rootfs/file").exists());
    assert_eq!(fs::read_dir(host.path("state/incoming")).unwrap().count(), 0);
}

/// Stops after each step, as a crash would, opens the engine anew and discards.
#[tokio::test]
async fn discarded_after_every_step() {
    for step in 0..6 {
        let host = Host::new();
        fs::write(host.path("srv/other"), "stays").unwrap();
        let arrival = host.prepare(&host.moved()).await.unwrap();
        let dir = host.path("state/containers/web");
        match step {
            0 => {}
            1 => {
                // Recorded, and the directory made, but not marked.
                host.engine.make_room(&arrival).await.unwrap();
                fs::remove_dir_all(&dir).unwrap();
                fs::create_dir(&dir).unwrap();
            }
            2 => host.engine.make_room(&arrival).await.unwrap(),
            3..=5 => {
                host.engine.make_room(&arrival).await.unwrap();
                for tree in &arrival.trees {
                    fs::write(tree.receive.join("file"), "x").unwrap();
                }
                if step >= 4 {
                    host.engine.adopt(&arrival).await.unwrap();
                }
                if step == 5 {
                    // A discard that had removed the volume and no more.
                    fs::remove_dir_all(host.path("srv/db")).unwrap();
                }
            }
            _ => unreachable!(),
        }
        let engine = open(host.dir.path());
        engine.discard(id(1), &name()).await.unwrap();
        engine.discard(id(1), &name()).await.unwrap();
        assert_eq!(host.traces(), [host.path("srv/other").display().to_string()], "step {step}");
    }
}

#[tokio::test]
async fn retiring_takes_travelled_volumes_and_spares_what_came_back() {
    let host = Host::new();
    let arrival = host.prepare(&host.moved()).await.unwrap();
    host.engine.make_room(&arrival).await.unwrap();
    host.engine.adopt(&arrival).await.unwrap();
    // Arriving: a late order to retire an earlier stay must not touch it.
    let back = async |released| host.engine.came_back(&name(), Epoch(released)).await.unwrap();
    assert!(back(9).await);
    host.engine.retire(&name(), Epoch(9)).await.unwrap();
    host.engine.settle(&arrival).await.unwrap();
    assert!(back(2).await && !back(3).await);
    host.engine.retire(&name(), Epoch(2)).await.unwrap();
    assert!(host.path("srv/db").exists(), "epoch 2 is here; it was not released");
    host.engine.retire(&name(), Epoch(3)).await.unwrap();
    host.engine.retire(&name(), Epoch(3)).await.unwrap();
    assert_eq!(host.traces(), Vec::<String>::new());
    assert!(matches!(host.engine.inspect(&name()).await, Err(EngineError::Unknown(_))));
    assert!(!back(3).await, "gone is not back");
}

#[tokio::test]
async fn removing_by_hand_leaves_host_paths() {
    let host = Host::new();
    let arrival = host.prepare(&host.moved()).await.unwrap();
    host.engine.make_room(&arrival).await.unwrap();
    host.engine.adopt(&arrival).await.unwrap();
    host.engine.settle(&arrival).await.unwrap();
    host.engine.remove(&name(), false).await.unwrap();
    assert_eq!(host.traces(), [host.path("srv/db").display().to_string()]);
    assert!(matches!(host.engine.remove(&name(), false).await, Err(EngineError::Unknown(_))));
}

#[tokio::test]
async fn a_shared_volume_neither_moves_nor_is_deleted() {
    let host = Host::new();
    for (n, container) in ["web", "twin"].into_iter().enumerate() {
        let name: ContainerName = container.parse().unwrap();
        let mut moved = host.moved();
        moved.container.name = name.clone();
        fs::remove_dir(host.path("srv/db")).ok();
        let arrival = host.engine.prepare_restore(id(n as u8), &name, Epoch(2), &moved).await.unwrap();
        host.engine.make_room(&arrival).await.unwrap();
        host.engine.adopt(&arrival).await.unwrap();
        host.engine.settle(&arrival).await.unwrap();
    }
    fs::write(host.path("srv/db/file"), "x").unwrap();
    let error = host.engine.describe(&name()).await.unwrap_err();
    assert!(error.to_string().contains("used by container twin"), "{error}");
    host.engine.retire(&name(), Epoch(3)).await.unwrap();
    assert!(host.path("srv/db/file").exists());
}

#[tokio::test]
async fn a_failed_start_leaves_nothing_and_says_why() {
    let host = Host::new();
    let template = host.path("template");
    fs::create_dir_all(template.join("bin")).unwrap();
    let spec = RunSpec {
        name: name(),
        rootfs: Rootfs::Template(template.clone()),
        netns: "/n".into(),
        network: Value::Null,
        volumes: vec![],
        env: vec![],
        cwd: None,
        user: None,
        hostname: None,
        args: vec!["/bin/x".into()],
    };
    let error = host.engine.create_and_start(spec.clone()).await.unwrap_err();
    assert!(error.to_string().contains("conmon"), "{error}");
    assert_eq!(host.traces(), Vec::<String>::new());
    for (spec, what) in [
        (RunSpec { args: vec![], ..spec.clone() }, "command line"),
        (RunSpec { rootfs: Rootfs::Template("/no/such".into()), ..spec.clone() }, "not a directory"),
        (RunSpec { rootfs: Rootfs::Bundle(template), ..spec.clone() }, "config.json"),
        (
            RunSpec {
                volumes: vec![Volume {
                    source: VolumeSource::Path("/etc".into()),
                    destination: "/v".into(),
                    read_only: true,
                }],
                ..spec
            },
            "volumes.roots",
        ),
    ] {
        let error = host.engine.create_and_start(spec).await.unwrap_err().to_string();
        assert!(error.contains(what), "{what}: {error}");
        assert_eq!(host.traces(), Vec::<String>::new());
    }
}
