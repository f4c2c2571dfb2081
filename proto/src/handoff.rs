//! Messages between the source agent S and the destination agent T of one migration.
//!
//! ```text
//! S                                         T
//! |-- Reserve (offer) -------------------->|  checks, lease
//! |<------------------ Reserved / Refused --|
//! |== bulk: files, one pass per stream ===>|
//! |<----------------------------- PassDone --|
//! |== bulk: memory, in rounds ============>|  (fast mode only)
//! |<---------------------------- RoundDone --|
//!    hold packets, freeze, fence
//! |-- Frozen ----------------------------->|  hold packets
//! |<----------------------------- Holding --|
//! |-- Packets ---------------------------->|
//! |== bulk: images, last file pass =======>|
//! |-- Prepare (totals) ------------------->|  verify, restore, hold
//! |<------------------ Prepared / Refused --|
//!    flush RELEASED
//! |-- Grant, repeated -------------------->|  flush OWNER, resume, announce
//! |<------------------------------ Running --|
//!    kill while fenced, remove
//! |-- Retired ---------------------------->|
//! |<------------------------------ Closed --|
//! ```
//!
//! Before Grant either side may say `Abort`; T then removes everything and answers `Aborted`.
//! Every message travels in an [`Envelope`] with migration id and epoch. Repeats are answered from
//! the state reached, so every message may be sent again.
//!
//! When an operator has settled a migration that was in doubt, the side that runs the container says
//! so in its [`Position`]: `Taken` or `TakenBack`. The other one obeys when it is back.

use crate::bounded;
use crate::ids::{ContainerName, Epoch, HostName, MigrationId};
use crate::pages::PagesEnd;
use crate::status::Failure;
use serde::{Deserialize, Serialize};

/// Trees (root file system and volumes) in one migration.
pub const MAX_TREES: usize = 65;
/// Bytes of a JSON document inside a message.
pub const MAX_DOCUMENT: usize = 1 << 20;

/// Packets in one message: most of them, and most bytes of all together.
pub const MAX_PACKETS: usize = 4096;
/// Bytes of the packets in one message.
pub const MAX_PACKET_BYTES: usize = 1 << 20;
/// Bytes of one packet: an IP packet, an Ethernet header and two VLAN tags.
pub const MAX_PACKET: usize = 65535 + 22;

/// Strings in a list (processor features, notices): most of them.
pub const MAX_WORDS: usize = 1024;

/// A message with what it is about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Envelope {
    /// The migration.
    pub migration: MigrationId,
    /// Epoch that the destination gets by this migration.
    pub epoch: Epoch,
    /// The message.
    pub body: Handoff,
}

/// How memory travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum MemoryMode {
    /// In CRIU's images, after the freeze; restored from them before the container runs.
    Plain,
    /// In rounds while the container runs, the rest after the freeze; filled in at the destination
    /// while it runs there.
    #[default]
    Fast,
}

/// A directory tree to be carried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeOffer {
    /// 0 is the root file system; volumes follow.
    pub index: u16,
    /// Where it is mounted inside the container.
    pub mounted_at: String,
    /// Bytes allocated at the source, an estimate.
    pub bytes: u64,
    /// Objects, an estimate.
    pub entries: u64,
}

/// What S wants to move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Name and id.
    pub container: ContainerName,
    /// Source host.
    pub source: HostName,
    /// Container's description: a JSON document of the engine's.
    #[serde(with = "serde_bytes")]
    pub container_json: Vec<u8>,
    /// Captured network: a JSON document of [`crate::network::NetCapture`].
    #[serde(with = "serde_bytes")]
    pub network_json: Vec<u8>,
    /// Trees.
    #[serde(deserialize_with = "bounded::list::<_, _, MAX_TREES>")]
    pub trees: Vec<TreeOffer>,
    /// Resident memory of the container's processes.
    pub memory_bytes: u64,
    /// CRIU's version at the source; T's must not be older.
    pub criu_version: String,
    /// Kernel release at the source.
    pub kernel: String,
    /// CPU architecture.
    pub arch: String,
    /// CPU feature names of the source; T must have them all.
    #[serde(deserialize_with = "bounded::list::<_, _, MAX_WORDS>")]
    pub cpu_features: Vec<String>,
    /// Runtime family (`runc`): images of one family do not restore under another.
    pub runtime: String,
    /// How S wants memory to travel.
    pub memory: MemoryMode,
    /// Only check; T keeps nothing.
    pub dry_run: bool,
}

/// Totals that T verifies before it restores.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Image files sent.
    pub image_files: u32,
    /// Their bytes.
    pub image_bytes: u64,
    /// Last pass number of each tree, in order of index.
    #[serde(deserialize_with = "bounded::list::<_, _, MAX_TREES>")]
    pub tree_passes: Vec<u32>,
    /// What the rounds over the memory have carried; in fast mode only.
    pub memory: Option<MemoryTotals>,
}

/// What the rounds over the memory have carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryTotals {
    /// Rounds, the one after the freeze included.
    pub rounds: u32,
    /// Pages of all of them.
    pub pages: PagesEnd,
}

/// A packet that waited at one host and goes on waiting at another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldPacket {
    /// Name of the link inside the container.
    pub link: String,
    /// A complete Ethernet frame without check sequence, 14 bytes to [`MAX_PACKET`].
    #[serde(with = "serde_bytes")]
    pub frame: Vec<u8>,
}

/// Times at T, by its monotonic clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct ResumeTimes {
    /// From the receipt of Grant to the container running.
    pub grant_to_running_us: u64,
    /// From the receipt of Grant to the first packet out, when there was one within the wait.
    pub grant_to_first_packet_us: Option<u64>,
}

/// The messages of the hand-over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Handoff {
    /// S: will you have it?
    Reserve(Box<Offer>),
    /// T: yes; the lease lasts as long as the connection, and at least so long after.
    Reserved {
        /// Milliseconds that the reservation outlives the connection.
        lease_ms: u64,
        /// What T noticed and did not refuse for.
        #[serde(deserialize_with = "bounded::list::<_, _, MAX_WORDS>")]
        notices: Vec<String>,
        /// How memory is to travel: as S wants it, or plain where T cannot have it so.
        memory: MemoryMode,
    },
    /// T: no. Nothing is left at T.
    Refused(Failure),
    /// T: a pass over a tree was applied, digest and counts verified.
    PassDone {
        /// Tree index.
        index: u16,
        /// Number of the pass.
        pass: u32,
    },
    /// S: frozen and fenced; packets for the addresses are T's from now on.
    Frozen,
    /// S: everything has been sent.
    Prepare(Totals),
    /// T: restored and held; nothing has run.
    Prepared {
        /// From Prepare to held.
        restore_us: u64,
    },
    /// S: RELEASED is on disk; it is yours.
    Grant,
    /// T: OWNER is on disk and it runs.
    Running(ResumeTimes),
    /// S: the copy here is gone.
    Retired,
    /// T: nothing more is expected.
    Closed,
    /// Either, before Grant: give up.
    Abort(Failure),
    /// T: nothing is left here of it.
    Aborted,
    /// Either: where are you in this migration?
    Query,
    /// Answer to `Query`.
    Position(Position),
    /// T: all streams of a round over the memory were applied.
    RoundDone {
        /// The round.
        round: u32,
    },
    /// T: packets for the addresses come here from now on.
    Holding,
    /// S: those that came there before. Lost or said twice, their senders repeat them or the container
    /// knows them already.
    Packets(#[serde(deserialize_with = "bounded::list::<_, _, MAX_PACKETS>")] Vec<HeldPacket>),
}

impl Handoff {
    /// Its name, for logs and fault points.
    pub fn name(&self) -> &'static str {
        match self {
            Handoff::Reserve(_) => "reserve",
            Handoff::Reserved { .. } => "reserved",
            Handoff::Refused(_) => "refused",
            Handoff::PassDone { .. } => "pass_done",
            Handoff::RoundDone { .. } => "round_done",
            Handoff::Frozen => "frozen",
            Handoff::Holding => "holding",
            Handoff::Packets(_) => "packets",
            Handoff::Prepare(_) => "prepare",
            Handoff::Prepared { .. } => "prepared",
            Handoff::Grant => "grant",
            Handoff::Running(_) => "running",
            Handoff::Retired => "retired",
            Handoff::Closed => "closed",
            Handoff::Abort(_) => "abort",
            Handoff::Aborted => "aborted",
            Handoff::Query => "query",
            Handoff::Position(_) => "position",
        }
    }
}

/// Where a side is, for the other to decide what to send again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Position {
    /// Never heard of it, or all of it is removed.
    Unknown,
    /// S or T: before commit.
    BeforeCommit,
    /// T: held, PREPARED is on disk.
    Held,
    /// S: RELEASED is on disk.
    Released,
    /// T: OWNER is on disk.
    Owner,
    /// Ended without commit.
    Ended,
    /// T: an operator declared the source's host dead; the container runs here since.
    Taken,
    /// S: an operator declared the destination's host dead; the container is the source's again. T
    /// destroys what it has, fenced, even as the owner.
    TakenBack,
}
