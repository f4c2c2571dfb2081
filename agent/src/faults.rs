//! Named points at which an agent can be made to fail, so that an operator can prove on his own
//! fleet what happens then.
//!
//! A point is `SIDE.KIND.NAME`: `source.record.released.before`, `destination.effect.restore.after`,
//! `source.send.grant`. A rule is `POINT=ACTION` with the actions `crash` (SIGKILL to the agent
//! itself), `delay:MILLISECONDS`, `drop`, `repeat` (messages), `error` (records and effects), and
//! `*N` behind it for the first N times (once without). Rules are refused unless the configuration
//! says `allow_faults = true`; without it every check is one look at an empty list.
//!
//! `tranship drill` sets rules while the agent runs. They are forgotten after a time that it names,
//! since a drill that was killed cannot take them back.
//!
//! Rejected: compile-time features, because then what is proved is another program.

use serde::Deserialize;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tranship_proto::status::{Failure, Reason, Side};

/// Most rules at a time.
const MAX_RULES: usize = 64;
/// Longest delay.
const MAX_DELAY: Duration = Duration::from_secs(300);
/// Longest time that rules set by a request are kept.
const MAX_LIFE: Duration = Duration::from_secs(3600);

/// `[faults]` of the configuration.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FaultConfig {
    /// Without it any rule is an error.
    pub allow_faults: bool,
    /// `POINT=ACTION`.
    pub points: Vec<String>,
}

/// What is to happen at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The agent is killed, as by `kill -9`.
    Crash,
    /// It waits.
    Delay(Duration),
    /// The message is lost.
    Drop,
    /// The message is sent twice.
    Repeat,
    /// The step or record fails.
    Error,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    text: String,
    point: String,
    action: Action,
    left: u32,
}

#[derive(Debug, Default)]
struct Rules {
    rules: Vec<Rule>,
    /// When they are forgotten; those of the configuration never are.
    until: Option<Instant>,
}

/// The rules in force.
#[derive(Debug, Default)]
pub struct Faults {
    allowed: bool,
    in_force: Mutex<Rules>,
}

fn parse(text: &str) -> Result<Rule, String> {
    let (point, action) = text.split_once('=').ok_or_else(|| format!("{text:?} is not POINT=ACTION"))?;
    let parts: Vec<&str> = point.split('.').collect();
    let known = matches!(
        parts.as_slice(),
        ["source" | "destination", "record" | "effect", _, "before" | "after"]
            | ["source" | "destination", "send", _]
    );
    if !known || point.len() > 80 {
        return Err(format!(
            "{point:?} is no point; they read like source.record.released.before or source.send.grant"
        ));
    }
    let (action, left) = match action.split_once('*') {
        Some((a, n)) => (a, n.parse().map_err(|_| format!("{n:?} is no number of times"))?),
        None => (action, 1),
    };
    let send = parts[1] == "send";
    let action = match action.split_once(':') {
        Some(("delay", ms)) => {
            let ms = ms.parse().map_err(|_| format!("{ms:?} is no number of milliseconds"))?;
            Action::Delay(Duration::from_millis(ms).min(MAX_DELAY))
        }
        None if action == "crash" => Action::Crash,
        None if action == "drop" && send => Action::Drop,
        None if action == "repeat" && send => Action::Repeat,
        None if action == "error" && !send => Action::Error,
        _ => return Err(format!("{action:?} is no action for {point}")),
    };
    Ok(Rule { text: text.to_owned(), point: point.to_owned(), action, left })
}

impl Faults {
    /// From the configuration.
    ///
    /// # Errors
    /// The first rule that is not understood, or any rule when faults are not allowed.
    pub fn new(config: &FaultConfig) -> Result<Self, String> {
        let faults = Self { allowed: config.allow_faults, in_force: Mutex::default() };
        if !config.points.is_empty() && !config.allow_faults {
            return Err("faults.allow_faults is not true on this host".into());
        }
        faults.replace(&config.points, None)?;
        Ok(faults)
    }

    /// Replaces the rules, on request; forgotten after `life`. Answers those of the replaced ones
    /// that had not been met as often as they say.
    ///
    /// # Errors
    /// When faults are not allowed here, or for the first rule that is not understood. The rules stay
    /// as they were.
    pub fn set(&self, points: &[String], life: Duration) -> Result<Vec<String>, Failure> {
        let refused = |reason, text| Failure::new(reason, Side::Source, text);
        if !self.allowed {
            let text = "this agent makes no faults on purpose: faults.allow_faults is not true on its host";
            return Err(refused(Reason::Refused, text.to_owned()).hint(
                "set allow_faults = true under [faults] in transhipd.toml and restart the agent; containers \
                 run on meanwhile",
            ));
        }
        let until = Instant::now().checked_add(life.min(MAX_LIFE));
        self.replace(points, until).map_err(|why| refused(Reason::BadRequest, why))
    }

    fn replace(&self, points: &[String], until: Option<Instant>) -> Result<Vec<String>, String> {
        if points.len() > MAX_RULES {
            return Err(format!("{} rules; at most {MAX_RULES} are taken", points.len()));
        }
        let rules = points.iter().map(|p| parse(p)).collect::<Result<Vec<_>, _>>()?;
        if !rules.is_empty() {
            tracing::warn!(?points, "faults are switched on");
        }
        let old = std::mem::replace(&mut *self.in_force(), Rules { rules, until });
        Ok(old.rules.into_iter().filter(|r| r.left > 0).map(|r| r.text).collect())
    }

    /// The rules, less those whose time is over.
    fn in_force(&self) -> MutexGuard<'_, Rules> {
        let mut all = self.in_force.lock().unwrap_or_else(PoisonError::into_inner);
        if all.until.is_some_and(|until| Instant::now() > until) {
            *all = Rules::default();
        }
        all
    }

    /// Passes a point: kills or delays here, and answers what the caller has to do itself.
    pub async fn pass(&self, point: &str) -> Option<Action> {
        let action = {
            let mut all = self.in_force();
            let rule = all.rules.iter_mut().find(|r| r.left > 0 && r.point == point)?;
            rule.left -= 1;
            rule.action
        };
        tracing::warn!(point, ?action, "fault");
        match action {
            Action::Crash => {
                let _ =
                    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
                None
            }
            Action::Delay(time) => {
                tokio::time::sleep(time).await;
                None
            }
            other => Some(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_rule_counts_its_times_and_needs_permission() {
        let points = vec!["source.send.grant=drop*2".to_owned()];
        assert!(Faults::new(&FaultConfig { allow_faults: false, points: points.clone() }).is_err());
        let faults = Faults::new(&FaultConfig { allow_faults: true, points }).unwrap();
        assert_eq!(faults.pass("source.send.grant").await, Some(Action::Drop));
        assert_eq!(faults.pass("source.send.frozen").await, None);
        assert_eq!(faults.pass("source.send.grant").await, Some(Action::Drop));
        assert_eq!(faults.pass("source.send.grant").await, None);
    }

    #[tokio::test]
    async fn rules_set_on_request_need_permission_and_are_forgotten() {
        let points = vec!["source.send.grant=drop".to_owned()];
        let refused = Faults::default().set(&points, MAX_LIFE).unwrap_err();
        assert_eq!(refused.reason, Reason::Refused);
        assert!(refused.hint.unwrap().contains("allow_faults = true"));
        let faults = Faults::new(&FaultConfig { allow_faults: true, points: Vec::new() }).unwrap();
        assert_eq!(faults.set(&points, MAX_LIFE).unwrap(), [""; 0]);
        assert_eq!(faults.set(&points, MAX_LIFE).unwrap(), points, "nothing has met them");
        assert_eq!(faults.pass("source.send.grant").await, Some(Action::Drop));
        assert_eq!(faults.set(&points, Duration::ZERO).unwrap(), [""; 0]);
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert_eq!(faults.pass("source.send.grant").await, None, "their time is over");
        assert_eq!(faults.set(&["nonsense".into()], MAX_LIFE).unwrap_err().reason, Reason::BadRequest);
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        for bad in [
            "x",
            "source.send.grant",
            "source.send.grant=error",
            "source.record.released.before=drop",
            "source.record.released=crash",
            "nobody.send.grant=drop",
            "source.send.grant=delay:x",
            "source.send.grant=drop*x",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(parse("destination.effect.restore.after=error").is_ok());
        assert!(parse("destination.record.owner.before=delay:250*3").is_ok());
    }
}
