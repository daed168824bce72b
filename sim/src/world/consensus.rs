//! Drives raft: its messages, its disk, its timer, and what becomes of proposals.

use std::collections::BTreeSet;

use pgherd_common::NodeId;
use pgherd_core::cluster::{Applied, Command};
use pgherd_core::node::Proposed;

use crate::network::Class;
use crate::raft::{Message, Output};

use super::{Event, Work, World};

impl World {
    pub(super) fn raft_message(&mut self, index: usize, from: usize, message: Message) {
        if !self.network.passes(from, index, Class::Agent, self.now) {
            return;
        }
        let now = self.now;
        if let Some(raft) = self.worker(index).and_then(|worker| worker.raft.as_mut()) {
            raft.receive(from, message, now);
        }
        self.flush_raft(index);
    }

    pub(super) fn raft_timer(&mut self, index: usize) {
        let now = self.now;
        if let Some(worker) = self.worker(index) {
            worker.raft_wake = None;
            if let Some(raft) = &mut worker.raft {
                raft.tick(now);
            }
        }
        self.flush_raft(index);
    }

    pub(super) fn raft_synced(&mut self, index: usize, written: u64, then: Option<(usize, Box<Message>)>) {
        let now = self.now;
        if let Some(raft) = self.worker(index).and_then(|worker| worker.raft.as_mut()) {
            raft.synced(written, now);
        }
        if let Some((to, message)) = then {
            self.send_raft(index, to, *message);
        }
        self.flush_raft(index);
    }

    pub(super) fn propose(&mut self, index: usize, command: Command) {
        let now = self.now;
        if let Some(raft) = self.worker(index).and_then(|worker| worker.raft.as_mut()) {
            raft.propose(command, now);
        }
        self.flush_raft(index);
    }

    pub(super) fn transfer(&mut self, index: usize, to: NodeId) {
        let (now, target) = (self.now, self.index_of(to));
        let name = self.name(index);
        self.note(|| format!("{name}: hands the raft leadership to node {to}"));
        if let (Some(raft), Some(target)) =
            (self.worker(index).and_then(|worker| worker.raft.as_mut()), target)
        {
            raft.transfer(target, now);
        }
        self.flush_raft(index);
    }

    pub(super) fn change_voters(&mut self, index: usize, voters: &BTreeSet<NodeId>) {
        let now = self.now;
        let voters: BTreeSet<usize> = voters.iter().filter_map(|id| self.index_of(*id)).collect();
        if let Some(raft) = self.worker(index).and_then(|worker| worker.raft.as_mut()) {
            raft.regroup(&voters, now);
        }
        self.flush_raft(index);
    }

    /// Whether raft feeds a node that has no vote. That is nothing a decision rests on, so it is no entry of the log here.
    pub(super) fn feed(&mut self, index: usize, node: NodeId, fed: bool) {
        if let Some(other) = self.index_of(node) {
            if fed {
                self.unfed.remove(&other)
            } else {
                self.unfed.insert(other)
            };
        }
        // It is to hear of the group anew.
        if let Some(worker) = self.worker(index) {
            worker.changes.0 = usize::MAX;
        }
        if let Some(node) = self.node_mut(index) {
            node.regrouped();
        }
        self.turn_soon(index);
    }

    fn send_raft(&mut self, from: usize, to: usize, message: Message) {
        if from == to {
            let now = self.now;
            if let Some(raft) = self.worker(from).and_then(|worker| worker.raft.as_mut()) {
                raft.receive(from, message, now);
            }
            return;
        }
        if let Some(delay) = self.network.delay(from, to, Class::Agent) {
            self.after(delay, Event::Work(to, None, Work::Raft(from, Box::new(message))));
        }
    }

    /// Does what raft wants done.
    pub(super) fn flush_raft(&mut self, index: usize) {
        let mut moved = false;
        loop {
            let Some(raft) = self.worker(index).and_then(|worker| worker.raft.as_mut()) else { return };
            let output = raft.take_output();
            if output.is_empty() {
                break;
            }
            for output in output {
                match output {
                    Output::Send(to, message) => self.send_raft(index, to, message),
                    Output::Sync(written, then) => {
                        let span = self.fsync(index);
                        let then = then.map(|(to, message)| (to, Box::new(message)));
                        self.post(index, span, Work::Synced(written, then));
                    }
                    Output::Applied(at, entry, result, state) => {
                        moved = true;
                        self.check_applied(index, at, &entry, result.as_ref(), &state);
                    }
                    Output::Regrouped => {
                        if let Some(node) = self.node_mut(index) {
                            node.regrouped();
                        }
                        moved = true;
                    }
                    Output::Committed(at, have) => self.check_committed(index, at, &have),
                    Output::Proposed(command, result) => {
                        self.end_proposal(index, &command, result.as_ref());
                        moved = true;
                    }
                }
            }
        }
        self.note_leadership(index);
        let id = self.machines[index].descriptor.id;
        if moved && let Some(raft) = self.worker(index).and_then(|worker| worker.raft.as_mut()) {
            let readmitted = raft.state().readmitted.get(&id).copied();
            raft.admit(readmitted);
        }
        if moved {
            self.push_topology(index);
            self.turn_soon(index);
        }
        let now = self.now;
        let Some(worker) = self.worker(index) else { return };
        let Some(raft) = &worker.raft else { return };
        let at = raft.wake_at();
        if worker.raft_wake.is_none_or(|wake| wake > at) {
            worker.raft_wake = Some(at);
            let life = worker.life;
            self.at(at.max(now + 1), Event::Work(index, Some(life), Work::RaftTimer));
        }
    }

    /// A proposal has come to an end; `None`: without an answer.
    fn end_proposal(&mut self, index: usize, command: &Command, result: Option<&Applied>) {
        match self.operators.iter().position(|known| known == command) {
            Some(at) => drop(self.operators.swap_remove(at)),
            None => {
                if let Some(node) = self.node_mut(index) {
                    node.proposed(result.map_or(Proposed::TimedOut, |_| Proposed::Settled));
                }
            }
        }
        let name = self.name(index);
        self.note(|| match result {
            Some(result) => format!("{name}: proposal ended: {result:?}"),
            None => format!("{name}: a proposal failed: {command:?}"),
        });
    }

    /// A change of leadership is news for the agent.
    fn note_leadership(&mut self, index: usize) {
        let Some(worker) = self.worker(index) else { return };
        let Some(raft) = &worker.raft else { return };
        let leads = raft.is_established();
        if leads != worker.led {
            worker.led = leads;
            let term = raft.term();
            let name = self.name(index);
            self.note(|| {
                let what = if leads { "leads" } else { "no longer leads" };
                format!("{name}: {what} the raft group (term {term})")
            });
            self.turn_soon(index);
        }
    }

    /// An operator's command, at the agent that leads.
    pub(crate) fn propose_as_operator(&mut self, index: usize, command: Command) {
        let name = self.name(index);
        self.note(|| format!("{name}: an operator asks for {command:?}"));
        self.operators.push(command.clone());
        self.propose(index, command);
    }

    /// The agent that leads the raft group, if one does and can act.
    pub fn leader(&self) -> Option<usize> {
        (0..self.machines.len()).find(|index| {
            let machine = &self.machines[*index];
            let worker = machine.worker.as_ref().filter(|worker| !worker.frozen);
            machine.up
                && !machine.frozen
                && worker
                    .and_then(|worker| worker.raft.as_ref())
                    .is_some_and(|raft| raft.is_established() && self.hears_majority(*index, &raft.voters()))
        })
    }

    fn hears_majority(&self, index: usize, voters: &std::collections::BTreeSet<usize>) -> bool {
        let reaches =
            |other: &&usize| self.machines[**other].up && self.network.connects(index, **other, Class::Agent);
        voters.iter().filter(reaches).count() > voters.len() / 2
    }
}
