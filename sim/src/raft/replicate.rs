//! The log on its way from the leader to the others, and to the state.

use std::collections::BTreeSet;
use std::sync::Arc;

use pgherd_core::cluster::{Applied, apply};
use pgherd_core::defect::{Defect, planted};

use crate::clock::{Micros, Time};

use super::{Entry, HEARTBEAT, Message, Output, Payload, QUORUM_LOSS, Raft, Role, STICKINESS};

/// An append that nobody answers is given up.
const APPEND_TIMEOUT: Micros = STICKINESS;
/// Entries in one message.
const BATCH: usize = 64;

impl Raft {
    /// A leader's regular duty: to be heard, and to notice when nobody answers.
    pub(super) fn lead_on(&mut self, now: Time) {
        let answers = self.progress.iter().filter(|(_, p)| now.since(p.answered) < QUORUM_LOSS);
        let present: BTreeSet<usize> = answers.map(|(other, _)| *other).chain([self.me]).collect();
        if !self.has_majority(&present) {
            self.follow(None, now);
            return;
        }
        self.timer = now + HEARTBEAT;
        let others: Vec<usize> = self.progress.keys().copied().collect();
        for other in others {
            self.send_append(other, now);
        }
    }

    /// New entries go out at once to everybody who waits for some.
    pub(super) fn replicate(&mut self, now: Time) {
        let ready = |p: &super::Progress| p.waiting.is_none_or(|since| now.since(since) >= APPEND_TIMEOUT);
        let others: Vec<usize> =
            self.progress.iter().filter(|(_, p)| ready(p)).map(|(other, _)| *other).collect();
        for other in others {
            self.send_append(other, now);
        }
        self.advance_commit(now);
    }

    fn send_append(&mut self, to: usize, now: Time) {
        let Some(progress) = self.progress.get(&to).copied() else { return };
        let before = progress.next.saturating_sub(1).min(self.log.len());
        let entries: Vec<Arc<Entry>> = self.log.iter().skip(before).take(BATCH).cloned().collect();
        if let Some(progress) = self.progress.get_mut(&to) {
            progress.waiting = (!entries.is_empty()).then_some(now);
        }
        let previous = (self.term_at(before), before);
        let (term, commit) = (self.term, self.commit);
        self.out.push(Output::Send(to, Message::Append { term, previous, entries, commit, sent: now }));
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one message")]
    pub(super) fn append(
        &mut self,
        from: usize,
        term: u64,
        previous: (u64, usize),
        entries: Vec<Arc<Entry>>,
        commit: usize,
        sent: Time,
        now: Time,
    ) {
        if term < self.term {
            let reply = Message::AppendReply { term: self.term, matched: 0, fitted: false, sent };
            self.out.push(Output::Send(from, reply));
            return;
        }
        self.step_down_for(term, now);
        debug_assert!(self.role != Role::Leader, "two leaders of one term");
        self.follow(Some(from), now);
        self.heard = Some(now);
        if previous.1 > self.log.len() || self.term_at(previous.1) != previous.0 {
            let matched = previous.1.saturating_sub(1).min(self.log.len());
            let reply = Message::AppendReply { term, matched, fitted: false, sent };
            self.out.push(Output::Send(from, reply));
            return;
        }
        let matched = previous.1 + entries.len();
        let mut written = false;
        for (entry, index) in entries.into_iter().zip(previous.1..) {
            if self.log.get(index).is_some_and(|have| have.term == entry.term) {
                continue;
            }
            // Where nodes forget, it happens, and I10 finds it.
            let forgets = planted(Defect::AmnesiaVotes) || planted(Defect::LogNotDurable);
            debug_assert!(index >= self.commit || forgets, "a committed entry is overwritten");
            self.log.truncate(index);
            self.log.push(entry);
            written = true;
        }
        let reply = Message::AppendReply { term, matched, fitted: true, sent };
        // A repeated message must not be answered before the first one's entries are on disk.
        if written || !self.writes.is_empty() {
            self.persist(Some((from, reply)));
        } else {
            self.out.push(Output::Send(from, reply));
        }
        self.commit_to(commit.min(matched));
    }

    pub(super) fn answered_append(
        &mut self,
        from: usize,
        term: u64,
        matched: usize,
        fitted: bool,
        sent: Time,
        now: Time,
    ) {
        if self.role != Role::Leader || term != self.term {
            return;
        }
        let length = self.log.len();
        let Some(progress) = self.progress.get_mut(&from) else { return };
        progress.answered = progress.answered.max(sent);
        if fitted {
            progress.matched = progress.matched.max(matched);
            progress.next = progress.matched + 1;
        } else {
            // It may have lost its disk: nothing that it had is taken for granted.
            progress.matched = 0;
            progress.next = (matched + 1).min(progress.next).max(1);
        }
        let behind = progress.matched < length;
        progress.waiting = None;
        if behind {
            self.send_append(from, now);
        }
        self.advance_commit(now);
    }

    pub(super) fn advance_commit(&mut self, now: Time) {
        if self.role != Role::Leader {
            return;
        }
        let mut reached = self.commit;
        for index in self.commit + 1..=self.log.len() {
            let have = self.progress.iter().filter(|(_, p)| p.matched >= index).map(|(other, _)| *other);
            let have: BTreeSet<usize> = have.chain((self.synced_to >= index).then_some(self.me)).collect();
            if !self.has_majority(&have) {
                break;
            }
            // Only an entry of the own term proves that all before it are committed.
            if self.term_at(index) == self.term {
                reached = index;
                self.out.push(Output::Committed(index, have));
            }
        }
        if reached > self.commit {
            self.commit_to(reached);
            self.regroup_on(now);
            // The others apply what is committed without waiting for the next heartbeat.
            let others: Vec<usize> = self.progress.keys().copied().collect();
            for other in others {
                self.send_append(other, now);
            }
        }
    }

    fn commit_to(&mut self, index: usize) {
        self.commit = self.commit.max(index.min(self.log.len()));
        while self.applied < self.commit {
            let Some(entry) = self.log.get(self.applied).cloned() else { return };
            self.applied += 1;
            let revision = u64::try_from(self.applied).unwrap_or(u64::MAX);
            let result = match &entry.payload {
                Payload::Command(command) => {
                    let mut state = (*self.state).clone();
                    let result = apply(&mut state, command, revision);
                    if result == Applied::Changed {
                        self.state = Arc::new(state);
                    }
                    Some(result)
                }
                Payload::Blank | Payload::Members(_) => None,
            };
            self.answer_proposal(self.applied, entry.term, result.as_ref());
            let state = Arc::clone(&self.state);
            self.out.push(Output::Applied(self.applied, entry, result, state));
        }
    }

    fn answer_proposal(&mut self, index: usize, term: u64, result: Option<&Applied>) {
        let (ended, kept): (Vec<_>, Vec<_>) =
            self.proposals.drain(..).partition(|(at, _, _, _)| *at == index);
        self.proposals = kept;
        for (_, proposed_in, command, _) in ended {
            let result = result.filter(|_| proposed_in == term).cloned();
            self.out.push(Output::Proposed(command, result));
        }
    }
}
