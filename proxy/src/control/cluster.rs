//! What is known of the cluster, for every session to read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pgherd_common::push::{BackendStatus, ToAgent};
use pgherd_common::time::RealClock;
use pgherd_common::{Clock, ClusterName, Generation, HostPort, Lsn, MonoTime, NodeId, Topology};
use tokio::sync::watch;

use crate::routing::{Lag, writable};
use crate::topology::{Acceptance, Positions, accept};

use super::batches::{Batches, UnderWay};
use super::first_write::FirstWrite;
use super::votes::{Answer, Tally, Wish};

/// How long a node that could not be reached is left alone while another can take its reads.
const AVOID: Duration = Duration::from_secs(1);

/// Statuses older than this say nothing any more.
const STATUS_LIFE: Duration = Duration::from_secs(10);

/// What a link to an agent is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LinkState {
    /// Talking.
    Connected,
    /// Not talking; the text says why.
    Down(String),
}

/// What a node has been sent by this proxy.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) reads: AtomicU64,
    pub(crate) writes: AtomicU64,
}

#[derive(Debug)]
struct Observed {
    status: BackendStatus,
    /// When it was true, on this machine's clock.
    at: MonoTime,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Cluster {
    name: ClusterName,
    clock: RealClock,
    topology: watch::Sender<Option<Arc<Topology>>>,
    observed: Mutex<BTreeMap<NodeId, Observed>>,
    lags: Mutex<Arc<BTreeMap<NodeId, Lag>>>,
    /// Where the primary was seen.
    positions: Mutex<Positions>,
    avoided: Mutex<BTreeMap<NodeId, MonoTime>>,
    /// There may be some.
    avoids: AtomicBool,
    links: Mutex<BTreeMap<HostPort, LinkState>>,
    counts: Mutex<BTreeMap<NodeId, Arc<Counts>>>,
    refused: AtomicU64,
    /// The newest position that a primary told any session, and that primary's generation.
    position: Mutex<(Generation, Lsn)>,
    /// Milliseconds since boot until which an agent has a quorum behind it, as the agents told.
    backed_until_ms: AtomicU64,
    first_write: FirstWrite,
    batches: Arc<Batches>,
    /// For the proxies' virtual IP.
    votes: Mutex<Tally>,
    wish: Wish,
    answered: watch::Sender<()>,
    holds_address: AtomicBool,
}

/// A lock whose holder cannot have left things half done.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cluster {
    /// Nothing known yet.
    pub(crate) fn new(name: ClusterName) -> Self {
        Self {
            name,
            clock: RealClock,
            topology: watch::Sender::new(None),
            observed: Mutex::default(),
            lags: Mutex::default(),
            positions: Mutex::default(),
            avoided: Mutex::default(),
            avoids: AtomicBool::new(false),
            links: Mutex::default(),
            counts: Mutex::default(),
            refused: AtomicU64::new(0),
            position: Mutex::default(),
            backed_until_ms: AtomicU64::new(0),
            first_write: FirstWrite::new(),
            batches: Arc::default(),
            votes: Mutex::default(),
            wish: Wish::new(),
            answered: watch::Sender::new(()),
            holds_address: AtomicBool::new(false),
        }
    }

    /// Puts a pushed topology into effect if it is newer. On return every session that looks sees it.
    pub(crate) fn offer(&self, pushed: Topology) -> Acceptance {
        let mut verdict = Acceptance::Known;
        let mut taken_away = false;
        self.topology.send_if_modified(|current| {
            verdict = accept(&self.name, current.as_deref(), &pushed);
            let switch = verdict == Acceptance::Switch;
            if switch {
                self.first_write.follow(current.as_deref(), &pushed, self.clock.now());
                let had = current.as_deref().is_some_and(|current| writable(current).is_some());
                taken_away = had && writable(&pushed).is_none();
                *current = Some(Arc::new(pushed));
            }
            switch
        });
        // Behind the topology: a batch that is counted too late sees that.
        if taken_away {
            self.batches.take_away();
        }
        match verdict {
            // Agents know better than a connection that failed before.
            Acceptance::Switch => lock(&self.avoided).clear(),
            Acceptance::Older { .. } => drop(self.refused.fetch_add(1, Ordering::Relaxed)),
            Acceptance::Known | Acceptance::Stranger => {}
        }
        verdict
    }

    /// A batch goes to the primary. Whoever looks at the topology after this either sees that a newer one is in effect, or
    /// is waited for before that is acknowledged.
    pub(crate) fn batch_begins(&self) -> UnderWay {
        self.batches.begin()
    }

    /// Whether new work for the primary is held by the topology in effect.
    pub(crate) fn holds_writes(&self) -> bool {
        self.topology.borrow().as_deref().is_some_and(|topology| writable(topology).is_none())
    }

    /// Resolves when all has ended that went to the primary before it was taken away.
    pub(crate) async fn earlier_batches_ended(&self) {
        self.batches.earlier_ended().await;
    }

    /// Has every session look up, whatever it is at.
    pub(crate) fn nudge(&self) {
        self.topology.send_modify(|_| {});
    }

    /// Follows the topology.
    pub(crate) fn follow(&self) -> watch::Receiver<Option<Arc<Topology>>> {
        self.topology.subscribe()
    }

    /// The topology in effect.
    pub(crate) fn topology(&self) -> Option<Arc<Topology>> {
        self.topology.borrow().clone()
    }

    /// Older topologies that were refused.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// An agent said for how long it has a quorum behind it. The longest word counts: one agent is enough.
    pub(crate) fn backed(&self, left_ms: u64) {
        let until = self.now_ms().saturating_add(left_ms);
        self.backed_until_ms.fetch_max(until, Ordering::Relaxed);
    }

    /// Whether an agent with a quorum behind it was heard lately enough for new work on the primary.
    pub(crate) fn is_backed(&self) -> bool {
        self.now_ms() < self.backed_until_ms.load(Ordering::Relaxed)
    }

    /// Whether the primary of this generation has yet to answer a write. Asked after every batch there.
    pub(crate) fn awaits_write(&self, generation: Generation) -> bool {
        self.first_write.is_awaited(generation)
    }

    /// The primary of this generation has answered a write.
    pub(crate) fn wrote(&self, generation: Generation) {
        self.first_write.answered(generation, self.clock.now());
    }

    /// What agents are to be told of first writes.
    pub(crate) fn first_writes(&self) -> watch::Receiver<Option<ToAgent>> {
        self.first_write.told()
    }

    fn now_ms(&self) -> u64 {
        let now = self.clock.now().since(MonoTime::default());
        u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
    }

    /// Notes what an agent saw, unless something newer is known.
    pub(crate) fn observe(&self, statuses: Vec<BackendStatus>) {
        let now = self.clock.now();
        let primary = self.topology().and_then(|topology| Some(topology.primary()?.id));
        let (mut observed, mut positions) = (lock(&self.observed), lock(&self.positions));
        for status in statuses {
            let age = Duration::from_millis(status.age_ms);
            let at = MonoTime::since_boot(now.since(MonoTime::since_boot(age)));
            let newer = observed.get(&status.id).is_none_or(|known| known.at <= at);
            // An agent that got no answer knows less than one that got one a moment ago.
            if newer && (status.in_recovery.is_some() || !observed.contains_key(&status.id)) {
                if Some(status.id) == primary
                    && let (Some(false), Some(position)) = (status.in_recovery, status.position)
                {
                    positions.note(at, position);
                }
                observed.insert(status.id, Observed { status, at });
            }
        }
        observed.retain(|_, known| now.since(known.at) < STATUS_LIFE);
        let lags = observed.values().filter_map(|known| {
            let bytes = known.status.lag_bytes?;
            let time = known.status.position.map(|replayed| positions.lag(replayed, now));
            Some((known.status.id, Lag { bytes, time: time.unwrap_or_default() }))
        });
        *lock(&self.lags) = Arc::new(lags.collect());
    }

    /// The newest observation of a backend.
    pub(crate) fn status(&self, node: NodeId) -> Option<BackendStatus> {
        let now = self.clock.now();
        let observed = lock(&self.observed);
        observed
            .get(&node)
            .filter(|known| now.since(known.at) < STATUS_LIFE)
            .map(|known| known.status.clone())
    }

    /// Known lags of standbys.
    pub(crate) fn lags(&self) -> Arc<BTreeMap<NodeId, Lag>> {
        lock(&self.lags).clone()
    }

    /// A node could not be reached.
    pub(crate) fn avoid(&self, node: NodeId) {
        let mut avoided = lock(&self.avoided);
        avoided.insert(node, self.clock.now() + AVOID);
        self.avoids.store(true, Ordering::Relaxed);
    }

    /// Nodes that could not be reached a moment ago.
    pub(crate) fn avoided(&self) -> BTreeSet<NodeId> {
        // Asked for every statement.
        if !self.avoids.load(Ordering::Relaxed) {
            return BTreeSet::new();
        }
        let (mut avoided, now) = (lock(&self.avoided), self.clock.now());
        avoided.retain(|_, until| *until > now);
        self.avoids.store(!avoided.is_empty(), Ordering::Relaxed);
        avoided.keys().copied().collect()
    }

    /// A primary of this generation told a session its position.
    pub(crate) fn note_position(&self, at: Lsn, generation: Generation) {
        let mut known = lock(&self.position);
        *known = (*known).max((generation, at));
    }

    /// The newest position known, with the generation of the primary that told it.
    pub(crate) fn position(&self) -> (Generation, Lsn) {
        *lock(&self.position)
    }

    /// What a node has been sent.
    pub(crate) fn counts(&self, node: NodeId) -> Arc<Counts> {
        lock(&self.counts).entry(node).or_default().clone()
    }

    /// Asks every agent for the proxies' virtual IP.
    pub(crate) fn want_address(&self, priority: u32) {
        let round = lock(&self.votes).ask(self.clock.now());
        self.wish.say(ToAgent::WantAddress { round, priority });
    }

    /// Something else about it.
    pub(crate) fn say_of_address(&self, message: ToAgent) {
        lock(&self.votes).forget();
        self.wish.say(message);
    }

    /// What agents are to be told of it.
    pub(crate) fn address_wishes(&self) -> watch::Receiver<Option<ToAgent>> {
        self.wish.heard()
    }

    /// An agent has answered.
    pub(crate) fn address_answered(&self, answer: Answer) {
        lock(&self.votes).answered(answer);
        self.answered.send_replace(());
    }

    /// Changes with every answer.
    pub(crate) fn address_answers(&self) -> watch::Receiver<()> {
        self.answered.subscribe()
    }

    /// Until when a majority of the agents stands behind this proxy's having it.
    pub(crate) fn address_until(&self, now: MonoTime) -> Option<MonoTime> {
        lock(&self.votes).until(now)
    }

    pub(crate) fn set_address_held(&self, held: bool) {
        self.holds_address.store(held, Ordering::Relaxed);
    }

    /// Whether this proxy has it.
    pub(crate) fn holds_address(&self) -> bool {
        self.holds_address.load(Ordering::Relaxed)
    }

    pub(crate) fn set_link(&self, agent: &HostPort, state: LinkState) {
        lock(&self.links).insert(agent.clone(), state);
    }

    /// The links to the agents.
    pub(crate) fn links(&self) -> BTreeMap<HostPort, LinkState> {
        lock(&self.links).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::tests::{topology, up};

    #[test]
    fn older_topologies_are_counted_and_change_nothing() {
        let cluster = Cluster::new("demo".parse().unwrap());
        let (old, new) = (topology(1, Some(1), vec![up(1)]), topology(2, Some(1), vec![up(1)]));
        assert_eq!(cluster.offer(new.clone()), Acceptance::Switch);
        assert_eq!(cluster.offer(new.clone()), Acceptance::Known);
        assert_eq!(cluster.offer(old), Acceptance::Older { have: new.version() });
        assert_eq!(cluster.refused(), 1);
        assert_eq!(cluster.topology().as_deref(), Some(&new));
    }

    #[test]
    fn the_newest_position_is_that_of_the_newest_primary() {
        let cluster = Cluster::new("demo".parse().unwrap());
        let (old, new) = (Generation::ZERO.next(), Generation::ZERO.next().next());
        cluster.note_position(Lsn(7), old);
        cluster.note_position(Lsn(5), new);
        cluster.note_position(Lsn(9), old);
        assert_eq!(cluster.position(), (new, Lsn(5)));
    }

    #[test]
    fn the_newest_observation_counts() {
        let cluster = Cluster::new("demo".parse().unwrap());
        let status = |age_ms, lag| BackendStatus {
            id: NodeId(2),
            age_ms,
            in_recovery: Some(true),
            position: None,
            lag_bytes: Some(lag),
            replication_state: None,
            sync_state: None,
        };
        cluster.observe(vec![status(10, 5)]);
        cluster.observe(vec![status(5_000, 7)]);
        assert_eq!(cluster.lags()[&NodeId(2)].bytes, 5);
        cluster.observe(vec![BackendStatus { in_recovery: None, lag_bytes: None, ..status(0, 0) }]);
        assert_eq!(cluster.status(NodeId(2)).unwrap().lag_bytes, Some(5));
        cluster.observe(vec![status(0, 9)]);
        assert_eq!(cluster.lags()[&NodeId(2)].bytes, 9);
    }
    #[test]
    fn a_standby_that_lacks_something_for_long_lags_in_time_too() {
        let cluster = Cluster::new("demo".parse().unwrap());
        cluster.offer(topology(1, Some(1), vec![up(1), up(2)]));
        let status = |id, age_ms, position, in_recovery| BackendStatus {
            id: NodeId(id),
            age_ms,
            in_recovery: Some(in_recovery),
            position: Some(Lsn(position)),
            lag_bytes: in_recovery.then_some(1),
            replication_state: None,
            sync_state: None,
        };
        cluster.observe(vec![status(1, 9_000, 100, false), status(2, 9_000, 100, true)]);
        assert_eq!(cluster.lags()[&NodeId(2)].time, Duration::ZERO);
        cluster.observe(vec![status(1, 5_000, 200, false), status(2, 0, 150, true)]);
        assert!(cluster.lags()[&NodeId(2)].time >= Duration::from_secs(5));
    }
}
