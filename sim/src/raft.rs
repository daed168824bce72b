//! A small raft: what the real consensus library promises, in a few hundred lines that run on model time.
//!
//! Pre-votes, stickiness to a leader that is heard, hand-over of leadership, durable terms, votes and
//! logs. Whoever drives it delivers messages, says when the disk has written, and obeys [`Output`].

mod elect;
mod log;
mod replicate;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use pgherd_core::cluster::{Applied, ClusterState, Command};

use pgherd_core::quorum::Admission;

use crate::clock::{MS, Micros, Time};
use crate::rng::Rng;

pub use log::{Entry, Payload, Stored};

/// How often a leader is heard.
pub const HEARTBEAT: Micros = 150 * MS;
/// No voter lets a candidate in while its leader's word is younger than this.
pub const STICKINESS: Micros = 600 * MS;
/// A leader that no majority has answered for so long steps down.
pub const QUORUM_LOSS: Micros = 1200 * MS;
/// A proposal that takes longer has failed, as far as its proposer can tell.
pub const PROPOSE_TIMEOUT: Micros = 2200 * MS;

/// A message to another member.
#[derive(Debug, Clone)]
pub enum Message {
    /// Asks for a vote, or whether one would be given.
    Vote {
        /// The candidate's.
        term: u64,
        /// Term and index of its last entry.
        last: (u64, usize),
        /// Only a question.
        pre: bool,
        /// The leader itself has asked for this election.
        transfer: bool,
    },
    /// Answers it.
    VoteReply {
        /// The voter's.
        term: u64,
        /// The candidate's.
        wanted: u64,
        /// Whether it was only a question.
        pre: bool,
        /// Whether the candidate has it.
        granted: bool,
    },
    /// Entries, or none to say that the leader is there.
    Append {
        /// The leader's.
        term: u64,
        /// Term and index of the entry before them.
        previous: (u64, usize),
        /// They.
        entries: Vec<Arc<Entry>>,
        /// Up to where is committed.
        commit: usize,
        /// When it was sent, for the leader's own use.
        sent: Time,
    },
    /// Answers it.
    AppendReply {
        /// The follower's.
        term: u64,
        /// Up to where the follower's log is the leader's; on refusal, where to try next.
        matched: usize,
        /// Whether the entries fitted.
        fitted: bool,
        /// From the question.
        sent: Time,
    },
    /// Stand for election now.
    TimeoutNow {
        /// The leader's.
        term: u64,
    },
}

/// What is to be done.
#[derive(Debug)]
pub enum Output {
    /// Send this.
    Send(usize, Message),
    /// Write everything up to this version to disk, say so with [`Raft::synced`], then send this.
    Sync(u64, Option<(usize, Message)>),
    /// An entry was applied, and this is the state now.
    Applied(usize, Arc<Entry>, Option<Applied>, Arc<ClusterState>),
    /// A proposal has ended.
    Proposed(Command, Option<Applied>),
    /// A change of voters has ended, one way or the other.
    Regrouped,
    /// An entry was committed here first: who had it on disk, and who votes.
    Committed(usize, BTreeSet<usize>),
}

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It listens.
    Follower,
    /// It asks for votes.
    Candidate {
        /// Only asks whether it would get them.
        pre: bool,
    },
    /// It leads.
    Leader,
}

/// What a leader knows of a follower.
#[derive(Debug, Clone, Copy)]
struct Progress {
    next: usize,
    matched: usize,
    /// Sending time of the newest message it has answered.
    answered: Time,
    /// Entries are on their way since then.
    waiting: Option<Time>,
}

/// One member.
#[derive(Debug)]
pub struct Raft {
    me: usize,
    term: u64,
    voted: Option<usize>,
    admission: Admission,
    regrouping: Option<BTreeSet<usize>>,
    log: Vec<Arc<Entry>>,
    stored: Stored,
    writes: VecDeque<(u64, Stored)>,
    version: u64,
    role: Role,
    leader: Option<usize>,
    heard: Option<Time>,
    votes: BTreeSet<usize>,
    transferring: bool,
    progress: BTreeMap<usize, Progress>,
    synced_to: usize,
    timer: Time,
    commit: usize,
    applied: usize,
    state: Arc<ClusterState>,
    proposals: Vec<(usize, u64, Command, Time)>,
    rng: Rng,
    out: Vec<Output>,
}

impl Raft {
    /// A member that starts with what is on its disk. `applied`: the state machine, which is on disk too.
    pub fn open(me: usize, stored: Stored, applied: (usize, Arc<ClusterState>), now: Time, rng: Rng) -> Self {
        let mut raft = Self {
            me,
            term: stored.term,
            voted: stored.voted,
            admission: stored.admission,
            regrouping: None,
            log: stored.log.clone(),
            synced_to: stored.log.len(),
            stored,
            writes: VecDeque::new(),
            version: 0,
            role: Role::Follower,
            leader: None,
            heard: None,
            votes: BTreeSet::new(),
            transferring: false,
            progress: BTreeMap::new(),
            timer: now,
            commit: applied.0,
            applied: applied.0,
            state: applied.1,
            proposals: Vec::new(),
            rng,
            out: Vec::new(),
        };
        raft.rest(now);
        raft
    }

    /// What would be found on the disk after a crash now. `lucky`: how many of the writes that are under
    /// way make it.
    pub fn on_disk(&self, lucky: usize) -> Stored {
        // What was applied is written after what was logged, to the same file.
        let least = self.writes.iter().position(|(_, stored)| stored.log.len() >= self.applied);
        let least = if self.stored.log.len() >= self.applied { 0 } else { least.map_or(0, |at| at + 1) };
        match lucky.max(least).checked_sub(1).and_then(|at| self.writes.get(at).or(self.writes.back())) {
            Some((_, stored)) => stored.clone(),
            None => self.stored.clone(),
        }
    }

    /// The applied state and its index.
    pub fn applied(&self) -> (usize, Arc<ClusterState>) {
        (self.applied, Arc::clone(&self.state))
    }

    /// Whether an entry of this term is on disk.
    pub fn has_on_disk(&self, index: usize, term: u64) -> bool {
        self.stored.has(index, term)
    }

    /// The applied state.
    pub fn state(&self) -> &Arc<ClusterState> {
        &self.state
    }

    /// Whether this member leads and has applied an entry of its own term.
    pub fn is_established(&self) -> bool {
        self.role == Role::Leader
            && self.applied > 0
            && self.log.get(self.applied - 1).is_some_and(|entry| entry.term == self.term)
    }

    /// What this member's word is worth.
    pub fn admission(&self) -> Admission {
        self.admission
    }

    /// Everybody who was ever a member: whoever has no vote is fed the log.
    pub fn everybody(&self) -> BTreeSet<usize> {
        let groups = self.log.iter().filter_map(|entry| match &entry.payload {
            Payload::Members(groups) => Some(groups),
            Payload::Blank | Payload::Command(_) => None,
        });
        groups.flatten().flatten().copied().collect()
    }

    /// Whether one group votes, and everybody who leads later will know it.
    pub fn is_settled(&self) -> bool {
        let last = self.log.iter().rposition(|entry| matches!(entry.payload, Payload::Members(_)));
        self.groups().len() == 1 && last.is_some_and(|last| last < self.commit)
    }

    /// Tells whether the voters may be others than a moment ago.
    pub fn changes(&self) -> (usize, bool) {
        let changes = self.log.iter().filter(|entry| matches!(entry.payload, Payload::Members(_)));
        (changes.count(), self.is_settled())
    }

    /// The log lets this member in again with its new store.
    pub fn rejoin(&mut self, token: u64) {
        if self.admission == Admission::Probation(token) {
            self.admission = Admission::Learner(token);
            self.persist(None);
        }
    }

    /// Whoever is fed again votes again once it has applied that it does.
    pub fn admit(&mut self, readmitted: Option<u64>) {
        if let Admission::Learner(token) = self.admission
            && readmitted == Some(token)
            && u64::try_from(self.applied).unwrap_or(0) >= self.state.revision
            && self.applied_voters().contains(&self.me)
        {
            self.admission = Admission::Full;
            self.persist(None);
        }
    }

    fn applied_voters(&self) -> BTreeSet<usize> {
        let applied = self.log.iter().take(self.applied).rev();
        let groups = applied.filter_map(|entry| match &entry.payload {
            Payload::Members(groups) => Some(groups.clone()),
            Payload::Blank | Payload::Command(_) => None,
        });
        groups.into_iter().next().unwrap_or_default().into_iter().flatten().collect()
    }

    /// These are to vote: both groups together first, then the new one alone.
    pub fn regroup(&mut self, voters: &BTreeSet<usize>, now: Time) {
        if self.role != Role::Leader || !self.is_established() || self.regrouping.is_some() {
            self.out.push(Output::Regrouped);
            return;
        }
        if !self.is_settled() {
            // A leader before this one has left it half done: first things first.
            self.regrouping = self.groups().pop();
            self.regroup_on(now);
            return;
        }
        self.regrouping = Some(voters.clone());
        let mut groups = self.groups();
        groups.push(voters.clone());
        self.push(Payload::Members(groups));
        self.replicate(now);
    }

    /// The step of a change of voters that follows once the one before is committed.
    fn regroup_on(&mut self, now: Time) {
        let Some(voters) = self.regrouping.clone() else { return };
        if self.is_settled() {
            self.regrouping = None;
            self.out.push(Output::Regrouped);
            return;
        }
        let last = self.log.iter().rposition(|entry| matches!(entry.payload, Payload::Members(_)));
        if self.groups().len() > 1 && last.is_some_and(|last| last < self.commit) {
            self.push(Payload::Members(vec![voters]));
            self.replicate(now);
        }
    }

    /// Whether this member leads.
    pub fn leads(&self) -> bool {
        self.role == Role::Leader
    }

    /// The newest term this member has seen.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Who leads, as far as is known here.
    pub fn leader(&self) -> Option<usize> {
        self.leader
    }

    /// The groups of which a majority each decides, by the newest entry that says so.
    pub fn groups(&self) -> Vec<BTreeSet<usize>> {
        let members = self.log.iter().rev().find_map(|entry| match &entry.payload {
            Payload::Members(groups) => Some(groups.clone()),
            Payload::Blank | Payload::Command(_) => None,
        });
        members.unwrap_or_default()
    }

    /// Everybody with a vote.
    pub fn voters(&self) -> BTreeSet<usize> {
        self.groups().into_iter().flatten().collect()
    }

    /// When [`Raft::tick`] has to be called.
    pub fn wake_at(&self) -> Time {
        self.timer
    }

    /// What has to be done now.
    pub fn take_output(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.out)
    }

    /// A message has arrived.
    pub fn receive(&mut self, from: usize, message: Message, now: Time) {
        if self.admission.probation().is_some() {
            return;
        }
        match message {
            Message::Vote { term, last, pre, transfer } => {
                self.asked_for_vote(from, term, last, (pre, transfer), now);
            }
            Message::VoteReply { term, wanted, pre, granted } => {
                self.step_down_for(term, now);
                self.answered_vote(from, wanted, pre && granted, !pre && granted, now);
            }
            Message::Append { term, previous, entries, commit, sent } => {
                self.append(from, term, previous, entries, commit, sent, now);
            }
            Message::AppendReply { term, matched, fitted, sent } => {
                self.step_down_for(term, now);
                self.answered_append(from, term, matched, fitted, sent, now);
            }
            Message::TimeoutNow { term } => {
                if term == self.term && self.may_vote() {
                    self.transferring = true;
                    self.stand(now);
                }
            }
        }
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Time) {
        let overdue: Vec<_> = {
            let late = |(_, _, _, since): &(usize, u64, Command, Time)| now.since(*since) >= PROPOSE_TIMEOUT;
            let (late, kept): (Vec<_>, Vec<_>) = self.proposals.drain(..).partition(late);
            self.proposals = kept;
            late
        };
        self.out.extend(overdue.into_iter().map(|(_, _, command, _)| Output::Proposed(command, None)));
        if now < self.timer {
            return;
        }
        match self.role {
            Role::Leader => {
                self.lead_on(now);
                self.regroup_on(now);
            }
            Role::Follower | Role::Candidate { .. } => self.election_due(now),
        }
    }

    /// A command is to be written. False when this member does not lead.
    pub fn propose(&mut self, command: Command, now: Time) {
        if self.role != Role::Leader {
            self.out.push(Output::Proposed(command, None));
            return;
        }
        let index = self.push(Payload::Command(Arc::new(command.clone())));
        self.proposals.push((index, self.term, command, now));
        self.replicate(now);
    }

    /// Another member is to lead.
    pub fn transfer(&mut self, to: usize, _now: Time) {
        let caught_up = self.progress.get(&to).is_some_and(|progress| progress.matched == self.log.len());
        if self.role == Role::Leader && caught_up {
            self.out.push(Output::Send(to, Message::TimeoutNow { term: self.term }));
        }
    }

    /// The disk has everything up to this version.
    pub fn synced(&mut self, version: u64, now: Time) {
        while let Some((next, _)) = self.writes.front() {
            if *next > version {
                break;
            }
            if let Some((_, stored)) = self.writes.pop_front() {
                self.stored = stored;
            }
        }
        if self.role == Role::Leader {
            self.synced_to = self.stored.log.len().min(self.log.len());
            self.advance_commit(now);
        }
    }

    fn persist(&mut self, then: Option<(usize, Message)>) {
        self.version += 1;
        let (term, voted, admission) = (self.term, self.voted, self.admission);
        let stored = Stored { term, voted, log: self.log.clone(), admission };
        self.writes.push_back((self.version, stored));
        self.out.push(Output::Sync(self.version, then));
    }

    fn may_vote(&self) -> bool {
        self.admission == Admission::Full && self.voters().contains(&self.me)
    }

    fn last(&self) -> (u64, usize) {
        (self.log.last().map_or(0, |entry| entry.term), self.log.len())
    }

    fn term_at(&self, index: usize) -> u64 {
        index.checked_sub(1).and_then(|at| self.log.get(at)).map_or(0, |entry| entry.term)
    }

    fn has_majority(&self, those: &BTreeSet<usize>) -> bool {
        let groups = self.groups();
        !groups.is_empty() && groups.iter().all(|group| group.intersection(those).count() > group.len() / 2)
    }

    /// Until when nothing has to happen for a leader to be missed.
    fn rest(&mut self, now: Time) {
        self.timer = now + STICKINESS + self.rng.between(0, STICKINESS);
    }

    fn step_down_for(&mut self, term: u64, now: Time) {
        if term > self.term {
            (self.term, self.voted) = (term, None);
            self.persist(None);
            self.follow(None, now);
        }
    }

    fn follow(&mut self, leader: Option<usize>, now: Time) {
        let led = self.role == Role::Leader;
        (self.role, self.leader, self.transferring) = (Role::Follower, leader, false);
        self.rest(now);
        if led && self.regrouping.take().is_some() {
            self.out.push(Output::Regrouped);
        }
        if led {
            let lost: Vec<_> = self.proposals.drain(..).collect();
            self.out.extend(lost.into_iter().map(|(_, _, command, _)| Output::Proposed(command, None)));
        }
    }

    fn push(&mut self, payload: Payload) -> usize {
        self.log.push(Arc::new(Entry { term: self.term, payload }));
        self.persist(None);
        self.log.len()
    }
}
