//! What each request does.

use crate::context::Context;
use crate::engine::{
    ContainerState, ContainerSummary, EngineError, LogLine, Rootfs, RunSpec, Volume, VolumeSource,
};
use crate::migrate::registry::Migrations;
use crate::migrate::{disk_available, engine_failure, memory_available};
use crate::network::{self, Gate, Netns};
use crate::transport::framing::{FrameError, write_message};
use crate::transport::identity::Identity;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::AsyncWrite;
use tranship_proto::control::{LinkSpec, MigrateRequest, Reply, Request, RootfsSpec, RunRequest, VolumeSpec};
use tranship_proto::ids::{ContainerName, MigrationId};
use tranship_proto::network::LinkRequest;
use tranship_proto::registry::Message;
use tranship_proto::status::{
    ContainerRow, Failure, HostInfo, HostRow, MigrationStatus, Phase, Progressing, Reason, Side,
};
use tranship_proto::status::{Event, EventBody};

/// How long a host may take to say what it is.
const HOST_PATIENCE: Duration = Duration::from_secs(3);
/// Longest wait between SIGTERM and SIGKILL.
const MAX_STOP: Duration = Duration::from_secs(3600);

/// Where answers go.
pub(super) struct Out<'a, W> {
    pub(super) send: &'a mut W,
    pub(super) version: u16,
}

impl<W: AsyncWrite + Unpin + Send> Out<'_, W> {
    async fn reply(&mut self, reply: Reply) -> Result<(), Failure> {
        // A client that has gone is not a failure of the request.
        match write_message(&mut *self.send, self.version, reply).await {
            Err(FrameError::Wire(e)) => Err(Failure::new(Reason::Internal, Side::Source, e.to_string())),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// As `reply`, but tells whether the client is still there.
    async fn stream(&mut self, reply: Reply) -> bool {
        write_message(&mut *self.send, self.version, reply).await.is_ok()
    }
}

fn engine(error: EngineError) -> Failure {
    engine_failure(&error, Side::Source)
}

fn bad(text: impl Into<String>) -> Failure {
    Failure::new(Reason::BadRequest, Side::Source, text)
}

/// Answers one request.
pub(super) async fn answer<W: AsyncWrite + Unpin + Send>(
    ctx: &Arc<Context>,
    migrations: &Migrations,
    client: &Identity,
    request: Request,
    out: &mut Out<'_, W>,
) -> Result<(), Failure> {
    let journal =
        |e: crate::journal::JournalError| Failure::new(Reason::Internal, Side::Source, e.to_string());
    match request {
        Request::HostInfo => out.reply(Reply::HostInfo(host_info(ctx, migrations).await)).await,
        Request::Hosts => out.reply(Reply::Hosts(hosts(ctx, migrations).await)).await,
        Request::Run(run) => out.reply(Reply::Done(self::run(ctx, migrations, run).await?)).await,
        Request::List => out.reply(Reply::Containers(rows(ctx, migrations).await?)).await,
        Request::Inspect { name } => out.reply(Reply::Document(inspect(ctx, migrations, &name).await?)).await,
        Request::Logs { name, tail_bytes, follow } => logs(ctx, &name, tail_bytes, follow, out).await,
        Request::Stop { name, timeout_ms } => {
            not_migrating(migrations, &name)?;
            let limit = Duration::from_millis(timeout_ms).min(MAX_STOP);
            ctx.engine.stop(&name, limit).await.map_err(engine)?;
            out.reply(Reply::Done(format!("{name} is stopped"))).await
        }
        Request::Remove { name, force } => {
            not_migrating(migrations, &name)?;
            remove(ctx, &name, force).await?;
            out.reply(Reply::Done(format!("{name} is removed"))).await
        }
        Request::Migrate(MigrateRequest { container, to, dry_run, options }) => {
            options.check().map_err(|e| Failure::new(Reason::BadRequest, Side::Source, e.to_string()))?;
            if dry_run {
                return out.reply(Reply::Plan(migrations.plan(&container, &to, options).await?)).await;
            }
            let (id, log) = migrations.start(&container, &to, options).await?;
            if out.stream(Reply::Accepted { migration: id }).await {
                watch(&log, 1, out).await;
            }
            Ok(())
        }
        Request::Watch { migration, from_seq } => match migrations.log(migration) {
            Some(log) => {
                watch(&log, from_seq.max(1), out).await;
                Ok(())
            }
            None => out.reply(Reply::Event(ending(ctx, migration, from_seq).await?)).await,
        },
        Request::Cancel { migration } => {
            migrations.cancel(migration).await?;
            out.reply(Reply::Done(format!(
                "migration {} is cancelled; the container runs here",
                migration.short()
            )))
            .await
        }
        Request::Status { id: Some(id) } => {
            let found = named(ctx, migrations, &id).await?;
            out.reply(Reply::Migrations(found)).await
        }
        Request::Status { id: None } => {
            let mut all = migrations.under_way();
            let in_doubt = ctx.journal.migrations(false, 1000).await.map_err(journal)?;
            all.extend(
                in_doubt
                    .into_iter()
                    .filter(|m| m.state == Progressing::InDoubt && !all_has(&migrations.under_way(), m)),
            );
            out.reply(Reply::Migrations(all)).await
        }
        Request::Resolve { migration, run_at } => {
            out.reply(Reply::Done(migrations.resolve(migration, run_at, client.to_string()).await?)).await
        }
        Request::Faults { points, seconds } => {
            let life = Duration::from_secs(seconds.into());
            let unmet = ctx.faults.set(&points, life)?;
            tracing::warn!(by = %client, ?points, seconds, "faults were set");
            out.reply(Reply::Unmet(unmet)).await
        }
        Request::History { limit } => {
            let ended = ctx.journal.migrations(true, limit.min(1000)).await.map_err(journal)?;
            out.reply(Reply::Migrations(ended)).await
        }
    }
}

fn all_has(all: &[MigrationStatus], one: &MigrationStatus) -> bool {
    all.iter().any(|m| m.migration == one.migration)
}

fn unknown_migration(id: &MigrationId) -> Failure {
    let text = format!("no migration {} is known here, or its events are no longer kept", id.short());
    Failure::new(Reason::UnknownMigration, Side::Source, text)
        .hint("`tranship status` and `tranship history` list migrations")
}

/// The end of a migration whose events are no longer kept, out of the history.
async fn ending(ctx: &Context, migration: MigrationId, seq: u64) -> Result<Event, Failure> {
    let found = ctx.journal.find(migration.to_string()).await;
    let found = found.map_err(|e| Failure::new(Reason::Internal, Side::Source, e.to_string()))?;
    let ended =
        found.into_iter().find(|m| m.side == Side::Source).ok_or_else(|| unknown_migration(&migration))?;
    let body = match (ended.summary, ended.failure) {
        (Some(summary), _) => EventBody::Done { summary },
        (None, Some(failure)) => EventBody::Failed { failure },
        (None, None) => return Err(unknown_migration(&migration).retryable()),
    };
    Ok(Event { migration, seq: seq.max(1), at_unix_ms: ended.updated_unix_ms, body })
}

async fn named(ctx: &Context, migrations: &Migrations, id: &str) -> Result<Vec<MigrationStatus>, Failure> {
    if id.len() > 64 {
        return Err(bad("a migration id has at most 64 characters"));
    }
    let live: Vec<_> = migrations.under_way().into_iter().filter(|m| m.migration.matches(id)).collect();
    if !live.is_empty() {
        return Ok(live);
    }
    let found = ctx.journal.find(id.to_owned()).await;
    let found = found.map_err(|e| Failure::new(Reason::Internal, Side::Source, e.to_string()))?;
    if found.is_empty() {
        let text = format!("no migration {id:?} is known here");
        return Err(Failure::new(Reason::UnknownMigration, Side::Source, text)
            .hint("`tranship history` lists those that ended"));
    }
    Ok(found)
}

async fn watch<W: AsyncWrite + Unpin + Send>(
    log: &crate::migrate::events::EventLog,
    from: u64,
    out: &mut Out<'_, W>,
) {
    let mut next = from;
    loop {
        let events = log.after(next).await;
        if events.is_empty() {
            out.stream(Reply::End).await;
            return;
        }
        for event in events {
            next = event.seq + 1;
            let last = event.body.is_last();
            if !out.stream(Reply::Event(event)).await {
                return;
            }
            if last {
                out.stream(Reply::End).await;
                return;
            }
        }
    }
}

fn not_migrating(migrations: &Migrations, name: &ContainerName) -> Result<(), Failure> {
    match migrations.of_container(name) {
        None => Ok(()),
        Some(m) => {
            let text = format!("container {name} is being migrated from {} to {}", m.source, m.destination);
            Err(Failure::new(Reason::Busy, Side::Source, text)
                .hint(format!("`tranship cancel {}` first, or wait", m.migration.short())))
        }
    }
}

async fn host_info(ctx: &Context, migrations: &Migrations) -> HostInfo {
    let caps = &ctx.capabilities;
    let version = |v: Option<crate::criu::Version>| v.map_or_else(|| "missing".to_owned(), |v| v.to_string());
    let mut problems = caps.obstacles();
    match network::missing_bridges(&ctx.networks).await {
        Ok(missing) => {
            problems.extend(missing.iter().map(|n| format!("the bridge of network {n} does not exist")))
        }
        Err(e) => problems.push(crate::chain(&e)),
    }
    let containers = ctx.engine.list().await.map_or(0, |all| all.len());
    HostInfo {
        host: ctx.config.host.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: caps.kernel.clone(),
        arch: std::env::consts::ARCH.to_owned(),
        criu: version(caps.criu_version),
        runc: version(caps.runc_version),
        networks: ctx.networks.names().map(str::to_owned).collect(),
        containers: u32::try_from(containers).unwrap_or(u32::MAX),
        migrations: u32::try_from(migrations.under_way().len()).unwrap_or(u32::MAX),
        memory_available_mib: memory_available() >> 20,
        disk_available_mib: disk_available(&ctx.config.state_dir) >> 20,
        problems,
    }
}

async fn hosts(ctx: &Arc<Context>, migrations: &Migrations) -> Vec<HostRow> {
    let own = HostRow {
        name: ctx.config.host.clone(),
        address: ctx.config.listen.to_string(),
        rtt_us: Some(0),
        info: Some(host_info(ctx, migrations).await),
        problem: None,
    };
    let mut asked = Vec::new();
    for host in ctx.config.hosts.iter().filter(|h| h.name != ctx.config.host) {
        let (ctx, host) = (ctx.clone(), host.clone());
        asked.push(tokio::spawn(async move {
            let start = Instant::now();
            let answer = tokio::time::timeout(HOST_PATIENCE, ask_host(&ctx, &host.name)).await;
            let (info, problem) = match answer {
                Ok(Ok(info)) => (Some(info), None),
                Ok(Err(f)) => (None, Some(f.message)),
                Err(_) => (None, Some(format!("no answer within {} s", HOST_PATIENCE.as_secs()))),
            };
            let rtt_us =
                info.is_some().then(|| u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX));
            HostRow { name: host.name, address: host.address.to_string(), rtt_us, info, problem }
        }));
    }
    let mut all = vec![own];
    for row in asked {
        if let Ok(row) = row.await {
            all.push(row);
        }
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

async fn ask_host(ctx: &Context, host: &tranship_proto::ids::HostName) -> Result<HostInfo, Failure> {
    let connection = ctx.connect(host).await?;
    let lost = |why: String| Failure::new(Reason::Unreachable, Side::Source, why);
    let (mut send, mut recv) = connection.quic.open_bi().await.map_err(|e| lost(e.to_string()))?;
    write_message(&mut send, connection.version, Request::HostInfo)
        .await
        .map_err(|e| lost(crate::chain(&e)))?;
    let answer = crate::transport::framing::read_message(&mut recv, connection.version).await;
    let info = match answer.map_err(|e| lost(crate::chain(&e)))? {
        Message::Reply(Reply::HostInfo(info)) => Ok(info),
        Message::Reply(Reply::Failed(f)) => Err(f),
        other => Err(lost(format!("it sent {}", other.name()))),
    };
    connection.quic.close(quinn::VarInt::from_u32(0), b"done");
    info
}

fn row(
    ctx: &Context,
    migrations: &Migrations,
    summary: ContainerSummary,
    addresses: Vec<String>,
) -> ContainerRow {
    let moving = migrations.of_container(&summary.name);
    let state = match (&moving, summary.state) {
        (Some(m), _) if m.state == Progressing::InDoubt => "in doubt".to_owned(),
        (Some(m), _) if m.side == Side::Destination && m.phase < Phase::Retire => "arriving".to_owned(),
        (Some(m), ContainerState::Frozen) if m.side == Side::Source => "leaving, frozen".to_owned(),
        (Some(m), _) if m.side == Side::Source => "leaving".to_owned(),
        (_, state) => state.to_string(),
    };
    ContainerRow {
        host: ctx.config.host.clone(),
        state,
        pid: summary.pid,
        addresses,
        command: summary.command.join(" "),
        created_unix_ms: summary.created_unix_ms,
        epoch: summary.epoch,
        name: summary.name,
    }
}

async fn rows(ctx: &Context, migrations: &Migrations) -> Result<Vec<ContainerRow>, Failure> {
    let mut rows = Vec::new();
    for summary in ctx.engine.list().await.map_err(engine)? {
        let addresses = addresses(ctx, &summary.name).await;
        rows.push(row(ctx, migrations, summary, addresses));
    }
    Ok(rows)
}

/// Addresses that a container was started with, from its description.
async fn addresses(ctx: &Context, name: &ContainerName) -> Vec<String> {
    let Ok((container, _)) = ctx.engine.inspect(name).await else { return Vec::new() };
    let links: Vec<LinkRequest> = serde_json::from_value(container.network).unwrap_or_default();
    links.iter().flat_map(|l| l.addrs.iter().map(ToString::to_string)).collect()
}

async fn inspect(ctx: &Context, migrations: &Migrations, name: &ContainerName) -> Result<String, Failure> {
    let (container, summary) = ctx.engine.inspect(name).await.map_err(engine)?;
    let netns = Netns::at(&ctx.config.run_dir, name);
    let live = match network::capture(&netns, name, &ctx.networks).await {
        Ok(capture) => serde_json::to_value(capture).unwrap_or_default(),
        Err(e) => serde_json::json!({ "error": crate::chain(&e) }),
    };
    let document = serde_json::json!({
        "schema": 1,
        "host": ctx.config.host,
        "summary": summary,
        "container": container,
        "trees": ctx.engine.trees(&container),
        "network": live,
        "migration": migrations.of_container(name),
    });
    serde_json::to_string_pretty(&document)
        .map_err(|e| Failure::new(Reason::Internal, Side::Source, e.to_string()))
}

async fn logs<W: AsyncWrite + Unpin + Send>(
    ctx: &Context,
    name: &ContainerName,
    tail_bytes: Option<u64>,
    follow: bool,
    out: &mut Out<'_, W>,
) -> Result<(), Failure> {
    let tail = tail_bytes.map(|n| usize::try_from(n).unwrap_or(usize::MAX));
    let mut lines = ctx.engine.logs(name, follow, tail).await.map_err(engine)?;
    while let Some(line) = lines.recv().await {
        if !out.stream(Reply::Log(line_bytes(line))).await {
            return Ok(());
        }
    }
    out.reply(Reply::End).await
}

/// A line as the container wrote it.
fn line_bytes(line: LogLine) -> Vec<u8> {
    let mut bytes = line.text.into_bytes();
    if !line.partial {
        bytes.push(b'\n');
    }
    bytes
}

async fn run(ctx: &Context, migrations: &Migrations, request: RunRequest) -> Result<String, Failure> {
    request.check().map_err(|e| bad(e.to_string()))?;
    not_migrating(migrations, &request.name)?;
    let name = request.name.clone();
    if ctx.engine.inspect(&name).await.is_ok() {
        return Err(bad(format!("{} has a container named {name} already", ctx.config.host))
            .hint(format!("choose another name, or `tranship rm {name}` first")));
    }
    let links = links(&request.links)?;
    let spec_volumes = request.volumes.iter().map(volume).collect::<Result<Vec<_>, _>>()?;
    let network_error = |e: network::NetworkError| {
        let reason = if e.is_refusal() { Reason::BadRequest } else { Reason::Failed };
        let f = Failure::new(reason, Side::Source, crate::chain(&e));
        match e.hint() {
            Some(h) => f.hint(h),
            None => f,
        }
    };
    for link in &links {
        for address in &link.addrs {
            let probe = network::probe(&ctx.networks, &link.network, address.ip, Duration::from_millis(300));
            if let Some(mac) = probe.await.map_err(network_error)? {
                let text = format!("address {} in network {} is in use by {mac}", address.ip, link.network);
                return Err(Failure::new(Reason::Refused, Side::Source, text)
                    .hint("choose another address with --ip"));
            }
        }
    }
    let netns = Netns::create(&ctx.config.run_dir, &name).await.map_err(network_error)?;
    let made = async {
        network::connect(&netns, &name, &links, &ctx.networks, Gate::Open).await.map_err(network_error)?;
        let spec = RunSpec {
            name: name.clone(),
            rootfs: match &request.rootfs {
                RootfsSpec::Directory(dir) => Rootfs::Template(dir.into()),
                RootfsSpec::Bundle(dir) => Rootfs::Bundle(dir.into()),
            },
            netns: netns.path().to_path_buf(),
            network: serde_json::to_value(&links).unwrap_or_default(),
            volumes: spec_volumes,
            env: request.env,
            cwd: request.cwd,
            user: request.user,
            hostname: request.hostname,
            args: request.args,
        };
        ctx.engine.create_and_start(spec).await.map_err(engine)
    }
    .await;
    match made {
        Ok(container) => {
            tracing::info!(container = %container.name, "started");
            // Neighbours may know its addresses from a container that was there before.
            let announced = match network::capture(&netns, &name, &ctx.networks).await {
                Ok(capture) => network::announce(&netns, &capture).await,
                Err(e) => Err(e),
            };
            if let Err(e) = announced {
                tracing::warn!(error = %crate::chain(&e), "the addresses were not announced; neighbours learn with the first packet");
            }
            Ok(format!("{name} is running on {}", ctx.config.host))
        }
        Err(mut failure) => {
            let ports = network::ports_of(&name, links.iter().map(|l| l.name.as_str()));
            if let Err(e) = network::destroy(&netns, &name, &ports).await {
                failure.message =
                    format!("{}; and cleaning up failed: {}", failure.message, crate::chain(&e));
            }
            Err(failure)
        }
    }
}

async fn remove(ctx: &Context, name: &ContainerName, force: bool) -> Result<(), Failure> {
    let netns = Netns::at(&ctx.config.run_dir, name);
    ctx.engine.remove(name, force).await.map_err(engine)?;
    let failed = |e: network::NetworkError| Failure::new(Reason::Failed, Side::Source, crate::chain(&e));
    let ports = network::ports_in_use(name).await.map_err(failed)?;
    network::destroy(&netns, name, &ports).await.map_err(failed)?;
    ctx.journal.forget(name).await.map_err(|e| Failure::new(Reason::Internal, Side::Source, e.to_string()))
}

fn links(specs: &[LinkSpec]) -> Result<Vec<LinkRequest>, Failure> {
    let mut links = Vec::new();
    for (i, spec) in specs.iter().enumerate() {
        let addrs = spec.addresses.iter().map(|a| a.parse()).collect::<Result<Vec<_>, _>>();
        let gateways =
            spec.gateways.iter().map(|g| g.parse()).collect::<Result<Vec<_>, std::net::AddrParseError>>();
        links.push(LinkRequest {
            name: format!("eth{i}"),
            network: spec.network.clone(),
            mac: spec.mac.as_deref().map(str::parse).transpose().map_err(|e| bad(format!("--mac: {e}")))?,
            mtu: None,
            addrs: addrs.map_err(|e| bad(format!("--ip: {e}")))?,
            gateways: gateways.map_err(|e| bad(format!("--gateway: {e}")))?,
        });
    }
    Ok(links)
}

fn volume(spec: &VolumeSpec) -> Result<Volume, Failure> {
    let source = if spec.source.starts_with('/') {
        VolumeSource::Path(spec.source.clone().into())
    } else {
        VolumeSource::Managed(spec.source.clone())
    };
    Ok(Volume { source, destination: spec.destination.clone(), read_only: spec.read_only })
}
