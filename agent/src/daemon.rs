//! Start, life and orderly end of the agent.
//!
//! Order of a start: log, directories, journal, probes, endpoint, socket, then `READY=1`. Order of
//! an end: refuse new work, cancel what is not committed and wait for it, stop serving, close
//! connections. Containers and their monitors live on: the unit's `KillMode=process` sees to it.

use crate::config::{Config, LogFormat};
use crate::context::Context;
use crate::criu::{self, Preload, Programs};
use crate::engine::{Bare, BareConfig};
use crate::faults::Faults;
use crate::hook::{HookServer, own_program};
use crate::journal::{self, Journal};
use crate::memory::source::kernel_scans;
use crate::migrate::registry::Migrations;
use crate::network::Networks;
use crate::runtime::{Runc, RuncConfig, Runtime};
use crate::server::Server;
use crate::transport::Endpoint;
use sd_notify::NotifyState;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::prelude::*;

/// How long migrations may take to reach a safe point at an end.
const SHUTDOWN: Duration = Duration::from_secs(30);

/// Where cgroup v2 is mounted (cgroups(7)).
const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// Why the agent could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A directory of the agent's cannot be made or read.
    #[error("cannot make or read the directory {path}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The control socket cannot be had.
    #[error("cannot listen on {path}")]
    Socket {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The log filter is not valid.
    #[error("log.filter {filter:?} is not valid: {why}")]
    Filter {
        /// The filter.
        filter: String,
        /// Why.
        why: String,
    },
    /// The agent runs.
    #[error("transhipd runs on this host and answers at {path}")]
    Runs {
        /// Its socket.
        path: PathBuf,
    },
    /// Not root.
    #[error("transhipd has to run as root: it checkpoints processes and makes namespaces")]
    NotRoot,
}

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Runs the agent until SIGTERM or SIGINT.
pub fn run(config: Config) -> Result<()> {
    if !nix::unistd::Uid::effective().is_root() {
        return Err(StartError::NotRoot.into());
    }
    log(&config)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("transhipd").build()?;
    runtime.block_on(live(config))
}

/// Puts the journal aside and begins a new one; answers where the old one is.
///
/// # Errors
/// When an agent runs, or the files cannot be moved.
pub fn new_journal(config: &Config) -> Result<PathBuf> {
    let path = config.socket();
    if std::os::unix::net::UnixStream::connect(&path).is_ok() {
        return Err(StartError::Runs { path }.into());
    }
    Ok(journal::renew(&config.state_dir, &config.run_dir)?)
}

fn log(config: &Config) -> Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(&config.log.filter)
        .map_err(|e| StartError::Filter { filter: config.log.filter.clone(), why: e.to_string() })?;
    let registry = tracing_subscriber::registry().with(filter);
    let plain =
        || tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false).with_target(false);
    match config.log.format {
        LogFormat::Plain => registry.with(plain()).init(),
        LogFormat::Json => {
            registry.with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr).json()).init()
        }
        LogFormat::Journald => match tracing_journald::layer() {
            Ok(journald) => registry
                .with(journald.with_field_prefix(None).with_syslog_identifier("transhipd".into()))
                .init(),
            Err(e) => {
                registry.with(plain()).init();
                tracing::warn!(error = %e, "no systemd journal here; logging to standard error");
            }
        },
    }
    Ok(())
}

fn directory(path: &Path) -> std::result::Result<(), StartError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| StartError::Directory { path: path.into(), source })
}

async fn live(config: Config) -> Result<()> {
    tracing::info!(host = %config.host, version = env!("CARGO_PKG_VERSION"), "starting");
    for dir in [config.state_dir.clone(), config.run_dir.clone(), config.run_dir.join("images")] {
        directory(&dir)?;
    }
    let here = Bare::on_disk(&config.state_dir)
        .map_err(|source| StartError::Directory { path: config.state_dir.clone(), source })?;
    let journal = Journal::open(&config.state_dir, &config.run_dir, &here)?;
    let programs = Programs {
        criu: config.runtime.criu.clone(),
        runc: config.runtime.runc.clone(),
        conmon: config.runtime.conmon.clone(),
    };
    let capabilities = criu::probe(&programs).await;
    for problem in capabilities.obstacles() {
        tracing::warn!(problem, "this host cannot take part in migrations");
    }
    let preload = own_program().ok().and_then(|program| Preload::find(&program)).filter(|_| kernel_scans());
    if preload.is_none() {
        tracing::info!(
            "containers are frozen the longer the more memory they have: less of that takes Linux 6.7, and \
             libtranship_preload.so beside transhipd or in /usr/local/lib/tranship"
        );
    }
    let endpoint = Endpoint::bind(&config)?;
    let hooks = Arc::new(HookServer::start(&config.run_dir)?);
    let runtime: Arc<dyn Runtime> = Arc::new(Runc::new(RuncConfig {
        program: config.runtime.runc.clone(),
        // Of its own, so that podman's and other users' containers are not mixed in.
        root: config.run_dir.join("runc"),
        cgroup_parent: Path::new(CGROUP_ROOT).join("tranship"),
    }));
    let bare = BareConfig {
        state_dir: config.state_dir.clone(),
        run_dir: config.run_dir.clone(),
        volume_roots: config.volumes.roots.clone(),
        conmon: config.runtime.conmon.clone(),
        monitor_cgroup: Path::new(CGROUP_ROOT).join("tranship-conmon"),
        hook_program: None,
    };
    let engine = Bare::open(bare, runtime.clone(), hooks)?;
    let networks = Networks::new(config.networks.iter().map(|(name, n)| (name.clone(), n.bridge.clone())));
    let socket = config.socket();
    let faults = Faults::new(&config.faults)?;
    let ctx = Arc::new(Context {
        faults,
        config,
        journal,
        endpoint: endpoint.clone(),
        engine: Arc::new(engine),
        runtime,
        networks,
        capabilities,
        preload,
    });
    let migrations = Migrations::new(ctx.clone());
    crate::migrate::destination::take_up(&ctx);
    migrations.recover().await?;
    let unix =
        Server::bind_socket(&socket).map_err(|source| StartError::Socket { path: socket.clone(), source })?;
    let stop = CancellationToken::new();
    let server = tokio::spawn(Server::new(ctx.clone(), migrations.clone(), stop.clone()).serve(unix));
    let watchdog = tokio::spawn(watchdog());
    let _ = sd_notify::notify(&[NotifyState::Ready]);
    tracing::info!(listen = %ctx.config.listen, socket = %socket.display(), "ready");

    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    tracing::info!("stopping: waiting for migrations to reach a safe point");
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    migrations.shut_down(SHUTDOWN).await;
    stop.cancel();
    let _ = server.await;
    endpoint.close().await;
    watchdog.abort();
    let _ = std::fs::remove_file(&socket);
    tracing::info!("stopped");
    Ok(())
}

/// Tells systemd that the runtime still turns, at half the interval it asks for.
async fn watchdog() {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    let mut beat = tokio::time::interval(limit / 2);
    loop {
        beat.tick().await;
        let _ = sd_notify::notify(&[NotifyState::Watchdog]);
    }
}
