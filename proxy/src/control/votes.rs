//! The agents' words that this proxy may have the proxies' virtual IP: which were asked for, and until when
//! they add up to a majority.

use std::collections::BTreeMap;
use std::time::Duration;

use pgherd_common::push::ToAgent;
use pgherd_common::{MonoTime, NodeId};
use tokio::sync::watch;

/// Questions whose answers still count.
const ROUNDS_MAX: usize = 64;

/// What one voter has said last.
#[derive(Debug, Clone, Copy)]
struct Word {
    /// Until when it holds; `None`: it was never given.
    until: Option<MonoTime>,
    /// Of how many voters a majority is needed, as far as this one knows.
    voters: usize,
    /// Of the newest answer.
    round: u64,
}

/// An answer of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    /// To this question.
    pub(crate) round: u64,
    /// It has given its word.
    pub(crate) granted: bool,
    /// Who.
    pub(crate) voter: NodeId,
    /// Of how many voters.
    pub(crate) voters: usize,
    /// For how long from the question.
    pub(crate) hold: Duration,
}

/// Pure but for the clock readings it is given.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    round: u64,
    asked: BTreeMap<u64, MonoTime>,
    words: BTreeMap<NodeId, Word>,
}

impl Tally {
    /// The number of a question that is put now.
    pub(crate) fn ask(&mut self, now: MonoTime) -> u64 {
        self.round += 1;
        self.asked.insert(self.round, now);
        if self.asked.len() > ROUNDS_MAX {
            self.asked.pop_first();
        }
        self.round
    }

    /// An agent has answered.
    pub(crate) fn answered(&mut self, answer: Answer) {
        let Some(asked) = self.asked.get(&answer.round) else { return };
        let known = self.words.get(&answer.voter);
        if known.is_some_and(|known| known.round > answer.round) {
            return;
        }
        // A word that is not renewed holds on.
        let until =
            if answer.granted { Some(*asked + answer.hold) } else { known.and_then(|known| known.until) };
        self.words.insert(answer.voter, Word { until, voters: answer.voters, round: answer.round });
    }

    /// Until when a majority stands behind this proxy, if one does.
    pub(crate) fn until(&self, now: MonoTime) -> Option<MonoTime> {
        let standing = self.words.values().filter(|word| word.until.is_some_and(|until| now < until));
        let voters = standing.clone().map(|word| word.voters).max()?;
        let mut ends: Vec<MonoTime> = standing.filter_map(|word| word.until).collect();
        ends.sort_unstable_by(|a, b| b.cmp(a));
        ends.get(voters / 2).copied()
    }

    /// Nothing that was said counts any more.
    pub(crate) fn forget(&mut self) {
        self.words.clear();
        self.asked.clear();
    }
}

/// What the links are to say, for each of them to read.
#[derive(Debug)]
pub(crate) struct Wish(watch::Sender<Option<ToAgent>>);

impl Wish {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(None))
    }

    pub(crate) fn say(&self, message: ToAgent) {
        self.0.send_replace(Some(message));
    }

    pub(crate) fn heard(&self) -> watch::Receiver<Option<ToAgent>> {
        self.0.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> MonoTime {
        MonoTime::since_boot(Duration::from_millis(millis))
    }

    fn answer(round: u64, voter: u64, granted: bool) -> Answer {
        Answer { round, granted, voter: NodeId(voter), voters: 4, hold: Duration::from_secs(4) }
    }

    #[test]
    fn it_takes_a_majority_and_counts_from_the_question() {
        let mut tally = Tally::default();
        let first = tally.ask(at(1000));
        let second = tally.ask(at(2000));
        for voter in 1..=2 {
            tally.answered(answer(second, voter, true));
        }
        tally.answered(answer(first, 4, false));
        assert_eq!(tally.until(at(2100)), None, "two of four");
        tally.answered(answer(first, 3, true));
        assert_eq!(tally.until(at(2100)), Some(at(5000)), "the third one's word ends first");
        tally.answered(answer(first, 1, false));
        assert_eq!(tally.until(at(2100)), Some(at(5000)), "an older answer says nothing");
        tally.answered(answer(second, 1, false));
        assert_eq!(tally.until(at(2100)), Some(at(5000)), "a word that is not renewed holds on");
        assert_eq!(tally.until(at(5000)), None, "until its end");
        tally.forget();
        assert_eq!(tally.until(at(2100)), None);
    }

    #[test]
    fn an_answer_to_a_question_that_nobody_remembers_counts_for_nothing() {
        let mut tally = Tally::default();
        for _ in 0..100 {
            tally.ask(at(1000));
        }
        for voter in 1..=3 {
            tally.answered(answer(1, voter, true));
        }
        assert_eq!(tally.until(at(1001)), None);
    }
}
