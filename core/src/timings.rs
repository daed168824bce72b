//! All periods and deadlines of the agent, and the relations that must hold between them.
//!
//! The relations are data ([`RULES`]), so that the documentation lists the ones the code checks.

use std::time::Duration;

use pgherd_common::config::{Millis, Reader, Section};

use crate::reconcile::lease::{GUARDIAN_SLACK, KILL_BUDGET};

/// How often a new connection to the own PostgreSQL is tried: a postmaster that hangs still serves old
/// ones.
pub const NEW_CONNECTION_EVERY: Duration = Duration::from_secs(1);

/// `[timings]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timings {
    /// How often an agent tells the others what it sees, which also renews the primary's lease.
    pub beat_interval: Duration,
    /// How long the primary may stay writable without being confirmed by a majority.
    pub lease: Duration,
    /// How often the agent looks at its PostgreSQL.
    pub probe_interval: Duration,
    /// A PostgreSQL that answers nobody for so long has failed.
    pub local_timeout: Duration,
    /// Bound of a knock on another node's PostgreSQL, and of a call to another agent.
    pub remote_timeout: Duration,
    /// How often the raft leader is heard.
    pub heartbeat: Duration,
    /// The shortest silence of the raft leader that leads to an election.
    pub election_timeout_min: Duration,
    /// The longest.
    pub election_timeout_max: Duration,
    /// An agent silent for so long takes its node out of service (standbys; for a primary the lease
    /// decides).
    pub node_timeout: Duration,
    /// An agent silent for so long loses its vote, if it is the only one and not the primary's.
    pub node_lost_after: Duration,
    /// How long a failover waits for standbys to report how much they have.
    pub recruit_timeout: Duration,
    /// How long a change of primary may take before it is given up or begun anew.
    pub change_timeout: Duration,
    /// How long a switchover may take to stop the old primary before it is rolled back.
    pub switchover_timeout: Duration,
    /// How long a switchover waits, with new work held, for running transactions to end.
    pub drain_timeout: Duration,
    /// A standby that crashed is started again after so long; zero: never.
    pub restart_standby_after: Duration,
}

/// What else the rules speak about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Others {
    /// `postgres.stop_timeout`; zero on a witness.
    pub stop_timeout: Duration,
    /// `watchdog.timeout`; zero where no watchdog is used.
    pub watchdog: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Spans {
    timings: Timings,
    others: Others,
}

/// A relation between timings.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// As it is written down: `heartbeat * 3 <= election_timeout_min`.
    pub text: &'static str,
    /// What goes wrong without it.
    pub reason: &'static str,
    left: fn(&Spans) -> Duration,
    right: fn(&Spans) -> Duration,
    or_equal: bool,
}

impl Rule {
    const fn below(
        text: &'static str,
        reason: &'static str,
        left: fn(&Spans) -> Duration,
        right: fn(&Spans) -> Duration,
    ) -> Self {
        Self { text, reason, left, right, or_equal: false }
    }

    /// What is wrong with these spans, with both numbers.
    fn broken_by(&self, spans: &Spans) -> Option<String> {
        let (left, right) = ((self.left)(spans), (self.right)(spans));
        let (holds, relation) =
            if self.or_equal { (left <= right, "at most") } else { (left < right, "below") };
        let text =
            || format!("{} does not hold: {left:?} is not {relation} {right:?}; {}", self.text, self.reason);
        (!holds).then(text)
    }
}

/// The relations between timings, in the order in which they are reported.
pub const RULES: &[Rule] = &[
    Rule::below(
        "beat_interval * 3 + 500ms < lease",
        "two lost beats in a row must not cost a healthy primary its lease, whose last 500ms are kept for the \
         guardian to wake up (100ms) and to kill PostgreSQL (400ms)",
        |s| s.timings.beat_interval * 3 + KILL_BUDGET + GUARDIAN_SLACK,
        |s| s.timings.lease,
    ),
    Rule::below(
        "beat_interval * 3 + watchdog.timeout < lease",
        "the watchdog is petted only while it would reset the machine within the lease, and two lost beats in a row \
         must not make it do so",
        |s| s.timings.beat_interval * 3 + s.others.watchdog,
        |s| s.timings.lease,
    ),
    Rule {
        text: "heartbeat * 3 <= election_timeout_min",
        reason: "two lost heartbeats in a row must not start an election",
        left: |s| s.timings.heartbeat * 3,
        right: |s| s.timings.election_timeout_min,
        or_equal: true,
    },
    Rule::below(
        "election_timeout_min < election_timeout_max",
        "agents that draw the same election timeout split the vote",
        |s| s.timings.election_timeout_min,
        |s| s.timings.election_timeout_max,
    ),
    Rule::below(
        "election_timeout_max < lease",
        "an election must be over while the old lease is waited for, so that it costs a failover no time",
        |s| s.timings.election_timeout_max,
        |s| s.timings.lease,
    ),
    Rule::below(
        "remote_timeout < lease",
        "one call that is not answered must not outlast the lease it could have renewed",
        |s| s.timings.remote_timeout,
        |s| s.timings.lease,
    ),
    Rule::below(
        "beat_interval * 3 < node_timeout",
        "two lost beats in a row must not take a healthy standby out of service",
        |s| s.timings.beat_interval * 3,
        |s| s.timings.node_timeout,
    ),
    Rule::below(
        "node_timeout < node_lost_after",
        "a node leaves the voters long after it has left service, not before",
        |s| s.timings.node_timeout,
        |s| s.timings.node_lost_after,
    ),
    Rule::below(
        "lease * 2 < node_lost_after",
        "a failover comes first, and a node that is back must be heard for longer than a lease before it votes",
        |s| s.timings.lease * 2,
        |s| s.timings.node_lost_after,
    ),
    Rule::below(
        "probe_interval * 3 < local_timeout",
        "a single slow answer must not make PostgreSQL count as failed",
        |s| s.timings.probe_interval * 3,
        |s| s.timings.local_timeout,
    ),
    Rule::below(
        "remote_timeout + 1s < local_timeout",
        "a new connection is tried once a second and may take remote_timeout; a single one that is not answered \
         must not make PostgreSQL count as failed",
        |s| s.timings.remote_timeout + NEW_CONNECTION_EVERY,
        |s| s.timings.local_timeout,
    ),
    Rule::below(
        "lease + recruit_timeout < change_timeout",
        "a failover waits for the old lease, then for the standbys, before it can choose one",
        |s| s.timings.lease + s.timings.recruit_timeout,
        |s| s.timings.change_timeout,
    ),
    Rule::below(
        "drain_timeout + postgres.stop_timeout < switchover_timeout",
        "a primary that is stopped in time must not be rolled back to for having been slow",
        |s| s.timings.drain_timeout + s.others.stop_timeout,
        |s| s.timings.switchover_timeout,
    ),
];

impl Timings {
    /// `None` after the problems were reported.
    pub fn read(r: &mut Reader, mut section: Section) -> Option<Self> {
        let mut span = |key: &str, default: &str| section.positive(r, key, default);
        let beat_interval = span("beat_interval", "\"200ms\"");
        let lease = span("lease", "\"2s\"");
        let probe_interval = span("probe_interval", "\"300ms\"");
        let local_timeout = span("local_timeout", "\"10s\"");
        let remote_timeout = span("remote_timeout", "\"1s\"");
        let heartbeat = span("heartbeat", "\"150ms\"");
        let election_timeout_min = span("election_timeout_min", "\"600ms\"");
        let election_timeout_max = span("election_timeout_max", "\"1200ms\"");
        let node_timeout = span("node_timeout", "\"3s\"");
        let node_lost_after = span("node_lost_after", "\"10s\"");
        let recruit_timeout = span("recruit_timeout", "\"1s\"");
        let change_timeout = span("change_timeout", "\"30s\"");
        let switchover_timeout = span("switchover_timeout", "\"20s\"");
        let drain_timeout = span("drain_timeout", "\"5s\"");
        let restart = section.or::<Millis>(r, "restart_standby_after", "\"5s\"");
        section.finish(r);
        Some(Self {
            beat_interval: beat_interval?,
            lease: lease?,
            probe_interval: probe_interval?,
            local_timeout: local_timeout?,
            remote_timeout: remote_timeout?,
            heartbeat: heartbeat?,
            election_timeout_min: election_timeout_min?,
            election_timeout_max: election_timeout_max?,
            node_timeout: node_timeout?,
            node_lost_after: node_lost_after?,
            recruit_timeout: recruit_timeout?,
            change_timeout: change_timeout?,
            switchover_timeout: switchover_timeout?,
            drain_timeout: drain_timeout?,
            restart_standby_after: restart?.0,
        })
    }

    /// One sentence for each rule that does not hold.
    pub fn broken_rules(&self, others: Others) -> Vec<String> {
        let spans = Spans { timings: *self, others };
        RULES.iter().filter_map(|rule| rule.broken_by(&spans)).collect()
    }
}

impl Default for Timings {
    /// What an empty `[timings]` gives.
    fn default() -> Self {
        let (mut reader, root) = Reader::parse("");
        match Self::read(&mut reader, root) {
            Some(timings) => timings,
            None => unreachable!("every timing has a default"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_hold() {
        let timings = Timings::default();
        assert_eq!(
            timings.broken_rules(Others {
                stop_timeout: Duration::from_secs(10),
                watchdog: Duration::from_secs(1)
            }),
            Vec::<String>::new()
        );
        assert_eq!(timings.lease, Duration::from_secs(2));
        assert_eq!(timings.restart_standby_after, Duration::from_secs(5));
    }

    #[test]
    fn the_rules_name_the_constants_that_are_used() {
        assert_eq!(format!("{KILL_BUDGET:?} {GUARDIAN_SLACK:?}"), "400ms 100ms");
        assert_eq!(format!("{NEW_CONNECTION_EVERY:?}"), "1s");
    }

    #[test]
    fn every_rule_can_be_broken_and_says_so_with_both_numbers() {
        let (day, ms) = (Duration::from_secs(86_400), Duration::from_millis);
        let good = Timings::default();
        let breaks: [(&str, Timings, Duration); 13] = [
            ("beat_interval * 3 + 500ms < lease", Timings { beat_interval: ms(500), ..good }, ms(1)),
            (
                "beat_interval * 3 + watchdog.timeout < lease",
                Timings { beat_interval: ms(400), ..good },
                ms(1),
            ),
            ("heartbeat * 3 <= election_timeout_min", Timings { heartbeat: ms(201), ..good }, ms(1)),
            (
                "election_timeout_min < election_timeout_max",
                Timings { election_timeout_min: ms(1200), ..good },
                ms(1),
            ),
            ("election_timeout_max < lease", Timings { election_timeout_max: ms(2000), ..good }, ms(1)),
            ("remote_timeout < lease", Timings { remote_timeout: ms(2000), ..good }, ms(1)),
            ("beat_interval * 3 < node_timeout", Timings { node_timeout: ms(600), ..good }, ms(1)),
            ("node_timeout < node_lost_after", Timings { node_timeout: ms(10_000), ..good }, ms(1)),
            ("lease * 2 < node_lost_after", Timings { lease: ms(5000), ..good }, ms(1)),
            ("probe_interval * 3 < local_timeout", Timings { probe_interval: day, ..good }, ms(1)),
            ("remote_timeout + 1s < local_timeout", Timings { local_timeout: ms(2000), ..good }, ms(1)),
            ("lease + recruit_timeout < change_timeout", Timings { change_timeout: ms(3000), ..good }, ms(1)),
            ("drain_timeout + postgres.stop_timeout < switchover_timeout", good, ms(15_000)),
        ];
        assert_eq!(breaks.len(), RULES.len());
        for (text, timings, stop_timeout) in breaks {
            let broken = timings.broken_rules(Others { stop_timeout, watchdog: ms(800) });
            let found = broken.iter().find(|sentence| sentence.starts_with(text));
            assert!(found.is_some_and(|sentence| sentence.contains("is not ")), "{text}: {broken:?}");
        }
        let broken = Timings { remote_timeout: ms(2500), ..good }.broken_rules(Others::default());
        assert_eq!(broken.len(), 1);
        assert!(
            broken[0].starts_with("remote_timeout < lease does not hold: 2.5s is not below 2s; "),
            "{broken:?}"
        );
    }
}
