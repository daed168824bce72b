//! Server connections at rest, for one client after the other, and a fair queue for them.
//!
//! A connection belongs to a place: a node, a user and a database. Whoever has one of its connections has
//! one of its permits, of which there are as many as there may be connections; they are handed out in the
//! order in which they were asked for.

mod keep;
mod shelf;
mod tag;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use pgherd_common::time::RealClock;
use pgherd_common::{Clock, MonoTime, NodeId, Topology};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::clients::ClientId;
use crate::config::Config;
use crate::control::lock;
use crate::routing;
use crate::topology::{Fate, Role, fate};
use crate::upstream::{Login, Server};
use crate::wire::password::Credentials;
use crate::workers;

pub(crate) use keep::keep;
use shelf::{Found, Resting, Shelf, Wanted};
pub(crate) use tag::Facts as ServerFacts;
use tag::{Tag, Tags};
pub(crate) use view::PlaceRow;

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
    pub(crate) node: NodeId,
    permits: Arc<Semaphore>,
    /// So many permits there are, with those that have yet to be taken back.
    size: AtomicUsize,
    /// So many there are to be.
    wanted: AtomicUsize,
    /// For administrators, when there is no other.
    reserve: Arc<Semaphore>,
    reserve_size: usize,
    waiting: AtomicUsize,
    /// Connections that there are, at rest or not.
    open: AtomicUsize,
    shelf: Mutex<Shelf<Box<Server>, Kind>>,
}

/// The right to have one connection of a place.
#[derive(Debug)]
pub(crate) struct Turn {
    place: Arc<Place>,
    permit: OwnedSemaphorePermit,
    /// It is one of the reserve.
    reserved: bool,
}

/// The same, bound to a connection.
#[derive(Debug)]
pub(crate) struct Lease {
    /// `None` while the connection rests.
    permit: Option<OwnedSemaphorePermit>,
    /// The permit is one of the reserve: the connection does not come to rest.
    reserved: bool,
    place: Arc<Place>,
    account: Arc<Account>,
    pub(crate) tag: Tag,
    /// How often the logins had changed when it was opened.
    epoch: u64,
    born: MonoTime,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.place.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Lease {
    /// The connection is in use again.
    pub(crate) fn renew(&mut self, turn: Turn) {
        self.permit = Some(turn.permit);
        self.reserved = turn.reserved;
    }

    /// Whether somebody waits for a connection like this.
    pub(crate) fn is_wanted(&self) -> bool {
        self.place.waiting.load(Ordering::Relaxed) > 0
    }
}

/// What a turn comes to.
#[derive(Debug)]
pub(crate) enum Taken {
    /// A connection that was at rest. This thread watches it.
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

impl routing::Load for Vec<Arc<Place>> {
    /// Connections that clients have there, as the user and to the database that the places are of.
    fn busy(&self, node: NodeId) -> usize {
        self.iter().find(|place| place.node == node).map_or(0, |place| place.in_use())
    }
}

impl Place {
    fn new(node: NodeId, size: usize, reserve_size: usize) -> Self {
        Self {
            node,
            permits: Arc::new(Semaphore::new(size)),
            size: AtomicUsize::new(size),
            wanted: AtomicUsize::new(size),
            reserve: Arc::new(Semaphore::new(reserve_size)),
            reserve_size,
            waiting: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            shelf: Mutex::default(),
        }
    }

    /// Waits for a turn, behind those who came before. `admin`: one of the reserve will do.
    pub(crate) async fn turn(self: Arc<Self>, admin: bool) -> Option<Turn> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting(&self.waiting);
        // Fails when it is closed, which nobody does.
        let (permit, reserved) = tokio::select! {
            permit = self.permits.clone().acquire_owned() => (permit.ok()?, false),
            permit = self.reserve.clone().acquire_owned(), if admin => (permit.ok()?, true),
        };
        drop(waiting);
        Some(Turn { place: self, permit, reserved })
    }

    /// A turn, if nobody has to be waited for. `admin`: one of the reserve will do.
    pub(crate) fn turn_now(self: &Arc<Self>, admin: bool) -> Option<Turn> {
        let turn = |permit, reserved| Turn { place: self.clone(), permit, reserved };
        if let Ok(permit) = self.permits.clone().try_acquire_owned() {
            return Some(turn(permit, false));
        }
        let permit = self.reserve.clone().try_acquire_owned().ok().filter(|_| admin)?;
        Some(turn(permit, true))
    }

    /// How many wait for a turn.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    fn size(&self) -> usize {
        self.size.load(Ordering::Relaxed)
    }

    fn in_use(&self) -> usize {
        self.size().saturating_sub(self.permits.available_permits())
    }

    /// How many of the reserve are in use.
    fn reserved(&self) -> usize {
        self.reserve_size.saturating_sub(self.reserve.available_permits())
    }

    /// There are to be `size` permits. Those that are too many are taken back in their turn.
    fn resize(self: &Arc<Self>, size: usize) {
        let before = self.wanted.swap(size, Ordering::Relaxed);
        if size > before {
            self.size.fetch_add(size - before, Ordering::Relaxed);
            self.permits.add_permits(size - before);
        }
        if size < before {
            let place = self.clone();
            tokio::spawn(async move {
                for _ in size..before {
                    if let Ok(permit) = place.permits.acquire().await {
                        permit.forget();
                        place.size.fetch_sub(1, Ordering::Relaxed);
                    }
                }
            });
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Pool {
    config: watch::Receiver<Arc<Config>>,
    places: Mutex<BTreeMap<Key, Arc<Place>>>,
    /// Those in use, so that all that are equal are one.
    accounts: Mutex<BTreeMap<String, Vec<Weak<Account>>>>,
    /// All connections that are open.
    pub(crate) servers: Arc<Tags>,
    /// How often it changed what a login gets.
    epoch: AtomicU64,
    /// Statements that run and want no connection to databases of these names.
    evictions: Mutex<Vec<Arc<[String]>>>,
    /// So many are there.
    evicting: AtomicUsize,
}

/// A statement that wants no connection to databases that it names, while it runs.
#[derive(Debug)]
pub(crate) struct Eviction {
    pool: Arc<Pool>,
    names: Arc<[String]>,
}

impl Drop for Eviction {
    fn drop(&mut self) {
        lock(&self.pool.evictions).retain(|names| !Arc::ptr_eq(names, &self.names));
        self.pool.evicting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pool {
    pub(crate) fn new(config: watch::Receiver<Arc<Config>>) -> Self {
        Self {
            config,
            places: Mutex::default(),
            accounts: Mutex::default(),
            servers: Arc::default(),
            epoch: AtomicU64::new(0),
            evictions: Mutex::default(),
            evicting: AtomicUsize::new(0),
        }
    }

    /// The one that stands for all that are equal: connections are compared with it over and over.
    pub(crate) fn account(&self, account: Account) -> Arc<Account> {
        let mut accounts = lock(&self.accounts);
        let known = accounts.entry(account.user.clone()).or_default();
        known.retain(|one| one.strong_count() > 0);
        if let Some(same) = known.iter().filter_map(Weak::upgrade).find(|one| **one == account) {
            return same;
        }
        let account = Arc::new(account);
        known.push(Arc::downgrade(&account));
        account
    }

    /// Where the connections to `node` as `account` are.
    pub(crate) fn place(&self, node: NodeId, account: &Account) -> Arc<Place> {
        if account.unpooled {
            // Servers count those apart, too (max_wal_senders).
            return Arc::new(Place::new(node, 1, 0));
        }
        let key = (node, account.user.clone(), account.database.clone());
        lock(&self.places).entry(key).or_insert_with_key(|key| Arc::new(self.new_place(key))).clone()
    }

    fn new_place(&self, (node, user, database): &Key) -> Place {
        let config = self.config.borrow();
        Place::new(*node, size_of(&config, user, database), permits(config.pool.reserve))
    }

    /// Another configuration is in effect.
    pub(crate) fn resize(&self) {
        let config = self.config.borrow().clone();
        for ((_, user, database), place) in lock(&self.places).iter() {
            place.resize(size_of(&config, user, database));
        }
    }

    /// Uses a turn, if a connection rests that is watched by this thread and has only to be taken.
    pub(crate) fn take_at_once(
        &self,
        turn: Turn,
        client: ClientId,
        role: Role,
        account: &Arc<Account>,
        customs: &BTreeSet<String>,
    ) -> Option<Box<Server>> {
        let worker = workers::current();
        let wanted = Wanted { client, kind: &(role, account.clone()), worker };
        // None gives way to a new one here.
        let found = lock(&turn.place.shelf).take(&wanted, true, |server| {
            server.worker == worker && server.known.is_clean() && server.known.suits(customs)
        });
        let Found::Ready(mut server) = found else { return None };
        if !server.is_silent() || server.come_to(worker).is_err() {
            server.close();
            return None;
        }
        server.lease.renew(turn);
        Some(server)
    }

    /// Uses a turn. `customs`: custom settings that the client has named.
    pub(crate) async fn take(
        &self,
        turn: Turn,
        client: ClientId,
        role: Role,
        account: &Arc<Account>,
        customs: &BTreeSet<String>,
    ) -> Taken {
        let Turn { place, permit, reserved } = turn;
        loop {
            let found = {
                let mut shelf = lock(&place.shelf);
                // The turn is one of those in use.
                let room = reserved || shelf.len() + place.in_use() <= place.size();
                let wanted = Wanted { client, kind: &(role, account.clone()), worker: workers::current() };
                shelf.take(&wanted, room, |server| server.known.suits(customs))
            };
            match found {
                Found::Ready(mut server) => {
                    // A connection at rest has nothing to say, unless it is the end.
                    if server.is_silent() && server.come_to(workers::current()).is_ok() {
                        return Taken::Rested(server, Turn { place, permit, reserved });
                    }
                    server.close();
                }
                Found::Open(evicted) => {
                    if let Some(evicted) = evicted {
                        evicted.close();
                    }
                    let (epoch, born) = (self.epoch.load(Ordering::Relaxed), RealClock.now());
                    let (tag, account) =
                        (self.servers.tag(place.node, &account.user, &account.database), account.clone());
                    let permit = Some(permit);
                    place.open.fetch_add(1, Ordering::Relaxed);
                    return Taken::Open(Lease { permit, reserved, place, account, tag, epoch, born });
                }
            }
        }
    }

    /// A client has no more use for a connection for now, on which nothing runs. `claim`: what it did there
    /// may have left something behind that is its own and worth keeping.
    pub(crate) fn put(
        self: &Arc<Self>,
        mut server: Box<Server>,
        claim: Option<ClientId>,
        topology: Option<&Topology>,
    ) {
        if server.gate.is_passing() {
            // Whoever has it next must not be hit.
            return self.clean(server, topology.cloned().map(Arc::new));
        }
        let stale = server.lease.epoch < self.epoch.load(Ordering::Relaxed);
        let now = RealClock.now();
        let old = now.since(server.lease.born) >= self.config.borrow().pool.server_lifetime;
        let kept = topology.is_some_and(|topology| fate(topology, server.node, server.role) == Fate::Keep);
        let old = old || server.lease.reserved;
        if old || !kept || !server.at_rest || server.gate.is_doubtful() || (stale && claim.is_none()) {
            return server.close();
        }
        server.pipe.shrink();
        server.lease.tag.has_buffers(server.pipe.memory());
        server.lease.tag.is_with(0);
        let (permit, place) = (server.lease.permit.take(), server.lease.place.clone());
        let (kind, born) = ((server.role, server.lease.account.clone()), server.lease.born);
        let mut shelf = lock(&place.shelf);
        // Who evicts looks through the shelves behind counting: it is seen here, or sees what is put here.
        let evicting = self.evicting.load(Ordering::Relaxed) > 0;
        if evicting && lock(&self.evictions).iter().any(|names| names_one(names, kind.1.database())) {
            return server.close();
        }
        let (owner, worker) = (server.owner, server.worker);
        shelf.put(Resting { connection: server, kind, worker, claim, owner, since: now, born, stale });
        drop(shelf);
        // Only now the next one may look.
        drop(permit);
    }

    /// A client is gone: what it claimed is for everybody, once nothing of it is left there.
    pub(crate) fn leave(self: &Arc<Self>, client: ClientId, topology: Option<&Arc<Topology>>) {
        for place in self.all() {
            let mut turns = Vec::new();
            let left = lock(&place.shelf).remove(|resting| {
                if resting.claim != Some(client) {
                    return false;
                }
                let turn = place.turn_now(false);
                // Without a turn somebody else is about to take it, and empties it then.
                resting.claim = None;
                let kept = turn.is_none() && !resting.stale && !resting.connection.known.is_indelible();
                if !kept {
                    turns.push(turn);
                }
                !kept
            });
            for (mut server, turn) in left.into_iter().zip(turns) {
                match turn {
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
    pub(crate) fn clean(self: &Arc<Self>, mut server: Box<Server>, topology: Option<Arc<Topology>>) {
        if server.known.is_indelible() {
            return server.close();
        }
        let pool = self.clone();
        tokio::spawn(async move {
            server.gate.passed().await;
            let limit = pool.config.borrow().pool.queue_timeout;
            match tokio::time::timeout(limit, server.become_nobodys()).await {
                Ok(Ok(())) => pool.put(server, None, topology.as_deref()),
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

    /// Connections to databases of these names do not come to rest until the eviction is over, and those
    /// at rest are closed, whoever claims them.
    pub(crate) fn evict(self: &Arc<Self>, names: Vec<String>) -> Eviction {
        let eviction = Eviction { pool: self.clone(), names: names.into() };
        self.evicting.fetch_add(1, Ordering::Relaxed);
        lock(&self.evictions).push(eviction.names.clone());
        for ((_, _, database), place) in lock(&self.places).iter() {
            if names_one(&eviction.names, database) {
                lock(&place.shelf).remove(|_| true).into_iter().for_each(Server::close);
            }
        }
        eviction
    }

    /// Closes what is at rest of one database, or of all.
    pub(crate) fn close_resting(&self, database: Option<&str>) {
        for ((_, _, own), place) in lock(&self.places).iter() {
            if database.is_none_or(|database| database == own) {
                lock(&place.shelf).remove(|_| true).into_iter().for_each(Server::close);
            }
        }
    }

    fn all(&self) -> Vec<Arc<Place>> {
        lock(&self.places).values().cloned().collect()
    }

    /// Closes what the topology has no use for, and what is too old.
    fn sweep(&self, topology: Option<&Topology>) {
        let (now, config) = (RealClock.now(), self.config.borrow().clone());
        let limits = &config.pool;
        // Whoever may call himself what he likes leaves names behind.
        lock(&self.accounts).retain(|_, known| known.iter().any(|one| one.strong_count() > 0));
        lock(&self.places).retain(|_, place| {
            let mut shelf = lock(&place.shelf);
            // Not by permits: who has one may be about to take what rests here.
            let open = place.open.load(Ordering::Relaxed);
            let mut surplus = open.saturating_sub(place.size() + place.reserved());
            let closed = shelf.remove(|resting| {
                let too_many = surplus > 0;
                surplus = surplus.saturating_sub(1);
                let server = &resting.connection;
                too_many
                    || topology.is_none_or(|topology| fate(topology, server.node, server.role) != Fate::Keep)
                    || now.since(resting.since) >= limits.server_idle_timeout
                    || now.since(resting.born) >= limits.server_lifetime
            });
            closed.into_iter().for_each(Server::close);
            // Whoever has a connection, or waits for one, knows the place.
            shelf.len() > 0 || Arc::strong_count(place) > 1
        });
    }
}

/// As many permits as a semaphore can have.
fn permits(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS)
}

fn size_of(config: &Config, user: &str, database: &str) -> usize {
    permits(config.effective(user, database).pool_size)
}

/// Whether one of the names is the database's.
fn names_one(names: &[String], database: &str) -> bool {
    names.iter().any(|name| name == database)
}
