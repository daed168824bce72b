//! Sending raft's messages.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{Backoff, RPCOption, RPCTypes};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{BasicNode, OptionalSend, RaftNetworkFactory, RaftNetworkV2};
use pgherd_common::errors::Chain;
use pgherd_common::{ClusterName, HostPort, NodeId};
use reqwest::StatusCode;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::super::errors::OpenError;
use super::super::options::Options;
use super::super::types::{Group, Snapshot, Vote};
use super::links::{Link, Links};
use super::{
    APPEND_PATH, CLUSTER_HEADER, NODE_HEADER, PRE_VOTE_PATH, SNAPSHOT_PATH, SnapshotMessage, TO_HEADER,
    TRANSFER_PATH, VOTE_PATH,
};
use crate::cluster::ClusterState;
use crate::roster::Roster;

/// All that is common to the ways to the other agents.
#[derive(Debug)]
struct Shared {
    http: reqwest::Client,
    node: NodeId,
    cluster: ClusterName,
    roster: Roster,
    heartbeat: Duration,
    append_timeout: Duration,
    rpc_timeout: Duration,
    links: Links,
}

/// Makes a [`Peer`] for each agent that raft wants to talk to.
#[derive(Debug, Clone)]
pub(in super::super) struct Peers(Arc<Shared>);

impl Peers {
    /// A connection idle for so long is as likely dead as alive.
    const IDLE_MAX: Duration = Duration::from_secs(10);

    pub(in super::super) fn new(options: &Options, roster: Roster) -> Result<Self, OpenError> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .tcp_nodelay(true)
            .connect_timeout(options.rpc_timeout)
            .pool_idle_timeout(Self::IDLE_MAX)
            .build()
            .map_err(OpenError::Client)?;
        Ok(Self(Arc::new(Shared {
            http,
            node: options.node,
            cluster: options.cluster.clone(),
            roster,
            heartbeat: options.heartbeat,
            append_timeout: options.append_timeout(),
            rpc_timeout: options.rpc_timeout,
            links: Links::default(),
        })))
    }
}

impl RaftNetworkFactory<Group> for Peers {
    type Network = Peer;

    /// The address in raft's own group is the last resort: it is never changed.
    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Peer {
        let target = NodeId(target);
        Peer { shared: Arc::clone(&self.0), target, last_resort: node.addr.parse().ok() }
    }
}

/// The way to one agent.
#[derive(Debug)]
pub(in super::super) struct Peer {
    shared: Arc<Shared>,
    target: NodeId,
    last_resort: Option<HostPort>,
}

/// Why there is no usable answer.
#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error("the agent of node {0} has no known address: run `pgherd add-node`, or add it to [[members]]")]
    NoAddress(NodeId),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("{0}")]
    Connection(String),
    #[error("refused: {0}")]
    Refused(String),
    #[error("HTTP {status}: {text}")]
    Status { status: StatusCode, text: String },
    #[error("cannot read the answer: {0}")]
    Answer(String),
}

impl CallError {
    fn link(&self) -> Link {
        match self {
            Self::Refused(why) => Link::Refused(why.clone()),
            Self::NoAddress(_)
            | Self::Timeout(_)
            | Self::Connection(_)
            | Self::Status { .. }
            | Self::Answer(_) => Link::Silent,
        }
    }
}

impl Peer {
    async fn call<A: DeserializeOwned>(
        &self,
        action: RPCTypes,
        path: &str,
        message: &impl Serialize,
        timeout: Duration,
    ) -> Result<A, RPCError<Group>> {
        let known = self.shared.roster.agent(self.target);
        let Some(address) = &known.or_else(|| self.last_resort.clone()) else {
            return Err(RPCError::Unreachable(Unreachable::new(&CallError::NoAddress(self.target))));
        };
        let result = self.request(address, path, message, timeout).await;
        match result {
            Ok(answer) => {
                self.shared.links.note(self.target, address, &Link::Up, "");
                Ok(answer)
            }
            Err(error) => {
                self.shared.links.note(self.target, address, &error.link(), &error.to_string());
                Err(match error {
                    CallError::Timeout(timeout) => {
                        let (id, target) = (self.shared.node.0, self.target.0);
                        RPCError::Timeout(Timeout { action, id, target, timeout })
                    }
                    CallError::NoAddress(_)
                    | CallError::Connection(_)
                    | CallError::Refused(_)
                    | CallError::Status { .. }
                    | CallError::Answer(_) => RPCError::Unreachable(Unreachable::new(&error)),
                })
            }
        }
    }

    async fn request<A: DeserializeOwned>(
        &self,
        address: &HostPort,
        path: &str,
        message: &impl Serialize,
        timeout: Duration,
    ) -> Result<A, CallError> {
        let explain = |error: reqwest::Error| {
            if error.is_timeout() {
                CallError::Timeout(timeout)
            } else {
                CallError::Connection(Chain(&error.without_url()).to_string())
            }
        };
        let response = self
            .shared
            .http
            .post(format!("http://{address}{path}"))
            .header(CLUSTER_HEADER, self.shared.cluster.as_str())
            .header(NODE_HEADER, self.shared.node.0)
            .header(TO_HEADER, self.target.0)
            .timeout(timeout)
            .json(message)
            .send()
            .await
            .map_err(explain)?;
        let status = response.status();
        let body = response.bytes().await.map_err(explain)?;
        match status {
            StatusCode::OK => {
                serde_json::from_slice(&body).map_err(|error| CallError::Answer(error.to_string()))
            }
            StatusCode::CONFLICT => Err(CallError::Refused(String::from_utf8_lossy(&body).into_owned())),
            _ => Err(CallError::Status { status, text: String::from_utf8_lossy(&body).into_owned() }),
        }
    }
}

impl RaftNetworkV2<Group> for Peer {
    type SnapshotData = ClusterState;

    /// The library's own bound for an append is one heartbeat, less than a slow disk may take.
    async fn append_entries(
        &mut self,
        message: AppendEntriesRequest<Group>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<Group>, RPCError<Group>> {
        self.call(RPCTypes::AppendEntries, APPEND_PATH, &message, self.shared.append_timeout).await
    }

    async fn vote(
        &mut self,
        message: VoteRequest<Group>,
        option: RPCOption,
    ) -> Result<VoteResponse<Group>, RPCError<Group>> {
        let timeout = self.shared.rpc_timeout.min(option.hard_ttl());
        self.call(RPCTypes::Vote, VOTE_PATH, &message, timeout).await
    }

    async fn pre_vote(
        &mut self,
        message: VoteRequest<Group>,
        option: RPCOption,
    ) -> Result<VoteResponse<Group>, RPCError<Group>> {
        let timeout = self.shared.rpc_timeout.min(option.hard_ttl());
        self.call(RPCTypes::Vote, PRE_VOTE_PATH, &message, timeout).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Group>, StreamingError<Group>> {
        let message = SnapshotMessage { vote, meta: snapshot.meta, state: snapshot.snapshot };
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            answer = self.call(RPCTypes::InstallSnapshot, SNAPSHOT_PATH, &message, self.shared.rpc_timeout) => {
                answer.map_err(|error| match error {
                    RPCError::Timeout(timeout) => StreamingError::Timeout(timeout),
                    RPCError::Unreachable(unreachable) => StreamingError::Unreachable(unreachable),
                    RPCError::Network(network) => StreamingError::Network(network),
                    RPCError::RemoteError(remote) => StreamingError::Network(NetworkError::new(&remote)),
                })
            }
        }
    }

    async fn transfer_leader(
        &mut self,
        message: TransferLeaderRequest<Group>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Group>, RPCError<Group>> {
        let timeout = self.shared.rpc_timeout.min(option.hard_ttl());
        self.call(RPCTypes::TransferLeader, TRANSFER_PATH, &message, timeout).await
    }

    /// Constant and short: an agent that is back is found within a heartbeat.
    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(std::iter::repeat(self.shared.heartbeat)))
    }
}
