//! Receiving raft's messages.

use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, FromRequestParts, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::routing::post;
use axum::{Json, Router};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::type_config::async_runtime::watch::WatchReceiver as _;
use pgherd_common::{ClusterName, NodeId};

use super::super::types::{Group, Raft, Snapshot};
use super::{
    APPEND_PATH, CLUSTER_HEADER, NODE_HEADER, PRE_VOTE_PATH, SNAPSHOT_PATH, SnapshotMessage, TO_HEADER,
    TRANSFER_PATH, VOTE_PATH,
};

/// Bound of one message: a snapshot is the largest, and far below.
const BODY_BYTES_MAX: usize = 32 << 20;

struct Server {
    raft: Raft,
    node: NodeId,
    cluster: ClusterName,
}

type Answer<T> = Result<Json<T>, (StatusCode, String)>;
type Message<T> = Result<Json<T>, JsonRejection>;

/// Where the other agents' messages arrive.
pub(in super::super) fn routes(raft: Raft, node: NodeId, cluster: ClusterName) -> Router {
    Router::new()
        .route(VOTE_PATH, post(vote))
        .route(PRE_VOTE_PATH, post(pre_vote))
        .route(APPEND_PATH, post(append))
        .route(SNAPSHOT_PATH, post(snapshot))
        .route(TRANSFER_PATH, post(transfer_leader))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(Arc::new(Server { raft, node, cluster }))
}

/// Proof that a message is meant for this node and comes from its cluster. An address that leads to
/// the wrong node would otherwise let one agent vote twice.
struct Meant;

impl FromRequestParts<Arc<Server>> for Meant {
    type Rejection = (StatusCode, String);

    async fn from_request_parts(parts: &mut Parts, server: &Arc<Server>) -> Result<Self, Self::Rejection> {
        let header = |name| parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
        let (cluster, to, from) = (header(CLUSTER_HEADER), header(TO_HEADER), header(NODE_HEADER));
        let here = format!("this is node {} of cluster {}", server.node, server.cluster);
        if cluster != server.cluster.as_str() {
            return Err((StatusCode::CONFLICT, format!("{here}, the message is from cluster {cluster:?}")));
        }
        if to != server.node.to_string() {
            return Err((StatusCode::CONFLICT, format!("{here}, the message is for node {to:?}")));
        }
        if from == to {
            return Err((
                StatusCode::CONFLICT,
                format!("{here}, the message is from a node of the same number"),
            ));
        }
        Ok(Self)
    }
}

fn read<T>(message: Message<T>) -> Result<T, (StatusCode, String)> {
    message.map(|Json(message)| message).map_err(|rejection| (rejection.status(), rejection.body_text()))
}

fn answer<T, E: std::fmt::Display>(result: Result<T, E>) -> Answer<T> {
    result
        .map(Json)
        .map_err(|error| (StatusCode::SERVICE_UNAVAILABLE, format!("raft has stopped here: {error}")))
}

impl Server {
    /// A node without vote and log has either never taken part or lost its store. Which, it cannot
    /// know; so it votes only in the first election of a new group, where nothing can have been
    /// forgotten, and otherwise waits for a leader to bring it up to date.
    fn forgetful(&self, request: &VoteRequest<Group>) -> Option<VoteResponse<Group>> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let blank = metrics.current_term == 0 && metrics.last_log_index.is_none();
        let first_election = request.last_log_id.is_none_or(|last| last.index == 0);
        (blank && !first_election).then(|| VoteResponse::new(metrics.vote, None, false))
    }
}

async fn vote(
    State(server): State<Arc<Server>>,
    _: Meant,
    message: Message<VoteRequest<Group>>,
) -> Answer<VoteResponse<Group>> {
    let request = read(message)?;
    match server.forgetful(&request) {
        Some(refusal) => Ok(Json(refusal)),
        None => answer(server.raft.vote(request).await),
    }
}

async fn pre_vote(
    State(server): State<Arc<Server>>,
    _: Meant,
    message: Message<VoteRequest<Group>>,
) -> Answer<VoteResponse<Group>> {
    let request = read(message)?;
    match server.forgetful(&request) {
        Some(refusal) => Ok(Json(refusal)),
        None => answer(server.raft.pre_vote(request).await),
    }
}

async fn append(
    State(server): State<Arc<Server>>,
    _: Meant,
    message: Message<AppendEntriesRequest<Group>>,
) -> Answer<AppendEntriesResponse<Group>> {
    answer(server.raft.append_entries(read(message)?).await)
}

async fn snapshot(
    State(server): State<Arc<Server>>,
    _: Meant,
    message: Message<SnapshotMessage>,
) -> Answer<SnapshotResponse<Group>> {
    let SnapshotMessage { vote, meta, state } = read(message)?;
    answer(server.raft.install_full_snapshot(vote, Snapshot { meta, snapshot: state }).await)
}

async fn transfer_leader(
    State(server): State<Arc<Server>>,
    _: Meant,
    message: Message<TransferLeaderRequest<Group>>,
) -> Answer<TransferLeaderResponse<Group>> {
    answer(server.raft.handle_transfer_leader(read(message)?).await)
}
