//! Pushes the topology to proxies the moment it is applied, and listens for what they acknowledge.
//!
//! Every agent does so for every proxy that connects: see `pgherd_common::push`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::ws::{Message, WebSocket};
use pgherd_common::push::{BackendStatus, PROTOCOL, Status, ToAgent, ToProxy};
use pgherd_common::time::RealClock;
use pgherd_common::{Clock, ClusterName, HostPort, MonoTime, NodeId, Topology, Version};
use pgherd_core::proxy_address::ProxyId;
use tokio::sync::{Notify, mpsc, watch};

use crate::cluster::ClusterState;
use crate::coordinator::Seen;
use crate::driver::Event;

/// How often proxies hear how things are; also what keeps the link provably alive. At least four times
/// in a lease, so that a proxy knows in time that its agents are backed.
const STATUS_INTERVAL_MAX: Duration = Duration::from_millis(500);

/// Answers to one proxy that may wait.
const ANSWERS: usize = 4;

/// All proxy links of this agent.
#[derive(Debug, Clone)]
pub struct Hub {
    cluster: ClusterName,
    state: watch::Receiver<Arc<ClusterState>>,
    status: watch::Sender<Observed>,
    interval: Duration,
    proxies: Arc<Mutex<BTreeMap<String, Proxy>>>,
    /// Counts how often the proxies were asked for sessions that cannot move.
    asked: watch::Sender<u64>,
    /// Rung by every answer, and by every link that ends.
    told: Arc<Notify>,
    /// Where what proxies tell for the record goes.
    events: mpsc::Sender<Event>,
}

/// What a status is made of when it is sent.
#[derive(Debug, Clone, Default)]
struct Observed {
    backends: Vec<BackendStatus>,
    backed_until: MonoTime,
}

/// A connected proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxy {
    /// Where applications reach it.
    pub listen: HostPort,
    /// The newest topology it has put into effect.
    pub acknowledged: Option<Version>,
    /// Sessions there that cannot move to another server, and one of them; `None` while it has yet to say.
    pub unmovable: Option<Unmovable>,
    /// Tells two links of the same proxy apart.
    link: u64,
    machine: String,
}

/// Sessions that have something which is lost with their connection to the primary.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Unmovable {
    /// How many.
    pub sessions: u32,
    /// One of them, for people.
    pub example: Option<String>,
}

impl Hub {
    /// Publishes what raft applies.
    pub fn new(
        cluster: ClusterName,
        state: watch::Receiver<Arc<ClusterState>>,
        lease: Duration,
        events: mpsc::Sender<Event>,
    ) -> Self {
        let interval = STATUS_INTERVAL_MAX.min(lease / 4);
        Self {
            cluster,
            state,
            status: watch::Sender::default(),
            interval,
            proxies: Arc::default(),
            asked: watch::Sender::default(),
            told: Arc::default(),
            events,
        }
    }

    /// The connected proxies by name.
    pub fn proxies(&self) -> BTreeMap<String, Proxy> {
        self.lock().clone()
    }

    /// Asks all proxies for sessions that cannot move. One that does not answer in time has none.
    pub async fn unmovable(&self) -> Unmovable {
        const PATIENCE: Duration = Duration::from_millis(500);
        self.lock().values_mut().for_each(|proxy| proxy.unmovable = None);
        self.asked.send_modify(|asked| *asked += 1);
        let all_told = async {
            loop {
                let told = self.told.notified();
                if self.lock().values().all(|proxy| proxy.unmovable.is_some()) {
                    return;
                }
                told.await;
            }
        };
        // The sum is of those who have answered.
        let _ = tokio::time::timeout(PATIENCE, all_told).await;
        let proxies = self.lock();
        let told = proxies.values().filter_map(|proxy| proxy.unmovable.as_ref());
        told.fold(Unmovable::default(), |sum, own| Unmovable {
            sessions: sum.sessions.saturating_add(own.sessions),
            example: sum.example.or_else(|| own.example.clone()),
        })
    }

    /// What was heard of the backends, and until when this agent is backed by a quorum; sent with the
    /// next status.
    pub fn observed(
        &self,
        state: &ClusterState,
        seen: &BTreeMap<NodeId, Seen>,
        backed_until: MonoTime,
        now: MonoTime,
    ) {
        self.status.send_replace(Observed { backends: backend_status(state, seen, now), backed_until });
    }

    /// Serves one proxy until its link ends.
    pub async fn serve(self, mut socket: WebSocket) {
        let (proxy, link) = match self.welcome(&mut socket).await {
            Ok(known) => known,
            Err(reason) => {
                tracing::warn!("a proxy was turned away: {reason}");
                // It may be gone already.
                let _ = say(&mut socket, &ToProxy::Goodbye(reason)).await;
                return;
            }
        };
        let name = &proxy.name;
        tracing::info!(proxy = name, "proxy connected");
        let ended = self.push(&mut socket, &proxy, link).await;
        let reason = ended.err().map_or_else(|| "it closed the link".to_owned(), |error| error.to_string());
        tracing::info!(proxy = name, "proxy disconnected: {reason}");
        let mut proxies = self.lock();
        if proxies.get(name).is_some_and(|proxy| proxy.link == link) {
            proxies.remove(name);
            drop(proxies);
            self.left(&proxy, false);
        }
        self.told.notify_waiters();
    }

    async fn welcome(&self, socket: &mut WebSocket) -> Result<(ProxyId, u64), String> {
        let first = tokio::time::timeout(Duration::from_secs(5), socket.recv()).await;
        let Ok(Some(Ok(Message::Text(text)))) = first else {
            return Err("it did not say hello".to_owned());
        };
        match ToAgent::decode(&text) {
            Ok(ToAgent::Hello { protocol, .. }) if protocol != PROTOCOL => Err(format!(
                "it speaks push protocol {protocol}, this agent {PROTOCOL}: install matching versions"
            )),
            Ok(ToAgent::Hello { cluster, proxy, .. }) if cluster != self.cluster => Err(format!(
                "proxy {proxy} belongs to cluster {cluster}, this is {}: correct cluster.name",
                self.cluster
            )),
            Ok(ToAgent::Hello { proxy: name, listen, machine, .. }) => {
                self.enter(ProxyId { name, machine }, listen)
            }
            Ok(
                ToAgent::Ack(_)
                | ToAgent::Refused { .. }
                | ToAgent::Unmovable { .. }
                | ToAgent::FirstWrite { .. }
                | ToAgent::WantAddress { .. }
                | ToAgent::GaveUpAddress,
            ) => Err("it did not say hello first".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// From now on it is one of the proxies.
    fn enter(&self, proxy: ProxyId, listen: HostPort) -> Result<(ProxyId, u64), String> {
        let mut proxies = self.lock();
        // Whoever waits for all proxies would not wait for both.
        if let Some(other) = proxies.get(&proxy.name).filter(|other| other.machine != proxy.machine) {
            return Err(format!(
                "a proxy named {} is connected already, from another machine (it is reached at {}, this one at {listen}): give each \
                 proxy a proxy.name of its own",
                proxy.name, other.listen
            ));
        }
        let (link, machine) = (rand::random(), proxy.machine.clone());
        let entry = Proxy { listen, acknowledged: None, unmovable: None, link, machine };
        proxies.insert(proxy.name.clone(), entry);
        Ok((proxy, link))
    }

    async fn push(&self, socket: &mut WebSocket, proxy: &ProxyId, link: u64) -> Result<(), axum::Error> {
        let (mut state, status) = (self.state.clone(), self.status.subscribe());
        let mut asked = self.asked.subscribe();
        let mut sent = None;
        let mut beat = tokio::time::interval(self.interval);
        let (answers, mut answered) = mpsc::channel(ANSWERS);
        loop {
            let topology = topology_of(&state.borrow_and_update());
            if let Some(topology) = topology.filter(|topology| sent != Some(topology.version())) {
                sent = Some(topology.version());
                say(socket, &ToProxy::Reset(topology)).await?;
            }
            tokio::select! {
                changed = state.changed() => if changed.is_err() {
                    return say(socket, &ToProxy::Goodbye("the agent stops".to_owned())).await;
                },
                message = socket.recv() => match message {
                    Some(message) => self.heard(proxy, link, message?, &answers),
                    None => return Ok(()),
                },
                Some(answer) = answered.recv() => say(socket, &answer).await?,
                Ok(()) = asked.changed() => say(socket, &ToProxy::CountUnmovable).await?,
                _ = beat.tick() => {
                    let Observed { backends, backed_until } = status.borrow().clone();
                    let backed_ms = millis(backed_until.since(RealClock.now()));
                    say(socket, &ToProxy::Status(Status { backed_ms, backends })).await?;
                }
            }
        }
    }

    fn heard(&self, from: &ProxyId, link: u64, message: Message, answers: &mpsc::Sender<ToProxy>) {
        let name = from.name.as_str();
        let Message::Text(text) = message else { return };
        match ToAgent::decode(&text) {
            Ok(ToAgent::Ack(version)) => {
                if let Some(proxy) = self.lock().get_mut(name).filter(|proxy| proxy.link == link) {
                    proxy.acknowledged = proxy.acknowledged.max(Some(version));
                }
            }
            Ok(ToAgent::Refused { pushed, have }) => {
                tracing::debug!(proxy = name, %pushed, %have, "the proxy already follows a newer topology");
                if let Some(proxy) = self.lock().get_mut(name).filter(|proxy| proxy.link == link) {
                    proxy.acknowledged = proxy.acknowledged.max(Some(have));
                }
            }
            Ok(ToAgent::Unmovable { sessions, example }) => {
                if let Some(proxy) = self.lock().get_mut(name).filter(|proxy| proxy.link == link) {
                    proxy.unmovable = Some(Unmovable { sessions, example });
                }
                self.told.notify_waiters();
            }
            Ok(ToAgent::FirstWrite { generation, after_ms }) => {
                // A figure is not worth waiting for: it is lost where the loop has that much to do.
                let _ = self.events.try_send(Event::Wrote(generation, Duration::from_millis(after_ms)));
            }
            // What an earlier link of that name had to say is over.
            Ok(ToAgent::WantAddress { .. } | ToAgent::GaveUpAddress) if !self.is_newest(name, link) => {}
            Ok(ToAgent::WantAddress { round, priority }) => {
                let (proxy, answer) = (from.clone(), answers.clone());
                // It asks again before long.
                let _ = self.events.try_send(Event::AddressWanted { proxy, priority, round, answer });
            }
            Ok(ToAgent::GaveUpAddress) => self.left(from, true),
            Ok(ToAgent::Hello { .. }) => {}
            Err(error) => tracing::warn!(proxy = name, "{error}"),
        }
    }

    fn is_newest(&self, name: &str, link: u64) -> bool {
        self.lock().get(name).is_some_and(|proxy| proxy.link == link)
    }

    /// Without this word a proxy counts as one that would take the address for a lease longer.
    fn left(&self, proxy: &ProxyId, gave_up: bool) {
        let _ = self.events.try_send(Event::ProxyLeft { proxy: proxy.clone(), gave_up });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Proxy>> {
        // Every critical section leaves the map whole.
        self.proxies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn say(socket: &mut WebSocket, message: &ToProxy) -> Result<(), axum::Error> {
    socket.send(Message::Text(message.encode().into())).await
}

fn topology_of(state: &ClusterState) -> Option<Topology> {
    match state.topology()? {
        Ok(topology) => Some(topology),
        Err(error) => {
            tracing::error!("the committed state makes no topology: {error}");
            None
        }
    }
}

fn backend_status(state: &ClusterState, seen: &BTreeMap<NodeId, Seen>, now: MonoTime) -> Vec<BackendStatus> {
    let running = |id: NodeId| seen.get(&id)?.observation.postgres.as_ref()?.running();
    let primary =
        state.primary.and_then(|primary| running(primary.node)).filter(|running| !running.in_recovery);
    let databases = state.databases().map(|member| {
        let (id, name) = (member.descriptor.id, member.descriptor.name.as_str());
        let own = running(id);
        let source = state.relay(id).and_then(running).or(primary);
        let downstream = source.and_then(|up| up.standbys.iter().find(|standby| standby.name == name));
        let lag = own.filter(|own| own.in_recovery).zip(primary);
        BackendStatus {
            id,
            age_ms: seen.get(&id).map_or(u64::MAX, |seen| millis(now.since(seen.at))),
            in_recovery: own.map(|own| own.in_recovery),
            position: own.map(|own| own.position),
            lag_bytes: lag.map(|(own, primary)| primary.position.bytes_since(own.position)),
            replication_state: downstream.map(|standby| standby.state.clone()),
            sync_state: downstream.map(|standby| standby.sync_state.clone()),
        }
    });
    databases.collect()
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
