//! Named points at which an agent can be made to fail, so that an operator can prove on his own
//! fleet what happens then.
//!
//! A point is `SIDE.KIND.NAME`: `source.record.released.before`, `destination.effect.restore.after`,
//! `source.send.grant`. A rule is `POINT=ACTION` with the actions `crash` (SIGKILL to the agent
//! itself), `delay:MILLISECONDS`, `drop`, `repeat` (messages), `error` (records and effects), and
//! `*N` behind it for the first N times (once without). Rules are refused unless the configuration
//! says `allow_faults = true`; without it every check is one look at an empty list.
//!
//! Rejected: compile-time features, because then what is proved is another program.

use serde::Deserialize;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Most rules at a time.
const MAX_RULES: usize = 64;
/// Longest delay.
const MAX_DELAY: Duration = Duration::from_secs(300);

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
    point: String,
    action: Action,
    left: u32,
}

/// The rules in force.
#[derive(Debug, Default)]
pub struct Faults {
    allowed: bool,
    rules: Mutex<Vec<Rule>>,
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
    Ok(Rule { point: point.to_owned(), action, left })
}

impl Faults {
    /// From the configuration.
    ///
    /// # Errors
    /// The first rule that is not understood, or any rule when faults are not allowed.
    pub fn new(config: &FaultConfig) -> Result<Self, String> {
        let faults = Self { allowed: config.allow_faults, rules: Mutex::default() };
        faults.set(&config.points)?;
        Ok(faults)
    }

    /// Replaces the rules.
    ///
    /// # Errors
    /// As [`Faults::new`]; the rules stay as they were.
    pub fn set(&self, points: &[String]) -> Result<(), String> {
        if !points.is_empty() && !self.allowed {
            return Err("faults.allow_faults is not true on this host".into());
        }
        if points.len() > MAX_RULES {
            return Err(format!("{} rules; at most {MAX_RULES} are taken", points.len()));
        }
        let rules = points.iter().map(|p| parse(p)).collect::<Result<Vec<_>, _>>()?;
        if !rules.is_empty() {
            tracing::warn!(?points, "faults are switched on");
        }
        *self.rules.lock().unwrap_or_else(PoisonError::into_inner) = rules;
        Ok(())
    }

    /// Passes a point: kills or delays here, and answers what the caller has to do itself.
    pub async fn pass(&self, point: &str) -> Option<Action> {
        let action = {
            let mut rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
            let rule = rules.iter_mut().find(|r| r.left > 0 && r.point == point)?;
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
