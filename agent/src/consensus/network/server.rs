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
use pgherd_common::{ClusterName, NodeId};
use pgherd_core::quorum::Admission;
use tokio::sync::watch;

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
    admission: watch::Receiver<Admission>,
}

type Answer<T> = Result<Json<T>, (StatusCode, String)>;
type Message<T> = Result<Json<T>, JsonRejection>;

/// Where the other agents' messages arrive.
pub(in super::super) fn routes(
    raft: Raft,
    node: NodeId,
    cluster: ClusterName,
    admission: watch::Receiver<Admission>,
) -> Router {
    Router::new()
        .route(VOTE_PATH, post(vote))
        .route(PRE_VOTE_PATH, post(pre_vote))
        .route(APPEND_PATH, post(append))
        .route(SNAPSHOT_PATH, post(snapshot))
        .route(TRANSFER_PATH, post(transfer_leader))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(Arc::new(Server { raft, node, cluster, admission }))
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
    /// A node that may have forgotten what it voted and acknowledged says nothing to that. While it is
    /// fed again, it acknowledges what it has been fed since, but it does not vote.
    fn refuse(&self, asks_for_vote: bool) -> Result<(), (StatusCode, String)> {
        let why = match *self.admission.borrow() {
            Admission::Full => return Ok(()),
            Admission::Learner(_) if !asks_for_vote => return Ok(()),
            Admission::Undecided => {
                "this node has a new raft store and has not heard yet whether it has forgotten a group"
            }
            Admission::Probation(_) => "the raft store of this node was lost: it waits to be let in again",
            Admission::Learner(_) => "this node is being fed again and has no vote yet",
        };
        Err((StatusCode::SERVICE_UNAVAILABLE, why.to_owned()))
    }
}

async fn vote(
    State(server): State<Arc<Server>>,
    _: Meant,
    message: Message<VoteRequest<Group>>,
) -> Answer<VoteResponse<Group>> {
    server.refuse(true)?;
    answer(server.raft.vote(read(message)?).await)
}

async fn pre_vote(
    State(server): State<Arc<Server>>,
    _: Meant,
    message: Message<VoteRequest<Group>>,
) -> Answer<VoteResponse<Group>> {
    server.refuse(true)?;
    answer(server.raft.pre_vote(read(message)?).await)
}

async fn append(
    State(server): State<Arc<Server>>,
    _: Meant,
    message: Message<AppendEntriesRequest<Group>>,
) -> Answer<AppendEntriesResponse<Group>> {
    server.refuse(false)?;
    answer(server.raft.append_entries(read(message)?).await)
}

async fn snapshot(
    State(server): State<Arc<Server>>,
    _: Meant,
    message: Message<SnapshotMessage>,
) -> Answer<SnapshotResponse<Group>> {
    server.refuse(false)?;
    let SnapshotMessage { vote, meta, state } = read(message)?;
    answer(server.raft.install_full_snapshot(vote, Snapshot { meta, snapshot: state }).await)
}

async fn transfer_leader(
    State(server): State<Arc<Server>>,
    _: Meant,
    message: Message<TransferLeaderRequest<Group>>,
) -> Answer<TransferLeaderResponse<Group>> {
    server.refuse(true)?;
    answer(server.raft.handle_transfer_leader(read(message)?).await)
}
