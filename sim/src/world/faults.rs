//! What goes wrong: each fault begins, and most of them end.

use std::fmt;
use std::time::Duration;

use pgherd_common::Generation;
use pgherd_core::cluster::Command;
use pgherd_core::node::Node;
use pgherd_core::quorum::Admission;

use crate::clock::{MS, Micros, SECOND};
use crate::network::Class;

use super::{Event, World};

/// A fault. Machines and endpoints by their place in the world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// These endpoints hear nobody else, and the other way round.
    Partition(Vec<usize>),
    /// Nothing gets from the first to the second.
    OneWay(usize, usize),
    /// Nothing gets between the two, either way.
    Pair(usize, usize),
    /// Nobody reaches this machine's PostgreSQL; agents talk on.
    PostgresPort(usize),
    /// Agents cannot talk to this one; PostgreSQL can be reached.
    AgentPort(usize),
    /// The link between the two comes and goes.
    Flapping(usize, usize, u32),
    /// All links lose packets (of a thousand) and take up to this much longer.
    Bad(u64, Micros),
    /// The machine loses power.
    Power(usize),
    /// The machine stands still.
    Freeze(usize),
    /// SIGSTOP to the worker.
    FreezeWorker(usize),
    /// SIGKILL to the worker.
    KillWorker(usize),
    /// SIGKILL to guardian and worker; somebody starts them again at the end.
    KillAgent(usize),
    /// SIGKILL to the postmaster.
    KillPostmaster(usize),
    /// SIGSTOP to the postmaster.
    HangPostmaster(usize),
    /// Nothing is written to the disk.
    StallDisk(usize),
    /// The disk of an agent's raft store is lost, and its worker ends.
    Wipe(usize),
    /// Whatever machine runs the primary loses power.
    LosePrimary,
    /// Whatever gets to this machine gets there late, up to so much.
    Late(usize, Micros),
    /// `pg_ctl promote` by somebody who has no business to.
    PromoteByHand(usize),
    /// An operator asks for a switchover, to this node or to any.
    Switchover(Option<usize>),
    /// The same, so long from then.
    Schedule(Option<usize>, Micros),
    /// An operator has PostgreSQL left alone, on this machine or everywhere, for so long.
    Pause(Option<usize>, Micros),
    /// An operator has a node removed, and adds it again afterwards.
    Leave(usize),
    /// An operator forces a promotion.
    Force,
    /// The next checkpoint of the machine's PostgreSQL is not the agent's doing.
    Checkpoint(usize),
}

/// A fault begins or ends.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    Begin(Fault, Micros),
    End(Fault),
    Flap(usize, usize, u32, bool),
}

/// A fault that lasts for so long ends when somebody says so.
pub const OPEN_END: Micros = 100_000 * SECOND;

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let server = |index: &usize| format!("server{}", index + 1);
        match self {
            Self::Partition(side) => {
                let names: Vec<String> = side.iter().map(server).collect();
                write!(f, "partition: {} alone", names.join(", "))
            }
            Self::OneWay(from, to) => write!(f, "nothing gets from {} to {}", server(from), server(to)),
            Self::Pair(a, b) => write!(f, "nothing gets between {} and {}", server(a), server(b)),
            Self::PostgresPort(index) => write!(f, "nobody reaches PostgreSQL on {}", server(index)),
            Self::AgentPort(index) => write!(f, "nobody reaches the agent of {}", server(index)),
            Self::Flapping(a, b, _) => write!(f, "the link between {} and {} flaps", server(a), server(b)),
            Self::Bad(loss, slow) => {
                write!(f, "bad network: {} % lost, up to {} ms late", loss / 10, slow / MS)
            }
            Self::Power(index) => write!(f, "power cut on {}", server(index)),
            Self::Freeze(index) => write!(f, "{} stands still", server(index)),
            Self::FreezeWorker(index) => write!(f, "the worker of {} is stopped (SIGSTOP)", server(index)),
            Self::KillWorker(index) => write!(f, "the worker of {} is killed", server(index)),
            Self::KillAgent(index) => write!(f, "guardian and worker of {} are killed", server(index)),
            Self::KillPostmaster(index) => write!(f, "the postmaster of {} is killed", server(index)),
            Self::HangPostmaster(index) => write!(f, "the postmaster of {} hangs (SIGSTOP)", server(index)),
            Self::StallDisk(index) => write!(f, "the disk of {} stalls", server(index)),
            Self::Wipe(index) => write!(f, "the raft store of {} is lost", server(index)),
            Self::LosePrimary => f.write_str("power cut on the primary, whichever it is"),
            Self::Late(index, slow) => {
                write!(f, "messages to {} come up to {} ms late", server(index), slow / MS)
            }
            Self::PromoteByHand(index) => write!(f, "somebody runs pg_ctl promote on {}", server(index)),
            Self::Switchover(Some(to)) => write!(f, "an operator switches over to {}", server(to)),
            Self::Schedule(to, ahead) => {
                let to = to.as_ref().map_or("the best standby".to_owned(), server);
                write!(f, "an operator schedules a switchover to {to} in {} ms", ahead / MS)
            }
            Self::Pause(node, span) => {
                let what = node.as_ref().map_or("the cluster".to_owned(), server);
                write!(f, "an operator pauses {what} for {} ms", span / MS)
            }
            Self::Leave(index) => write!(f, "an operator removes {}", server(index)),
            Self::Force => f.write_str("an operator forces a promotion"),
            Self::Switchover(None) => f.write_str("an operator switches over"),
            Self::Checkpoint(index) => write!(f, "a checkpoint on {}", server(index)),
        }
    }
}

impl World {
    /// A fault begins so far from now, and ends so much later.
    pub fn strike(&mut self, from_now: Micros, fault: Fault, span: Micros) {
        self.after(from_now, Event::Fault(Step::Begin(fault, span)));
    }

    pub(super) fn fault(&mut self, step: Step) {
        match step {
            Step::Begin(fault, span) => {
                self.note(|| {
                    let bound =
                        if span < OPEN_END { format!(", for {} ms", span / MS) } else { String::new() };
                    format!("*** {fault}{bound}")
                });
                self.begin_fault(&fault, span);
                self.after(span, Event::Fault(Step::End(fault)));
            }
            Step::End(fault) => {
                self.end_fault(&fault);
            }
            Step::Flap(a, b, left, down) => self.flap(a, b, left, down),
        }
    }

    fn endpoints(&self) -> usize {
        self.machines.len() + self.proxies.len()
    }

    /// Cuts or mends between two sides.
    fn between(&mut self, side: &[usize], mend: bool) {
        for inside in side {
            for outside in (0..self.endpoints()).filter(|endpoint| !side.contains(endpoint)) {
                self.link(*inside, outside, mend);
                self.link(outside, *inside, mend);
            }
        }
    }

    fn link(&mut self, from: usize, to: usize, mend: bool) {
        for class in [Class::Agent, Class::Postgres] {
            if mend {
                self.network.mend(from, to, class);
            } else {
                self.network.cut(from, to, class);
            }
        }
    }

    fn port(&mut self, index: usize, class: Class, mend: bool) {
        for other in (0..self.endpoints()).filter(|other| *other != index) {
            for (from, to) in [(index, other), (other, index)] {
                if mend {
                    self.network.mend(from, to, class);
                } else {
                    self.network.cut(from, to, class);
                }
            }
        }
    }

    pub(crate) fn begin_fault(&mut self, fault: &Fault, span: Micros) {
        match fault {
            Fault::Partition(side) => self.between(side, false),
            Fault::OneWay(from, to) => self.link(*from, *to, false),
            Fault::Pair(a, b) => {
                self.link(*a, *b, false);
                self.link(*b, *a, false);
            }
            Fault::PostgresPort(index) => self.port(*index, Class::Postgres, false),
            Fault::AgentPort(index) => self.port(*index, Class::Agent, false),
            Fault::Flapping(a, b, times) => self.flap(*a, *b, *times, true),
            Fault::Bad(loss, slow) => self.spoil(*loss, *slow),
            Fault::Power(index) => self.crash(*index),
            Fault::Freeze(index) => self.freeze(*index),
            Fault::FreezeWorker(index) => {
                if let Some(worker) = self.worker(*index) {
                    worker.frozen = true;
                }
            }
            Fault::KillWorker(index) => self.kill_worker(*index),
            Fault::KillAgent(index) => {
                self.checks.unguarded(*index, true);
                self.kill_agent(*index);
            }
            Fault::KillPostmaster(index) => self.kill_server(*index),
            Fault::HangPostmaster(index) => self.hang(*index, true),
            Fault::StallDisk(index) => {
                let until = self.now + span;
                let disk = &mut self.machines[*index].disk;
                disk.stalled_until = disk.stalled_until.max(until);
            }
            Fault::Wipe(index) => self.wipe(*index),
            Fault::LosePrimary => {
                let primary = (0..self.machines.len()).find(|index| self.machines[*index].accepts());
                if let Some(index) = primary {
                    self.crash(index);
                    self.after(span, Event::Fault(Step::End(Fault::Power(index))));
                }
            }
            Fault::Late(index, slow) => {
                for from in 0..self.endpoints() {
                    self.network.spoil(from, *index, 0, *slow);
                }
            }
            Fault::PromoteByHand(index) => {
                if self.machines[*index].up && !self.machines[*index].frozen {
                    let span = self.rng.tailed(60 * MS, SECOND);
                    self.begin_promotion(*index, span, Generation::ZERO, true);
                }
            }
            Fault::Switchover(to) => self.switch_over(*to, false),
            Fault::Schedule(to, ahead) => self.schedule(*to, *ahead),
            Fault::Pause(node, span) => self.pause(*node, *span),
            Fault::Leave(index) => self.remove_node(*index),
            Fault::Force => self.switch_over(None, true),
            Fault::Checkpoint(index) => {
                if let Some(server) = &mut self.machines[*index].server {
                    server.checkpoint();
                }
                self.wal_grew(*index);
            }
        }
    }

    pub(crate) fn end_fault(&mut self, fault: &Fault) {
        match fault {
            Fault::Partition(side) => self.between(side, true),
            Fault::OneWay(from, to) => self.link(*from, *to, true),
            Fault::Pair(a, b) => {
                self.link(*a, *b, true);
                self.link(*b, *a, true);
            }
            Fault::PostgresPort(index) => self.port(*index, Class::Postgres, true),
            Fault::AgentPort(index) => self.port(*index, Class::Agent, true),
            Fault::Bad(..) | Fault::Late(..) => self.spoil(0, 0),
            Fault::Power(index) => self.boot(*index),
            Fault::Freeze(index) => self.thaw(*index),
            Fault::FreezeWorker(index) => self.thaw_worker(*index),
            Fault::KillAgent(index) => {
                self.start_agent(*index);
            }
            Fault::HangPostmaster(index) => self.hang(*index, false),
            Fault::Leave(index) => self.welcome(*index),
            Fault::Flapping(..)
            | Fault::KillWorker(_)
            | Fault::KillPostmaster(_)
            | Fault::StallDisk(_)
            | Fault::PromoteByHand(_)
            | Fault::Switchover(_)
            | Fault::Schedule(..)
            | Fault::Pause(..)
            | Fault::Force
            | Fault::Wipe(_)
            | Fault::LosePrimary
            | Fault::Checkpoint(_) => return,
        }
        self.note(|| format!("*** over: {fault}"));
    }

    /// A lost store comes with the end of the process that used it.
    fn wipe(&mut self, index: usize) {
        // Two lost stores at once may be a majority's, and then only a human helps.
        let whole = (0..self.machines.len()).all(|other| {
            let machine = &self.machines[other];
            let raft = machine.worker.as_ref().and_then(|worker| worker.raft.as_ref());
            let admission = raft.map_or(machine.disk.raft.admission, crate::raft::Raft::admission);
            machine.up && admission == Admission::Full
        });
        // Nor may anybody be about to give another voter up as lost.
        let lost_soon = Duration::from_millis(8500);
        let all_heard = (0..self.machines.len()).all(|other| {
            let now = self.mono(other);
            let heard = |node: &mut Node| {
                node.coordinator().seen().values().all(|seen| now.since(seen.at) < lost_soon)
            };
            self.node_mut(other).is_some_and(heard)
        });
        // Nor can the last two voters let each other in again, nor a primary whom nobody can replace.
        let state = self.leader().and_then(|leader| self.state(leader));
        let id = self.machines[index].descriptor.id;
        let is_primary = state.is_none_or(|state| state.primary.is_some_and(|primary| primary.node == id));
        let many = state.is_some_and(|state| state.voters.plan.is_none() && state.voters.current.len() > 2)
            && (!is_primary || self.health().sick.is_empty());
        if self.machines[index].up && !self.machines[index].frozen && whole && many && all_heard {
            self.kill_worker(index);
            let token = self.rng.bits();
            let disk = &mut self.machines[index].disk;
            disk.raft = crate::raft::Stored::lost(token);
            disk.applied = Default::default();
            self.checks.generations.forget(index);
        }
    }

    fn spoil(&mut self, loss: u64, slow: Micros) {
        for from in 0..self.endpoints() {
            for to in 0..self.endpoints() {
                self.network.spoil(from, to, loss, slow);
            }
        }
    }

    fn flap(&mut self, a: usize, b: usize, left: u32, down: bool) {
        self.link(a, b, !down);
        self.link(b, a, !down);
        let span = self.rng.between(300 * MS, 3 * SECOND);
        if !down && left == 0 {
            return;
        }
        let left = if down { left.saturating_sub(1) } else { left };
        self.after(span, Event::Fault(Step::Flap(a, b, left, !down)));
    }

    fn hang(&mut self, index: usize, hung: bool) {
        let server = self.machines[index].server.as_mut();
        if let Some(process) = server.and_then(|server| server.process.as_mut()) {
            process.hung = hung;
        }
    }

    fn thaw_worker(&mut self, index: usize) {
        if let Some(worker) = self.worker(index)
            && worker.frozen
        {
            worker.frozen = false;
            let waiting = std::mem::take(&mut worker.backlog);
            self.release(waiting);
        }
    }

    fn switch_over(&mut self, to: Option<usize>, forced: bool) {
        let Some(leader) = self.leader() else { return };
        let to = to.map(|to| self.machines[to].descriptor.name.clone());
        let (now, wall) = (self.mono(leader), self.wall());
        let Some(node) = self.node(leader) else { return };
        let plan = if forced {
            node.plan_forced(to.as_ref(), true, now, wall)
        } else {
            node.plan_switchover(to.as_ref(), false, now, wall)
        };
        match plan {
            Ok(command) => self.propose_as_operator(leader, command),
            Err(refused) => self.note(|| format!("the operator is refused: {refused}")),
        }
    }

    fn schedule(&mut self, to: Option<usize>, ahead: Micros) {
        let Some(leader) = self.leader() else { return };
        let to = to.map(|to| self.machines[to].descriptor.name.clone());
        let (now, wall) = (self.mono(leader), self.wall());
        let Some(node) = self.node(leader) else { return };
        let due = wall + Duration::from_micros(ahead);
        match node.plan_schedule(due, to.as_ref(), false, now, wall) {
            Ok(command) => self.propose_as_operator(leader, command),
            Err(refused) => self.note(|| format!("the operator is refused: {refused}")),
        }
    }

    fn pause(&mut self, node: Option<usize>, span: Micros) {
        let Some(leader) = self.leader() else { return };
        let node = node.map(|node| self.machines[node].descriptor.id);
        let at = self.wall();
        let until = at + Duration::from_micros(span);
        self.propose_as_operator(leader, Command::Pause { node, until, at });
    }

    /// Everything is mended and everybody is started.
    pub fn heal(&mut self) {
        self.note(|| "*** everything is mended".to_owned());
        self.network.heal();
        for index in 0..self.machines.len() {
            self.boot(index);
            self.thaw(index);
            self.thaw_worker(index);
            self.hang(index, false);
            self.machines[index].disk.stalled_until = self.now;
            self.start_agent(index);
            self.welcome(index);
        }
        let keeps = |event: &Event| !matches!(event, Event::Fault(_));
        self.queue.retain(|std::cmp::Reverse(scheduled)| keeps(&scheduled.event));
    }
}
