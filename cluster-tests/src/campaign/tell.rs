//! What a campaign prints: a line for each fault, and a table at the end.

use std::fmt::Write;
use std::time::Duration;

use super::judge::Measured;
use super::kind::{Kind, RULES};

/// One fault and what came of it.
#[derive(Debug, Clone)]
pub struct Round {
    /// Its place in the sequence, from 1.
    pub number: usize,
    /// What was done.
    pub kind: Kind,
    /// To whom.
    pub victim: String,
    /// For how long.
    pub hold: Duration,
    /// What else is worth knowing about it.
    pub note: String,
    /// What was measured.
    pub seen: Measured,
    /// How long the cluster took to heal once the fault was over; `None` if it did not.
    pub healed: Option<Duration>,
    /// What should not have been.
    pub violations: Vec<String>,
}

/// The line of a round.
pub(crate) fn line(round: &Round, since: Duration) -> String {
    let seen = &round.seen;
    let role = if seen.meets_primary { " (primary)" } else { "" };
    let mut text = format!(
        "[{:7.1} s] #{} {} {}{role}",
        since.as_secs_f64(),
        round.number,
        round.kind.rule().name,
        round.victim
    );
    let mut add = |part: String| text.push_str(&part);
    if !round.hold.is_zero() {
        add(format!(" {:.1} s", round.hold.as_secs_f64()));
    }
    if !round.note.is_empty() {
        add(format!(" [{}]", round.note));
    }
    let (before, after) = &seen.primaries;
    add(match (seen.changed(), seen.generations) {
        (true, _) => format!(": {before} -> {after}"),
        (false, 0) => ": no change".to_owned(),
        (false, _) => format!(": {before} again"),
    });
    add(format!("; outage {} ms", seen.outage.as_millis()));
    if let Some(last) = seen.old_last {
        add(format!("; old primary's last write after {} ms", last.as_millis()));
    }
    if let Some(first) = seen.new_first {
        add(format!("; new primary's first write after {} ms", first.as_millis()));
    }
    if let Some(length) = seen.rogue {
        add(format!("; promoted standby accepted writes for {} ms", length.as_millis()));
    }
    if !seen.errors.is_empty() {
        add(format!("; errors {:?}", seen.errors));
    }
    if seen.lost > 0 {
        add(format!("; {} rows lost", seen.lost));
    }
    add(round
        .healed
        .map_or("; NOT HEALED".to_owned(), |after| format!("; healed {:.1} s later", after.as_secs_f64())));
    for violation in &round.violations {
        add(format!("\n    VIOLATION: {violation}"));
    }
    text
}

/// The table of all rounds, by kind.
pub(crate) fn table(rounds: &[Round]) -> String {
    let mut text = format!(
        "{:<30} {:>5} {:>8} {:>8} {:>8} {:>9} {:>5} {:>10}\n",
        "fault", "count", "min ms", "median", "max", "failovers", "lost", "violations"
    );
    let mut row = |name: &str, of: &[&Round]| {
        let mut outages: Vec<u128> = of.iter().map(|round| round.seen.outage.as_millis()).collect();
        outages.sort_unstable();
        let at = |place: usize| outages.get(place).copied().unwrap_or(0);
        let sum = |what: &dyn Fn(&Round) -> usize| of.iter().map(|round| what(round)).sum::<usize>();
        let _infallible = writeln!(
            text,
            "{name:<30} {:>5} {:>8} {:>8} {:>8} {:>9} {:>5} {:>10}",
            of.len(),
            at(0),
            at(of.len() / 2),
            at(of.len().saturating_sub(1)),
            sum(&|round| usize::from(round.seen.changed())),
            sum(&|round| round.seen.lost),
            sum(&|round| round.violations.len()),
        );
    };
    for rule in RULES {
        for (role, primary) in [("", true), (", other node", false)] {
            let of = |round: &&Round| round.kind == rule.kind && round.seen.meets_primary == primary;
            let of: Vec<&Round> = rounds.iter().filter(of).collect();
            if !of.is_empty() {
                row(&format!("{}{role}", rule.name), &of);
            }
        }
    }
    row("all", &rounds.iter().collect::<Vec<_>>());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_row_for_each_kind_and_role() {
        let round = |kind, meets_primary, ms| Round {
            number: 1,
            kind,
            victim: "server1".to_owned(),
            hold: Duration::ZERO,
            note: String::new(),
            seen: Measured { meets_primary, outage: Duration::from_millis(ms), ..Measured::default() },
            healed: Some(Duration::ZERO),
            violations: Vec::new(),
        };
        let rounds = [round(Kind::Blip, true, 30), round(Kind::Blip, true, 10), round(Kind::Blip, false, 20)];
        let text = table(&rounds);
        assert_eq!(text.lines().count(), 4, "{text}");
        assert!(text.lines().nth(1).unwrap().contains("      10       30       30"));
    }
}
