//! Whether a change of primary is over, from what an agent says about it. Pure.

use pgherd_common::Generation;

use super::units::between;
use crate::api::types::ClusterStatus;
use crate::cluster::{HistoryEntry, Outcome};

/// How far a change of primary is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Progress {
    /// In this phase; `None` when the agent asked has not heard of it yet.
    Going(Option<String>),
    /// The new primary serves.
    Done(HistoryEntry),
    /// The old primary serves again.
    RolledBack(HistoryEntry),
}

/// The change that an order began.
#[derive(Debug)]
pub(super) struct Awaited {
    /// The generation it makes.
    pub(super) generation: Generation,
    /// The newest entry of the history before the order was given.
    pub(super) newest_before: Option<HistoryEntry>,
}

impl Awaited {
    /// Judges a status and the history that was fetched after it.
    pub(super) fn progress(&self, status: &ClusterStatus, history: &[HistoryEntry]) -> Progress {
        if let Some(change) = &status.change {
            let to = change.to.as_ref().map(|to| format!(", new primary {to}")).unwrap_or_default();
            return Progress::Going(Some(format!("{}{to}", change.phase)));
        }
        let Some(newest) = newest(history).filter(|newest| Some(*newest) != self.newest_before.as_ref())
        else {
            return Progress::Going(None);
        };
        match newest.outcome {
            // Given up before a primary was chosen, the change leaves the generation as it was.
            Outcome::RolledBack | Outcome::StartedInPlace => Progress::RolledBack(newest.clone()),
            Outcome::Completed if newest.generation >= self.generation => Progress::Done(newest.clone()),
            Outcome::Completed | Outcome::InFlight | Outcome::Superseded | Outcome::NotDone => {
                Progress::Going(None)
            }
        }
    }
}

/// The newest change that was begun. What was scheduled and never begun tells nothing of one that was.
pub(super) fn newest(history: &[HistoryEntry]) -> Option<&HistoryEntry> {
    history.iter().rev().find(|entry| entry.outcome != Outcome::NotDone)
}

/// The result of a change that succeeded.
pub(super) fn success(entry: &HistoryEntry) -> String {
    let timeline = entry.timeline.map(|timeline| format!(", timeline {timeline}")).unwrap_or_default();
    let mut text = format!("{} is the primary (generation {}{timeline}).\n", entry.to, entry.generation);
    if let Some(serving) = entry.serving {
        text += &format!(
            "It took {}: {} to choose it, {} until it accepted writes.\n",
            between(entry.begun, serving),
            between(entry.begun, entry.granted),
            between(entry.granted, serving)
        );
    }
    text
}

/// The result of a change that failed.
pub(super) fn failure(entry: &HistoryEntry) -> String {
    let primary = entry.from.as_ref().unwrap_or(&entry.to);
    let how = if entry.outcome == Outcome::StartedInPlace { "Started in place" } else { "Rolled back" };
    format!("{how}: {primary} is still the primary.\n{}\n", entry.reason)
}

#[cfg(test)]
mod tests {
    use pgherd_common::topology::ChangeKind;
    use pgherd_common::{Lsn, Timeline, WallTime};

    use super::*;
    use crate::api::types::ChangeStatus;
    use crate::cli::cluster_status::tests::three_nodes;

    fn entry(generation: Generation, outcome: Outcome) -> HistoryEntry {
        HistoryEntry {
            kind: Some(ChangeKind::Switchover),
            generation,
            from: Some("server1".parse().unwrap()),
            to: "server2".parse().unwrap(),
            reason: "asked for by an operator".into(),
            begun: WallTime(1000),
            granted: WallTime(1300),
            serving: Some(WallTime(1412)),
            timeline: Some(Timeline(5)),
            received: Lsn(7),
            old_end: None,
            took: Vec::new(),
            outcome,
        }
    }

    #[test]
    fn a_change_is_followed_to_its_end() {
        let first = Generation::ZERO.next();
        let before = entry(first, Outcome::Completed);
        let awaited = Awaited { generation: first.next(), newest_before: Some(before.clone()) };
        let mut status = three_nodes();
        status.change = None;
        // The agent asked has not applied the order yet.
        assert_eq!(awaited.progress(&status, std::slice::from_ref(&before)), Progress::Going(None));

        status.change = Some(ChangeStatus {
            kind: ChangeKind::Switchover,
            from: "server1".parse().unwrap(),
            to: Some("server2".parse().unwrap()),
            phase: "stopping".into(),
            reason: "asked for by an operator".into(),
        });
        let going = Progress::Going(Some("stopping, new primary server2".into()));
        assert_eq!(awaited.progress(&status, std::slice::from_ref(&before)), going);

        status.change = None;
        let in_flight = entry(first.next(), Outcome::InFlight);
        assert_eq!(awaited.progress(&status, &[before.clone(), in_flight]), Progress::Going(None));
        let done = entry(first.next(), Outcome::Completed);
        assert_eq!(awaited.progress(&status, &[before.clone(), done.clone()]), Progress::Done(done.clone()));
        let dropped = entry(first.next(), Outcome::NotDone);
        assert_eq!(awaited.progress(&status, &[before, done.clone(), dropped]), Progress::Done(done));
    }

    #[test]
    fn a_change_given_up_early_keeps_its_generation() {
        let first = Generation::ZERO.next();
        let awaited =
            Awaited { generation: first.next(), newest_before: Some(entry(first, Outcome::Completed)) };
        let given_up = entry(first, Outcome::RolledBack);
        let mut status = three_nodes();
        status.change = None;
        assert_eq!(
            awaited.progress(&status, std::slice::from_ref(&given_up)),
            Progress::RolledBack(given_up.clone())
        );
        assert_eq!(
            failure(&given_up),
            "Rolled back: server1 is still the primary.\nasked for by an operator\n"
        );
    }

    #[test]
    fn success_says_how_long_it_took() {
        assert_eq!(
            success(&entry(Generation::ZERO.next(), Outcome::Completed)),
            "server2 is the primary (generation 1, timeline 5).\n\
             It took 412 ms: 300 ms to choose it, 112 ms until it accepted writes.\n"
        );
    }
}
