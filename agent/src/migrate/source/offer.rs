//! The reserve step: scan the container, refuse what cannot move, describe it to the destination.

use super::work::{Work, engine_failure, failed};
use crate::criu::preflight;
use crate::memory::fill::{self, FillFiles, FillStatus};
use crate::network;
use crate::storage::{TreeLimits, TreeSource};
use std::time::Duration;
use tranship_proto::handoff::{Offer, TreeOffer};
use tranship_proto::status::{Failure, Reason, Side};

/// Waits for a container that came here a moment ago to have all its memory: before that CRIU cannot
/// dump it, and its size is not known.
async fn filled(work: &Work) -> Result<(), Failure> {
    let files = FillFiles::new(&work.ctx.config.run_dir, work.name());
    let limit = Duration::from_secs(work.ctx.config.limits.phase_timeout_s);
    let tell = |s: &FillStatus| {
        work.meter.say(format!("its memory is still being filled in: {} of {} pages", s.filled, s.pages));
    };
    let stopped = async {
        while !work.meter.stopped() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        filled = fill::wait(&files, limit, tell) => {
            work.meter.say(String::new());
            filled.map_err(|e| {
                Failure::new(Reason::Busy, Side::Source, crate::chain(&e)).hint("wait, and try again")
            })
        }
        () = stopped => Err(Failure::new(Reason::Failed, Side::Source, "stopped")),
    }
}

/// Scans, connects and leaves the offer in the work for the driver to send. Changes nothing.
pub(super) async fn reserve(work: &mut Work) -> Result<(), Failure> {
    let name = work.name().clone();
    if let Some(problem) = work.ctx.capabilities.obstacles().first() {
        let text = format!("{} cannot checkpoint: {problem}", work.ctx.config.host);
        return Err(Failure::new(Reason::NotMigratable, Side::Source, text)
            .hint("tranship hosts shows what every host lacks"));
    }
    filled(work).await?;
    let (init, pids) = work.processes().await?;
    if let Some(refusal) = preflight(init, &pids).into_iter().next() {
        let at = refusal.pid.map(|p| format!(" (process {p})")).unwrap_or_default();
        let text = format!("container {name} cannot be migrated: {}{at}", refusal.what);
        return Err(Failure::new(Reason::NotMigratable, Side::Source, text).hint(refusal.advice));
    }
    let capture = network::capture(&work.netns, &name, &work.ctx.networks).await.map_err(|e| {
        let mut f = failed("read the container's network", &e, e.hint().map(str::to_owned));
        if e.is_refusal() {
            f.reason = Reason::NotMigratable;
        }
        f
    })?;
    work.ports = network::ports_of_capture(&name, &capture);

    let mut trees = Vec::new();
    let mut expected = 0;
    for tree in work.ctx.engine.trees(work.container()?) {
        let host_path = tree.host_path.clone();
        let estimate = tokio::task::spawn_blocking(move || {
            TreeSource::open(&host_path, TreeLimits::default())?.estimate()
        })
        .await
        .map_err(|e| {
            Failure::new(Reason::Internal, Side::Source, format!("the scan of the files panicked: {e}"))
        })?
        .map_err(|e| failed("scan the container's files", &e, None))?;
        expected += estimate.bytes;
        trees.push(TreeOffer {
            index: tree.index,
            mounted_at: tree.container_path.clone(),
            bytes: estimate.bytes,
            entries: estimate.entries,
        });
    }
    let document = |e: serde_json::Error| {
        Failure::new(Reason::Internal, Side::Source, format!("cannot describe the container: {e}"))
    };
    let moved = work.ctx.engine.describe(&name).await.map_err(|e| {
        let mut f = engine_failure(&e, Side::Source);
        f.reason = Reason::NotMigratable;
        f
    })?;
    let moved = moved.to_bytes().map_err(|e| engine_failure(&e, Side::Source))?;
    let caps = &work.ctx.capabilities;
    work.offered_bytes = resident_bytes(&pids);
    let offer = Offer {
        container: name.clone(),
        source: work.ctx.config.host.clone(),
        container_json: moved,
        network_json: serde_json::to_vec(&capture).map_err(document)?,
        trees,
        memory_bytes: work.offered_bytes,
        criu_version: caps.criu_version.map(|v| v.to_string()).unwrap_or_default(),
        kernel: caps.kernel.clone(),
        arch: std::env::consts::ARCH.to_owned(),
        cpu_features: cpu_features(),
        runtime: "runc".to_owned(),
        memory: work.options.mode,
        dry_run: work.dry_run,
    };
    let connection = work.ctx.connect(&work.destination).await?;
    work.capture = Some(capture);
    work.connection = Some(connection.clone());
    work.offer = Some((connection, Box::new(offer)));
    work.expected_bytes = expected;
    Ok(())
}

/// Anonymous and shared memory of processes, in bytes: what a dump will hold, roughly.
///
/// proc_pid_status(5), fields RssAnon, RssShmem and VmSwap.
fn resident_bytes(pids: &[i32]) -> u64 {
    let mut kib = 0u64;
    for pid in pids {
        let Ok(text) = std::fs::read_to_string(format!("/proc/{pid}/status")) else { continue };
        let counted = |l: &&str| ["RssAnon:", "RssShmem:", "VmSwap:"].iter().any(|name| l.starts_with(name));
        for line in text.lines().filter(counted) {
            kib += line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    kib * 1024
}

/// CPU features as the kernel names them: a process may use any of them, so the destination must
/// have them all. proc_cpuinfo(5).
pub(crate) fn cpu_features() -> Vec<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|l| l.starts_with("flags") || l.starts_with("Features"));
    let mut all: Vec<String> = line
        .and_then(|l| l.split_once(':'))
        .map(|(_, f)| f.split_whitespace().map(str::to_owned).collect())
        .unwrap_or_default();
    all.sort();
    all.dedup();
    all
}
