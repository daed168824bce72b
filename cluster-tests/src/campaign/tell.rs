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

/// The table of all rounds in Markdown, by kind and by who was met.
pub(crate) fn table(rounds: &[Round]) -> String {
    let mut text = format!(
        "| {:<17} | {:<7} | {:>5} | {:>13} | {:>6} | {:>6} | {:>18} | {:>9} |\n",
        "Fault", "Victim", "Count", "Outage min ms", "Median", "Max", "Changes of primary", "Rows lost"
    );
    text.push_str("|---|---|---:|---:|---:|---:|---:|---:|\n");
    let mut row = |name: &str, victim: &str, of: &[&Round]| {
        let outages: Vec<u128> = of.iter().map(|round| round.seen.outage.as_millis()).collect();
        let [least, median, most] = spread(outages);
        let changes: u64 = of.iter().map(|round| round.seen.generations).sum();
        let lost: usize = of.iter().map(|round| round.seen.lost).sum();
        let _infallible = writeln!(
            text,
            "| {name:<17} | {victim:<7} | {:>5} | {least:>13} | {median:>6} | {most:>6} | {changes:>18} | {lost:>9} |",
            of.len(),
        );
    };
    for rule in RULES {
        for (victim, primary) in [("primary", true), ("other", false)] {
            let of = |round: &&Round| round.kind == rule.kind && round.seen.meets_primary == primary;
            let of: Vec<&Round> = rounds.iter().filter(of).collect();
            if !of.is_empty() {
                row(rule.name, victim, &of);
            }
        }
    }
    row("all", "", &rounds.iter().collect::<Vec<_>>());
    text
}

/// The least, the middle and the greatest; of an even number, the middle lies between two.
fn spread(mut values: Vec<u128>) -> [u128; 3] {
    values.sort_unstable();
    let at = |place: usize| values.get(place).copied().unwrap_or(0);
    let last = values.len().saturating_sub(1);
    [at(0), u128::midpoint(at(last / 2), at(values.len() / 2)), at(last)]
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
            seen: Measured {
                meets_primary,
                outage: Duration::from_millis(ms),
                generations: u64::from(meets_primary),
                lost: 3,
                ..Measured::default()
            },
            healed: Some(Duration::ZERO),
            violations: Vec::new(),
        };
        let rounds = [round(Kind::Blip, true, 30), round(Kind::Blip, true, 10), round(Kind::Blip, false, 50)];
        let text = table(&rounds);
        let cells = |line: &str| line.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
        let lines: Vec<Vec<String>> = text.lines().map(cells).collect();
        assert!(lines.iter().all(|line| line.len() == lines[0].len()), "{text}");
        let rows: Vec<String> = lines.iter().skip(2).map(|line| line.join(" ").trim().to_owned()).collect();
        assert_eq!(rows, ["blip primary 2 10 20 30 2 6", "blip other 1 50 50 50 0 3", "all  3 10 30 50 2 9"]);
    }

    #[test]
    fn the_middle_of_nothing_is_nothing() {
        assert_eq!(spread(Vec::new()), [0, 0, 0]);
        assert_eq!(spread(vec![9, 1, 4]), [1, 4, 9]);
    }
}
