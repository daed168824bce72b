//! The world: machines, a network, proxies and clients, and one queue of events in true time.
//!
//! Everything random comes from the seed, every event has its place in one order, and so every run can
//! be repeated. What an agent decides is the agent's own code (`pgherd_core`); what is here plays the
//! part of its driver, of its guardian's driver, and of everything around them.

mod actions;
mod address;
mod checking;
mod commits;
mod consensus;
mod faults;
mod guardian;
mod machine;
mod members;
mod probe;
mod proxies;
mod replication;
mod worker;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;

use pgherd_common::{ClusterName, Generation, HostPort, NodeId, NodeName, WallTime};
use pgherd_core::beat::{Beat, BeatAnswer};
use pgherd_core::cluster::{Descriptor, NodeKind};
use pgherd_core::cover::Durability;
use pgherd_core::observation::RemoteDatabase;
use pgherd_core::timings::Timings;

use crate::clock::{Clock, Micros, SECOND, Time};
use crate::invariants::Checks;
use crate::log::EventLog;
use crate::network::Network;
use crate::postgres::Server;
use crate::raft::Message;
use crate::rng::Rng;

pub use faults::{Fault, OPEN_END};
pub use machine::Machine;
pub use proxies::{Proxy, Push};
pub(crate) use worker::Worker;

/// Everything that can happen.
#[derive(Debug)]
pub(crate) enum Event {
    /// To the worker of a machine; `None`: to whichever runs when it comes.
    Work(usize, Option<u64>, Work),
    /// To the guardian of this life.
    Guard(usize, u64, Guard),
    /// To the postmaster of this life.
    Server(usize, u64, ServerEvent),
    /// WAL on its way to a standby.
    Pump { standby: usize, connection: u64, upto: usize },
    /// Is the connection of a standby's walreceiver still alive?
    Keepalive { standby: usize, connection: u64, misses: u32 },
    /// To a proxy.
    Proxy(usize, proxies::Happens),
    /// The time of a machine's virtual IP is over, unless it has been renewed since.
    AddressEnds(usize, Time),
    /// A client writes straight to a server.
    Direct(usize),
    /// An operator adds a machine again.
    Welcome(usize),
    /// A fault begins or ends.
    Fault(faults::Step),
}

/// What comes to a worker.
#[derive(Debug)]
pub(crate) enum Work {
    /// Its process is up.
    Boot,
    /// It has something to think about.
    Turn,
    /// It wanted to think again about now.
    Wake,
    /// The others are to hear of it.
    BeatDue,
    /// A look is due.
    LookDue(u64),
    /// A look has ended.
    Looked(u64, u64),
    /// An action goes on.
    Action(u64, u32),
    /// Another agent's beat, and the number of the question.
    Beat(usize, Arc<Beat>, u64),
    /// An answer to that question.
    Answer(usize, BeatAnswer, u64),
    /// What was seen of another server.
    Knocked(NodeId, RemoteDatabase),
    /// A raft message.
    Raft(usize, Box<Message>),
    /// Raft wanted to be called about now.
    RaftTimer,
    /// Raft's writes are on disk.
    Synced(u64, Option<(usize, Box<Message>)>),
    /// The generation is on disk.
    Remembered(Generation),
    /// The links to the proxies are looked after.
    Hub,
    /// It is looked whether the virtual IP is here.
    AddressLook,
    /// The keeper of the virtual IP has an order.
    Address,
    /// Nobody answers for the virtual IP any more, or somebody has.
    AddressAsked,
    /// A proxy has put a topology into effect.
    Acked(usize, pgherd_common::Version),
}

/// What comes to a guardian.
#[derive(Debug)]
pub(crate) enum Guard {
    /// It wanted to think again about now.
    Wake,
    /// Its worker has ended.
    WorkerEnded,
    /// The attempt to kill PostgreSQL has ended.
    Fenced,
}

/// What happens in a PostgreSQL by itself.
#[derive(Debug)]
pub(crate) enum ServerEvent {
    /// The start ends.
    Ready,
    /// The promotion ends.
    Promoted(Generation, bool),
    /// Everything a fast stop waits for may have come.
    Stopping(Time),
    /// The walreceiver tries to connect.
    Connect,
    /// A standby says what it has.
    Told(usize, crate::postgres::Sent),
    /// A row of a client is flushed: through which proxy's which session.
    Flushed(usize, usize, u64),
}

struct Scheduled {
    at: Time,
    number: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// What a world is made of.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Names and kinds of the machines, in the order of their ids. The first database is the primary.
    pub machines: Vec<(NodeName, NodeKind)>,
    /// How many proxies.
    pub proxies: usize,
    /// How far clocks may be off, in millionths.
    pub drift_ppm: u64,
    /// Mean pause between two writes of a client.
    pub write_pause: Micros,
    /// What the agents ask of commits.
    pub durability: Durability,
    /// Whether the operators have a script that has to succeed before a promotion.
    pub fence_script: bool,
    /// Whether clients write at every server directly too.
    pub direct_writers: bool,
    /// How long it typically takes to kill PostgreSQL.
    pub kill: Micros,
    /// Whether the last database streams from the one before it.
    pub cascade: bool,
    /// Whether the primary has a virtual IP.
    pub address: bool,
    /// Whether to keep a log.
    pub log: bool,
}

impl Plan {
    /// So many database nodes and witnesses.
    pub fn of(databases: usize, witnesses: usize) -> Self {
        let kind = |number: usize| if number <= databases { NodeKind::Database } else { NodeKind::Witness };
        let name = |number: usize| format!("server{number}").parse().ok();
        let machines = (1..=databases + witnesses).filter_map(|number| Some((name(number)?, kind(number))));
        Self {
            machines: machines.collect(),
            proxies: 1,
            drift_ppm: 0,
            write_pause: 250_000,
            durability: Durability::default(),
            fence_script: false,
            direct_writers: true,
            kill: 100_000,
            cascade: false,
            address: false,
            log: false,
        }
    }

    fn upstream_of(&self, index: usize) -> Option<NodeName> {
        let is_database = |(_, kind): &&(NodeName, NodeKind)| *kind == NodeKind::Database;
        let last = self.machines.iter().rposition(|machine| is_database(&machine))?;
        let before = self.machines.get(last.checked_sub(1)?)?;
        (self.cascade && index == last).then(|| before.0.clone())
    }
}

/// See the module.
pub struct World {
    /// True time.
    pub now: Time,
    queue: BinaryHeap<Reverse<Scheduled>>,
    number: u64,
    /// The machines, in the order of their ids.
    pub machines: Vec<Machine>,
    /// The proxies; their endpoints in the network follow the machines'.
    pub proxies: Vec<Proxy>,
    /// The network.
    pub network: Network,
    /// What must never happen, and whether it did.
    pub checks: Checks,
    /// What happened.
    pub log: EventLog,
    pub(crate) rng: Rng,
    pub(crate) timings: Timings,
    cluster: ClusterName,
    by_address: BTreeMap<HostPort, usize>,
    rows: u64,
    connections: u64,
    write_pause: Micros,
    durability: Durability,
    fence_script: bool,
    direct_writers: bool,
    kill: Micros,
    pub(crate) with_address: bool,
    /// Commands that an operator has proposed.
    operators: Vec<pgherd_core::cluster::Command>,
    /// Machines that raft feeds no longer.
    unfed: BTreeSet<usize>,
    /// Machines that an operator has had removed, and has yet to add again.
    banished: BTreeSet<usize>,
    /// Which server began which timeline, by its number and where it left the one before.
    timelines: BTreeMap<(u32, pgherd_common::Lsn), usize>,
    /// Two servers have begun timelines that PostgreSQL cannot tell apart.
    pub twins: bool,
    /// Events handled.
    pub events: u64,
}

impl World {
    /// Boots it.
    pub fn new(plan: &Plan, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let network = Network::new(rng.fork());
        let timings = Timings::default();
        let Ok(cluster) = "demo".parse::<ClusterName>() else { unreachable!("a plain name") };
        let mut machines = Vec::new();
        let everybody = (0..plan.machines.len()).collect();
        for (index, (name, kind)) in plan.machines.iter().enumerate() {
            let first = plan.machines.iter().position(|(_, kind)| *kind == NodeKind::Database);
            let upstream = plan.upstream_of(index);
            let descriptor = Descriptor { upstream, ..descriptor(index, name, *kind) };
            let drift = rng.between(0, plan.drift_ppm * 2).cast_signed() - plan.drift_ppm.cast_signed();
            let clock = Clock::new(Time(0), rng.between(60, 10_000) * SECOND, drift);
            let server = (*kind == NodeKind::Database).then(|| Server::new(first == Some(index)));
            machines.push(Machine::new(descriptor, clock, server, &everybody));
        }
        let by_address = machines
            .iter()
            .enumerate()
            .filter_map(|(index, machine)| Some((machine.descriptor.postgres.clone()?, index)))
            .collect();
        let proxies = (0..plan.proxies).map(|_| Proxy::new()).collect();
        let mut world = Self {
            now: Time(0),
            queue: BinaryHeap::new(),
            number: 0,
            checks: Checks::new(machines.len(), plan.proxies),
            machines,
            proxies,
            network,
            log: EventLog::new(plan.log),
            rng,
            timings,
            cluster,
            by_address,
            rows: 0,
            connections: 0,
            write_pause: plan.write_pause,
            durability: plan.durability,
            fence_script: plan.fence_script,
            direct_writers: plan.direct_writers,
            kill: plan.kill,
            with_address: plan.address,
            operators: Vec::new(),
            unfed: BTreeSet::new(),
            banished: BTreeSet::new(),
            timelines: BTreeMap::new(),
            twins: false,
            events: 0,
        };
        world.begin();
        world
    }

    /// Runs until a true time, or until something that must never happen has happened.
    pub fn run_until(&mut self, until: Time) {
        while self.checks.violation().is_none() {
            let due = self.queue.peek().is_some_and(|Reverse(next)| next.at <= until);
            let Some(Reverse(next)) = self.queue.pop_if_due(due) else { break };
            self.now = next.at;
            self.events += 1;
            self.happen(next.event);
            self.check_overdue();
        }
        self.now = self.now.max(until);
    }

    /// Runs for a true span.
    pub fn run(&mut self, span: Micros) {
        let until = self.now + span;
        self.run_until(until);
    }

    /// Wall time on every machine: nothing rests on it but when a scheduled switchover begins.
    pub fn wall(&self) -> WallTime {
        WallTime(1_795_422_600_000 + self.now.0 / 1000)
    }

    pub(crate) fn at(&mut self, time: Time, event: Event) {
        self.number += 1;
        self.queue.push(Reverse(Scheduled { at: time, number: self.number, event }));
    }

    pub(crate) fn after(&mut self, span: Micros, event: Event) {
        let time = self.now + span;
        self.at(time, event);
    }

    pub(crate) fn note(&mut self, line: impl FnOnce() -> String) {
        self.log.add(self.now, line);
    }

    pub(crate) fn name(&self, index: usize) -> String {
        self.machines[index].descriptor.name.to_string()
    }

    pub(crate) fn index_of(&self, id: NodeId) -> Option<usize> {
        self.machines.iter().position(|machine| machine.descriptor.id == id)
    }

    pub(crate) fn proxy_endpoint(&self, proxy: usize) -> usize {
        self.machines.len() + proxy
    }

    fn begin(&mut self) {
        for index in 0..self.machines.len() {
            if let Some(server) = &mut self.machines[index].server {
                let life = server.launch();
                self.after(1000, Event::Server(index, life, ServerEvent::Ready));
            }
            let primary = self.machines.iter().position(|machine| machine.server.is_some());
            if let Some(server) = &mut self.machines[index].server
                && server.standby_signal
            {
                server.conninfo = primary;
            }
            self.start_agent(index);
            if self.direct_writers && self.machines[index].server.is_some() {
                let first = self.rng.between(1, self.write_pause);
                self.after(first, Event::Direct(index));
            }
        }
        self.begin_proxies();
    }

    fn happen(&mut self, event: Event) {
        let Some(event) = self.held_back(event) else { return };
        match event {
            Event::Work(index, life, work) => self.work(index, life, work),
            Event::Guard(index, life, guard) => self.guard(index, life, &guard),
            Event::Server(index, life, what) => self.server(index, life, &what),
            Event::Pump { standby, connection, upto } => self.pump(standby, connection, upto),
            Event::Keepalive { standby, connection, misses } => self.keepalive(standby, connection, misses),
            Event::Proxy(proxy, happens) => self.proxy(proxy, happens),
            Event::AddressEnds(index, ends) => self.address_ends(index, ends),
            Event::Direct(index) => self.write_directly(index),
            Event::Welcome(index) => self.welcome(index),
            Event::Fault(step) => self.fault(step),
        }
    }

    /// What comes to a machine that stands still waits there.
    fn held_back(&mut self, event: Event) -> Option<Event> {
        let index = match &event {
            Event::Work(index, _, _) | Event::Guard(index, _, _) | Event::Server(index, _, _) => *index,
            Event::AddressEnds(index, _) => *index,
            Event::Pump { standby, .. } | Event::Keepalive { standby, .. } => *standby,
            Event::Proxy(..) | Event::Direct(_) | Event::Welcome(_) | Event::Fault(_) => return Some(event),
        };
        let machine = &mut self.machines[index];
        if !machine.up {
            return None;
        }
        if machine.frozen {
            machine.backlog.push(event);
            return None;
        }
        if let (Event::Work(_, life, work), Some(worker)) = (&event, &mut machine.worker) {
            let blocked = worker.blocked.is_some() && !matches!(work, Work::Remembered(_));
            if (worker.frozen || blocked) && life.is_none_or(|life| life == worker.life) {
                worker.backlog.push(event);
                return None;
            }
        }
        Some(event)
    }
}

trait PopIfDue {
    fn pop_if_due(&mut self, due: bool) -> Option<Reverse<Scheduled>>;
}

impl PopIfDue for BinaryHeap<Reverse<Scheduled>> {
    fn pop_if_due(&mut self, due: bool) -> Option<Reverse<Scheduled>> {
        if due { self.pop() } else { None }
    }
}

fn descriptor(index: usize, name: &NodeName, kind: NodeKind) -> Descriptor {
    let address = |port: u16| HostPort { host: format!("10.0.0.{}", index + 1), port };
    Descriptor {
        id: NodeId(u64::try_from(index).unwrap_or(0) + 1),
        name: name.clone(),
        kind,
        agent: address(7800),
        postgres: (kind == NodeKind::Database).then(|| address(5432)),
        priority: 100,
        weight: 1,
        tags: Default::default(),
        upstream: None,
    }
}
