//! Proxies and clients: topologies pushed and acknowledged, rows written through proxies and directly.
//!
//! What a proxy takes, whom it writes to and what it does to open connections is the proxy's own code.

use std::sync::Arc;

use pgherd_common::{Generation, NodeId, Topology, Version};
use pgherd_core::defect::{Defect, planted};
use pgherd_core::node::version;
use pgherd_proxy::routing::writable;
use pgherd_proxy::topology::{Acceptance, Fate, Role, accept, fate};

use crate::clock::{MS, Micros, SECOND, Time};
use crate::network::Class;

use super::{Event, ServerEvent, Work, World};

/// How often an agent looks after its links to proxies.
const HUB: Micros = 500 * MS;
/// A link that delivers nothing for so long is given up.
const LINK_LIFE: Micros = 2 * SECOND;
/// A client that hears nothing of its write for so long gives up.
const PATIENCE: Micros = 5 * SECOND;
/// Sessions of each proxy.
const SESSIONS: usize = 2;

/// One agent's link to one proxy.
#[derive(Debug, Default, Clone)]
pub(crate) struct Hub {
    pub(crate) connected: bool,
    sent: Option<Version>,
    pub(crate) acknowledged: Option<Version>,
    /// Since when nothing gets through.
    silent: Option<Time>,
    /// A link keeps its order.
    last_arrival: Time,
}

/// A push that arrived, as the proxy judged it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Push {
    /// It is in effect now.
    Taken,
    /// It was refused, or was in effect already.
    Left,
}

/// A write on its way.
#[derive(Debug, Clone, Copy)]
struct Write {
    row: u64,
    node: NodeId,
    generation: Generation,
    since: Time,
}

/// A client's session.
#[derive(Debug, Default, Clone)]
struct Session {
    write: Option<Write>,
}

/// A proxy.
#[derive(Debug)]
pub struct Proxy {
    /// The topology in effect.
    pub topology: Option<Topology>,
    sessions: Vec<Session>,
    /// Rows acknowledged to clients.
    pub acknowledged: u64,
    /// Errors that clients got.
    pub errors: u64,
}

impl Proxy {
    pub(super) fn new() -> Self {
        Self { topology: None, sessions: vec![Session::default(); SESSIONS], acknowledged: 0, errors: 0 }
    }

    /// The node that this proxy writes to now.
    pub fn writes_to(&self) -> Option<NodeId> {
        self.topology.as_ref().and_then(writable).map(|backend| backend.id)
    }
}

/// What comes to a proxy.
#[derive(Debug)]
pub(crate) enum Happens {
    /// An agent pushes.
    Push(usize, Arc<Topology>),
    /// A session's client has something to write.
    Write(usize),
    /// The write has reached the server.
    Arrives(usize, u64),
    /// The server has answered: the row is there, or was refused.
    Answered(usize, u64, bool),
}

impl World {
    pub(super) fn begin_proxies(&mut self) {
        for proxy in 0..self.proxies.len() {
            for session in 0..SESSIONS {
                let first = self.rng.between(1, self.write_pause);
                self.after(first, Event::Proxy(proxy, Happens::Write(session)));
            }
        }
    }

    /// The applied state has moved: every connected proxy hears of it.
    pub(super) fn push_topology(&mut self, index: usize) {
        let Some(worker) = &self.machines[index].worker else { return };
        let Some(raft) = &worker.raft else { return };
        let state = Arc::clone(raft.state());
        let newest = version(&state);
        let behind = |hub: &Hub| hub.connected && hub.sent != Some(newest);
        if !worker.hubs.iter().any(behind) {
            return;
        }
        let Some(Ok(topology)) = state.topology() else { return };
        let topology = Arc::new(topology);
        for proxy in 0..self.proxies.len() {
            let endpoint = self.proxy_endpoint(proxy);
            if self.network.is_cut(index, endpoint, Class::Agent) {
                continue;
            }
            let delay = self.network.delay(index, endpoint, Class::Agent);
            let now = self.now;
            let hub = self.worker(index).and_then(|worker| worker.hubs.get_mut(proxy));
            let (Some(hub), Some(delay)) = (hub.filter(|hub| behind(hub)), delay) else { continue };
            let arrival = (now + delay).max(hub.last_arrival + 1);
            (hub.sent, hub.last_arrival) = (Some(newest), arrival);
            self.at(arrival, Event::Proxy(proxy, Happens::Push(index, Arc::clone(&topology))));
        }
    }

    /// Connects to proxies, gives up dead links, repeats what was lost.
    pub(super) fn look_after_hubs(&mut self, index: usize) {
        let now = self.now;
        for proxy in 0..self.proxies.len() {
            let through = self.network.connects(index, self.proxy_endpoint(proxy), Class::Agent);
            let Some(hub) = self.worker(index).and_then(|worker| worker.hubs.get_mut(proxy)) else { return };
            if through {
                if !hub.connected {
                    *hub = Hub { connected: true, last_arrival: hub.last_arrival, ..Hub::default() };
                } else if hub.silent.take().is_some() {
                    // Whatever was lost on the way is sent again.
                    hub.sent = None;
                }
            } else if hub.connected && now.since(*hub.silent.get_or_insert(now)) >= LINK_LIFE {
                *hub = Hub { last_arrival: hub.last_arrival, ..Hub::default() };
            }
        }
        self.push_topology(index);
        self.post(index, HUB, Work::Hub);
    }

    pub(super) fn proxy_acked(&mut self, index: usize, proxy: usize, acked: Version) {
        if let Some(hub) = self.worker(index).and_then(|worker| worker.hubs.get_mut(proxy))
            && hub.connected
        {
            hub.acknowledged = hub.acknowledged.max(Some(acked));
        }
    }

    pub(super) fn proxy(&mut self, proxy: usize, happens: Happens) {
        match happens {
            Happens::Push(from, topology) => self.pushed(proxy, from, &topology),
            Happens::Write(session) => self.client_writes(proxy, session),
            Happens::Arrives(session, row) => self.write_arrives(proxy, session, row),
            Happens::Answered(session, row, there) => self.write_answered(proxy, session, row, there),
        }
    }

    fn pushed(&mut self, proxy: usize, from: usize, pushed: &Topology) {
        let endpoint = self.proxy_endpoint(proxy);
        if self.network.is_cut(from, endpoint, Class::Agent) {
            return;
        }
        let current = self.proxies[proxy].topology.as_ref();
        let mut verdict = accept(&self.cluster, current, pushed);
        if planted(Defect::StaleTopology) && matches!(verdict, Acceptance::Older { .. }) {
            verdict = Acceptance::Switch;
        }
        let acked = match verdict {
            Acceptance::Switch => {
                self.take_topology(proxy, pushed);
                pushed.version()
            }
            Acceptance::Known => pushed.version(),
            Acceptance::Older { have } => have,
            Acceptance::Stranger => return,
        };
        if let Some(delay) = self.network.delay(endpoint, from, Class::Agent) {
            self.after(delay, Event::Work(from, None, Work::Acked(proxy, acked)));
        }
    }

    fn take_topology(&mut self, proxy: usize, pushed: &Topology) {
        self.note(|| {
            let primary = pushed.primary().map_or("nobody".to_owned(), |backend| backend.name.to_string());
            let change = pushed.change().map_or(String::new(), |change| format!(", {change} in flight"));
            format!("proxy{}: topology {}: writes go to {primary}{change}", proxy + 1, pushed.version())
        });
        self.check_topology(proxy, pushed);
        let mut errors = 0;
        for session in &mut self.proxies[proxy].sessions {
            let cut = session
                .write
                .filter(|write| fate(pushed, write.node, Role::Primary(write.generation)) == Fate::Cut);
            if cut.is_some() {
                session.write = None;
                errors += 1;
            }
        }
        let proxy = &mut self.proxies[proxy];
        proxy.errors += errors;
        proxy.topology = Some(pushed.clone());
    }

    fn client_writes(&mut self, proxy: usize, session: usize) {
        let pause = self.rng.tailed(self.write_pause, self.write_pause * 8);
        let now = self.now;
        let held = self.proxies[proxy].writes_to().is_none();
        let pause = if held { 50 * MS } else { pause };
        self.after(pause, Event::Proxy(proxy, Happens::Write(session)));
        let state = &mut self.proxies[proxy];
        let Some(open) = state.sessions.get_mut(session) else { return };
        if let Some(write) = open.write {
            if now.since(write.since) >= PATIENCE {
                open.write = None;
                state.errors += 1;
            }
            return;
        }
        let Some(topology) = &state.topology else { return };
        let Some(node) = writable(topology).map(|backend| backend.id) else { return };
        let generation = topology.version().generation;
        self.rows += 1;
        let row = self.rows;
        open.write = Some(Write { row, node, generation, since: now });
        self.check_routed(proxy, node);
        let Some(target) = self.index_of(node) else { return };
        let endpoint = self.proxy_endpoint(proxy);
        if let Some(delay) = self.network.delay(endpoint, target, Class::Postgres) {
            self.after(delay, Event::Proxy(proxy, Happens::Arrives(session, row)));
        }
    }

    fn write_arrives(&mut self, proxy: usize, session: usize, row: u64) {
        let open = self.proxies[proxy].sessions.get(session).and_then(|session| session.write);
        let Some(write) = open.filter(|write| write.row == row) else { return };
        let Some(target) = self.index_of(write.node) else { return };
        let endpoint = self.proxy_endpoint(proxy);
        let machine = &self.machines[target];
        if !machine.up || machine.frozen || self.network.is_cut(endpoint, target, Class::Postgres) {
            return;
        }
        let life = machine.server.as_ref().and_then(|server| server.process.as_ref()).map(|p| p.life);
        match life.filter(|_| machine.accepts()) {
            Some(life) => {
                let span = self.flush(target);
                self.after(span, Event::Server(target, life, ServerEvent::Flushed(proxy, session, row)));
            }
            None => self.answer(target, proxy, session, row, false),
        }
    }

    pub(super) fn row_flushed(&mut self, index: usize, proxy: usize, session: usize, row: u64) {
        let Some(server) = &mut self.machines[index].server else { return };
        let there = server.write(row).is_some();
        if there {
            self.check_written(index, row);
            self.wal_grew(index);
            return self.commit(index, row, Some((proxy, session)));
        }
        self.answer(index, proxy, session, row, false);
    }

    pub(super) fn answer(&mut self, from: usize, proxy: usize, session: usize, row: u64, there: bool) {
        let endpoint = self.proxy_endpoint(proxy);
        if let Some(delay) = self.network.delay(from, endpoint, Class::Postgres) {
            self.after(delay, Event::Proxy(proxy, Happens::Answered(session, row, there)));
        }
    }

    fn write_answered(&mut self, proxy: usize, session: usize, row: u64, there: bool) {
        let state = &mut self.proxies[proxy];
        let Some(open) = state.sessions.get_mut(session) else { return };
        let Some(write) = open.write.filter(|write| write.row == row) else { return };
        open.write = None;
        if there {
            state.acknowledged += 1;
            self.check_acknowledged(write.node, row);
        } else {
            state.errors += 1;
        }
    }

    /// A client that knows no topology writes wherever it is let in.
    pub(super) fn write_directly(&mut self, index: usize) {
        let pause = self.rng.tailed(self.write_pause * 2, self.write_pause * 10);
        self.after(pause, Event::Direct(index));
        if !self.machines[index].accepts() || self.now < self.machines[index].disk.stalled_until {
            return;
        }
        self.rows += 1;
        let row = self.rows;
        if let Some(server) = &mut self.machines[index].server
            && server.write(row).is_some()
        {
            self.check_written(index, row);
            self.commit(index, row, None);
            self.wal_grew(index);
        }
    }
}
