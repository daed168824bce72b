//! Elections.

use std::collections::BTreeMap;

use pgherd_core::quorum::Admission;

use crate::clock::Time;

use super::{HEARTBEAT, Message, Output, Payload, Progress, Raft, Role, STICKINESS};

impl Raft {
    pub(super) fn election_due(&mut self, now: Time) {
        if !self.may_vote() {
            self.rest(now);
            return;
        }
        (self.role, self.leader) = (Role::Candidate { pre: true }, None);
        self.votes = [self.me].into();
        self.rest(now);
        let question = Message::Vote { term: self.term + 1, last: self.last(), pre: true, transfer: false };
        self.ask(&question);
        self.count_votes(now);
    }

    /// Asks for votes in earnest.
    pub(super) fn stand(&mut self, now: Time) {
        (self.role, self.leader) = (Role::Candidate { pre: false }, None);
        (self.term, self.voted) = (self.term + 1, Some(self.me));
        // The own vote counts only once it is on disk; asking may go ahead.
        self.votes.clear();
        self.rest(now);
        let own = Message::VoteReply { term: self.term, wanted: self.term, pre: false, granted: true };
        self.persist(Some((self.me, own)));
        let transfer = self.transferring;
        let question = Message::Vote { term: self.term, last: self.last(), pre: false, transfer };
        self.ask(&question);
    }

    fn ask(&mut self, question: &Message) {
        for other in self.voters() {
            if other != self.me {
                self.out.push(Output::Send(other, question.clone()));
            }
        }
    }

    pub(super) fn asked_for_vote(
        &mut self,
        from: usize,
        term: u64,
        last: (u64, usize),
        (pre, transfer): (bool, bool),
        now: Time,
    ) {
        let leading = self.role == Role::Leader;
        let hears = leading || self.heard.is_some_and(|heard| now.since(heard) < STICKINESS);
        let fits = last >= self.last() && self.admission == Admission::Full;
        if pre {
            let granted = !hears && fits && term > self.term;
            let reply = Message::VoteReply { term: self.term, wanted: term, pre, granted };
            self.out.push(Output::Send(from, reply));
            return;
        }
        if hears && !transfer {
            let reply = Message::VoteReply { term: self.term, wanted: term, pre, granted: false };
            self.out.push(Output::Send(from, reply));
            return;
        }
        self.step_down_for(term, now);
        let free = self.voted.is_none_or(|voted| voted == from);
        let granted = term == self.term && free && fits && self.role != Role::Leader;
        let reply = Message::VoteReply { term: self.term, wanted: term, pre, granted };
        if granted {
            self.voted = Some(from);
            self.rest(now);
            self.persist(Some((from, reply)));
        } else {
            self.out.push(Output::Send(from, reply));
        }
    }

    pub(super) fn answered_vote(&mut self, from: usize, wanted: u64, would: bool, does: bool, now: Time) {
        let counts = match self.role {
            Role::Candidate { pre: true } => would && wanted == self.term + 1,
            Role::Candidate { pre: false } => does && wanted == self.term,
            Role::Follower | Role::Leader => false,
        };
        if counts {
            self.votes.insert(from);
            self.count_votes(now);
        }
    }

    fn count_votes(&mut self, now: Time) {
        if !self.has_majority(&self.votes) {
            return;
        }
        match self.role {
            Role::Candidate { pre: true } => self.stand(now),
            Role::Candidate { pre: false } => self.take_over(now),
            Role::Follower | Role::Leader => {}
        }
    }

    fn take_over(&mut self, now: Time) {
        (self.role, self.leader, self.transferring) = (Role::Leader, Some(self.me), false);
        let next = self.log.len() + 1;
        let fresh = Progress { next, matched: 0, answered: now, waiting: None };
        let others = self.everybody().into_iter().filter(|other| *other != self.me);
        self.progress = others.map(|other| (other, fresh)).collect::<BTreeMap<_, _>>();
        self.synced_to = self.stored.log.len().min(self.log.len());
        self.push(Payload::Blank);
        self.timer = now + HEARTBEAT;
        self.replicate(now);
    }
}
