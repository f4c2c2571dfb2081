//! The destination's no: everything that can be found out before anything is touched.
//!
//! Each check answers with what is wrong, where, and what to do. The order is from cheap to slow;
//! the probe of the segment for addresses in use is last.

use crate::context::Context;
use crate::engine::{Arrival, MovedContainer};
use crate::migrate::source::{bytes, cpu_features, engine_failure};
use crate::network;
use std::time::Duration;
use tranship_proto::handoff::{MAX_DOCUMENT, MAX_TREES, MemoryMode, Offer};
use tranship_proto::ids::{Epoch, MigrationId};
use tranship_proto::network::NetCapture;
use tranship_proto::pages::{PAGE, slots_for};
use tranship_proto::status::{Failure, Reason, Side};

/// How long somebody on the segment may take to defend an address (RFC 5227 waits longer; a
/// neighbour that takes more than this has not answered ARP in time for anyone).
const PROBE: Duration = Duration::from_millis(450);

/// Memory that filling in takes beside what is filled in: tables, and pages on their way.
const FILL_MARGIN: u64 = 128 << 20;

/// An offer that was accepted, in this host's words.
pub(super) struct Accepted {
    pub(super) arrival: Arrival,
    pub(super) capture: NetCapture,
    /// Bytes set aside for images.
    pub(super) image_bytes: u64,
    /// How memory comes.
    pub(super) memory: MemoryMode,
    pub(super) notices: Vec<String>,
}

fn refuse(text: impl Into<String>) -> Failure {
    Failure::new(Reason::Refused, Side::Destination, text)
}

/// Checks an offer. Touches nothing.
pub(super) async fn check(
    ctx: &Context,
    migration: MigrationId,
    epoch: Epoch,
    offer: &Offer,
) -> Result<Accepted, Failure> {
    let host = &ctx.config.host;
    if offer.trees.len() > MAX_TREES || offer.trees.is_empty() {
        return Err(refuse(format!("the offer has {} directory trees", offer.trees.len())));
    }
    if offer.trees.iter().enumerate().any(|(i, t)| usize::from(t.index) != i) {
        return Err(refuse("the offer's directory trees are not numbered from 0 on"));
    }
    if offer.container_json.len() > MAX_DOCUMENT || offer.network_json.len() > MAX_DOCUMENT {
        return Err(refuse(format!("the offer's documents are larger than {MAX_DOCUMENT} bytes")));
    }
    programs(ctx, offer)?;
    processor(ctx, offer)?;
    let journal =
        |e: crate::journal::JournalError| Failure::new(Reason::Internal, Side::Destination, e.to_string());
    let moved = MovedContainer::from_bytes(&offer.container_json).map_err(|e| refused(&e))?;
    let made = moved.container.created_unix_ms;
    if let Some((seen, owner)) = ctx.journal.ownership(&offer.container, made).await.map_err(journal)?
        && seen >= epoch
    {
        let text = format!(
            "{host} has seen epoch {seen} of container {} (owner then: {owner}); this migration proposes {epoch}",
            offer.container
        );
        return Err(refuse(text)
            .hint("the source's copy may be a stale one; compare `tranship inspect` on both hosts"));
    }
    if moved.container.name != offer.container {
        return Err(refuse(format!(
            "the offer describes {} and is for {}",
            moved.container.name, offer.container
        )));
    }
    let taken = ctx.engine.inspect(&offer.container).await;
    if let Ok((_, summary)) = &taken {
        let text = format!("{host} has a container named {} already ({})", offer.container, summary.state);
        return Err(refuse(text).hint(format!(
            "remove it there with `tranship --host {host} rm {}`, if it is not needed",
            offer.container
        )));
    }
    let arrival = ctx
        .engine
        .prepare_restore(migration, &offer.container, epoch, &moved)
        .await
        .map_err(|e| refused(&e))?;
    if arrival.trees.len() != offer.trees.len() {
        return Err(refuse("the offer's trees do not match its description of the container"));
    }
    let mut notices = Vec::new();
    let memory = match lazy_obstacle(ctx) {
        Some(why) if offer.memory == MemoryMode::Fast => {
            notices.push(format!("memory is carried while the container is stopped, since {host} {why}"));
            MemoryMode::Plain
        }
        _ => offer.memory,
    };
    let image_bytes = room(ctx, offer, memory)?;

    let capture: NetCapture = serde_json::from_slice(&offer.network_json)
        .map_err(|e| refuse(format!("the offer's network cannot be read: {e}")))?;
    capture.check().map_err(|e| refuse(format!("the offer's network is not acceptable: {e}")))?;
    if let Some(missing) = network::missing_networks(&capture, &ctx.networks).first() {
        let text =
            format!("container {} is in network {missing}, which {host} does not have", offer.container);
        return Err(refuse(text).hint(format!("add [networks.{missing}] to transhipd.toml of {host}")));
    }
    let problem = |e: network::NetworkError| {
        let f = refuse(crate::chain(&e));
        match e.hint() {
            Some(h) => f.hint(h),
            None => f,
        }
    };
    network::check_fit(&capture, &ctx.networks).await.map_err(problem)?;
    let conflicts = network::conflicts(&ctx.networks, &capture, PROBE).await.map_err(problem)?;
    if let Some(c) = conflicts.first() {
        let text = format!(
            "address {} in network {} is in use by {}, which is not the container",
            c.ip, c.network, c.mac
        );
        return Err(refuse(text)
            .hint(format!("find it with `ip neigh` or `arping {}` and take the address from it", c.ip)));
    }
    if offer.kernel != ctx.capabilities.kernel {
        notices.push(format!(
            "kernels differ: {} at the source, {} on {host}",
            clean(&offer.kernel),
            ctx.capabilities.kernel
        ));
    }
    Ok(Accepted { arrival, capture, image_bytes, memory, notices })
}

fn refused(error: &crate::engine::EngineError) -> Failure {
    let mut f = engine_failure(error, Side::Destination);
    f.reason = Reason::Refused;
    f
}

fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(80).collect()
}

fn programs(ctx: &Context, offer: &Offer) -> Result<(), Failure> {
    let (caps, host) = (&ctx.capabilities, &ctx.config.host);
    if let Some(problem) = caps.obstacles().first() {
        return Err(refuse(format!("{host} cannot restore: {problem}"))
            .hint(format!("repair it on {host}; `tranship hosts` shows what every host lacks")));
    }
    if offer.runtime != "runc" {
        return Err(refuse(format!("images made under {} do not restore under runc", clean(&offer.runtime))));
    }
    let theirs = crate::criu::Version::find(&offer.criu_version)
        .ok_or_else(|| refuse("the offer names no version of CRIU"))?;
    match caps.criu_version {
        Some(ours) if ours >= theirs => Ok(()),
        ours => {
            let ours = ours.map_or_else(|| "none".to_owned(), |v| v.to_string());
            let text = format!(
                "CRIU on {host} ({ours}) is older than the source's ({theirs}) and cannot read its images"
            );
            Err(refuse(text).hint(format!("upgrade CRIU on {host}")))
        }
    }
}

fn processor(ctx: &Context, offer: &Offer) -> Result<(), Failure> {
    let host = &ctx.config.host;
    if offer.arch != std::env::consts::ARCH {
        let text = format!(
            "the source's processor is {}, {host}'s is {}",
            clean(&offer.arch),
            std::env::consts::ARCH
        );
        return Err(refuse(text).hint("choose a host with the same architecture"));
    }
    let have = cpu_features();
    let lacking: Vec<_> =
        offer.cpu_features.iter().filter(|f| have.binary_search(f).is_err()).take(8).collect();
    if lacking.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = lacking.iter().map(|f| clean(f)).collect();
    Err(refuse(format!("{host}'s processor lacks features that the container may use: {}", names.join(", ")))
        .hint("choose a host with the same or a newer processor"))
}

/// Why a container cannot be filled in here while it runs.
fn lazy_obstacle(ctx: &Context) -> Option<&'static str> {
    if !ctx.capabilities.features.iter().any(|f| f == "uffd-noncoop") {
        return Some("has no CRIU or kernel that can restore without it");
    }
    (rustix::param::page_size() as u64 != PAGE).then_some("has pages of another size")
}

/// Memory for images and for the container itself, and disk for its files.
fn room(ctx: &Context, offer: &Offer, memory: MemoryMode) -> Result<u64, Failure> {
    let host = &ctx.config.host;
    // Images live in a file system in memory, which may be smaller than what is free.
    let available = memory_available();
    let storage = disk_available(&ctx.config.run_dir);
    let allowed = match ctx.config.limits.image_memory_mib {
        0 => available / 2,
        mib => (mib << 20).min(available),
    }
    .min(storage);
    // Images beside pages are small; what is dumped between now and then may grow.
    let images = u64::from(slots_for(offer.memory_bytes)) * PAGE;
    // What is filled in from the store is given back by it, page by page.
    let beside = match memory {
        MemoryMode::Plain => offer.memory_bytes,
        MemoryMode::Fast => FILL_MARGIN,
    };
    if images > allowed || images.saturating_add(beside) > available {
        let text = format!(
            "not enough memory on {host}: the container has {}, which takes {} of images beside it; {} may be used for images, {} are available",
            bytes(offer.memory_bytes),
            bytes(images),
            bytes(allowed),
            bytes(available)
        );
        return Err(refuse(text)
            .hint(format!("free memory on {host}, or raise limits.image_memory_mib in its transhipd.toml, or the size of the file system at {}", ctx.config.run_dir.display())));
    }
    let files: u64 = offer.trees.iter().fold(0, |sum, t| sum.saturating_add(t.bytes));
    let free = disk_available(&ctx.config.state_dir);
    let reserve = ctx.config.limits.disk_reserve_mib << 20;
    if files.saturating_add(reserve) > free {
        let text = format!(
            "not enough disk space on {host}: the container's files take {}, {} are free, {} stay reserved",
            bytes(files),
            bytes(free),
            bytes(reserve)
        );
        return Err(
            refuse(text).hint(format!("free space under {} on {host}", ctx.config.state_dir.display()))
        );
    }
    Ok(allowed)
}

/// Memory that can be had without swapping, in bytes: `MemAvailable` of proc_meminfo(5).
pub(crate) fn memory_available() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text
        .lines()
        .find_map(|l| l.strip_prefix("MemAvailable:")?.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Free bytes for root in the file system of a directory.
pub(crate) fn disk_available(dir: &std::path::Path) -> u64 {
    rustix::fs::statvfs(dir).map_or(0, |s| s.f_bavail.saturating_mul(s.f_frsize))
}
