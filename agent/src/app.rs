//! Puts the agent together and runs it until it is told to stop.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::serve::{Listener, ListenerExt as _};
use pgherd_common::{Generation, HostPort};
use pgherd_core::quorum::Admission;
use tokio::net::{TcpListener, TcpStream, lookup_host};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc};

use crate::address::Keeper;
use crate::api::{Api, router};
use crate::cluster::{Contact, Contacts};
use crate::config::{Config, MemberEntry, Postgres};
use crate::consensus::{Consensus, OpenError as StoreError, Options, Stored};
use crate::driver::{Broken, Driver, Parts, Tell};
use crate::guardian::{Channel, GuardianLost, HandOver};
use crate::join::{TurnedAway, form_when_complete, introduce};
use crate::memory::{Memory, MemoryError};
use crate::notify::Notifier;
use crate::parameters;
use crate::peers::{Link, Peers};
use crate::postgres::{Instance, OpenError, Settings};
use crate::publish::Hub;
use crate::roster::Introduced;
use crate::sole::{Sole, SoleError};
use crate::working::Working;

/// Events waiting for the loop; senders wait when it is full.
const INBOX: usize = 256;

/// How long the end of the agent waits for its last notification to leave.
const LAST_WORD: Duration = Duration::from_secs(2);

/// Why the agent does not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// Its PostgreSQL.
    #[error("cannot take care of this PostgreSQL")]
    Postgres(#[from] OpenError),
    /// Its raft store.
    #[error("cannot take part in the cluster")]
    Store(#[from] StoreError),
    /// Its state directory.
    #[error("cannot take part in the cluster")]
    Sole(#[from] SoleError),
    /// What it remembers besides.
    #[error("cannot take part in the cluster")]
    Memory(#[from] MemoryError),
    /// Its virtual IP.
    #[error("cannot take care of the virtual IP {address}")]
    VirtualIp {
        /// Configured.
        address: pgherd_vip::Subnet,
        /// Why.
        #[source]
        source: pgherd_vip::OpenError,
    },
    /// Its port.
    #[error(
        "cannot listen on {address} (node.listen): is another agent running, or the address not of this machine?"
    )]
    Listen {
        /// Configured.
        address: HostPort,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The others.
    #[error(transparent)]
    TurnedAway(#[from] TurnedAway),
    /// The system.
    #[error("cannot set up the process")]
    System(#[from] std::io::Error),
    /// The HTTP client.
    #[error("cannot set up the connection to the other agents")]
    Client(#[from] reqwest::Error),
    /// The guardian.
    #[error("the worker ends: what it was about to do is not safe without a guardian")]
    Guardian(#[from] GuardianLost),
    /// Raft has stopped.
    #[error(transparent)]
    Raft(Broken),
}

impl RunError {
    /// Whether this worker could work here until now, so that another one may.
    pub(crate) fn is_a_crash(&self) -> bool {
        matches!(self, Self::Guardian(_) | Self::Raft(_))
    }
}

impl From<Broken> for RunError {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Guardian(lost) => lost.into(),
            stopped @ Broken::Raft(_) => Self::Raft(stopped),
        }
    }
}

/// Runs the worker. Returns when it was stopped; PostgreSQL goes on as it is. A primary that runs may
/// go on without a lease for as long as its guardian has said.
pub(crate) async fn run(config: Config, guardian: Channel, hand_over: &HandOver) -> Result<(), RunError> {
    let config = Arc::new(config);
    check_virtual_ip(&config)?;
    let _sole = Sole::lock(&config.node.state_dir).await?;
    let instance = match &config.postgres {
        Some(postgres) => Some(Instance::open(settings(&config, postgres)).await?),
        None => None,
    };
    if hand_over.ran_before {
        instance.iter().for_each(Instance::ran_before);
    }
    let database = instance.as_ref().map(Instance::identity);
    let listener = listen(&config.node.listen).await?;
    let link = Link::new(config.cluster.clone(), config.timings.remote_timeout)?;
    let memory = Memory::open(&config.node.state_dir)?;
    let consensus = take_part(&config, &link, database, &memory).await?;
    let (events, inbox) = mpsc::channel(INBOX);
    let hub = Hub::new(config.cluster.clone(), consensus.state(), config.timings.lease, events.clone());
    let stop = Arc::new(Notify::new());
    let working = Working::default();
    let tell = Tell::start(&config, &events);
    let notifier = tell.notifier.clone();
    begin_chores(&config, instance.as_ref(), &consensus, &notifier).await;
    let api = Api {
        config: config.clone(),
        consensus: consensus.clone(),
        instance: instance.clone(),
        hub: hub.clone(),
        events: events.clone(),
        link: link.clone(),
        working: working.clone(),
        stop: stop.clone(),
        notifier: notifier.clone(),
    };
    let server = tokio::spawn(async move { axum::serve(listener, router(api)).await });
    let peers = Peers::start(&link, consensus.roster().clone(), config.node.id, &events);
    tracing::info!(
        cluster = %config.cluster, node = %config.node.name, id = %config.node.id, listen = %config.node.listen,
        "agent started"
    );
    let keeper = config.virtual_ip.as_ref().map(|ip| Keeper::start(ip.vip(), events.clone())).transpose()?;
    let driver = Driver::new(Parts {
        config: config.clone(),
        consensus: consensus.clone(),
        instance,
        memory,
        address: keeper,
        peers,
        link: link.clone(),
        hub,
        working,
        tell,
        guardian,
        adopted_until: hand_over.adopted_until(),
        events,
        inbox,
    });
    let asked_to_stop = asked_to_stop(stop)?;
    let refused = turned_away(config, link, consensus.clone(), database);
    let end = tokio::select! {
        end = driver.run(asked_to_stop) => end.map_err(RunError::from),
        refused = refused => Err(refused.into()),
    };
    consensus.shutdown().await;
    notifier.flush(LAST_WORD).await;
    server.abort();
    end
}

/// What goes on beside the loop. PostgreSQL's parameters are known before anything is started here.
async fn begin_chores(
    config: &Config,
    instance: Option<&Instance>,
    consensus: &Consensus,
    notifier: &Notifier,
) {
    let Some(instance) = instance else { return };
    tokio::spawn(forget_old_data(instance.clone()));
    let state = consensus.state();
    let full = consensus.standing().borrow().admission == Admission::Full;
    let wanted = parameters::wanted(&state.borrow(), config.node.id).filter(|_| full);
    if let Some(wanted) = wanted {
        instance.want(wanted).await;
    }
    let own = (config.node.id, config.node.name.clone());
    let standing = consensus.standing();
    tokio::spawn(parameters::keep(instance.clone(), state, standing, own, notifier.clone()));
}

/// Has the cluster form; resolves only if this node is turned away.
async fn turned_away(
    config: Arc<Config>,
    link: Link,
    consensus: Consensus,
    database: Option<(u64, u32)>,
) -> TurnedAway {
    match form_when_complete(config, link, consensus, database).await {
        // From now on there is nothing to wait for.
        Ok(()) => std::future::pending().await,
        Err(turned_away) => turned_away,
    }
}

/// What cannot be done later is better known now.
fn check_virtual_ip(config: &Config) -> Result<(), RunError> {
    let Some(ip) = &config.virtual_ip else { return Ok(()) };
    ip.vip().check().map_err(|source| RunError::VirtualIp { address: ip.address, source })
}

/// Resolves when a signal or an operator ends this process.
fn asked_to_stop(by_operator: Arc<Notify>) -> Result<impl Future<Output = ()>, std::io::Error> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = by_operator.notified() => {}
        }
    })
}

/// Introduces this agent before it touches anything, and takes part then. Whom it knows tells the store, if there is one.
async fn take_part(
    config: &Config,
    link: &Link,
    database: Option<(u64, u32)>,
    memory: &Memory,
) -> Result<Consensus, RunError> {
    let stored = Stored::existing(options(config, memory)).await?;
    let known = stored.as_ref().map_or_else(|| contacts(config), |stored| stored.roster().now());
    let introduced = meet_the_others(config, known, link, database, memory.generation()).await?;
    let stored = match stored {
        Some(stored) => stored,
        None => Stored::open(options(config, memory)).await?,
    };
    stored.roster().introduced(introduced);
    Ok(stored.take_part().await?)
}

async fn meet_the_others(
    config: &Config,
    known: Contacts,
    link: &Link,
    database: Option<(u64, u32)>,
    remembered: Generation,
) -> Result<Introduced, TurnedAway> {
    let introduction = introduce(config, known, link, database);
    if remembered == Generation::ZERO {
        return introduction.await.map(|(_, introduced)| introduced);
    }
    // A primary may be running here, and there is a lease to win: nobody slow is waited for.
    let answered = tokio::time::timeout(config.timings.lease / 8, introduction).await;
    Ok(answered.ok().transpose()?.map(|(_, introduced)| introduced).unwrap_or_default())
}

/// Takes connections of proxies, operators and other agents.
async fn listen(
    address: &HostPort,
) -> Result<impl Listener<Io = TcpStream, Addr = SocketAddr> + use<>, RunError> {
    let refuse = |source| RunError::Listen { address: address.clone(), source };
    let resolved: Vec<SocketAddr> =
        lookup_host((address.host.as_str(), address.port)).await.map_err(refuse)?.collect();
    let listener = TcpListener::bind(resolved.as_slice()).await.map_err(refuse)?;
    Ok(listener.tap_io(|connection| give_up_in_time(connection)))
}

/// A machine that is lost says nothing of it: without this, a link to a proxy there would seem to live for a quarter of an hour.
fn give_up_in_time(connection: &TcpStream) {
    const UNANSWERED_MAX: Duration = Duration::from_secs(10);
    let millis = u32::try_from(UNANSWERED_MAX.as_millis()).unwrap_or(u32::MAX);
    if let Err(error) = rustix::net::sockopt::set_tcp_user_timeout(connection, millis) {
        tracing::debug!("the kernel's patience with a connection stays as it is: {error}");
    }
}

fn contacts(config: &Config) -> Contacts {
    let contact = |member: &MemberEntry| Contact { name: member.name.clone(), agent: member.agent.clone() };
    config.members.iter().map(|member| (member.id, contact(member))).collect()
}

fn options(config: &Config, memory: &Memory) -> Options {
    let timings = &config.timings;
    Options {
        node: config.node.id,
        cluster: config.cluster.clone(),
        dir: config.node.state_dir.clone(),
        members: contacts(config),
        remembers: memory.generation() > Generation::ZERO,
        heartbeat: timings.heartbeat,
        election_timeout: (timings.election_timeout_min, timings.election_timeout_max),
        rpc_timeout: timings.remote_timeout,
    }
}

/// Removes what copies have replaced, when its time has come and while PostgreSQL runs.
async fn forget_old_data(instance: Instance) {
    const EVERY: Duration = Duration::from_secs(600);
    loop {
        instance.expire_kept().await;
        tokio::time::sleep(EVERY).await;
    }
}

/// What the adapter is told.
pub(crate) fn settings(config: &Config, postgres: &Postgres) -> Settings {
    Settings {
        node: config.node.name.clone(),
        data_dir: postgres.data_dir.clone(),
        bin_dir: postgres.bin_dir.clone(),
        config_file: postgres.config_file.clone(),
        address: postgres.address.clone(),
        socket_dir: postgres.socket_dir.clone(),
        os_user: postgres.os_user.clone(),
        user: postgres.user.clone(),
        password: postgres.password.clone(),
        database: postgres.database.clone(),
        replication_user: postgres.replication_user.clone(),
        replication_password: postgres.replication_password.clone(),
        log_file: postgres.log_file.clone(),
        state_dir: config.node.state_dir.clone(),
        keep_old_data: config.failover.rejoin.keep_old_data,
        start_timeout: postgres.start_timeout,
        stop_timeout: postgres.stop_timeout,
        probe_interval: config.timings.probe_interval,
        connect_timeout: config.timings.remote_timeout,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_who_answers_nothing_keeps_a_connection_for_longer_than_ten_seconds() {
        let any_port = HostPort { host: "127.0.0.1".to_owned(), port: 0 };
        let mut listener = listen(&any_port).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (client, (connection, from)) = tokio::join!(TcpStream::connect(address), listener.accept());
        assert_eq!(from, client.unwrap().local_addr().unwrap());
        assert_eq!(rustix::net::sockopt::tcp_user_timeout(&connection).unwrap(), 10_000);
    }
}
