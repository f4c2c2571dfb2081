//! Drives the engine by hand on one host: for trying things, and for timing them without network,
//! transport and journal.
//!
//! ```text
//! engine_by_hand run NAME ROOTFS|BUNDLE NETNS [SRC:DST...] -- CMD...
//! engine_by_hand ps                                  engine_by_hand logs NAME
//! engine_by_hand dump MIGRATION NAME                  engine_by_hand thaw NAME
//! engine_by_hand room MIGRATION NAME EPOCH            engine_by_hand restore|resume MIGRATION
//! engine_by_hand discard MIGRATION NAME               engine_by_hand retire NAME EPOCH
//! engine_by_hand stop NAME                            engine_by_hand rm NAME
//! engine_by_hand probe                                engine_by_hand hook ...
//! ```
//! `restore` waits, held, for a line `go` or `abort` on its input.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tranship_agent::criu;
use tranship_agent::engine::{
    Arrival, Bare, BareConfig, Engine, MovedContainer, RestoreHandle, RestoreRequest, Rootfs, RunSpec,
    Volume, VolumeSource,
};
use tranship_agent::hook::{HookServer, hook_main};
use tranship_agent::runtime::{CheckpointRequest, Pages, Runc, RuncConfig, Runtime};
use tranship_proto::ids::{ContainerName, Epoch, MigrationId};

const LIMIT: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|a| a == "hook") {
        return hook_main(std::env::args_os().skip(2));
    }
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("{e}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(&args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &[String]) -> anyhow::Result<()> {
    let state_dir = PathBuf::from("/var/lib/tranship");
    let run_dir = PathBuf::from("/run/tranship");
    let runc: Arc<dyn Runtime> = Arc::new(Runc::new(RuncConfig {
        program: "runc".into(),
        root: run_dir.join("runc"),
        cgroup_parent: "/sys/fs/cgroup/tranship".into(),
    }));
    let hooks = Arc::new(HookServer::start(&run_dir)?);
    let config = BareConfig {
        state_dir,
        run_dir: run_dir.clone(),
        volume_roots: vec!["/srv".into()],
        conmon: "conmon".into(),
        monitor_cgroup: "/sys/fs/cgroup/tranship-conmon".into(),
        hook_program: None,
    };
    let engine = Bare::open(config, runc.clone(), hooks)?;
    let images = |migration: MigrationId| run_dir.join("images").join(migration.to_string());
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["run", name, rootfs, netns, rest @ ..] => {
            let mut parts = rest.splitn(2, |w| *w == "--");
            let (volumes, command) = (parts.next().unwrap_or_default(), parts.next().context("no -- CMD")?);
            let volume = |text: &&str| {
                let (source, destination) = text.split_once(':').context("use SRC:DST")?;
                let source = match source.starts_with('/') {
                    true => VolumeSource::Path(source.into()),
                    false => VolumeSource::Managed(source.to_owned()),
                };
                anyhow::Ok(Volume { source, destination: destination.to_owned(), read_only: false })
            };
            let bundle = Path::new(rootfs).join("config.json").exists();
            let spec = RunSpec {
                name: name.parse()?,
                rootfs: if bundle { Rootfs::Bundle(rootfs.into()) } else { Rootfs::Template(rootfs.into()) },
                netns: netns.into(),
                network: serde_json::Value::Null,
                volumes: volumes.iter().map(volume).collect::<Result<_, _>>()?,
                env: Vec::new(),
                cwd: None,
                user: None,
                hostname: None,
                args: command.iter().map(|s| (*s).to_owned()).collect(),
            };
            let started = Instant::now();
            let container = engine.create_and_start(spec).await?;
            println!("{} runs after {:?}", container.name, started.elapsed());
        }
        ["ps"] => {
            for c in engine.list().await? {
                println!(
                    "{} {} {:?} exit {:?} epoch {} {:?}",
                    c.name, c.state, c.pid, c.exit_code, c.epoch, c.command
                );
            }
        }
        ["dump", migration, name] => {
            dump(&engine, &*runc, migration.parse()?, &name.parse()?, &images(migration.parse()?)).await?
        }
        ["logs", name] => {
            let mut lines = engine.logs(&name.parse()?, false, Some(20)).await?;
            while let Some(line) = lines.recv().await {
                println!("{} {}", line.time, line.text);
            }
        }
        ["thaw", name] => runc.thaw(name, LIMIT).await?,
        ["room", migration, name, epoch] => {
            let moved =
                MovedContainer::from_bytes(&std::fs::read(images(migration.parse()?).join("moved.json"))?)?;
            let arrival = engine
                .prepare_restore(migration.parse()?, &name.parse()?, Epoch(epoch.parse()?), &moved)
                .await?;
            engine.make_room(&arrival).await?;
            arrival.trees.iter().for_each(|t| println!("{} {}", t.index, t.receive.display()));
        }
        ["restore", migration] => restore(&engine, migration.parse()?, &images(migration.parse()?)).await?,
        ["resume", migration] => {
            let arrival = engine.find_arrival(migration.parse()?).await?.context("no such arrival")?;
            let handle = engine.resume_hold(&arrival).await?;
            decide(&engine, &arrival, handle, Instant::now()).await?;
        }
        ["discard", migration, name] => engine.discard(migration.parse()?, &name.parse()?).await?,
        ["retire", name, epoch] => engine.retire(&name.parse()?, Epoch(epoch.parse()?)).await?,
        ["stop", name] => engine.stop(&name.parse()?, LIMIT).await?,
        ["rm", name] => engine.remove(&name.parse()?, true).await?,
        ["probe"] => {
            let programs =
                criu::Programs { criu: "criu".into(), runc: "runc".into(), conmon: "conmon".into() };
            let started = Instant::now();
            let found = criu::probe(&programs).await;
            println!("{found:#?}\nobstacles {:?}\nafter {:?}", found.obstacles(), started.elapsed());
        }
        _ => bail!("see the head of the source for the commands"),
    }
    Ok(())
}

async fn dump(
    engine: &Bare,
    runc: &dyn Runtime,
    migration: MigrationId,
    name: &ContainerName,
    images: &Path,
) -> anyhow::Result<()> {
    let moved = engine.describe(name).await?;
    let (init, pids) = engine.processes(name).await?;
    let started = Instant::now();
    let refusals = criu::preflight(init, &pids);
    println!("preflight {:?} {refusals:?}", started.elapsed());
    let criu_config = images.join("criu.conf");
    criu::CriuConfig::default().write(&criu_config)?;
    let request = CheckpointRequest {
        id: name.to_string(),
        image_dir: images.join("img"),
        work_dir: images.join("work"),
        criu_config,
        search_path: None,
        tcp_established: true,
        pages: Pages::Files,
    };
    let started = Instant::now();
    runc.freeze(name.as_str(), LIMIT).await?;
    println!("freeze {:?}", started.elapsed());
    match runc.checkpoint(request).await {
        Ok(report) => println!("dump {:?} {:?}", report.elapsed, report.stats),
        Err(error) => {
            runc.thaw(name.as_str(), LIMIT).await?;
            bail!("{error}; hint: {:?}", error.hint());
        }
    }
    std::fs::write(images.join("moved.json"), moved.to_bytes()?)?;
    engine.forget_migration(migration)?;
    Ok(())
}

async fn restore(engine: &Bare, migration: MigrationId, images: &Path) -> anyhow::Result<()> {
    let arrival = engine.find_arrival(migration).await?.context("no such arrival")?;
    let started = Instant::now();
    engine.adopt(&arrival).await?;
    println!("adopt {:?}", started.elapsed());
    let request =
        RestoreRequest { image_dir: images.join("img"), work_dir: images.join("work"), lazy: false };
    let mut handle = engine.restore(&arrival, &request).await?;
    handle.begin(LIMIT).await?;
    println!("monitor started {:?}", started.elapsed());
    decide(engine, &arrival, handle, started).await
}

async fn decide(
    engine: &Bare,
    arrival: &Arrival,
    mut handle: RestoreHandle,
    started: Instant,
) -> anyhow::Result<()> {
    let pid = handle.held(LIMIT).await?;
    println!("held {:?} pid {pid}", started.elapsed());
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    let started = Instant::now();
    if line.trim() != "go" {
        handle.abort(LIMIT).await?;
        println!("called off {:?}", started.elapsed());
        return Ok(engine.discard(arrival.migration, arrival.name()).await?);
    }
    handle.release(LIMIT).await?;
    println!("released {:?}", started.elapsed());
    let pid = handle.running(LIMIT).await?;
    println!("running {:?} pid {pid}", started.elapsed());
    engine.settle(arrival).await?;
    println!("settled {:?}", started.elapsed());
    Ok(())
}
