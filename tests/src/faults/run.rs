//! One run: a move under a counting client, one fault, and everything that must hold afterwards.
//!
//! While the command moves the container, other threads keep the agents alive (one that died is
//! started again after a while, as systemd would), do what the plan says, look at both process
//! tables, and ask both agents whether they are in doubt. Nothing is checked before both agents say
//! that nothing is under way: until then the only promise is that no second copy runs.

use super::after::settled;
use super::ground::{ADDR, Ground, NAME};
use super::plan::{Act, Plan, Side, Target};
use super::victim::{signal, victims};
use super::watch::{Sight, Watch, link_up};
use crate::Host;
use crate::agent_log::AgentLog;
use crate::ask;
use crate::scenario::bounded::{Running, tail};
use crate::state::start_time;
use anyhow::{Context, ensure};
use nix::sys::signal::Signal;
use serde::Serialize;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tranship_proto::control::{Reply, Request};
use tranship_proto::status::{Progressing, Side as At};

/// The whole move, with everything that a fault may add: a connection is given up after 8 s, a
/// phase after 15 s.
const SETTLED: Duration = Duration::from_secs(60);
/// Until the command, which may have to find its agent again, tells the end.
const TOLD: Duration = Duration::from_secs(10);
/// Between looks at an agent, a log, a process table.
const LOOK: Duration = Duration::from_millis(4);
/// Between questions to the agents.
const ASK: Duration = Duration::from_millis(40);

/// An agent that was started again.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Restart {
    pub(super) side: Side,
    /// From the start of its process until its socket took a connection.
    pub(super) ready_ms: u64,
    /// From then until the client heard the container again; absent when it was heard all the time,
    /// or when another agent was started later in the same silence.
    pub(super) answered_ms: Option<u64>,
    #[serde(skip)]
    pub(super) ready_at_unix_ms: u64,
}

/// What a run came to.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Outcome {
    pub(super) plan: Plan,
    pub(super) told: String,
    /// Whether the fault happened: a rule of a step that is never reached does not.
    pub(super) struck: bool,
    /// Whether the container ended at the destination; absent when that is not known, or it was lost.
    pub(super) moved: Option<bool>,
    /// Whether an operator had to give the destination's copy up, which never had run or was dead.
    pub(super) given_up: bool,
    /// Whether it had to be killed, since its memory could not be completed.
    pub(super) lost: bool,
    /// Whether an agent showed it as in doubt meanwhile.
    pub(super) in_doubt: bool,
    pub(super) exit_code: Option<i32>,
    /// The longest silence that the client had.
    pub(super) gap_ms: u64,
    pub(super) replies: u64,
    pub(super) looks: u64,
    pub(super) restarts: Vec<Restart>,
    pub(super) took_ms: u64,
    /// What must not have been; a run with an empty list has passed.
    pub(super) violations: Vec<String>,
    /// The agents' logs, when something must not have been.
    pub(super) logs: String,
}

/// What the threads of a run share.
struct Scope<'a> {
    ground: &'a Ground,
    plan: &'a Plan,
    logs: &'a [AgentLog; 2],
    /// An agent has had the migration under way.
    begun: AtomicBool,
    /// It has ended, as far as the agents know: what is not done yet is not done.
    ended: AtomicBool,
    over: AtomicBool,
    /// An operator has given the destination's copy up.
    given_up: AtomicBool,
    restarts: Mutex<Vec<Restart>>,
    trouble: Mutex<Vec<String>>,
}

/// Does one run. What goes wrong is in the outcome.
pub(super) fn run(ground: &mut Ground, plan: Plan) -> Outcome {
    let began = Instant::now();
    let told = plan.told();
    let mut outcome = Outcome {
        plan,
        told,
        struck: false,
        moved: None,
        given_up: false,
        lost: false,
        in_doubt: false,
        exit_code: None,
        gap_ms: 0,
        replies: 0,
        looks: 0,
        restarts: Vec::new(),
        took_ms: 0,
        violations: Vec::new(),
        logs: String::new(),
    };
    match (ground.host(Side::Source), ground.host(Side::Destination)) {
        (Ok(source), Ok(destination)) => {
            run_on(ground, &mut outcome, &[AgentLog::of(source), AgentLog::of(destination)]);
        }
        (Err(e), _) | (_, Err(e)) => outcome.violations.push(format!("{e:#}")),
    }
    outcome.took_ms = millis(began.elapsed());
    outcome
}

fn run_on(ground: &mut Ground, outcome: &mut Outcome, logs: &[AgentLog; 2]) {
    if let Err(e) = attempt(ground, outcome, logs) {
        outcome.violations.push(format!("{e:#}"));
    }
    if !outcome.violations.is_empty() {
        for log in logs {
            outcome.logs.push_str(&format!("--- {}\n{}\n", log.host().name(), tail(&log.text(), 12_000)));
        }
    }
}

fn attempt(ground: &mut Ground, outcome: &mut Outcome, logs: &[AgentLog; 2]) -> anyhow::Result<()> {
    ground.locate().context("before the run")?;
    arm(ground, &outcome.plan)?;
    let client = ground.scene.load(&["redis", "--addr", ADDR])?;
    std::thread::sleep(Duration::from_millis(50));
    let (sight, moved) = break_it(ground, outcome, logs);
    outcome.looks = sight.looks;
    outcome.violations.extend(sight.offences);
    moved?;
    settled(ground, outcome, logs, client)
}

/// Gives both agents the rules of the plan; one that has none stays as it is.
fn arm(ground: &Ground, plan: &Plan) -> anyhow::Result<()> {
    for side in Side::BOTH.into_iter().filter(|side| !plan.rules(*side).is_empty()) {
        let host = ground.host(side)?;
        ground.configure(&host, plan.rules(side))?;
        host.stop_agent()?;
        host.start_agent()?;
    }
    Ok(())
}

/// The move with its fault, up to the moment when both agents have nothing under way.
fn break_it(ground: &Ground, outcome: &mut Outcome, logs: &[AgentLog; 2]) -> (Sight, anyhow::Result<()>) {
    let parts = || -> anyhow::Result<(Scope<'_>, Watch)> {
        let [source, destination] = logs;
        let hosts = [source.host().clone(), destination.host().clone()];
        let orphans = matches!(outcome.plan.act, Act::KillRestore { target: Target::Restore, .. });
        let watch = Watch::begin(hosts, NAME, orphans)?;
        let scope = Scope {
            ground,
            plan: &outcome.plan,
            logs,
            begun: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            over: AtomicBool::new(false),
            given_up: AtomicBool::new(false),
            restarts: Mutex::default(),
            trouble: Mutex::default(),
        };
        Ok((scope, watch))
    };
    let (scope, watch) = match parts() {
        Ok(parts) => parts,
        Err(e) => return (Sight::default(), Err(e)),
    };
    let (exit_code, acted, in_doubt, result) = std::thread::scope(|threads| {
        let keepers = Side::BOTH.map(|side| {
            threads.spawn({
                let scope = &scope;
                move || scope.keep(side)
            })
        });
        let doubt = threads.spawn(|| scope.doubt());
        let act = threads.spawn(|| scope.act());
        let command = scope.migrate();
        scope.ended.store(true, Ordering::Relaxed);
        let acted = act.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the fault's thread panicked")));
        let idle = scope.wait_idle();
        let code = command.and_then(|c| c.finish_within(TOLD)).map(|ended| ended.code);
        scope.over.store(true, Ordering::Relaxed);
        for keeper in keepers {
            let _ = keeper.join();
        }
        let in_doubt = doubt.join().unwrap_or(false);
        (code.as_ref().ok().copied().flatten(), acted, in_doubt, idle.and(code.map(drop)))
    });
    let sight = watch.end();
    let met = scope.logs.iter().any(|log| log.faults() > 0);
    let restarts = scope.restarts.into_inner().unwrap_or_default();
    let trouble = scope.trouble.into_inner().unwrap_or_default();
    let given_up = scope.given_up.into_inner();
    let result = result.and(acted.map(|acted| outcome.struck = met || acted));
    (outcome.exit_code, outcome.restarts, outcome.given_up) = (exit_code, restarts, given_up);
    // Given up between two looks, it was in doubt all the same.
    outcome.in_doubt = in_doubt || given_up;
    outcome.violations.extend(trouble);
    (sight, result)
}

impl Scope<'_> {
    fn log(&self, side: Side) -> &AgentLog {
        let [source, destination] = self.logs;
        match side {
            Side::Source => source,
            Side::Destination => destination,
        }
    }

    fn host(&self, side: Side) -> &Host {
        self.log(side).host()
    }

    /// Starts the command, and waits until it has ended or the agents have nothing under way any more.
    fn migrate(&self) -> anyhow::Result<Running> {
        let (from, to) = (self.ground.name(Side::Source), self.ground.name(Side::Destination));
        let mut command = self.ground.scene.migrate_begin(from, NAME, to)?;
        let until = Instant::now() + SETTLED;
        while !command.has_ended() && Instant::now() < until {
            if self.begun.load(Ordering::Relaxed) && self.idle().is_ok() {
                break;
            }
            std::thread::sleep(ASK);
        }
        Ok(command)
    }

    /// Starts a side's agent again whenever it has died.
    fn keep(&self, side: Side) {
        let mut again = self.plan.again.as_slice();
        let mut pid = self.host(side).agent_pid().ok().flatten();
        while !self.over.load(Ordering::Relaxed) {
            if pid.is_some_and(|pid| start_time(pid).is_some()) {
                std::thread::sleep(LOOK);
                continue;
            }
            std::thread::sleep(self.plan.away);
            let armed = again.iter().any(|rule| belongs(rule, side));
            match self.start_again(side, std::mem::take(&mut again)) {
                Ok(restart) => lock(&self.restarts).push(restart),
                // It has met a rule before it was ready.
                Err(_) if armed => {}
                Err(e) => {
                    lock(&self.trouble).push(format!("{e:#}"));
                    std::thread::sleep(Duration::from_millis(500));
                }
            }
            pid = self.host(side).agent_pid().ok().flatten();
        }
    }

    fn start_again(&self, side: Side, rules: &[String]) -> anyhow::Result<Restart> {
        let host = self.host(side);
        let own: Vec<String> = rules.iter().filter(|r| belongs(r, side)).cloned().collect();
        self.ground.configure(host, &own)?;
        let began = Instant::now();
        host.start_agent().context("starting an agent again")?;
        Ok(Restart {
            side,
            ready_ms: millis(began.elapsed()),
            answered_ms: None,
            ready_at_unix_ms: unix_ms(),
        })
    }

    /// Sees whether the move has begun, and whether an agent was ever in doubt.
    fn doubt(&self) -> bool {
        let mut seen = false;
        while !self.over.load(Ordering::Relaxed) {
            for side in Side::BOTH {
                let shown = ask::under_way(self.host(side)).unwrap_or_default();
                self.begun.fetch_or(!shown.is_empty(), Ordering::Relaxed);
                seen |= shown.iter().any(|m| m.state == Progressing::InDoubt);
            }
            std::thread::sleep(ASK);
        }
        seen
    }

    /// Does the lab's own part of the fault; answers whether it met the move.
    fn act(&self) -> anyhow::Result<bool> {
        match self.plan.act {
            Act::Nothing => Ok(false),
            Act::Kill { side, after } => {
                std::thread::sleep(after);
                Ok(self.kill(side))
            }
            Act::KillToo { passed, after } => {
                if !self.until(|| self.log(passed).faults() > 0) {
                    return Ok(false);
                }
                std::thread::sleep(after);
                Ok(self.kill(passed.other()))
            }
            Act::Cut { passed, lasts } => {
                if !self.until(|| self.log(passed).faults() > 0) {
                    return Ok(false);
                }
                let (a, b) = (self.ground.name(Side::Source), self.ground.name(Side::Destination));
                self.ground.lab().cut(a, b)?;
                std::thread::sleep(lasts);
                self.ground.lab().heal(a, b)?;
                Ok(true)
            }
            Act::KillRestore { target, after } => {
                let host = self.host(Side::Destination);
                // The fill processes start before the restore, and change places until it is held.
                let sign = if target == Target::Restore { target } else { Target::Hold };
                if !self.until(|| !victims(host, sign).is_empty()) {
                    return Ok(false);
                }
                std::thread::sleep(after);
                let met = signal(&victims(host, target), Signal::SIGKILL);
                self.give_up_at_destination()?;
                Ok(met)
            }
            Act::KillFill { target, after } => {
                let host = self.host(Side::Destination);
                if !self.until(|| !victims(host, Target::Hold).is_empty()) {
                    return Ok(false);
                }
                let worker = victims(host, Target::Fill);
                if !signal(&worker, Signal::SIGSTOP) || !self.until(|| link_up(host)) {
                    signal(&worker, Signal::SIGCONT);
                    return Ok(false);
                }
                std::thread::sleep(after);
                let met = signal(&victims(host, target), Signal::SIGKILL);
                if target == Target::Fill {
                    self.give_up_at_destination()?;
                } else {
                    signal(&worker, Signal::SIGCONT);
                }
                Ok(met)
            }
            Act::Fill { side, store, after, lasts } => {
                let host = self.ground.name(side);
                std::thread::sleep(after);
                let met = !self.ended.load(Ordering::Relaxed);
                self.ground.fill(host, store, true)?;
                std::thread::sleep(lasts);
                self.ground.fill(host, store, false)?;
                Ok(met)
            }
        }
    }

    /// A copy that died when it was the destination's and was not said to run leaves the migration in
    /// doubt, and an operator has to give it up. Otherwise there is nothing to decide: waits for the end.
    fn give_up_at_destination(&self) -> anyhow::Result<()> {
        let host = self.host(Side::Destination);
        let until = Instant::now() + SETTLED;
        loop {
            let shown = ask::under_way(host).unwrap_or_default();
            if let Some(m) = shown.iter().find(|m| m.state == Progressing::InDoubt) {
                // It may just be tried again to resume it; then that is said, and it is asked again.
                let request = Request::Resolve { migration: m.migration, run_at: At::Source };
                if ask::ask(host, request).is_ok_and(|reply| matches!(reply, Reply::Done(_))) {
                    self.given_up.store(true, Ordering::Relaxed);
                    return Ok(());
                }
            }
            if self.begun.load(Ordering::Relaxed) && self.idle().is_ok() {
                return Ok(());
            }
            ensure!(Instant::now() < until, "the lost container is not given up: {shown:?}");
            std::thread::sleep(ASK);
        }
    }

    /// Kills an agent, unless the move has ended or it is dead already.
    fn kill(&self, side: Side) -> bool {
        !self.ended.load(Ordering::Relaxed) && self.host(side).kill_agent().is_ok()
    }

    /// Waits for something that happens before the command ends, or does not happen.
    fn until(&self, happened: impl Fn() -> bool) -> bool {
        while !self.ended.load(Ordering::Relaxed) {
            if happened() {
                return true;
            }
            std::thread::sleep(LOOK);
        }
        false
    }

    /// Waits until both agents run and have nothing under way.
    fn wait_idle(&self) -> anyhow::Result<()> {
        let until = Instant::now() + SETTLED;
        loop {
            match self.idle() {
                Err(e) if Instant::now() > until => {
                    return Err(e.context(format!("nothing ended within {} s", SETTLED.as_secs())));
                }
                Err(_) => std::thread::sleep(ASK),
                Ok(()) => return Ok(()),
            }
        }
    }

    fn idle(&self) -> anyhow::Result<()> {
        for side in Side::BOTH {
            let shown = ask::under_way(self.host(side))?;
            ensure!(shown.is_empty(), "{} has {shown:?}", self.host(side).name());
        }
        Ok(())
    }
}

fn belongs(rule: &str, side: Side) -> bool {
    match side {
        Side::Source => rule.starts_with("source."),
        Side::Destination => rule.starts_with("destination."),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis)
}
