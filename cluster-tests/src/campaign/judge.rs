//! What of a round was wrong: the expectations of its kind against what was seen.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::kind::{Expect, Kind, Replication};
use super::terms::Overlap;

/// A primary that was frozen with its whole node wakes up together with its agent, which then needs
/// this time to end it. Only the kernel or the machine under it could do better.
pub const WAKE_TIME_MAX: Duration = Duration::from_millis(400);
/// A standby that is promoted past the agents is ended within a probe and a kill.
pub const ROGUE_TIME_MAX: Duration = Duration::from_millis(1_500);
/// What was acknowledged so long before the fault had reached a standby.
pub const LOSS_AGE_MAX: Duration = Duration::from_secs(1);
/// The default lease, after which a cut-off primary must have stopped accepting writes.
pub const LEASE: Duration = Duration::from_secs(2);

/// A round, measured.
#[derive(Debug, Clone, Default)]
pub struct Measured {
    /// Whether the victim was the primary.
    pub meets_primary: bool,
    /// By how much the generation grew.
    pub generations: u64,
    /// The primary before and after.
    pub primaries: (String, String),
    /// The longest time without any acknowledged commit through the proxy.
    pub outage: Duration,
    /// Rows that were acknowledged through the proxy and are gone.
    pub lost: usize,
    /// How long before the fault the first of them was acknowledged.
    pub lost_before: Duration,
    /// Rows that are there more than once.
    pub duplicated: usize,
    /// Failed statements.
    pub errors: BTreeMap<String, usize>,
    /// What the proxy said when it closed sessions.
    pub sessions_lost: Vec<String>,
    /// Statements that were never answered.
    pub unanswered: usize,
    /// From the fault to the last write that the old primary is known to have accepted.
    pub old_last: Option<Duration>,
    /// From the fault to the first write that the new primary accepted.
    pub new_first: Option<Duration>,
    /// How long a standby that was promoted past the agents accepted writes.
    pub rogue: Option<Duration>,
    /// Unexpected lines of the logs.
    pub alarms: Vec<String>,
}

impl Measured {
    /// Whether another node is primary now.
    pub fn changed(&self) -> bool {
        self.primaries.0 != self.primaries.1
    }
}

/// What the primary must do in this round.
pub(crate) fn expectation(kind: Kind, meets_primary: bool) -> Expect {
    match kind {
        Kind::Switchover | Kind::SwitchoverKill => kind.rule().expect,
        _ if meets_primary => kind.rule().expect,
        _ => Expect::Stay,
    }
}

/// Two primaries at once: a violation, or what cannot be helped and is only told. `woken` is when the
/// victim was, if it had been frozen.
pub(crate) fn overlap(victim: &str, woken: Option<Instant>, overlap: &Overlap) -> Result<String, String> {
    let after = woken.map(|woken| overlap.older_last.saturating_duration_since(woken));
    match after.filter(|after| overlap.older == victim && *after <= WAKE_TIME_MAX) {
        Some(after) => Ok(format!("accepted writes until {} ms after it woke up", after.as_millis())),
        None => Err(format!(
            "two nodes accepted writes at the same time, for {} ms: {}",
            overlap.length.as_millis(),
            overlap.evidence
        )),
    }
}

/// Every expectation that does not hold.
pub(crate) fn violations(kind: Kind, replication: Replication, seen: &Measured) -> Vec<String> {
    let mut wrong = change(kind, seen);
    wrong.extend(rows(kind, replication, seen));
    if !seen.sessions_lost.is_empty() {
        let (count, first) = (seen.sessions_lost.len(), seen.sessions_lost.first());
        wrong
            .push(format!("{count} sessions were closed by the proxy; {}", first.map_or("", String::as_str)));
    }
    if seen.unanswered > 0 {
        wrong.push(format!("{} statements were never answered", seen.unanswered));
    }
    if let Some(length) = seen.rogue.filter(|length| *length > ROGUE_TIME_MAX) {
        wrong.push(format!("the promoted standby accepted writes for {} ms", length.as_millis()));
    }
    wrong.extend(isolation(kind, seen));
    wrong.extend(seen.alarms.iter().map(|line| format!("unexpected in a log: {line}")));
    wrong
}

fn change(kind: Kind, seen: &Measured) -> Vec<String> {
    let mut wrong = Vec::new();
    let (before, after) = &seen.primaries;
    match expectation(kind, seen.meets_primary) {
        Expect::Change if !seen.changed() => wrong.push(format!("{before} should have been replaced")),
        Expect::Stay if seen.generations > 0 => {
            wrong.push(format!("a needless change of primary, {before} -> {after}"));
        }
        Expect::Change | Expect::Stay | Expect::Either => (),
    }
    let most = if kind == Kind::Double { 3 } else { 1 };
    if kind == Kind::Double && seen.generations < 2 {
        wrong.push("the second primary should have been replaced too".to_owned());
    }
    if seen.generations > most {
        wrong.push(format!("{} changes of primary for one fault", seen.generations));
    }
    wrong
}

fn rows(kind: Kind, replication: Replication, seen: &Measured) -> Vec<String> {
    let mut wrong = Vec::new();
    if seen.duplicated > 0 {
        wrong.push(format!("{} rows are there more than once", seen.duplicated));
    }
    let may = kind.rule().rows.may_be_lost(replication) && seen.meets_primary && seen.generations > 0;
    if seen.lost > 0 && !may {
        wrong.push(format!("{} acknowledged rows are lost", seen.lost));
    } else if seen.lost_before > LOSS_AGE_MAX {
        let before = seen.lost_before;
        wrong.push(format!("a row is lost that was acknowledged {before:?} before the fault"));
    }
    wrong
}

fn isolation(kind: Kind, seen: &Measured) -> Vec<String> {
    let mut wrong = Vec::new();
    if kind != Kind::Isolate {
        return wrong;
    }
    if let Some(last) = seen.old_last.filter(|last| *last >= LEASE) {
        wrong.push(format!("the isolated primary accepted a write {last:?} after the cut, past its lease"));
    }
    if let (Some(last), Some(first)) = (seen.old_last, seen.new_first)
        && first <= last
    {
        wrong.push(format!(
            "the new primary's first write ({first:?}) is before the old one's last ({last:?})"
        ));
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(kind: Kind, seen: &Measured) -> Vec<String> {
        violations(kind, Replication::Asynchronous, seen)
    }

    fn seen(meets_primary: bool, generations: u64, after: &str) -> Measured {
        let primaries = ("a".to_owned(), after.to_owned());
        Measured { meets_primary, generations, primaries, ..Measured::default() }
    }

    #[test]
    fn a_failover_is_wanted_or_needless() {
        assert_eq!(wrong(Kind::Isolate, &seen(true, 1, "b")).len(), 0);
        assert_eq!(wrong(Kind::Isolate, &seen(true, 0, "a")).len(), 1);
        assert_eq!(wrong(Kind::KillPostmaster, &seen(false, 1, "b")).len(), 1);
        assert_eq!(wrong(Kind::KillAgent, &seen(true, 1, "b")).len(), 1);
        assert_eq!(wrong(Kind::FreezeNode, &seen(true, 0, "a")).len(), 0);
        assert_eq!(wrong(Kind::Flapping, &seen(true, 2, "b")).len(), 1, "one change for one fault");
    }

    #[test]
    fn rows_are_lost_only_with_a_primary() {
        let lost = |kind, generations, meets| {
            wrong(kind, &Measured { lost: 2, ..seen(meets, generations, "b") }).len()
        };
        assert_eq!(lost(Kind::Isolate, 1, true), 0);
        assert_eq!(lost(Kind::Switchover, 1, true), 1);
        assert_eq!(lost(Kind::KillBackend, 0, true), 1);
        let early = Measured { lost: 1, lost_before: Duration::from_secs(3), ..seen(true, 1, "b") };
        assert_eq!(wrong(Kind::Isolate, &early).len(), 1);
    }

    #[test]
    fn synchronous_replication_excuses_no_loss() {
        use Replication::{Asynchronous, Synchronous};
        let lost = |kind, replication| {
            violations(kind, replication, &Measured { lost: 1, ..seen(true, 1, "b") }).len()
        };
        for kind in [Kind::Isolate, Kind::KillPostmaster, Kind::LoseNode, Kind::FreezeNode, Kind::QuorumLost]
        {
            assert_eq!((lost(kind, Asynchronous), lost(kind, Synchronous)), (0, 1), "{kind:?}");
        }
        assert_eq!((lost(Kind::Switchover, Asynchronous), lost(Kind::Switchover, Synchronous)), (1, 1));
    }

    #[test]
    fn an_isolated_primary_stops_before_the_next_one_starts() {
        let of = |last, first| {
            let ms = |ms| Some(Duration::from_millis(ms));
            let seen = Measured { old_last: ms(last), new_first: ms(first), ..seen(true, 1, "b") };
            wrong(Kind::Isolate, &seen).len()
        };
        assert_eq!(of(1_500, 2_500), 0);
        assert_eq!(of(2_100, 2_500), 1);
        assert_eq!(of(1_500, 1_400), 1);
    }

    #[test]
    fn only_a_frozen_node_may_wake_up_writable_and_only_for_a_moment() {
        let now = Instant::now();
        let of = |woken, ms| {
            let older_last = now + Duration::from_millis(ms);
            let (length, evidence) = (Duration::ZERO, String::new());
            let found = Overlap { length, older: "a".to_owned(), older_last, evidence };
            overlap("a", woken, &found).is_ok()
        };
        assert!(of(Some(now), 100));
        assert!(!of(Some(now), 900));
        assert!(!of(None, 1));
    }
}
