//! `pgherd history` as text.

use pgherd_common::NodeName;

use super::table::Table;
use super::units::between;
use crate::cluster::{HistoryEntry, OldEnd};

/// One row for each change of primary, oldest first.
pub(super) fn render(entries: &[HistoryEntry]) -> String {
    let mut table = Table::new(&[
        "Begun",
        "Change",
        "From",
        "To",
        "Generation",
        "Timeline",
        "Took",
        "Steps (ms)",
        "Lost",
        "Outcome",
        "Reason",
    ]);
    for entry in entries {
        table.row(vec![
            entry.begun.to_string(),
            entry.kind.map_or("formed".to_owned(), |kind| kind.to_string()),
            entry.from.as_ref().map_or("-", NodeName::as_str).to_owned(),
            entry.to.to_string(),
            entry.generation.to_string(),
            entry.timeline.map_or("-".to_owned(), |timeline| timeline.to_string()),
            entry.serving.map_or("-".to_owned(), |serving| between(entry.begun, serving)),
            steps(entry),
            lost(entry),
            entry.outcome.to_string(),
            entry.reason.clone(),
        ]);
    }
    if table.is_empty() {
        "The cluster has not formed yet: there is no history.\n".to_owned()
    } else {
        table.render()
    }
}

/// How long each step took. Those that took no time are left out.
fn steps(entry: &HistoryEntry) -> String {
    let taken = entry.took.iter().filter(|took| took.ms > 0);
    let steps: Vec<String> = taken.map(|took| format!("{} {}", took.step, took.ms)).collect();
    if steps.is_empty() { "-".to_owned() } else { steps.join(", ") }
}

/// What of the old primary's WAL the new one does not have.
fn lost(entry: &HistoryEntry) -> String {
    let Some(OldEnd { at, exact, covered }) = entry.old_end else { return "-".to_owned() };
    let more = if exact { "" } else { " known" };
    match at.bytes_since(entry.received) {
        _ if covered => "nothing that was acknowledged".to_owned(),
        0 => format!("nothing{more}"),
        bytes => format!("{bytes} bytes{more} ({} to {at})", entry.received),
    }
}

#[cfg(test)]
mod tests {
    use pgherd_common::topology::ChangeKind;
    use pgherd_common::{Generation, Lsn, Timeline, WallTime};
    use pgherd_core::waterfall::{Step, Took};

    use super::*;
    use crate::cluster::Outcome;

    #[test]
    fn history_reads_like_a_log() {
        let formed = HistoryEntry {
            kind: None,
            generation: Generation::ZERO.next(),
            from: None,
            to: "server1".parse().unwrap(),
            reason: "the cluster formed".into(),
            begun: WallTime(1_795_422_667_123),
            granted: WallTime(1_795_422_667_123),
            serving: Some(WallTime(1_795_422_667_323)),
            timeline: Some(Timeline(1)),
            received: Lsn(0),
            old_end: None,
            took: Vec::new(),
            outcome: Outcome::Completed,
        };
        let failover = HistoryEntry {
            kind: Some(ChangeKind::Failover),
            generation: formed.generation.next(),
            from: Some("server1".parse().unwrap()),
            to: "server2".parse().unwrap(),
            reason: "the postmaster of server1 died".into(),
            begun: WallTime(1_795_422_700_000),
            granted: WallTime(1_795_422_700_100),
            serving: None,
            timeline: None,
            received: Lsn(7),
            old_end: Some(OldEnd { at: Lsn(7), exact: true, covered: false }),
            took: [(Step::Detect, 3), (Step::Fence, 0), (Step::Recruit, 12)]
                .map(|(step, ms)| Took { step, ms })
                .to_vec(),
            outcome: Outcome::InFlight,
        };
        let known = |at, exact| {
            let old_end = Some(OldEnd { at: Lsn(at), exact, covered: false });
            lost(&HistoryEntry { old_end, ..failover.clone() })
        };
        assert_eq!(known(0x107, true), "256 bytes (0/7 to 0/107)");
        assert_eq!(known(0x107, false), "256 bytes known (0/7 to 0/107)");
        assert_eq!(known(3, false), "nothing known");
        let old_end = Some(OldEnd { at: Lsn(0x107), exact: false, covered: true });
        assert_eq!(lost(&HistoryEntry { old_end, ..failover.clone() }), "nothing that was acknowledged");
        assert_eq!(
            render(&[formed, failover]),
            "\
Begun                     Change    From     To       Generation  Timeline  Took    Steps (ms)            Lost     Outcome    Reason
------------------------------------------------------------------------------------------------------------------------------------------------------------
2026-11-23 08:31:07.123Z  formed    -        server1  1           1         200 ms  -                     -        completed  the cluster formed
2026-11-23 08:31:40.000Z  failover  server1  server2  2           -         -       detect 3, recruit 12  nothing  in flight  the postmaster of server1 died
"
        );
        assert_eq!(render(&[]), "The cluster has not formed yet: there is no history.\n");
    }
}
