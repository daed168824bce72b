//! When each server was writable, as far as accepted writes prove it, and whether two of them were at
//! the same time.
//!
//! A write was accepted at some moment between its sending and its answer. So a server was writable for
//! certain from the first answer to the last sending of what it accepted, whatever the delays: this is
//! the *core* of its term. Two cores that share a moment prove two primaries.

use std::time::Duration;

use tokio::time::Instant;

/// One accepted write.
#[derive(Debug, Clone)]
pub(crate) struct Write {
    /// The timeline it was written on, as in the name of a WAL file.
    pub(crate) timeline: String,
    /// When the server was started, by its own clock: tells a server from itself before a restart.
    pub(crate) server: String,
    /// Before it was sent.
    pub(crate) sent: Instant,
    /// After the answer was there.
    pub(crate) acked: Instant,
}

/// A time in which one server was primary without a break.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Term {
    pub(crate) node: String,
    pub(crate) timeline: String,
    server: String,
    first_sent: Instant,
    /// When the first accepted write was answered.
    pub(crate) first_acked: Instant,
    last_sent: Instant,
    /// When the last accepted write was answered.
    pub(crate) last_acked: Instant,
    pub(crate) writes: u64,
    /// Began against the will of the cluster: measured, but not held against it.
    pub(crate) rogue: bool,
}

impl Term {
    /// Whether this term has its core at the time of some write of the other one.
    fn covers(&self, other: &Self) -> bool {
        let cores = self.first_acked.max(other.first_acked) < self.last_sent.min(other.last_sent);
        // The other's only write, as a whole, within this core.
        let within = self.first_acked < other.first_sent && other.last_acked < self.last_sent;
        cores || within
    }

    /// How long it accepted writes, at most.
    pub(crate) fn length(&self) -> Duration {
        self.last_acked.duration_since(self.first_sent)
    }

    fn told(&self, from: Instant) -> String {
        let at = |moment: Instant| moment.saturating_duration_since(from).as_secs_f64();
        format!(
            "{} on timeline {}: {} writes, first answered at {:.4} s, last sent at {:.4} s and answered at {:.4} s",
            self.node,
            self.timeline,
            self.writes,
            at(self.first_acked),
            at(self.last_sent),
            at(self.last_acked)
        )
    }
}

/// Two primaries at once.
#[derive(Debug, Clone)]
pub(crate) struct Overlap {
    /// Proven to have lasted so long.
    pub(crate) length: Duration,
    /// Whose term had begun first.
    pub(crate) older: String,
    /// When the last write that this one accepted was answered.
    pub(crate) older_last: Instant,
    /// Both terms.
    pub(crate) evidence: String,
}

/// All terms so far.
#[derive(Debug, Default)]
pub(crate) struct Terms {
    terms: Vec<Term>,
    /// Pairs that were told.
    told: Vec<(usize, usize)>,
}

impl Terms {
    /// Takes an accepted write into account.
    pub(crate) fn record(&mut self, node: &str, write: Write) {
        let Write { timeline, server, sent, acked } = write;
        let same = |term: &&mut Term| term.node == node && term.timeline == timeline && term.server == server;
        if let Some(term) = self.terms.iter_mut().rev().find(same) {
            term.first_sent = term.first_sent.min(sent);
            term.first_acked = term.first_acked.min(acked);
            term.last_sent = term.last_sent.max(sent);
            term.last_acked = term.last_acked.max(acked);
            term.writes += 1;
            return;
        }
        self.terms.push(Term {
            node: node.to_owned(),
            timeline,
            server,
            first_sent: sent,
            first_acked: acked,
            last_sent: sent,
            last_acked: acked,
            writes: 1,
            rogue: false,
        });
    }

    /// Overlaps that were not told before; times are told from `epoch` on.
    pub(crate) fn overlaps(&mut self, epoch: Instant) -> Vec<Overlap> {
        let mut found = Vec::new();
        for (later, one) in self.terms.iter().enumerate() {
            for (earlier, other) in self.terms.iter().enumerate().take(later) {
                let rogue = one.rogue || other.rogue;
                if rogue || one.node == other.node || self.told.contains(&(earlier, later)) {
                    continue;
                }
                if !one.covers(other) && !other.covers(one) {
                    continue;
                }
                self.told.push((earlier, later));
                let begun = one.first_acked.max(other.first_acked);
                let ended = one.last_sent.min(other.last_sent);
                let older = if one.first_acked < other.first_acked { one } else { other };
                found.push(Overlap {
                    length: ended.saturating_duration_since(begun),
                    older: older.node.clone(),
                    older_last: older.last_acked,
                    evidence: format!("{}; {}", other.told(epoch), one.told(epoch)),
                });
            }
        }
        found
    }

    /// Marks what this node began after `since`, and returns how long it accepted writes.
    pub(crate) fn mark_rogue(&mut self, node: &str, since: Instant) -> Option<Duration> {
        let begun = |term: &&mut Term| term.node == node && term.first_acked > since;
        let term = self.terms.iter_mut().find(begun)?;
        term.rogue = true;
        Some(term.length())
    }

    /// The last term of this node that had begun before `moment`.
    pub(crate) fn of_before(&self, node: &str, moment: Instant) -> Option<&Term> {
        self.terms.iter().rev().find(|term| term.node == node && term.first_acked < moment)
    }

    /// The first term of this node that began after `moment`.
    pub(crate) fn of_after(&self, node: &str, moment: Instant) -> Option<&Term> {
        self.terms.iter().find(|term| term.node == node && term.first_sent > moment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Past(Instant, Terms);

    impl Past {
        fn new() -> Self {
            Self(Instant::now(), Terms::default())
        }

        fn write(&mut self, node: &str, timeline: &str, server: &str, sent: u64, acked: u64) {
            let at = |ms| self.0 + Duration::from_millis(ms);
            let write = Write {
                timeline: timeline.to_owned(),
                server: server.to_owned(),
                sent: at(sent),
                acked: at(acked),
            };
            self.1.record(node, write);
        }

        fn overlaps(&mut self) -> usize {
            self.1.overlaps(self.0).len()
        }
    }

    #[test]
    fn one_after_the_other_is_fine_and_slow_answers_prove_nothing() {
        let mut past = Past::new();
        past.write("a", "1", "x", 0, 1);
        past.write("a", "1", "x", 10, 400);
        past.write("b", "2", "y", 100, 101);
        past.write("b", "2", "y", 200, 201);
        assert_eq!(past.overlaps(), 0, "the write on `a` may have been accepted at 11");
    }

    #[test]
    fn a_write_that_was_sent_after_the_other_had_answered_is_proof() {
        let mut past = Past::new();
        past.write("a", "1", "x", 0, 1);
        past.write("b", "2", "y", 100, 101);
        past.write("b", "2", "y", 150, 151);
        assert_eq!(past.overlaps(), 0);
        past.write("a", "1", "x", 110, 111);
        assert_eq!(past.overlaps(), 1);
        assert_eq!(past.overlaps(), 0, "it is told once");
    }

    #[test]
    fn a_single_write_in_the_middle_of_a_term_is_proof() {
        let mut past = Past::new();
        past.write("a", "1", "x", 0, 1);
        past.write("a", "1", "x", 500, 501);
        past.write("b", "2", "y", 100, 101);
        assert_eq!(past.overlaps(), 1);
    }

    #[test]
    fn a_primary_that_was_restarted_has_two_terms() {
        let mut past = Past::new();
        past.write("a", "1", "x", 0, 1);
        past.write("b", "2", "y", 100, 101);
        past.write("b", "2", "y", 150, 151);
        past.write("a", "1", "z", 500, 501);
        assert_eq!(past.overlaps(), 0);
    }

    #[test]
    fn what_began_against_the_will_of_the_cluster_is_measured() {
        let mut past = Past::new();
        past.write("a", "1", "x", 0, 1);
        past.write("a", "1", "x", 900, 901);
        past.write("b", "2", "y", 100, 101);
        past.write("b", "2", "y", 150, 151);
        assert_eq!(past.1.mark_rogue("b", past.0), Some(Duration::from_millis(51)));
        assert_eq!(past.overlaps(), 0);
    }
}
