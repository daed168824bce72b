//! Getting server connections from the pool, and giving them back.

use std::sync::Arc;

use pgherd_common::NodeId;
use pgherd_common::topology::Backend;
use tokio::time::{Instant, sleep, timeout};

use crate::clients::Phase;
use crate::config::PoolMode;
use crate::pool::{Lease, Place, Taken, Turn};
use crate::session::{LARGE, Session};
use crate::sql::Why;
use crate::sqlstate::Trouble;
use crate::topology::{Fate, Role, fate};
use crate::upstream::{ConnectError, Server, connect};
use crate::wire::backend::TxStatus;

use super::fresh::Waited;
use super::state::{Client, Gone};

/// How the waiting for a connection ended.
pub(super) enum Queued {
    /// There is one already.
    Open,
    /// One may be taken.
    Turn(Turn),
    /// The topology has other plans.
    Changed,
    /// No.
    Trouble(Trouble),
}

impl Client {
    /// Waits until this client may have a connection to `backend`. `deadline` is put off by the time that
    /// takes.
    pub(super) async fn queue_for(
        &mut self,
        backend: &Backend,
        role: Role,
        deadline: &mut Instant,
    ) -> Result<Queued, Gone> {
        let node = backend.id;
        self.look_at(node).await;
        if let Waited::Trouble(trouble) = self.settle(node).await {
            return Ok(Queued::Trouble(trouble));
        }
        if self.servers.get(node).is_some_and(|server| server.role != role) {
            self.drop_server(node, "opened for another role");
        }
        if self.servers.get(node).is_some_and(|server| server.at_rest && self.session.shuns(&server.known)) {
            self.drop_server(node, "others had temporary objects there");
        }
        if let Some(trouble) = self.session.take_trouble() {
            return Ok(Queued::Trouble(trouble));
        }
        if self.servers.has(node) {
            return Ok(Queued::Open);
        }
        let place = self.place(node);
        if let Some(turn) = place.turn_now(self.presence.badge.guest.admin) {
            return Ok(Queued::Turn(turn));
        }
        if place.waiting() >= usize::try_from(self.config.pool.queue_size).unwrap_or(usize::MAX) {
            return Ok(Queued::Trouble(self.queue_full(backend)));
        }
        // Two that wait for each other's would wait for good.
        if let Waited::Trouble(trouble) = self.let_go().await {
            return Ok(Queued::Trouble(trouble));
        }
        self.note(Phase::Waiting);
        self.pipe.flush().await?;
        let (begun, patience) = (Instant::now(), self.config.pool.queue_timeout);
        let slot = self.slot.clone();
        let turn = place.turn(self.presence.badge.guest.admin);
        tokio::pin!(turn);
        let queued = loop {
            let room = self.pipe.input.len() < LARGE;
            tokio::select! {
                biased;
                () = slot.cancelled() => break Queued::Trouble(Trouble::Cancelled),
                turn = &mut turn => break turn.map_or(Queued::Changed, Queued::Turn),
                _ = self.topology.changed() => {
                    let current = self.topology.borrow_and_update().clone();
                    let killed = self.presence.badge.is_killed();
                    if killed || current.is_none_or(|current| fate(&current, node, role) != Fate::Keep) {
                        break Queued::Changed;
                    }
                }
                result = self.pipe.fill(), if room => result?,
                () = sleep(patience.saturating_sub(begun.elapsed())) => {
                    break Queued::Trouble(self.queue_timeout(backend, begun.elapsed().as_millis()));
                }
            }
        };
        *deadline += begun.elapsed();
        let counts = &self.presence.badge.counts;
        counts.waits.add(1);
        counts.waited_us.add(u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX));
        self.note(Phase::Active);
        Ok(queued)
    }

    /// Where the connections to a node are.
    pub(super) fn place(&mut self, node: NodeId) -> Arc<Place> {
        let known = self.places.iter().find(|place| place.node == node);
        known.cloned().unwrap_or_else(|| {
            let place = self.shared.pool.place(node, &self.account);
            self.places.push(place.clone());
            place
        })
    }

    fn queue_timeout(&self, backend: &Backend, waited_ms: u128) -> Trouble {
        Trouble::PoolExhausted {
            server: backend.name.clone(),
            user: self.user.clone(),
            database: self.account.database().to_owned(),
            size: self.own.pool_size,
            waited_ms,
        }
    }

    fn queue_full(&self, backend: &Backend) -> Trouble {
        Trouble::QueueFull {
            server: backend.name.clone(),
            user: self.user.clone(),
            database: self.account.database().to_owned(),
            size: self.own.pool_size,
            queue: self.config.pool.queue_size,
        }
    }

    /// Takes a connection from the pool or opens one, unless the topology declares it pointless meanwhile.
    pub(super) async fn open(
        &mut self,
        backend: &Backend,
        role: Role,
        mut turn: Turn,
    ) -> Result<(), ConnectError> {
        let pool = self.shared.pool.clone();
        loop {
            match pool.take(turn, self.id, role, &self.account, self.session.customs()).await {
                Taken::Open(lease) => return self.open_new(backend, role, lease).await,
                Taken::Rested(server, rest) => match self.adopt(server, rest).await {
                    None => return Ok(()),
                    Some(again) => turn = again,
                },
            }
        }
    }

    async fn open_new(&mut self, backend: &Backend, role: Role, lease: Lease) -> Result<(), ConnectError> {
        let counts = self.shared.cluster.counts(backend.id);
        let limit = self.config.connect_timeout;
        let socket = (&*self.shared.server_tls, limit);
        let opening = connect(backend, role, &self.login, self.session.fresh(), counts, lease, socket);
        let mut topology = self.topology.clone();
        let pointless = topology.wait_for(|topology| {
            topology.as_ref().is_none_or(|topology| fate(topology, backend.id, role) == Fate::Cut)
        });
        let mut server = tokio::select! {
            server = opening => server?,
            _ = pointless => return Err(ConnectError::Io(std::io::ErrorKind::HostUnreachable.into())),
        };
        server.owner = self.id;
        server.lease.tag.is_process(server.gate.key.pid);
        server.lease.tag.is_with(self.id);
        self.servers.insert(server);
        Ok(())
    }

    /// Makes a connection this client's own. The turn comes back when that cannot be done.
    async fn adopt(&mut self, mut server: Box<Server>, turn: Turn) -> Option<Turn> {
        if server.owner != self.id {
            let limit = self.config.connect_timeout;
            match timeout(limit, server.become_nobodys()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => {
                    server.close();
                    return Some(turn);
                }
            }
            server.known = self.session.fresh().behind_others(std::mem::take(&mut server.known));
            server.owner = self.id;
        }
        if self.session.shuns(&server.known) {
            server.close();
            return Some(turn);
        }
        server.lease.renew(turn);
        server.lease.tag.is_with(self.id);
        self.servers.insert(server);
        None
    }

    /// Tells people what it is at.
    pub(super) fn note(&mut self, phase: Phase) {
        let kept_by = self.login.replication.map(|_| Why::Replication).or_else(|| self.session.why_kept());
        let badge = &self.presence.badge;
        // First: whoever sees that it rests sees what it keeps, too.
        if kept_by != self.kept_by {
            self.kept_by = kept_by;
            badge.is_kept_by(kept_by);
        }
        badge.is_at(phase, self.servers.len());
    }

    /// Tells people what its buffers take.
    pub(super) fn note_memory(&self) {
        let bytes = self.pipe.memory() + self.segment.memory();
        self.presence.badge.has_buffers(bytes);
    }

    /// It comes to rest until the client says something.
    pub(super) fn rest(&mut self) {
        self.give_back();
        self.note_memory();
        let open = self.session.status() != TxStatus::Idle;
        self.note(if open { Phase::IdleInTransaction } else { Phase::Idle });
        if self.shared.pauses.any() {
            self.shared.pauses.settled.notify_waiters();
        }
    }

    /// Whether server connections go from client to client between transactions.
    fn shares_connections(&self) -> bool {
        self.own.pool_mode != PoolMode::Session
    }

    /// Whether that is so whatever may be left on them.
    pub(super) fn shares_always(&self) -> bool {
        self.own.pool_mode == PoolMode::Transaction
    }

    /// Gives back what this client can do without until its next statement.
    pub(super) fn give_back(&mut self) {
        if !self.shares_connections() {
            return;
        }
        let (session, owed, always) = (&self.session, self.owed, self.shares_always());
        let free = |server: &Server| may_give_back(server, session, owed, always);
        while let Some(server) = self.servers.remove_one(free) {
            // Reads leave nothing behind; what may be on the primary is better kept for its owner.
            let kept = matches!(server.role, Role::Primary(_)) && !always;
            let claim = kept.then_some(self.id);
            self.shared.pool.put(server, claim, self.topology.borrow().as_deref());
        }
        if self.shares_always() && self.servers.is_empty() && self.session.is_kept() {
            self.session.shed();
            self.note_told();
        }
    }

    /// The same, and waits for positions that were asked for.
    pub(super) async fn let_go(&mut self) -> Waited {
        if self.shares_connections() {
            let nodes: Vec<NodeId> = self.servers.values().map(|server| server.node).collect();
            for node in nodes {
                if let Waited::Trouble(trouble) = self.settle(node).await {
                    return Waited::Trouble(trouble);
                }
            }
            self.give_back();
        }
        Waited::Done
    }

    /// Whether others wait for what this client has.
    pub(super) fn is_envied(&self) -> bool {
        self.servers.values().any(|server| server.lease.is_wanted())
    }

    /// The session is over.
    pub(super) fn part(&mut self) {
        let (pool, topology) = (self.shared.pool.clone(), self.topology.borrow().clone());
        while let Some(server) = self.servers.remove_one(|_| true) {
            let owed = self.owed.is_some_and(|(owing, _)| owing == server.node);
            if server.at_rest && !owed {
                pool.clean(server, topology.clone());
            } else {
                server.close();
            }
        }
        pool.leave(self.id, topology.as_ref());
    }
}

/// Whether a session can do without a connection until its next statement. `owed`: the rest of a message that a node
/// has the beginning of; `always`: whatever may be left on it.
fn may_give_back(server: &Server, session: &Session, owed: Option<(NodeId, usize)>, always: bool) -> bool {
    let pinned = session.is_kept() && matches!(server.role, Role::Primary(_)) && !always;
    let owed = owed.is_some_and(|(node, _)| node == server.node);
    let busy = server.questions.are_due() || !server.pipe.input.is_empty() || server.pipe.has_output();
    server.at_rest && !pinned && !owed && !busy && session.tx_node() != Some(server.node)
}
