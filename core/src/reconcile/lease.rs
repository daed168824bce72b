//! Whether this node may stay writable, and how long an agent must wait before another node may
//! become so. Pure arithmetic on this machine's clock.
//!
//! The primary's agent beats to every voter. A voter that still knows it as primary promises, with
//! its answer, to help nobody else for [`Terms::promise`] from the *receipt* of the beat. The holder
//! counts from the *sending* of the newest beat that enough voters answered, and begins to kill its
//! PostgreSQL early enough to be done within the shortest such promise. Receipt is never before
//! sending, so the holder always ends first, whatever the delay of messages.
//!
//! Enough is `n - majority + 1` voters (itself included): a successor needs a majority whose promises
//! have lapsed, and any such majority shares a voter with any such group. With four voters a primary
//! may stay with one other voter, though nobody could be promoted by two. While the voters change, it
//! takes enough of the old ones and enough of the new ones.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pgherd_common::{Generation, MonoTime, NodeId};

use crate::cluster::{LeaseVoters, majority};
use crate::defect::{Defect, planted};

/// How much faster or slower one machine's clock may run than another's: 0.5 %, far beyond what a
/// working oscillator does.
const CLOCK_RATE_ERROR_PER_MILLE: u32 = 5;

/// From the decision to fence until the last process is gone. Measured 75 to 175 ms.
pub const KILL_BUDGET: Duration = Duration::from_millis(400);

/// How much later than the worker its guardian may begin to fence: its worker's head start, and as much
/// again for waking up.
pub const GUARDIAN_SLACK: Duration = Duration::from_millis(100);

/// How long a guardian leaves it to the worker to act on a deadline: that knows best what is to be
/// done afterwards.
pub const WORKER_HEAD_START: Duration = Duration::from_millis(50);

/// Leases that agents which have just started give the others to start too.
pub const ADOPTION_LEASES: u32 = 5;

/// Leases of silence after which a worker has hung.
const FROZEN_LEASES: u32 = 5;

/// The agreed length of a lease, the same on every node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    length: Duration,
}

impl Terms {
    /// Terms with this nominal length.
    pub fn new(length: Duration) -> Self {
        Self { length }
    }

    /// How long a voter keeps its promise, by its own clock.
    pub fn promise(self) -> Duration {
        self.length + self.length * CLOCK_RATE_ERROR_PER_MILLE / 1000
    }

    /// How long a primary may do without a lease when its agent has just started and nobody had guarded
    /// it before: the others may start a little later.
    pub fn adoption(self) -> Duration {
        self.length * ADOPTION_LEASES
    }

    /// How long after sending the beat the holder must begin to fence, by its own clock.
    pub fn hold(self) -> Duration {
        (self.length - self.length * CLOCK_RATE_ERROR_PER_MILLE / 1000)
            .saturating_sub(KILL_BUDGET + GUARDIAN_SLACK)
    }

    /// A worker that says nothing for so long has hung; whatever it guarded is fenced long before.
    pub fn frozen_after(self) -> Duration {
        self.length * FROZEN_LEASES
    }
}

/// Voters, the holder included, that must have answered a beat: see the module's text. An agent that
/// hears fewer, itself included, cannot tell whether the primary it knows has been replaced.
pub fn quorum(voters: usize) -> usize {
    if planted(Defect::RenewWithoutQuorum) {
        return voters.min(2);
    }
    voters + 1 - majority(voters)
}

/// The holder's side.
#[derive(Debug, Clone)]
pub struct Lease {
    terms: Terms,
    me: NodeId,
    generation: Generation,
    /// Sending time of the newest beat each voter has answered in `generation`.
    answered: BTreeMap<NodeId, MonoTime>,
}

impl Lease {
    /// No lease yet.
    pub fn new(terms: Terms, me: NodeId) -> Self {
        Self { terms, me, generation: Generation::ZERO, answered: BTreeMap::new() }
    }

    /// A voter has answered, in `generation`, the beat sent at `sent`.
    pub fn answered(&mut self, voter: NodeId, generation: Generation, sent: MonoTime) {
        if generation > self.generation {
            self.generation = generation;
            self.answered.clear();
        }
        if generation == self.generation {
            let newest = self.answered.entry(voter).or_insert(sent);
            *newest = (*newest).max(sent);
        }
    }

    /// The primary stays what it is under the next number: what the voters promised it holds on.
    pub fn carry_over(&mut self, generation: Generation) {
        if self.generation.next() == generation {
            self.generation = generation;
        }
    }

    /// When fencing must begin if nothing renews the lease of `generation`. `None`: there is no lease.
    pub fn fence_at(&self, generation: Generation, voters: &LeaseVoters, now: MonoTime) -> Option<MonoTime> {
        let mut earliest: Option<MonoTime> = None;
        for set in voters.sets() {
            let end = self.fence_at_by(generation, set, now)?;
            earliest = Some(earliest.map_or(end, |known| known.min(end)));
        }
        earliest
    }

    fn fence_at_by(
        &self,
        generation: Generation,
        voters: &BTreeSet<NodeId>,
        now: MonoTime,
    ) -> Option<MonoTime> {
        if !voters.contains(&self.me) {
            return None;
        }
        let needed = quorum(voters.len()) - 1;
        if needed == 0 {
            return Some(now + self.terms.hold());
        }
        if generation != self.generation {
            return None;
        }
        let mut times: Vec<MonoTime> =
            self.answered.iter().filter(|(voter, _)| voters.contains(voter)).map(|(_, sent)| *sent).collect();
        times.sort_unstable_by(|a, b| b.cmp(a));
        times.get(needed - 1).map(|sent| *sent + self.terms.hold())
    }
}

/// A voter's side: what it promised to the primary it knows.
#[derive(Debug, Clone, Copy)]
pub struct Promise {
    until: MonoTime,
}

impl Promise {
    /// An agent that has just started cannot know what it promised before: it waits it out.
    pub fn unknown(terms: Terms, now: MonoTime) -> Self {
        Self { until: now + terms.promise() }
    }

    /// A beat of the current primary was answered.
    pub fn renew(&mut self, terms: Terms, now: MonoTime) {
        self.until = self.until.max(now + terms.promise());
    }

    /// What is left of it.
    pub fn left(&self, now: MonoTime) -> Duration {
        self.until.since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::VoterPlan;

    const TERMS: Terms = Terms { length: Duration::from_secs(2) };

    fn at(millis: u64) -> MonoTime {
        MonoTime::since_boot(Duration::from_millis(millis))
    }

    fn voters(count: u64) -> LeaseVoters {
        LeaseVoters::only((1..=count).map(NodeId).collect())
    }

    #[test]
    fn a_holder_group_and_a_successor_majority_always_share_a_voter() {
        for count in 1..=15_usize {
            let majority = count / 2 + 1;
            assert!(quorum(count) + majority > count, "{count} voters");
            assert!(quorum(count) <= majority, "{count} voters");
        }
    }

    #[test]
    fn the_holder_is_done_before_any_promise_ends() {
        // Holder's clock slow, voter's clock fast, both at the bound, instant delivery.
        let hold = TERMS.hold() + GUARDIAN_SLACK + KILL_BUDGET;
        let slow_holder = hold + hold * CLOCK_RATE_ERROR_PER_MILLE / 1000;
        let fast_voter = TERMS.promise() - TERMS.promise() * CLOCK_RATE_ERROR_PER_MILLE / 1000;
        assert!(slow_holder < fast_voter + Duration::from_millis(1), "{slow_holder:?} {fast_voter:?}");
    }

    #[test]
    fn the_newest_beat_that_enough_voters_answered_counts() {
        let mut lease = Lease::new(TERMS, NodeId(1));
        let generation = Generation::ZERO.next();
        assert_eq!(lease.fence_at(generation, &voters(4), at(0)), None);
        lease.answered(NodeId(2), generation, at(1000));
        let first = lease.fence_at(generation, &voters(4), at(1000)).unwrap();
        assert_eq!(first, at(1000) + TERMS.hold());
        // Five voters: two others must answer.
        assert_eq!(lease.fence_at(generation, &voters(5), at(1000)), None);
        lease.answered(NodeId(3), generation, at(1200));
        assert_eq!(lease.fence_at(generation, &voters(5), at(1200)), Some(first));
        assert_eq!(lease.fence_at(generation, &voters(4), at(1200)), Some(at(1200) + TERMS.hold()));
        // A late answer to an old beat changes nothing, a stranger's neither.
        lease.answered(NodeId(3), generation, at(100));
        lease.answered(NodeId(9), generation, at(9000));
        assert_eq!(lease.fence_at(generation, &voters(4), at(1200)), Some(at(1200) + TERMS.hold()));
    }

    #[test]
    fn nobody_holds_a_lease_in_a_group_it_has_no_vote_in() {
        let lease = Lease::new(TERMS, NodeId(9));
        assert_eq!(lease.fence_at(Generation::ZERO, &voters(3), at(0)), None);
        assert_eq!(lease.fence_at(Generation::ZERO, &LeaseVoters::default(), at(0)), None);
    }

    #[test]
    fn a_lease_is_for_one_generation() {
        let mut lease = Lease::new(TERMS, NodeId(1));
        let first = Generation::ZERO.next();
        lease.answered(NodeId(2), first.next(), at(1000));
        assert_eq!(lease.fence_at(first, &voters(3), at(1000)), None);
        lease.answered(NodeId(2), first, at(2000));
        assert_eq!(lease.fence_at(first.next(), &voters(3), at(1000)), Some(at(1000) + TERMS.hold()));
    }

    #[test]
    fn a_restarted_voter_waits() {
        let mut promise = Promise::unknown(TERMS, at(0));
        assert_eq!(promise.left(at(10)), TERMS.promise() - Duration::from_millis(10));
        promise.renew(TERMS, at(500));
        assert_eq!(promise.left(at(500)), TERMS.promise());
        assert_eq!(promise.left(at(9999)), Duration::ZERO);
    }

    /// Sets of nodes 1 to 5, as the bits of a number.
    fn set(bits: u8) -> BTreeSet<NodeId> {
        (0..5).filter(|bit| bits >> bit & 1 == 1).map(|bit| NodeId(bit + 1)).collect()
    }

    fn between(current: u8, next: u8) -> LeaseVoters {
        LeaseVoters {
            plan: Some(VoterPlan { next: set(next), revision: 1 }),
            ..LeaseVoters::only(set(current))
        }
    }

    /// Groups whose answers are enough for this holder.
    fn holding(voters: &LeaseVoters, holder: u8) -> Vec<u8> {
        let generation = Generation::ZERO.next();
        let me = NodeId(u64::from(holder) + 1);
        let enough = |group: &u8| {
            let mut lease = Lease::new(TERMS, me);
            for voter in set(*group).into_iter().filter(|voter| *voter != me) {
                lease.answered(voter, generation, at(1000));
            }
            group >> holder & 1 == 1 && lease.fence_at(generation, voters, at(1000)).is_some()
        };
        (0..32).filter(enough).collect()
    }

    /// Groups whose lapsed promises are enough to replace this holder, who has no say in it.
    fn succeeding(voters: &LeaseVoters, holder: u8) -> Vec<u8> {
        let enough = |group: &u8| group >> holder & 1 == 0 && voters.allow_successor(&set(*group));
        (0..32).filter(enough).collect()
    }

    fn can_miss(holder: u8, holder_is_at: &LeaseVoters, log_is_at: &LeaseVoters) -> bool {
        let successors = succeeding(log_is_at, holder);
        holding(holder_is_at, holder).iter().any(|group| successors.iter().any(|other| group & other == 0))
    }

    /// Every way to change voters one at a time, twice, among up to five nodes: a primary that is one
    /// state behind the leader, or ahead of it (it may apply an entry first), never holds a lease by a
    /// group that shares nobody with a group that may replace it.
    #[test]
    fn a_primary_one_step_away_never_holds_against_any_successor() {
        let sets: Vec<u8> = (0..32_u8).filter(|bits| bits.count_ones() >= 2).collect();
        let neighbours = |of: u8| sets.iter().copied().filter(move |other| (of ^ other).count_ones() == 1);
        let mut checked = 0;
        for first in &sets {
            for second in neighbours(*first) {
                for third in neighbours(second) {
                    let states = [
                        LeaseVoters::only(set(*first)),
                        between(*first, second),
                        LeaseVoters::only(set(second)),
                        between(second, third),
                    ];
                    for holder in (0..5).filter(|holder| first & second & third & (1 << holder) != 0) {
                        for (index, log_is_at) in states.iter().enumerate() {
                            for holder_is_at in states.iter().take(index + 2).skip(index.saturating_sub(1)) {
                                assert!(
                                    !can_miss(holder, holder_is_at, log_is_at),
                                    "{holder_is_at:?} {log_is_at:?}"
                                );
                                checked += 1;
                            }
                        }
                    }
                }
            }
        }
        assert!(checked > 5000, "{checked}");
        // Two steps behind it could: this is why a plan is settled only once the primary has applied it.
        assert!(can_miss(0, &LeaseVoters::only(set(0b1111)), &LeaseVoters::only(set(0b0111))));
    }

    #[test]
    fn while_voters_change_the_old_and_the_new_ones_must_answer() {
        let mut lease = Lease::new(TERMS, NodeId(1));
        let generation = Generation::ZERO.next();
        // From {1, 2} to {1, 2, 3}: alone it holds by the old set, not by the new one.
        let (old, both) = (LeaseVoters::only(set(0b11)), between(0b11, 0b111));
        lease.answered(NodeId(9), generation, at(1000));
        assert_eq!(lease.fence_at(generation, &old, at(1000)), Some(at(1000) + TERMS.hold()));
        assert_eq!(lease.fence_at(generation, &both, at(1000)), None);
        lease.answered(NodeId(3), generation, at(1100));
        assert_eq!(lease.fence_at(generation, &both, at(1200)), Some(at(1100) + TERMS.hold()));
        assert_eq!(lease.fence_at(generation, &between(0b11, 0b10), at(1200)), None, "it is to leave itself");
    }

    #[test]
    fn of_two_voters_the_primary_stays_alone_and_nobody_replaces_it() {
        let two = LeaseVoters::only(set(0b11));
        assert!(holding(&two, 0).contains(&0b1));
        assert_eq!(succeeding(&two, 0), Vec::<u8>::new());
    }
}
