//! Talks to the other agents: one task for each, that always sends the newest beat and never queues. They come and go
//! with the roster.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Duration;

use pgherd_common::config::Secret;
use pgherd_common::time::RealClock;
use pgherd_common::{Clock, ClusterName, HostPort, Lsn, NodeId, Timeline};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

use crate::beat::{Beat, BeatAnswer, Hello, Welcome};
use crate::driver::Event;
use crate::observation::RemoteDatabase;
use crate::postgres::FetchError;
use crate::proof;
use crate::roster::Roster;

/// Where an agent gives away the WAL that its dead PostgreSQL has left.
pub(crate) const LEFT_WAL: &str = "/v1/left-wal";

/// Carries the sender's cluster on every request between agents.
pub const CLUSTER_HEADER: &str = "x-pgherd-cluster";

/// The other agents.
pub struct Peers {
    latest: watch::Sender<Option<Arc<Beat>>>,
}

impl Peers {
    /// Beats to everybody on the roster but `me`. Answers arrive as [`Event::BeatAnswered`].
    pub fn start(link: &Link, roster: Roster, me: NodeId, events: &mpsc::Sender<Event>) -> Self {
        let (latest, _) = watch::channel(None);
        tokio::spawn(follow(link.clone(), roster, me, latest.clone(), events.clone()));
        Self { latest }
    }

    /// Sends this beat to everybody, as soon as each one's previous beat was answered or given up.
    pub fn broadcast(&self, beat: Beat) {
        self.latest.send_replace(Some(Arc::new(beat)));
    }
}

/// Keeps one task for each other agent at its present address. Ends with the log.
async fn follow(
    link: Link,
    mut roster: Roster,
    me: NodeId,
    latest: watch::Sender<Option<Arc<Beat>>>,
    events: mpsc::Sender<Event>,
) {
    let mut introductions = roster.introductions();
    // A task ends with its place in here.
    let (mut tasks, mut known) = (JoinSet::new(), BTreeMap::<NodeId, (HostPort, AbortHandle)>::new());
    loop {
        let others = roster.others(me);
        known.retain(|id, (address, task)| {
            let stays = others.get(id).is_some_and(|contact| contact.agent == *address);
            if !stays {
                task.abort();
            }
            stays
        });
        for (id, contact) in others {
            known.entry(id).or_insert_with(|| {
                let (link, address) = (link.clone(), contact.agent.clone());
                let task = beat_to(link, id, contact.agent, latest.subscribe(), events.clone());
                (address, tasks.spawn(task))
            });
        }
        if !roster.changed(&mut introductions).await || events.is_closed() {
            return;
        }
        while tasks.try_join_next().is_some() {}
    }
}

async fn beat_to(
    link: Link,
    id: NodeId,
    address: HostPort,
    mut latest: watch::Receiver<Option<Arc<Beat>>>,
    events: mpsc::Sender<Event>,
) {
    let mut complained = false;
    while latest.changed().await.is_ok() {
        let Some(beat) = latest.borrow_and_update().clone() else { continue };
        let sent = RealClock.now();
        let answer = link.post::<_, BeatAnswer>(&address, "/v1/beat", &*beat).await;
        match answer {
            Ok(answer) => {
                if complained {
                    tracing::info!(node = %id, agent = %address, "the agent answers again");
                }
                complained = false;
                let event = Event::BeatAnswered { voter: id, sent, answer };
                if events.send(event).await.is_err() {
                    return;
                }
            }
            Err(error) if !complained => {
                complained = true;
                tracing::warn!(node = %id, agent = %address, "the agent does not answer: {error}");
            }
            Err(_) => {}
        }
    }
}

/// How one agent calls another over HTTP, with a bound on every call.
#[derive(Debug, Clone)]
pub struct Link {
    client: reqwest::Client,
    cluster: ClusterName,
    timeout: Duration,
}

/// Why a call to another agent failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No answer, or not in time.
    #[error("no answer from the agent at {0}")]
    Unreachable(HostPort, #[source] reqwest::Error),
    /// It answered that it will not.
    #[error("the agent at {agent} refused: {reason}")]
    Refused {
        /// Who answered.
        agent: HostPort,
        /// What it said.
        reason: String,
    },
}

impl FetchError for CallError {
    fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }
}

impl Link {
    /// Connections are kept; none is trusted longer than `timeout` without an answer.
    pub fn new(cluster: ClusterName, timeout: Duration) -> Result<Self, reqwest::Error> {
        let client =
            reqwest::Client::builder().connect_timeout(timeout).tcp_nodelay(true).no_proxy().build()?;
        Ok(Self { client, cluster, timeout })
    }

    /// Posts a JSON body and reads a JSON answer.
    pub async fn post<B: serde::Serialize + Sync, A: serde::de::DeserializeOwned>(
        &self,
        agent: &HostPort,
        path: &str,
        body: &B,
    ) -> Result<A, CallError> {
        self.call(agent, self.client.post(format!("http://{agent}{path}")).json(body)).await
    }

    /// Gets a JSON answer.
    pub async fn get<A: serde::de::DeserializeOwned>(
        &self,
        agent: &HostPort,
        path: &str,
    ) -> Result<A, CallError> {
        self.call(agent, self.client.get(format!("http://{agent}{path}"))).await
    }

    /// Gets bytes of the WAL that a dead primary has left, from its agent.
    pub async fn left_wal(
        &self,
        agent: &HostPort,
        secret: &Secret,
        timeline: Timeline,
        from: Lsn,
        length: u64,
    ) -> Result<Vec<u8>, CallError> {
        let path = format!("{LEFT_WAL}?timeline={timeline}&from={from}&length={length}");
        let request = self
            .client
            .get(format!("http://{agent}{path}"))
            .header(proof::HEADER, proof::prove(secret, &path));
        let unreachable = |error| CallError::Unreachable(agent.clone(), error);
        Ok(self.answer(agent, request).await?.bytes().await.map_err(unreachable)?.to_vec())
    }

    async fn call<A: serde::de::DeserializeOwned>(
        &self,
        agent: &HostPort,
        request: reqwest::RequestBuilder,
    ) -> Result<A, CallError> {
        let unreachable = |error| CallError::Unreachable(agent.clone(), error);
        self.answer(agent, request).await?.json().await.map_err(unreachable)
    }

    /// An answer that is no refusal.
    async fn answer(
        &self,
        agent: &HostPort,
        request: reqwest::RequestBuilder,
    ) -> Result<reqwest::Response, CallError> {
        let unreachable = |error| CallError::Unreachable(agent.clone(), error);
        let request = request.header(CLUSTER_HEADER, self.cluster.as_str()).timeout(self.timeout);
        let response = request.send().await.map_err(unreachable)?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let text = response.text().await.map_err(unreachable)?;
        let reason =
            serde_json::from_str::<crate::api::types::Refusal>(&text).map_or(text, |refusal| refusal.error);
        Err(CallError::Refused { agent: agent.clone(), reason: format!("{reason} ({status})") })
    }

    /// Posts an operator's request as it is, marked as passed on; the answer is the operator's.
    pub async fn pass_on<B: serde::Serialize + Sync>(
        &self,
        agent: &HostPort,
        path: &str,
        mark: &'static str,
        body: &B,
    ) -> Result<reqwest::Response, reqwest::Error> {
        // The leader waits for the log, which takes longer than a beat may.
        let request = self.client.post(format!("http://{agent}{path}")).json(body).timeout(self.timeout * 5);
        request.header(mark, "1").header(CLUSTER_HEADER, self.cluster.as_str()).send().await
    }

    /// Introduces this agent.
    pub async fn hello(&self, agent: &HostPort, hello: &Hello) -> Result<Welcome, CallError> {
        self.post(agent, "/v1/hello", hello).await
    }
}

/// What a node without a login sees of another node's PostgreSQL: whether it answers at all.
pub(crate) async fn knock_unauthenticated(address: &HostPort, timeout: Duration) -> RemoteDatabase {
    /// SSLRequest, which every server answers with one byte before it asks who we are.
    const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
    let ask = async {
        let mut stream = TcpStream::connect((address.host.as_str(), address.port)).await?;
        stream.write_all(&SSL_REQUEST).await?;
        stream.read_u8().await
    };
    let answer: Result<io::Result<u8>, _> = tokio::time::timeout(timeout, ask).await;
    match answer {
        Ok(Ok(_)) => RemoteDatabase::Answering,
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => RemoteDatabase::Refused,
        Ok(Err(_)) | Err(_) => RemoteDatabase::Silent,
    }
}
