//! One sample of every message and variant that crosses the wire, with names for the golden file.

use tranship_proto::bulk::{BulkContent, BulkOpen};
use tranship_proto::control::{
    Hello, LinkSpec, MigrateOptions, MigrateRequest, Reply, Request, RootfsSpec, RunRequest, VolumeSpec,
    Welcome,
};
use tranship_proto::handoff::{
    Envelope, Handoff, HeldPacket, MemoryMode, MemoryTotals, Offer, Position, ResumeTimes, Totals, TreeOffer,
};
use tranship_proto::ids::{Epoch, MigrationId};
use tranship_proto::pages::PagesEnd;
use tranship_proto::registry::Message;
use tranship_proto::status::{
    ContainerRow, Event, EventBody, Failure, HostInfo, HostRow, MigrationStatus, Phase, Progressing, Reason,
    Resolution, Side, Summary,
};
use tranship_proto::tree::{Content, Entry, EntryKind, Meta, Time, TreeMeta, Xattr};

pub fn id() -> MigrationId {
    "01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap()
}

fn failure() -> Failure {
    Failure::new(Reason::Refused, Side::Destination, "address in use").hint("find it").phase(Phase::Reserve)
}

fn summary() -> Summary {
    Summary {
        phases_us: vec![("reserve".into(), 250), ("stage".into(), 70_000)],
        total_us: 1_000_000,
        bytes_read: 300,
        bytes_sent: 200,
        file_bytes: 100,
        memory_bytes: 200,
        frozen_us: 150_000,
        blackout_us: Some(160_000),
        predicted_us: Some(155_000),
    }
}

fn status() -> MigrationStatus {
    MigrationStatus {
        migration: id(),
        container: "web".parse().unwrap(),
        source: "host-a".parse().unwrap(),
        destination: "host-b".parse().unwrap(),
        side: Side::Source,
        epoch: Epoch(2),
        state: Progressing::Done,
        phase: Phase::Retire,
        started_unix_ms: 1_700_000_000_000,
        updated_unix_ms: 1_700_000_001_000,
        failure: None,
        summary: Some(summary()),
        resolution: Some(Resolution {
            run_at: Side::Destination,
            by: "operator alice".into(),
            at_unix_ms: 1_700_000_000_500,
        }),
    }
}

fn host_info() -> HostInfo {
    HostInfo {
        host: "host-a".parse().unwrap(),
        version: "0.1.0".into(),
        kernel: "6.12.0".into(),
        arch: "x86_64".into(),
        criu: "4.2.0".into(),
        runc: "1.3.0".into(),
        networks: vec!["lan".into()],
        containers: 3,
        migrations: 1,
        memory_available_mib: 2048,
        disk_available_mib: 70_000,
        problems: vec!["criu is too old".into()],
    }
}

fn run() -> RunRequest {
    RunRequest {
        name: "web".parse().unwrap(),
        rootfs: RootfsSpec::Directory("/srv/root".into()),
        links: vec![LinkSpec {
            network: "lan".into(),
            addresses: vec!["10.77.1.1/16".into(), "fd77::1:1/64".into()],
            mac: Some("02:00:00:00:00:01".into()),
            gateways: vec!["10.77.0.254".into()],
        }],
        volumes: vec![VolumeSpec { source: "data".into(), destination: "/data".into(), read_only: true }],
        env: vec!["A=b".into()],
        args: vec!["sh".into()],
        cwd: Some("/".into()),
        user: Some("1:2".into()),
        hostname: None,
    }
}

pub fn offer() -> Offer {
    Offer {
        container: "web".parse().unwrap(),
        source: "host-a".parse().unwrap(),
        container_json: b"{}".to_vec(),
        network_json: b"{\"links\":[]}".to_vec(),
        trees: vec![TreeOffer { index: 0, mounted_at: "/".into(), bytes: 1 << 30, entries: 9000 }],
        memory_bytes: 64 << 20,
        criu_version: "4.2.0".into(),
        kernel: "6.12.0".into(),
        arch: "x86_64".into(),
        cpu_features: vec!["avx2".into()],
        runtime: "runc".into(),
        memory: MemoryMode::Fast,
        dry_run: false,
    }
}

fn requests() -> Vec<(&'static str, Request)> {
    let (name, migration) = ("web".parse().unwrap(), id());
    vec![
        ("request.host_info", Request::HostInfo),
        ("request.hosts", Request::Hosts),
        ("request.run", Request::Run(run())),
        ("request.list", Request::List),
        ("request.inspect", Request::Inspect { name }),
        (
            "request.logs",
            Request::Logs { name: "web".parse().unwrap(), tail_bytes: Some(4096), follow: true },
        ),
        ("request.stop", Request::Stop { name: "web".parse().unwrap(), timeout_ms: 10_000 }),
        ("request.remove", Request::Remove { name: "web".parse().unwrap(), force: true }),
        (
            "request.migrate",
            Request::Migrate(MigrateRequest {
                container: "web".parse().unwrap(),
                to: "host-b".parse().unwrap(),
                dry_run: true,
                options: MigrateOptions {
                    bandwidth: Some(100_000_000),
                    mode: MemoryMode::Fast,
                    max_blackout_ms: Some(500),
                    timeout_s: Some(60),
                },
            }),
        ),
        ("request.watch", Request::Watch { migration, from_seq: 1 }),
        ("request.cancel", Request::Cancel { migration }),
        ("request.status", Request::Status { id: Some("099a8057".into()) }),
        ("request.history", Request::History { limit: 20 }),
        ("request.resolve", Request::Resolve { migration, run_at: Side::Destination }),
        ("request.faults", Request::Faults { points: vec!["source.send.grant=drop".into()], seconds: 60 }),
    ]
}

fn replies() -> Vec<(&'static str, Reply)> {
    let event = |body| Reply::Event(Event { migration: id(), seq: 7, at_unix_ms: 1_700_000_000_000, body });
    let row = ContainerRow {
        name: "web".parse().unwrap(),
        host: "host-a".parse().unwrap(),
        state: "running".into(),
        pid: Some(4711),
        addresses: vec!["10.77.1.1/16".into()],
        command: "nginx".into(),
        created_unix_ms: 1_700_000_000_000,
        epoch: Epoch(1),
    };
    let host = HostRow {
        name: "host-b".parse().unwrap(),
        address: "10.77.0.2:7717".into(),
        rtt_us: None,
        info: None,
        problem: Some("no answer".into()),
    };
    let progress = EventBody::Progress {
        phase: Phase::Copy,
        done_bytes: 1 << 20,
        total_bytes: Some(1 << 30),
        bytes_per_second: 1 << 27,
    };
    vec![
        ("reply.host_info", Reply::HostInfo(host_info())),
        ("reply.hosts", Reply::Hosts(vec![host])),
        ("reply.containers", Reply::Containers(vec![row])),
        ("reply.document", Reply::Document("{}".into())),
        ("reply.log", Reply::Log(b"hello\n".to_vec())),
        ("reply.accepted", Reply::Accepted { migration: id() }),
        ("reply.plan", Reply::Plan(vec!["reserve".into()])),
        ("reply.event.started", event(EventBody::PhaseStarted { phase: Phase::Freeze })),
        ("reply.event.progress", event(progress)),
        (
            "reply.event.phase_done",
            event(EventBody::PhaseDone { phase: Phase::Prepare, micros: 130_000, note: "held".into() }),
        ),
        ("reply.event.notice", event(EventBody::Notice { text: "kernels differ".into() })),
        ("reply.event.done", event(EventBody::Done { summary: summary() })),
        ("reply.event.failed", event(EventBody::Failed { failure: failure() })),
        ("reply.migrations", Reply::Migrations(vec![status()])),
        ("reply.done", Reply::Done("stopped".into())),
        ("reply.end", Reply::End),
        ("reply.failed", Reply::Failed(failure())),
        ("reply.unmet", Reply::Unmet(vec!["source.send.grant=drop".into()])),
    ]
}

fn handoffs() -> Vec<(&'static str, Handoff)> {
    let times = ResumeTimes { grant_to_running_us: 9000, grant_to_first_packet_us: Some(9500) };
    vec![
        ("handoff.reserve", Handoff::Reserve(Box::new(offer()))),
        (
            "handoff.reserved",
            Handoff::Reserved {
                lease_ms: 0,
                notices: vec!["kernels differ".into()],
                memory: MemoryMode::Plain,
            },
        ),
        ("handoff.refused", Handoff::Refused(failure())),
        ("handoff.pass_done", Handoff::PassDone { index: 1, pass: 2 }),
        ("handoff.frozen", Handoff::Frozen),
        (
            "handoff.prepare",
            Handoff::Prepare(Totals {
                image_files: 40,
                image_bytes: 1 << 26,
                tree_passes: vec![3, 2],
                memory: Some(MemoryTotals {
                    rounds: 3,
                    pages: PagesEnd { data_pages: 16_384, ref_pages: 5, zero_pages: 9 },
                }),
            }),
        ),
        ("handoff.prepared", Handoff::Prepared { restore_us: 130_000 }),
        ("handoff.grant", Handoff::Grant),
        ("handoff.running", Handoff::Running(times)),
        ("handoff.retired", Handoff::Retired),
        ("handoff.closed", Handoff::Closed),
        ("handoff.abort", Handoff::Abort(failure())),
        ("handoff.aborted", Handoff::Aborted),
        ("handoff.query", Handoff::Query),
        ("handoff.position.unknown", Handoff::Position(Position::Unknown)),
        ("handoff.position.before_commit", Handoff::Position(Position::BeforeCommit)),
        ("handoff.position.held", Handoff::Position(Position::Held)),
        ("handoff.position.released", Handoff::Position(Position::Released)),
        ("handoff.position.owner", Handoff::Position(Position::Owner)),
        ("handoff.position.ended", Handoff::Position(Position::Ended)),
        ("handoff.position.taken", Handoff::Position(Position::Taken)),
        ("handoff.position.taken_back", Handoff::Position(Position::TakenBack)),
        ("handoff.round_done", Handoff::RoundDone { round: 2 }),
        ("handoff.holding", Handoff::Holding),
        (
            "handoff.packets",
            Handoff::Packets(vec![HeldPacket { link: "eth0".into(), frame: vec![2, 0, 0, 0, 0, 5] }]),
        ),
    ]
}

/// Every framed message.
pub fn messages() -> Vec<(&'static str, Message)> {
    let open = |content| BulkOpen { migration: id(), epoch: Epoch(2), content };
    let mut all: Vec<(&'static str, Message)> = vec![
        ("hello", Hello { versions: vec![1, 300], software: "tranship 0.1.0".into() }.into()),
        (
            "welcome.version",
            Welcome::Version {
                version: 1,
                software: "transhipd 0.1.0".into(),
                host: "host-a".parse().unwrap(),
            }
            .into(),
        ),
        (
            "welcome.none",
            Welcome::NoSharedVersion { versions: vec![1], software: "transhipd 0.1.0".into() }.into(),
        ),
        ("bulk.images", open(BulkContent::Images).into()),
        ("bulk.tree", open(BulkContent::Tree { index: 1, pass: 2 }).into()),
        ("bulk.pages", open(BulkContent::Pages { round: 2, lane: 1, lanes: 2 }).into()),
    ];
    all.extend(requests().into_iter().map(|(n, m)| (n, m.into())));
    all.extend(replies().into_iter().map(|(n, m)| (n, m.into())));
    let envelope = |body| Envelope { migration: id(), epoch: Epoch(2), body };
    all.extend(handoffs().into_iter().map(|(n, m)| (n, envelope(m).into())));
    all
}

/// Every record of a tree.
pub fn records() -> Vec<(&'static str, TreeMeta)> {
    let time = |s, ns| Time { s, ns };
    let meta = Meta { mode: 0o4755, uid: 1, gid: 2, atime: time(-1, 999_999_999), mtime: time(1 << 33, 1) };
    let entry = |kind| {
        TreeMeta::Entry(Entry {
            path: b"a/\xff".to_vec(),
            kind,
            meta,
            xattrs: vec![Xattr { name: b"user.x".to_vec(), value: b"1\n".to_vec() }],
        })
    };
    let file = |content| entry(EntryKind::File { size: 1 << 40, content });
    vec![
        ("pass_start", TreeMeta::PassStart { pass: 1 }),
        ("dir", entry(EntryKind::Dir)),
        ("file.full", file(Content::Full)),
        ("file.delta", file(Content::Delta)),
        ("file.keep", file(Content::Keep)),
        ("symlink", entry(EntryKind::Symlink { target: b"../t".to_vec() })),
        ("hard_link", entry(EntryKind::HardLink { to: b"b".to_vec() })),
        ("fifo", entry(EntryKind::Fifo)),
        ("socket", entry(EntryKind::Socket)),
        ("char_device", entry(EntryKind::CharDev { major: 1, minor: 3 })),
        ("block_device", entry(EntryKind::BlockDev { major: 8, minor: 1 })),
        ("data", TreeMeta::Data { offset: 65536, len: 4096 }),
        ("hole", TreeMeta::Hole { offset: 65536, len: 1 << 30 }),
        ("file_end", TreeMeta::FileEnd { digest: [7; 32], sent_bytes: 4096 }),
        ("remove", TreeMeta::Remove { path: b"a".to_vec() }),
        ("pass_end", TreeMeta::PassEnd { entries: 9, data_bytes: 1 << 20, digest: [9; 32] }),
    ]
}
