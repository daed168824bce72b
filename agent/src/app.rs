//! Puts the agent together and runs it until it is told to stop.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use pgherd_common::{Generation, HostPort};
use tokio::net::{TcpListener, lookup_host};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc};

use crate::api::{Api, router};
use crate::config::{Config, Postgres};
use crate::consensus::{Consensus, OpenError as StoreError, Options};
use crate::driver::{Driver, Parts};
use crate::join::{TurnedAway, form_when_complete, introduce};
use crate::memory::{Memory, MemoryError};
use crate::peers::{Link, Peers};
use crate::postgres::{Instance, OpenError, Settings};
use crate::publish::Hub;

/// Events waiting for the loop; senders wait when it is full.
const INBOX: usize = 256;

/// Why the agent does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Its PostgreSQL.
    #[error("cannot take care of this PostgreSQL")]
    Postgres(#[from] OpenError),
    /// Its raft store.
    #[error("cannot take part in the cluster")]
    Store(#[from] StoreError),
    /// What it remembers besides.
    #[error("cannot take part in the cluster")]
    Memory(#[from] MemoryError),
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
}

/// Runs the agent. Returns when it was stopped; PostgreSQL goes on as it is.
pub async fn run(config: Config) -> Result<(), RunError> {
    let config = Arc::new(config);
    let instance = match &config.postgres {
        Some(postgres) => Some(Instance::open(settings(&config, postgres)).await?),
        None => None,
    };
    let database = instance.as_ref().map(Instance::identity);
    let listener = listen(&config.node.listen).await?;
    let link = Link::new(config.cluster.clone(), config.timings.remote_timeout)?;
    introduce(&config, &link, database).await?;
    let memory = Memory::open(&config.node.state_dir)?;
    let consensus = Consensus::open(options(&config, &memory)).await?;
    let (events, inbox) = mpsc::channel(INBOX);
    let hub = Hub::new(config.cluster.clone(), consensus.state(), config.timings.lease);
    let stop = Arc::new(Notify::new());
    let api = Api {
        config: config.clone(),
        consensus: consensus.clone(),
        instance: instance.clone(),
        hub: hub.clone(),
        events: events.clone(),
        link: link.clone(),
        stop: stop.clone(),
    };
    let server = tokio::spawn(async move { axum::serve(listener, router(api)).await });
    let peers = Peers::start(&link, &others(&config), &events);
    tracing::info!(
        cluster = %config.cluster, node = %config.node.name, id = %config.node.id, listen = %config.node.listen,
        "agent started"
    );
    let driver = Driver::new(Parts {
        config: config.clone(),
        consensus: consensus.clone(),
        instance,
        memory,
        peers,
        hub,
        events,
        inbox,
    });
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let asked_to_stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = stop.notified() => {}
        }
    };
    let forming = form_when_complete(config.clone(), link, consensus.clone(), database);
    let forming = async {
        match forming.await {
            // From now on there is nothing to wait for.
            Ok(()) => std::future::pending().await,
            Err(turned_away) => turned_away,
        }
    };
    let turned_away = tokio::select! {
        () = driver.run(asked_to_stop) => None,
        turned_away = forming => Some(turned_away),
    };
    if config.postgres.is_some() && turned_away.is_none() {
        tracing::info!(
            "agent stopped; PostgreSQL is left as it is and nobody watches it until an agent is back"
        );
    }
    consensus.shutdown().await;
    server.abort();
    turned_away.map_or(Ok(()), |turned_away| Err(turned_away.into()))
}

async fn listen(address: &HostPort) -> Result<TcpListener, RunError> {
    let refuse = |source| RunError::Listen { address: address.clone(), source };
    let resolved: Vec<SocketAddr> =
        lookup_host((address.host.as_str(), address.port)).await.map_err(refuse)?.collect();
    TcpListener::bind(resolved.as_slice()).await.map_err(refuse)
}

fn others(config: &Config) -> BTreeMap<pgherd_common::NodeId, HostPort> {
    let others = config.members.iter().filter(|member| member.id != config.node.id);
    others.map(|member| (member.id, member.agent.clone())).collect()
}

fn options(config: &Config, memory: &Memory) -> Options {
    let timings = &config.timings;
    Options {
        node: config.node.id,
        cluster: config.cluster.clone(),
        dir: config.node.state_dir.clone(),
        members: config.members.iter().map(|member| (member.id, member.agent.clone())).collect(),
        remembers: memory.generation() > Generation::ZERO,
        heartbeat: timings.heartbeat,
        election_timeout: (timings.election_timeout_min, timings.election_timeout_max),
        rpc_timeout: timings.remote_timeout,
    }
}

fn settings(config: &Config, postgres: &Postgres) -> Settings {
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
        start_timeout: postgres.start_timeout,
        stop_timeout: postgres.stop_timeout,
        probe_interval: config.timings.probe_interval,
        connect_timeout: config.timings.remote_timeout,
    }
}
