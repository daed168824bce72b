//! The process: its listeners, its links to the agents, its end.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pgherd_common::HostPort;
use pgherd_common::errors::Chain;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::address::Address;
use crate::admin::reload;
use crate::clients::send_idle_away;
use crate::config::Config;
use crate::control::{Cluster, keep_link};
use crate::listen::{Listener, SocketError};
use crate::pool;
use crate::shared::Shared;
use crate::tls::TlsError;
use crate::workers::{STACK_BYTES, Workers};

/// How long sessions that are at work may go on once the process is to end.
const GRACE: Duration = Duration::from_secs(3);

/// After a failed accept (out of file descriptors, most likely) the next try waits for this.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How often it is looked whether certificates changed.
const CERTIFICATES_LOOK: Duration = Duration::from_secs(1);

/// Why the proxy does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Threads could not be started.
    #[error(
        "cannot start the threads that serve clients; lower proxy.threads, or allow this process more threads and files"
    )]
    Threads(#[source] io::Error),
    /// Signals cannot be received.
    #[error("cannot listen for signals")]
    Signals(#[source] io::Error),
    /// A listen address cannot be had.
    #[error("cannot listen on {address}")]
    Listen {
        /// As configured.
        address: HostPort,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A Unix socket cannot be had.
    #[error("cannot listen on {path}", path = path.display())]
    Socket {
        /// Where it was to be.
        path: PathBuf,
        /// Why.
        #[source]
        source: SocketError,
    },
    /// The virtual IP cannot be taken care of.
    #[error("cannot take care of the virtual IP {address}")]
    VirtualIp {
        /// As configured.
        address: pgherd_vip::Subnet,
        /// Why.
        #[source]
        source: pgherd_vip::OpenError,
    },
    /// The certificates do not do.
    #[error("cannot use the certificates of the configuration")]
    Tls(#[source] TlsError),
}

/// Runs the proxy until SIGTERM or SIGINT.
pub fn run(config: Config) -> Result<(), RunError> {
    // Clients have threads of their own; what is left for this one waits most of the time.
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.enable_all().worker_threads(1).thread_stack_size(STACK_BYTES);
    let runtime = runtime.build().map_err(RunError::Threads)?;
    runtime.block_on(async {
        let stop = stop_signal()?;
        serve(config, stop).await
    })
}

fn stop_signal() -> Result<impl Future<Output = ()>, RunError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Signals)?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Runs the proxy until `stop` resolves: on the current runtime, but for the threads that serve clients.
pub async fn serve(config: Config, stop: impl Future<Output = ()>) -> Result<(), RunError> {
    let config = Arc::new(config);
    check_virtual_ip(&config)?;
    let listeners = listen(&config).await?;
    let cluster = Arc::new(Cluster::new(config.cluster.clone()));
    let mut background = JoinSet::new();
    let (stopping, watcher) = watch::channel(false);
    let shared = Arc::new(Shared::new(config.clone(), cluster.clone(), watcher).map_err(RunError::Tls)?);
    for agent in &config.agents {
        let link = keep_link(cluster.clone(), shared.clients.clone(), config.clone(), agent.clone());
        background.spawn(link);
    }
    let address = config.virtual_ip.as_ref().map(|ip| Address::start(ip, &cluster)).transpose();
    let address = address.map_err(RunError::Threads)?.map(Arc::new);
    if let Some(address) = address.clone() {
        background.spawn(async move { address.keep().await });
    }
    let hangup = signal(SignalKind::hangup()).map_err(RunError::Signals)?;
    background.spawn(keep_certificates(shared.clone(), hangup));
    background.spawn(pool::keep(shared.clone()));
    background.spawn(send_idle_away(shared.clone()));
    background.spawn(tell_clients(shared.clone()));
    let threads = shared.config().threads;
    let workers = Arc::new(Workers::start(&shared, threads).map_err(RunError::Threads)?);
    if threads > 1 {
        let workers = workers.clone();
        background.spawn(async move { workers.balance().await });
    }
    // Every session holds a sender: when the last is dropped, all are over.
    let (alive, mut all_over) = mpsc::channel::<()>(1);
    let reception = workers.reception().map_err(RunError::Threads)?;
    for listener in listeners {
        let listener = {
            let _there = reception.enter();
            listener.settle().map_err(RunError::Threads)?
        };
        background.spawn_on(accept(listener, workers.clone(), alive.clone()), &reception);
    }
    drop(alive);
    stop.await;
    tracing::info!("stopping");
    if let Some(address) = address {
        address.give_up().await;
    }
    background.abort_all();
    while background.join_next().await.is_some() {}
    stopping.send_replace(true);
    shared.clients.wake();
    if timeout(GRACE, all_over.recv()).await.is_err() {
        tracing::warn!(grace = ?GRACE, "sessions still at work are ended now");
    }
    // Whoever accepted clients for them is gone.
    if let Some(workers) = Arc::into_inner(workers) {
        drop(tokio::task::spawn_blocking(|| workers.stop()).await);
    }
    Ok(())
}

/// What cannot be done later is better known now.
fn check_virtual_ip(config: &Config) -> Result<(), RunError> {
    let Some(ip) = &config.virtual_ip else { return Ok(()) };
    ip.vip().check().map_err(|source| RunError::VirtualIp { address: ip.address, source })
}

async fn listen(config: &Config) -> Result<Vec<Listener>, RunError> {
    let mut listeners = Vec::new();
    for address in &config.listen {
        let listener = Listener::tcp(address).await;
        let listener = listener.map_err(|source| RunError::Listen { address: address.clone(), source })?;
        tracing::info!(%address, "accepting clients");
        listeners.push(listener);
    }
    for path in config.unix_sockets() {
        let mode = config.unix_socket.as_ref().map_or(0, |socket| socket.mode);
        let listener = Listener::local(&path, mode).await;
        let listener = listener.map_err(|source| RunError::Socket { path: path.clone(), source })?;
        tracing::info!(path = %path.display(), "accepting clients");
        listeners.push(listener);
    }
    Ok(listeners)
}

/// Has clients look at every new topology. Never returns.
async fn tell_clients(shared: Arc<Shared>) {
    let mut topology = shared.cluster.follow();
    // The sender lives as long as the process.
    while topology.changed().await.is_ok() {
        shared.clients.nudge();
    }
}

/// Reads certificates again when their files changed, and the whole configuration on SIGHUP. Never returns.
async fn keep_certificates(shared: Arc<Shared>, mut hangup: Signal) {
    loop {
        let asked = timeout(CERTIFICATES_LOOK, hangup.recv()).await.is_ok();
        let shared = shared.clone();
        let look = move || match asked.then(|| reload::reload(&shared)) {
            Some(Err(error)) => {
                let error = Chain(&error);
                tracing::error!(%error, "nothing but certificates was read again");
                shared.refresh_certificates(true);
            }
            Some(Ok(_)) => {}
            None => shared.refresh_certificates(false),
        };
        // The disk must not hold up clients.
        drop(tokio::task::spawn_blocking(look).await);
    }
}

async fn accept(listener: Listener, workers: Arc<Workers>, alive: mpsc::Sender<()>) {
    loop {
        match listener.accept().await {
            Ok(visitor) => workers.serve(visitor, alive.clone()),
            Err(error) => {
                tracing::error!(%error, "cannot accept a client");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
