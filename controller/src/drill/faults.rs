//! The faults of a drill.

use tranship_proto::status::Side;

/// One fault: a rule for the agent on one side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// `POINT=ACTION`, as in transhipd.toml(5).
    pub rule: String,
    /// Whose agent gets it.
    pub side: Side,
    /// In words.
    pub what: String,
}

impl Fault {
    /// Whether the agent has to be started again afterwards.
    pub fn crashes(&self) -> bool {
        self.rule.contains("=crash")
    }
}

/// In the order of the hand-over; what costs nothing but time first.
const USUAL: &[(&str, &str)] = &[
    ("source.effect.stage.after=error", "the source cannot copy the files"),
    ("source.effect.freeze.after=error", "the source cannot freeze the container"),
    ("source.send.frozen=drop", "the word that it is frozen is lost"),
    ("source.effect.copy.after=error", "the dump fails"),
    ("source.send.prepare=drop", "the word to restore is lost"),
    ("destination.effect.restore.before=error", "the restore fails"),
    ("destination.record.prepared.before=error", "the destination cannot write that it holds the container"),
    ("destination.send.prepared=drop", "the word that it is held is lost"),
    ("source.record.released.before=error", "the source cannot write the commit"),
    ("source.send.grant=drop", "the grant is lost"),
    ("source.send.grant=repeat", "the grant comes twice"),
    ("destination.record.owner.before=error", "the destination cannot write that the container is its own"),
    ("destination.send.running=drop", "the word that it runs is lost"),
    ("source.send.retired=drop", "the word that the old copy is gone is lost"),
    ("source.effect.copy.before=crash", "the source's agent dies with the container frozen"),
    ("destination.effect.restore.after=crash", "the destination's agent dies with the container restored"),
    ("destination.record.prepared.after=crash", "the destination's agent dies while it holds the container"),
    ("source.record.released.before=crash", "the source's agent dies just before the commit"),
    ("source.record.released.after=crash", "the source's agent dies just after the commit"),
    ("destination.record.owner.after=crash", "the destination's agent dies before it lets the container go"),
    ("destination.effect.resume.after=crash", "the destination's agent dies when the container runs"),
    ("source.effect.retire.after=crash", "the source's agent dies when its copy is gone"),
];

/// The faults asked for, or the usual ones; without those that crash an agent if so wanted.
///
/// # Errors
/// The first rule that names neither side.
pub fn chosen(rules: &[String], crashes: bool) -> Result<Vec<Fault>, String> {
    let usual = USUAL.iter().map(|(rule, what)| fault(rule, what));
    let own = rules.iter().map(|rule| fault(rule, "as asked for"));
    let all: Result<Vec<Fault>, String> = if rules.is_empty() { usual.collect() } else { own.collect() };
    Ok(all?.into_iter().filter(|f| crashes || !f.crashes()).collect())
}

fn fault(rule: &str, what: &str) -> Result<Fault, String> {
    let side = match rule.split('.').next() {
        Some("source") => Side::Source,
        Some("destination") => Side::Destination,
        _ => {
            return Err(format!(
                "{rule:?} is no fault; write SIDE.KIND.NAME=ACTION, for example source.send.grant=drop"
            ));
        }
    };
    Ok(Fault { rule: rule.to_owned(), side, what: what.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_faults_are_of_both_sides_and_crashes_can_be_left_out() {
        let all = chosen(&[], true).unwrap();
        assert_eq!(all.len(), USUAL.len());
        for side in [Side::Source, Side::Destination] {
            assert!(all.iter().filter(|f| f.side == side).count() >= 8);
        }
        let mild = chosen(&[], false).unwrap();
        assert!(mild.len() < all.len() && mild.iter().all(|f| !f.crashes()));
    }

    #[test]
    fn own_faults_replace_the_usual_ones() {
        let own = chosen(&["destination.send.running=drop*2".into()], true).unwrap();
        assert_eq!((own.len(), own[0].side), (1, Side::Destination));
        assert!(chosen(&["nobody.send.grant=drop".into()], true).unwrap_err().contains("source.send.grant"));
    }
}
