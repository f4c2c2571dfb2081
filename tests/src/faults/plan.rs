//! What goes wrong in a run: chosen from its seed alone, and done by nobody here.

use super::dice::Dice;
use serde::Serialize;
use std::time::Duration;

/// Which of the two agents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Side {
    Source,
    Destination,
}

impl Side {
    pub(super) const BOTH: [Self; 2] = [Self::Source, Self::Destination];

    fn word(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }

    pub(super) fn other(self) -> Self {
        match self {
            Self::Source => Self::Destination,
            Self::Destination => Self::Source,
        }
    }
}

/// The sorts of faults, a row each in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The source's agent dies at a record, a step or a message.
    CrashSource,
    /// The destination's agent does.
    CrashDestination,
    /// Both do.
    CrashBoth,
    /// An agent dies on the way back from a failure.
    CrashBack,
    /// The source's agent is killed at any instant.
    KillSource,
    /// The destination's agent is.
    KillDestination,
    /// The link is cut at a message, and healed.
    Cut,
    /// A message is lost.
    Lose,
    /// A message comes twice.
    Repeat,
    /// A message is late.
    Delay,
    /// A step fails.
    StepFails,
    /// A record cannot be written.
    RecordFails,
    /// CRIU dies while it restores or holds.
    RestoreKilled,
    /// The script that holds the restore dies.
    HoldKilled,
    /// The process that fills memory in dies while the restore is held.
    FillKilledHeld,
    /// It dies when the container runs and not all of its memory is there.
    FillKilledRunning,
    /// The process that would kill the container then dies, at either time.
    KeeperKilled,
    /// The disk under `state_dir` is full at the source.
    DiskFullSource,
    /// The same at the destination.
    DiskFullDestination,
    /// The memory for images is full at the source.
    MemoryFullSource,
    /// The same at the destination.
    MemoryFullDestination,
}

impl Kind {
    /// All of them.
    pub(super) const ALL: [Self; 21] = [
        Self::CrashSource,
        Self::CrashDestination,
        Self::CrashBoth,
        Self::CrashBack,
        Self::KillSource,
        Self::KillDestination,
        Self::Cut,
        Self::Lose,
        Self::Repeat,
        Self::Delay,
        Self::StepFails,
        Self::RecordFails,
        Self::RestoreKilled,
        Self::HoldKilled,
        Self::FillKilledHeld,
        Self::FillKilledRunning,
        Self::KeeperKilled,
        Self::DiskFullSource,
        Self::DiskFullDestination,
        Self::MemoryFullSource,
        Self::MemoryFullDestination,
    ];

    /// `crash-source`, ...
    pub(super) fn name(self) -> String {
        match serde_json::to_value(self) {
            Ok(serde_json::Value::String(name)) => name,
            _ => format!("{self:?}"),
        }
    }
}

/// A file system that can be full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Store {
    /// Under `state_dir`: journal and containers.
    Disk,
    /// Under `run_dir`: images, sockets, scripts.
    Memory,
}

/// A process of a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Target {
    /// CRIU.
    Restore,
    /// The script in which it waits.
    Hold,
    /// The worker of the two fill processes.
    Fill,
    /// The keeper of the two.
    Keeper,
}

impl Target {
    fn word(self) -> &'static str {
        match self {
            Self::Restore => "CRIU",
            Self::Hold => "the hold",
            Self::Fill => "the fill process",
            Self::Keeper => "the fill process's keeper",
        }
    }
}

/// What the lab itself does to a run, beside the rules that the agents have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Act {
    /// Nothing.
    Nothing,
    /// Kills an agent, so long after the start.
    Kill { side: Side, after: Duration },
    /// Kills the other agent, so long after this one has passed its rule.
    KillToo { passed: Side, after: Duration },
    /// Cuts the link when a side passes its rule, for so long.
    Cut { passed: Side, lasts: Duration },
    /// Kills a process of the restore, so long after it is first seen.
    KillRestore { target: Target, after: Duration },
    /// Stops the fill process while the restore is held, so that the container runs without its
    /// memory, and kills one of its two processes so long after the container was let go.
    KillFill { target: Target, after: Duration },
    /// Leaves no room in a file system, so long after the start, for so long.
    Fill { side: Side, store: Store, after: Duration, lasts: Duration },
}

/// A run's fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) kind: Kind,
    /// Rules of the source's agent, as in `faults.points`.
    pub(super) source: Vec<String>,
    /// Rules of the destination's.
    pub(super) destination: Vec<String>,
    /// Rules that an agent has when it is started again: it may die a second time.
    pub(super) again: Vec<String>,
    pub(super) act: Act,
    /// How long a dead agent stays away.
    pub(super) away: Duration,
}

const SOURCE_RECORDS: [&str; 4] = ["frozen", "released", "retired", "closed"];
const DESTINATION_RECORDS: [&str; 4] = ["reserved", "prepared", "owner", "closed"];
const SOURCE_STEPS: [&str; 5] = ["reserve", "stage", "freeze", "copy", "retire"];
const DESTINATION_STEPS: [&str; 3] = ["receive", "restore", "resume"];
const SOURCE_WORDS: [&str; 4] = ["frozen", "prepare", "grant", "retired"];
const DESTINATION_WORDS: [&str; 3] = ["prepared", "running", "closed"];
const WAY_BACK: [&str; 9] = [
    "source.record.rolled_back.before",
    "source.record.rolled_back.after",
    "source.effect.undo.before",
    "source.effect.undo.after",
    "source.send.abort",
    "destination.record.discarded.before",
    "destination.record.discarded.after",
    "destination.send.refused",
    "destination.send.aborted",
];
/// Points that an agent passes when it takes a migration up again.
const TAKEN_UP: [&str; 8] = [
    "source.record.retired.before",
    "source.record.rolled_back.before",
    "source.effect.undo.after",
    "source.effect.retire.before",
    "destination.effect.reclaim.before",
    "destination.effect.reclaim.after",
    "destination.effect.resume.after",
    "destination.record.owner.after",
];
/// Longest that a move without a fault takes on a machine with other work, in milliseconds.
const MOVE_MS: u64 = 1400;

impl Plan {
    /// The plan of a seed; `only` narrows the choice (and with it changes what a seed means).
    pub(super) fn of(seed: u64, only: &[Kind]) -> Self {
        let mut dice = Dice::new(seed);
        let kind = if only.is_empty() { dice.pick(&Kind::ALL) } else { dice.pick(only) };
        let mut plan = Self {
            seed,
            kind,
            source: Vec::new(),
            destination: Vec::new(),
            again: Vec::new(),
            act: Act::Nothing,
            away: Duration::ZERO,
        };
        plan.fill_in(&mut dice);
        plan.away = dice.millis(20, 1500);
        if dice.one_in(4) {
            plan.again = vec![format!("{}=crash", dice.pick(&TAKEN_UP))];
        }
        plan
    }

    fn fill_in(&mut self, dice: &mut Dice) {
        match self.kind {
            Kind::CrashSource => self.crash(Side::Source, dice),
            Kind::CrashDestination => self.crash(Side::Destination, dice),
            Kind::CrashBoth => {
                let first = dice.pick(&Side::BOTH);
                self.crash(first, dice);
                if dice.one_in(2) {
                    self.crash(first.other(), dice);
                } else {
                    self.act = Act::KillToo { passed: first, after: dice.millis(0, 300) };
                }
            }
            Kind::CrashBack => {
                let failure = dice.pick(&[
                    "destination.effect.restore.before=error",
                    "destination.effect.restore.after=error",
                    "source.effect.copy.after=error",
                    "source.effect.freeze.after=error",
                ]);
                let back = format!("{}=crash", dice.pick(&WAY_BACK));
                self.add(failure.into());
                self.add(back);
            }
            Kind::KillSource => self.act = Act::Kill { side: Side::Source, after: dice.millis(0, MOVE_MS) },
            Kind::KillDestination => {
                self.act = Act::Kill { side: Side::Destination, after: dice.millis(0, MOVE_MS) };
            }
            Kind::Cut => {
                // Long enough for the cut to be there before the message is sent.
                let passed = self.word(dice, "delay:150");
                // Now and then for longer than a connection lives without a sign of life.
                let lasts = if dice.one_in(6) { dice.millis(8500, 9500) } else { dice.millis(50, 2500) };
                self.act = Act::Cut { passed, lasts };
            }
            Kind::Lose => {
                self.word(dice, "drop");
            }
            Kind::Repeat => {
                self.word(dice, "repeat");
            }
            Kind::Delay => {
                let delay = format!("delay:{}", dice.between(20, 1500));
                self.word(dice, &delay);
            }
            Kind::StepFails => {
                let (side, step) = match dice.pick(&Side::BOTH) {
                    Side::Source => (Side::Source, dice.pick(&SOURCE_STEPS)),
                    Side::Destination => (Side::Destination, dice.pick(&DESTINATION_STEPS)),
                };
                let when = dice.pick(&["before", "after"]);
                self.add(format!("{}.effect.{step}.{when}=error", side.word()));
            }
            Kind::RecordFails => {
                let (side, record) = record(dice);
                let times = dice.between(1, 3);
                self.add(format!("{}.record.{record}.before=error*{times}", side.word()));
            }
            Kind::RestoreKilled => {
                // The restore is quick: in two of three runs it is made to last, held or being recorded.
                let slow = dice.pick(&["", "destination.record.prepared.before", "source.send.grant"]);
                if !slow.is_empty() {
                    self.add(format!("{slow}=delay:300"));
                }
                let latest = if slow.is_empty() { 60 } else { 250 };
                self.act = Act::KillRestore { target: Target::Restore, after: dice.millis(0, latest) };
            }
            Kind::HoldKilled => {
                let slow = dice.pick(&["destination.record.prepared.before", "source.send.grant"]);
                self.add(format!("{slow}=delay:300"));
                self.act = Act::KillRestore { target: Target::Hold, after: dice.millis(0, 200) };
            }
            Kind::FillKilledHeld => self.fill_killed_held(Target::Fill, dice),
            Kind::FillKilledRunning => self.fill_killed_running(Target::Fill, dice),
            Kind::KeeperKilled if dice.one_in(2) => self.fill_killed_held(Target::Keeper, dice),
            Kind::KeeperKilled => self.fill_killed_running(Target::Keeper, dice),
            Kind::DiskFullSource => self.full(Side::Source, Store::Disk, dice),
            Kind::DiskFullDestination => self.full(Side::Destination, Store::Disk, dice),
            Kind::MemoryFullSource => self.full(Side::Source, Store::Memory, dice),
            Kind::MemoryFullDestination => self.full(Side::Destination, Store::Memory, dice),
        }
    }

    fn add(&mut self, rule: String) {
        if rule.starts_with("source.") { self.source.push(rule) } else { self.destination.push(rule) }
    }

    fn crash(&mut self, side: Side, dice: &mut Dice) {
        let when = dice.pick(&["before", "after"]);
        let (records, steps, words): (&[&str], &[&str], &[&str]) = match side {
            Side::Source => (&SOURCE_RECORDS, &SOURCE_STEPS, &SOURCE_WORDS),
            Side::Destination => (&DESTINATION_RECORDS, &DESTINATION_STEPS, &DESTINATION_WORDS),
        };
        let side = side.word();
        // Records are where something is decided: half of all crashes.
        let point = match dice.between(0, 4) {
            0 | 1 => format!("{side}.record.{}.{when}", dice.pick(records)),
            2 => format!("{side}.effect.{}.{when}", dice.pick(steps)),
            _ => format!("{side}.send.{}", dice.pick(words)),
        };
        self.add(format!("{point}=crash"));
    }

    /// A rule for a message; answers whose.
    fn word(&mut self, dice: &mut Dice, action: &str) -> Side {
        let (side, word) = match dice.pick(&Side::BOTH) {
            Side::Source => (Side::Source, dice.pick(&SOURCE_WORDS)),
            Side::Destination => (Side::Destination, dice.pick(&DESTINATION_WORDS)),
        };
        self.add(format!("{}.send.{word}={action}", side.word()));
        side
    }

    fn fill_killed_held(&mut self, target: Target, dice: &mut Dice) {
        let slow = dice.pick(&["destination.record.prepared.before", "source.send.grant"]);
        self.add(format!("{slow}=delay:300"));
        self.act = Act::KillRestore { target, after: dice.millis(0, 200) };
    }

    fn fill_killed_running(&mut self, target: Target, dice: &mut Dice) {
        // Time to stop it before the container runs.
        self.add("source.send.grant=delay:200".into());
        self.act = Act::KillFill { target, after: dice.millis(0, 400) };
    }

    /// Whether the container may be lost: only when the process that has the rest of its memory dies.
    pub(super) fn may_lose(&self) -> bool {
        matches!(self.act, Act::KillFill { target: Target::Fill, .. })
    }

    fn full(&mut self, side: Side, store: Store, dice: &mut Dice) {
        let (after, lasts) = (dice.millis(0, MOVE_MS), dice.millis(100, 2000));
        self.act = Act::Fill { side, store, after, lasts };
    }

    /// The rules of one side's agent.
    pub(super) fn rules(&self, side: Side) -> &[String] {
        match side {
            Side::Source => &self.source,
            Side::Destination => &self.destination,
        }
    }

    /// In a few words.
    pub(super) fn told(&self) -> String {
        let mut words: Vec<String> = self.source.iter().chain(&self.destination).cloned().collect();
        match self.act {
            Act::Nothing => {}
            Act::Kill { side, after } => words.push(format!("{} killed after {after:?}", side.word())),
            Act::KillToo { passed, after } => {
                words.push(format!("{} killed {after:?} later", passed.other().word()));
            }
            Act::Cut { lasts, .. } => words.push(format!("link cut for {lasts:?}")),
            Act::KillRestore { target, after } => {
                words.push(format!("{} killed {after:?} after its start", target.word()));
            }
            Act::KillFill { target, after } => {
                words.push(format!("{} killed {after:?} after the container ran", target.word()));
            }
            Act::Fill { side, store, after, lasts } => {
                let store = if store == Store::Disk { "disk" } else { "memory" };
                words.push(format!("{} {store} full after {after:?} for {lasts:?}", side.word()));
            }
        }
        words.join(", ")
    }
}

fn record(dice: &mut Dice) -> (Side, &'static str) {
    match dice.pick(&Side::BOTH) {
        Side::Source => (Side::Source, dice.pick(&SOURCE_RECORDS)),
        Side::Destination => (Side::Destination, dice.pick(&DESTINATION_RECORDS)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_seed_is_a_plan_and_every_kind_is_drawn() {
        assert_eq!(Plan::of(7, &[]), Plan::of(7, &[]));
        let kinds: BTreeSet<Kind> = (0..500).map(|seed| Plan::of(seed, &[]).kind).collect();
        assert_eq!(kinds.len(), Kind::ALL.len());
        assert!((0..50).all(|seed| Plan::of(seed, &[Kind::Cut]).kind == Kind::Cut));
    }

    #[test]
    fn every_rule_belongs_to_the_agent_that_has_it_and_something_always_happens() {
        for seed in 0..2000 {
            let plan = Plan::of(seed, &[]);
            assert!(plan.source.iter().all(|r| r.starts_with("source.")), "{plan:?}");
            assert!(plan.destination.iter().all(|r| r.starts_with("destination.")), "{plan:?}");
            assert!(!plan.told().is_empty(), "{plan:?}");
        }
    }
}
