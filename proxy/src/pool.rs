//! Server connections at rest, for one client after the other, and a fair queue for them.
//!
//! A connection belongs to a place: a node, a user and a database. Whoever has one of its connections has
//! one of its permits, of which there are as many as there may be connections; they are handed out in the
//! order in which they were asked for.

mod keep;
mod shelf;
mod view;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use pgherd_common::time::RealClock;
use pgherd_common::{Clock, MonoTime, NodeId, Topology};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::{PoolMode, Pooling};
use crate::control::lock;
use crate::topology::{Fate, Role, fate};
use crate::upstream::{Login, Server};
use crate::wire::password::Credentials;

pub(crate) use keep::keep;
pub(crate) use shelf::ClientId;
use shelf::{Found, Resting, Shelf};
pub(crate) use view::{ClientRow, ClientState, PlaceRow};

/// As whom connections are opened. Connections are shared only where all of it is the same: it decides
/// what `RESET` gives back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Account {
    user: String,
    database: String,
    parameters: Vec<(String, String)>,
    /// A role that was made anew, or has another password, is somebody else.
    keys: Option<Credentials>,
    /// Its connections are for replication, and never for anybody else.
    unpooled: bool,
}

impl Account {
    /// Of a client that logged in as `user`.
    pub(crate) fn new(user: &str, login: &Login) -> Self {
        let parameters = &login.parameters;
        let database = parameters.iter().find(|(name, value)| name == "database" && !value.is_empty());
        let database = database.map_or(user, |(_, value)| value).to_owned();
        let sent = parameters.iter().filter(|(name, _)| !name.starts_with("_pq_."));
        let mut parameters: Vec<_> = sent.cloned().collect();
        parameters.sort();
        let (keys, unpooled) = (login.keys.clone(), login.replication.is_some());
        Self { user: user.to_owned(), database, parameters, keys, unpooled }
    }

    /// The database's name.
    pub(crate) fn database(&self) -> &str {
        &self.database
    }
}

/// What a place is known by: a node, a user and a database.
type Key = (NodeId, String, String);

/// What makes connections of one place interchangeable.
type Kind = (Role, Arc<Account>);

/// All connections to one node as one user to one database.
#[derive(Debug)]
pub(crate) struct Place {
    permits: Arc<Semaphore>,
    size: usize,
    waiting: AtomicUsize,
    shelf: Mutex<Shelf<Server, Kind>>,
}

/// The right to have one connection of a place.
#[derive(Debug)]
pub(crate) struct Turn {
    place: Arc<Place>,
    permit: OwnedSemaphorePermit,
}

/// The same, bound to a connection.
#[derive(Debug)]
pub(crate) struct Lease {
    /// `None` while the connection rests.
    permit: Option<OwnedSemaphorePermit>,
    place: Arc<Place>,
    account: Arc<Account>,
    /// How often the logins had changed when it was opened.
    epoch: u64,
    born: MonoTime,
}

impl Lease {
    /// The connection is in use again.
    pub(crate) fn renew(&mut self, turn: Turn) {
        self.permit = Some(turn.permit);
    }

    /// Whether somebody waits for a connection like this.
    pub(crate) fn is_wanted(&self) -> bool {
        self.place.waiting.load(Ordering::Relaxed) > 0
    }
}

/// What a turn comes to.
#[derive(Debug)]
pub(crate) enum Taken {
    /// A connection that was at rest.
    Rested(Box<Server>, Turn),
    /// The right to open one.
    Open(Lease),
}

/// Counts those who wait, however their waiting ends.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Place {
    /// Waits for a turn, behind those who came before.
    pub(crate) async fn turn(self: Arc<Self>) -> Option<Turn> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting(&self.waiting);
        // Fails when it is closed, which nobody does.
        let permit = self.permits.clone().acquire_owned().await.ok()?;
        drop(waiting);
        Some(Turn { place: self, permit })
    }

    /// A turn, if nobody has to be waited for.
    pub(crate) fn turn_now(self: &Arc<Self>) -> Option<Turn> {
        let permit = self.permits.clone().try_acquire_owned().ok()?;
        Some(Turn { place: self.clone(), permit })
    }

    fn in_use(&self) -> usize {
        self.size.saturating_sub(self.permits.available_permits())
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) limits: Pooling,
    places: Mutex<BTreeMap<Key, Arc<Place>>>,
    /// How often it changed what a login gets.
    epoch: AtomicU64,
    last_client: AtomicU64,
    clients: Mutex<BTreeMap<ClientId, (Arc<Account>, ClientState)>>,
    /// Statements that run and want no connection to a database they name.
    evictions: Mutex<Vec<Arc<str>>>,
}

/// A statement that wants no connection to a database it names, while it runs.
#[derive(Debug)]
pub(crate) struct Eviction {
    pool: Arc<Pool>,
    text: Arc<str>,
}

impl Drop for Eviction {
    fn drop(&mut self) {
        lock(&self.pool.evictions).retain(|text| !Arc::ptr_eq(text, &self.text));
    }
}

impl Pool {
    pub(crate) fn new(limits: Pooling) -> Self {
        Self {
            limits,
            places: Mutex::default(),
            epoch: AtomicU64::new(0),
            last_client: AtomicU64::new(0),
            clients: Mutex::default(),
            evictions: Mutex::default(),
        }
    }

    /// A client comes.
    pub(crate) fn enter(&self, account: &Arc<Account>) -> ClientId {
        // 0 is nobody.
        let id = self.last_client.fetch_add(1, Ordering::Relaxed) + 1;
        lock(&self.clients).insert(id, (account.clone(), ClientState::default()));
        id
    }

    /// Whether connections go from client to client between transactions.
    pub(crate) fn is_shared(&self) -> bool {
        self.limits.mode == PoolMode::Auto
    }

    /// Where the connections to `node` as `account` are.
    pub(crate) fn place(&self, node: NodeId, account: &Account) -> Arc<Place> {
        let new = |size| Place {
            permits: Arc::new(Semaphore::new(size)),
            size,
            waiting: AtomicUsize::new(0),
            shelf: Mutex::default(),
        };
        if account.unpooled {
            // Servers count those apart, too (max_wal_senders).
            return Arc::new(new(1));
        }
        let key = (node, account.user.clone(), account.database.clone());
        let size = usize::try_from(self.limits.size).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        lock(&self.places).entry(key).or_insert_with(|| Arc::new(new(size))).clone()
    }

    /// Uses a turn.
    pub(crate) async fn take(
        &self,
        turn: Turn,
        client: ClientId,
        role: Role,
        account: &Arc<Account>,
    ) -> Taken {
        let Turn { place, permit } = turn;
        loop {
            let found = {
                let mut shelf = lock(&place.shelf);
                // The turn is one of those in use.
                let room = shelf.len() + place.in_use() <= place.size;
                shelf.take(client, &(role, account.clone()), room)
            };
            match found {
                Found::Ready(mut server) => {
                    // A connection at rest has nothing to say, unless it is the end.
                    if server.is_silent().await {
                        return Taken::Rested(Box::new(server), Turn { place, permit });
                    }
                    server.close();
                }
                Found::Open(evicted) => {
                    if let Some(evicted) = evicted {
                        evicted.close();
                    }
                    let (epoch, born) = (self.epoch.load(Ordering::Relaxed), RealClock.now());
                    let account = account.clone();
                    return Taken::Open(Lease { permit: Some(permit), place, account, epoch, born });
                }
            }
        }
    }

    /// A client has no more use for a connection for now, on which nothing runs. `claim`: what it did there
    /// may have left something behind that is its own.
    pub(crate) fn put(
        self: &Arc<Self>,
        mut server: Server,
        claim: Option<ClientId>,
        topology: Option<Arc<Topology>>,
    ) {
        if server.gate.is_passing() {
            // Whoever has it next must not be hit.
            return self.clean(server, topology);
        }
        let stale = server.lease.epoch < self.epoch.load(Ordering::Relaxed);
        let now = RealClock.now();
        let old = now.since(server.lease.born) >= self.limits.server_lifetime;
        let kept = topology.is_some_and(|topology| fate(&topology, server.node, server.role) == Fate::Keep);
        if old || !kept || !server.at_rest || server.gate.is_doubtful() || (stale && claim.is_none()) {
            return server.close();
        }
        server.pipe.shrink();
        let (permit, place) = (server.lease.permit.take(), server.lease.place.clone());
        let (kind, born) = ((server.role, server.lease.account.clone()), server.lease.born);
        let mut shelf = lock(&place.shelf);
        if lock(&self.evictions).iter().any(|text| text.contains(kind.1.database())) {
            return server.close();
        }
        shelf.put(Resting { connection: server, kind, claim, since: now, born, stale });
        drop(shelf);
        // Only now the next one may look.
        drop(permit);
    }

    /// A client is gone: what it claimed is for everybody, once nothing of it is left there.
    pub(crate) fn leave(self: &Arc<Self>, client: ClientId, topology: Option<&Arc<Topology>>) {
        lock(&self.clients).remove(&client);
        for place in self.all() {
            let left = lock(&place.shelf).remove(|resting| resting.claim == Some(client));
            for mut server in left {
                match place.turn_now() {
                    Some(turn) => {
                        server.lease.renew(turn);
                        self.clean(server, topology.cloned());
                    }
                    None => server.close(),
                }
            }
        }
    }

    /// Takes back a connection of a client that is gone, in whatever state, but outside of a transaction.
    pub(crate) fn clean(self: &Arc<Self>, mut server: Server, topology: Option<Arc<Topology>>) {
        let pool = self.clone();
        tokio::spawn(async move {
            server.gate.passed().await;
            match tokio::time::timeout(pool.limits.queue_timeout, server.become_nobodys()).await {
                Ok(Ok(())) => pool.put(server, None, topology),
                Ok(Err(_)) | Err(_) => server.close(),
            }
        });
    }

    /// What a login gets is about to change, or just did: nobody is to meet a login from before it.
    pub(crate) fn give_way(&self) {
        self.epoch.fetch_add(1, Ordering::Relaxed);
        for place in self.all() {
            let closed = lock(&place.shelf).remove(|resting| {
                resting.stale = true;
                resting.claim.is_none()
            });
            closed.into_iter().for_each(Server::close);
        }
    }

    /// Connections to databases that `text` names do not come to rest until the eviction is over, and those
    /// at rest are closed, whoever claims them.
    pub(crate) fn evict(self: &Arc<Self>, text: &str) -> Eviction {
        let eviction = Eviction { pool: self.clone(), text: text.into() };
        lock(&self.evictions).push(eviction.text.clone());
        for ((_, _, database), place) in lock(&self.places).iter() {
            if text.contains(database.as_str()) {
                lock(&place.shelf).remove(|_| true).into_iter().for_each(Server::close);
            }
        }
        eviction
    }

    fn all(&self) -> Vec<Arc<Place>> {
        lock(&self.places).values().cloned().collect()
    }

    /// Closes what the topology has no use for, and what is too old.
    fn sweep(&self, topology: Option<&Topology>) {
        let (now, limits) = (RealClock.now(), &self.limits);
        lock(&self.places).retain(|_, place| {
            let mut shelf = lock(&place.shelf);
            let closed = shelf.remove(|resting| {
                let server = &resting.connection;
                topology.is_none_or(|topology| fate(topology, server.node, server.role) != Fate::Keep)
                    || now.since(resting.since) >= limits.server_idle_timeout
                    || now.since(resting.born) >= limits.server_lifetime
            });
            closed.into_iter().for_each(Server::close);
            // Whoever has a connection, or waits for one, knows the place.
            shelf.len() > 0 || Arc::strong_count(place) > 1
        });
    }
}
