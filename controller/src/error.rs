//! What the command prints when it fails: the fact, its causes, and what to do.
//!
//! Modules have their own error enums; they end here, where reason, exit code and hint are
//! decided once. On the wire the same shape is [`Failure`], so an agent's refusal and an own
//! error read alike.

use crate::exit;
use crate::output::clean;
use serde_json::{Value, json};
use std::fmt::{self, Write as _};
use tranship_proto::ids::MigrationId;
use tranship_proto::status::{Failure, Reason, Side};

/// An error at the end of its way: printed, and turned into an exit code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// Message, reason, hint.
    pub failure: Failure,
    /// What lies below the message, outermost first.
    pub causes: Vec<String>,
    /// The migration that it is about, for JSON.
    pub migration: Option<MigrationId>,
}

impl Error {
    /// An error of the command itself.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { failure: Failure::new(reason, Side::Controller, message), causes: Vec::new(), migration: None }
    }

    /// The user asked for something that does not make sense.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Reason::BadRequest, message)
    }

    /// An error with the causes that `source` walks through.
    pub fn from_source(reason: Reason, error: &(dyn std::error::Error + 'static)) -> Self {
        let mut new = Self::new(reason, error.to_string());
        let mut next = error.source();
        // Sources are finite in practice; the bound keeps a cycle from being endless.
        while let (Some(e), true) = (next, new.causes.len() < 16) {
            new.causes.push(e.to_string());
            next = e.source();
        }
        new
    }

    /// With a hint, unless it has one.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.failure.hint.get_or_insert_with(|| hint.into());
        self
    }

    /// The exit code.
    pub fn code(&self) -> u8 {
        exit::code_of(self.failure.reason)
    }

    /// The fields of the JSON object on stdout.
    pub fn to_json(&self) -> Value {
        json!({
            "exit_code": self.code(),
            "reason": self.failure.reason,
            "side": self.failure.side,
            "phase": self.failure.phase,
            "message": self.failure.message,
            "causes": self.causes,
            "hint": self.failure.hint,
            "retryable": self.failure.retryable,
            "migration": self.migration,
        })
    }

    /// The lines for stderr, without the last newline.
    pub fn to_text(&self) -> String {
        let mut text = format!("error: {}", clean(&self.failure.message));
        if let Some(phase) = self.failure.phase {
            let side = match self.failure.side {
                Side::Controller => "command",
                Side::Source => "source",
                Side::Destination => "destination",
            };
            let _ = write!(text, "\n  in phase {}, at the {side}", phase.as_str());
        }
        for cause in &self.causes {
            let _ = write!(text, "\n  because: {}", clean(cause));
        }
        if let Some(hint) = &self.failure.hint {
            let _ = write!(text, "\nhint: {}", clean(hint));
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.failure.message)
    }
}

impl std::error::Error for Error {}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self { failure, causes: Vec::new(), migration: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tranship_proto::status::Phase;

    #[test]
    fn an_error_reads_fact_place_cause_hint() {
        let mut e = Error::new(Reason::Failed, "cannot dump web").hint("look at the agent's log");
        e.failure.phase = Some(Phase::Copy);
        e.failure.side = Side::Source;
        e.causes.push("criu: exit status 1".into());
        assert_eq!(
            e.to_text(),
            "error: cannot dump web\n  in phase copy, at the source\n  because: criu: exit status 1\n\
             hint: look at the agent's log"
        );
        assert_eq!(e.code(), 1);
        assert_eq!(e.to_json()["reason"], "failed");
    }

    #[test]
    fn an_agent_cannot_drive_the_terminal() {
        let e = Error::new(Reason::Failed, "x\u{1b}[2J\u{7}y\r\u{9b}z\u{202e}");
        assert!(!e.to_text().contains(|c: char| c.is_control() && c != '\n'), "{:?}", e.to_text());
        assert!(!e.to_text().contains('\u{202e}'));
    }
}
