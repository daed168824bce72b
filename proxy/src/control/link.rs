//! One link to one agent, kept up for as long as the proxy runs.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use pgherd_common::errors::Chain;
use pgherd_common::push::{self, InvalidMessage, PROTOCOL, ToAgent, ToProxy};
use pgherd_common::{ClusterName, HostPort};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::clients::Clients;
use crate::config::Config;
use crate::topology::Acceptance;

use super::batches::READ_BY_NOW;
use super::cluster::{Cluster, LinkState};
use super::votes::Answer;

/// Agents send something at least every second; this long without is a dead link.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// Room for what agents say at a time.
const READ_BYTES: usize = 4 << 10;

const CONNECT_MAX: Duration = Duration::from_secs(2);
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("no connection within {CONNECT_MAX:?}")]
    ConnectTimeout,
    #[error("cannot connect")]
    Connect(#[source] tungstenite::Error),
    #[error("the link broke")]
    Broken(#[source] tungstenite::Error),
    #[error("the agent closed the link")]
    Closed,
    #[error("nothing was heard for {SILENCE_MAX:?}")]
    Silence,
    #[error("the agent said something that is not understood")]
    Invalid(#[source] InvalidMessage),
    #[error("the agent refused the link: {0}")]
    Goodbye(String),
    #[error("the agent serves cluster {0}")]
    Stranger(ClusterName),
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Connects to `agent`, follows it, and connects again when that ends. Never returns.
pub(crate) async fn keep_link(
    cluster: Arc<Cluster>,
    clients: Arc<Clients>,
    config: Arc<Config>,
    agent: HostPort,
) {
    let mut backoff = BACKOFF_MIN;
    cluster.set_link(&agent, LinkState::Down("not yet connected".to_owned()));
    loop {
        let error = match connect(&config, &agent).await {
            Ok(socket) => {
                backoff = BACKOFF_MIN;
                cluster.set_link(&agent, LinkState::Connected);
                tracing::info!(%agent, "link to agent is up");
                follow(&cluster, &clients, socket).await
            }
            Err(error) => error,
        };
        let why = Chain(&error).to_string();
        tracing::warn!(%agent, error = %why, "no link to agent; trying again");
        cluster.set_link(&agent, LinkState::Down(why));
        sleep(backoff.mul_f64(rand::random_range(0.5..1.0))).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

async fn connect(config: &Config, agent: &HostPort) -> Result<Socket, LinkError> {
    let url = format!("ws://{agent}{}", push::PATH);
    // It is cleared for every message, however short.
    let buffers = WebSocketConfig::default().read_buffer_size(READ_BYTES);
    let attempt = tokio_tungstenite::connect_async_with_config(url, Some(buffers), true);
    let (mut socket, _) = timeout(CONNECT_MAX, attempt)
        .await
        .map_err(|_| LinkError::ConnectTimeout)?
        .map_err(LinkError::Connect)?;
    let hello = ToAgent::Hello {
        protocol: PROTOCOL,
        cluster: config.cluster.clone(),
        proxy: config.name.clone(),
        listen: config.advertise.clone(),
        machine: machine(),
    };
    send(&mut socket, &hello).await?;
    Ok(socket)
}

/// This start of the kernel, and which of its network stacks. Where neither can be read, nothing tells two machines apart.
fn machine() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let network = std::fs::read_link("/proc/self/ns/net").unwrap_or_default();
    format!("{} {}", boot.trim(), network.display())
}

async fn send(socket: &mut Socket, message: &ToAgent) -> Result<(), LinkError> {
    let sent = timeout(SILENCE_MAX, socket.send(Message::text(message.encode()))).await;
    sent.map_err(|_| LinkError::Silence)?.map_err(LinkError::Broken)
}

type Told = watch::Receiver<Option<ToAgent>>;

/// The next thing that the agent is to hear unasked.
async fn news(first_writes: &mut Told, wishes: &mut Told) -> Option<ToAgent> {
    let told = tokio::select! {
        Ok(()) = first_writes.changed() => first_writes,
        Ok(()) = wishes.changed() => wishes,
        else => std::future::pending().await,
    };
    told.borrow_and_update().clone()
}

/// Takes in what the agent says until the link ends.
async fn follow(cluster: &Cluster, clients: &Clients, mut socket: Socket) -> LinkError {
    let mut first_writes = cluster.first_writes();
    let mut wishes = cluster.address_wishes();
    let mut owed: Option<(ToAgent, Instant)> = None;
    loop {
        let held = async {
            match &owed {
                Some((_, deadline)) => drop(timeout_at(*deadline, cluster.earlier_batches_ended()).await),
                None => std::future::pending().await,
            }
        };
        let heard = tokio::select! {
            () = held => {
                if let Some((answer, _)) = owed.take()
                    && let Err(error) = send(&mut socket, &answer).await
                {
                    return error;
                }
                continue;
            }
            heard = timeout(SILENCE_MAX, socket.next()) => heard,
            told = news(&mut first_writes, &mut wishes) => {
                if let Some(told) = told
                    && let Err(error) = send(&mut socket, &told).await
                {
                    return error;
                }
                continue;
            }
        };
        let message = match heard {
            Err(_) => return LinkError::Silence,
            Ok(None) => return LinkError::Closed,
            Ok(Some(Err(error))) => return LinkError::Broken(error),
            Ok(Some(Ok(message))) => message,
        };
        let text = match message {
            Message::Text(text) => text,
            Message::Close(_) => return LinkError::Closed,
            Message::Ping(_) | Message::Pong(_) | Message::Binary(_) | Message::Frame(_) => continue,
        };
        let step = match ToProxy::decode(&text) {
            Ok(message) => on_message(cluster, clients, message),
            Err(error) => return LinkError::Invalid(error),
        };
        match step {
            ControlFlow::Continue(None) => {}
            // The one that is refused is told that what holds new work is in effect.
            ControlFlow::Continue(Some(answer @ (ToAgent::Ack(_) | ToAgent::Refused { .. })))
                if cluster.holds_writes() =>
            {
                let deadline = owed.map_or(Instant::now() + READ_BY_NOW, |(_, deadline)| deadline);
                owed = Some((answer, deadline));
            }
            ControlFlow::Continue(Some(answer)) => {
                if matches!(answer, ToAgent::Ack(_)) {
                    owed = None;
                }
                if let Err(error) = send(&mut socket, &answer).await {
                    return error;
                }
            }
            ControlFlow::Break(error) => return error,
        }
    }
}

/// Takes one message in; the answer, if there is one, says what is in effect by now.
fn on_message(
    cluster: &Cluster,
    clients: &Clients,
    message: ToProxy,
) -> ControlFlow<LinkError, Option<ToAgent>> {
    match message {
        ToProxy::Reset(topology) => {
            let pushed = topology.version();
            let stranger = topology.cluster().clone();
            match cluster.offer(topology) {
                Acceptance::Switch => {
                    tracing::info!(version = %pushed, "topology in effect");
                    ControlFlow::Continue(Some(ToAgent::Ack(pushed)))
                }
                Acceptance::Known => ControlFlow::Continue(Some(ToAgent::Ack(pushed))),
                Acceptance::Older { have } => {
                    tracing::warn!(%pushed, %have, "older topology refused");
                    ControlFlow::Continue(Some(ToAgent::Refused { pushed, have }))
                }
                Acceptance::Stranger => ControlFlow::Break(LinkError::Stranger(stranger)),
            }
        }
        ToProxy::Status(status) => {
            cluster.backed(status.backed_ms);
            cluster.observe(status.backends);
            ControlFlow::Continue(None)
        }
        ToProxy::Address { round, granted, voter, voters, hold_ms } => {
            let hold = Duration::from_millis(hold_ms);
            cluster.address_answered(Answer { round, granted, voter, voters, hold });
            ControlFlow::Continue(None)
        }
        ToProxy::CountUnmovable => {
            let (sessions, example) = clients.unmovable();
            ControlFlow::Continue(Some(ToAgent::Unmovable { sessions, example }))
        }
        ToProxy::Goodbye(why) => ControlFlow::Break(LinkError::Goodbye(why)),
    }
}
