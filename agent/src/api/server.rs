//! Routes, and what agents say to each other.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, Request, State, WebSocketUpgrade};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use pgherd_common::time::RealClock;
use pgherd_common::{Clock, Lsn, Timeline, push};
use pgherd_core::quorum::Admission;
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};

use super::types::{Refusal, Tried};
use super::{maintenance, members, metrics, operator, parameters, rebuild, restart, status, versions};
use crate::beat::{Beat, BeatAnswer, Hello, HelloRefused, Welcome, refuse_hello};
use crate::config::Config;
use crate::consensus::Consensus;
use crate::driver::{Event, Picture};
use crate::notify::Notifier;
use crate::observation::PostgresObservation;
use crate::peers::{CLUSTER_HEADER, LEFT_WAL, Link};
use crate::postgres::Instance;
use crate::proof;
use crate::publish::Hub;
use crate::working::Working;

/// What the handlers need.
#[derive(Clone)]
pub struct Api {
    /// The configuration.
    pub config: Arc<Config>,
    /// Raft.
    pub consensus: Consensus,
    /// The own PostgreSQL.
    pub instance: Option<Instance>,
    /// The proxies.
    pub hub: Hub,
    /// The loop.
    pub events: mpsc::Sender<Event>,
    /// Calls to other agents.
    pub link: Link,
    /// What takes long here.
    pub working: Working,
    /// Rung by `stop-cluster`.
    pub stop: Arc<tokio::sync::Notify>,
    /// Tells people.
    pub notifier: Notifier,
}

/// Everything on the agent's port, raft included.
pub fn router(api: Api) -> Router {
    let raft = api.consensus.routes();
    let own = Router::new()
        .route("/v1/beat", post(beat))
        .route("/v1/hello", post(hello))
        .route("/v1/observe", get(observe))
        .route("/v1/report", get(report))
        .route(operator::BUSY, get(operator::busy))
        .route(LEFT_WAL, get(left_wal))
        .route("/v1/status", get(status::cluster))
        .route("/v1/node", get(status::node))
        .route("/v1/history", get(status::history))
        .route("/metrics", get(metrics::scrape))
        .route("/v1/promote", post(operator::promote))
        .route("/v1/cancel-scheduled", post(operator::cancel_scheduled))
        .route("/v1/resume", post(operator::resume))
        .route("/v1/attach", post(operator::attach))
        .route("/v1/detach", post(operator::detach))
        .route("/v1/allow-node", post(operator::allow))
        .route("/v1/disallow-node", post(operator::disallow))
        .route("/v1/restart", post(restart::restart))
        .route(restart::HERE, post(restart::here))
        .route(restart::PENDING, get(restart::pending))
        .route(restart::CAPACITY, get(restart::capacity))
        .route("/v1/parameters", post(parameters::set).get(parameters::show))
        .route(parameters::CHECK, post(parameters::check))
        .route(parameters::HERE, get(parameters::here))
        .route("/v1/versions", get(versions::all))
        .route(versions::HERE, get(versions::here))
        .route("/v1/pause", post(maintenance::pause))
        .route("/v1/unpause", post(maintenance::unpause))
        .route("/v1/add-node", post(members::add))
        .route("/v1/remove-node", post(members::remove))
        .route("/v1/reset-members", post(members::reset))
        .route("/v1/set-priority", post(operator::set_priority))
        .route("/v1/rebuild", post(rebuild::order).get(rebuild::status))
        .route("/v1/stop-rebuild", post(rebuild::stop))
        .route("/v1/stop-cluster", post(operator::stop_cluster))
        .route("/v1/stop", post(operator::stop))
        .route("/v1/notify-test", post(notify_test))
        .route(push::PATH, get(push_link))
        .layer(middleware::from_fn_with_state(api.clone(), same_cluster))
        .with_state(api);
    own.merge(raft)
}

impl Api {
    /// Everything the loop knows.
    pub(super) async fn picture(&self) -> Result<Box<Picture>, Refused> {
        self.ask(Event::Describe).await
    }

    /// Asks the loop something.
    pub(super) async fn ask<T>(&self, event: impl FnOnce(oneshot::Sender<T>) -> Event) -> Result<T, Refused> {
        let (answer, question) = oneshot::channel();
        let stopping =
            || Refused::new(StatusCode::SERVICE_UNAVAILABLE, "this agent is stopping", "ask another agent");
        self.events.send(event(answer)).await.map_err(|_| stopping())?;
        question.await.map_err(|_| stopping())
    }
}

/// An answer that says no.
#[derive(Debug)]
pub(super) struct Refused(pub(super) StatusCode, pub(super) Refusal);

impl Refused {
    pub(super) fn new(status: StatusCode, error: impl std::fmt::Display, hint: &str) -> Self {
        Self(status, Refusal { error: error.to_string(), hint: hint.to_owned() })
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, Json(self.1)).into_response()
    }
}

/// Agents of another cluster, or with another idea of its name, are told so.
async fn same_cluster(State(api): State<Api>, headers: HeaderMap, request: Request, next: Next) -> Response {
    let theirs = headers.get(CLUSTER_HEADER).and_then(|value| value.to_str().ok());
    match theirs {
        Some(theirs) if theirs != api.config.cluster.as_str() => {
            let error = format!("this is cluster {}, not {theirs}", api.config.cluster);
            let hint = "correct cluster.name, or the addresses in [[members]]";
            Refused::new(StatusCode::CONFLICT, error, hint).into_response()
        }
        Some(_) | None => next.run(request).await,
    }
}

async fn beat(State(api): State<Api>, Json(beat): Json<Beat>) -> Result<Json<BeatAnswer>, Refused> {
    let id = beat.observation.descriptor.id;
    if id == api.config.node.id {
        let error = format!("node {id} is this agent ({}), it cannot beat to itself", api.config.node.name);
        return Err(Refused::new(StatusCode::CONFLICT, error, "give every node an id of its own"));
    }
    let said = &beat.observation.descriptor;
    let known = api.consensus.roster().get(id);
    if let Some(known) = known.filter(|known| (&known.name, &known.agent) != (&said.name, &said.agent)) {
        let error = format!(
            "node {id} is {} at {} to this cluster, not {} at {}: one that was removed, and added again elsewhere, is heard no more",
            known.name, known.agent, said.name, said.agent
        );
        let hint = "stop the agent that was removed; if a node has moved, correct [[members]] on all nodes and restart their agents";
        return Err(Refused::new(StatusCode::CONFLICT, error, hint));
    }
    api.ask(|answer| Event::Beat(Box::new(beat), answer)).await.map(Json)
}

async fn hello(
    State(api): State<Api>,
    headers: HeaderMap,
    Json(hello): Json<Hello>,
) -> Result<Json<Welcome>, Refused> {
    let id = hello.descriptor.id;
    let standing = api.consensus.standing().borrow().clone();
    let state = api.consensus.state().borrow().clone();
    let roster = api.consensus.roster();
    let refused = refuse_hello(&hello, &api.config.cluster, roster.get(id).as_ref(), &state);
    // Who was added a moment ago the leader knows.
    let leader = standing.leader.filter(|leader| *leader != api.config.node.id);
    let leader = leader.filter(|_| !operator::is_passed_on(&headers)).and_then(|leader| roster.agent(leader));
    if let (Some(HelloRefused::Stranger(_)), Some(leader)) = (&refused, leader) {
        match operator::ask_agent(&api, &leader, "/v1/hello", &hello).await {
            Err(Refused(StatusCode::SERVICE_UNAVAILABLE, _)) => {}
            answered => return answered,
        }
    }
    if let Some(HelloRefused::Stranger(reason) | HelloRefused::Unfit(reason)) = refused {
        tracing::warn!("turned away node {id} ({}): {reason}", hello.descriptor.name);
        let hint = "correct the newcomer's configuration; nothing of it was touched";
        return Err(Refused::new(StatusCode::CONFLICT, reason, hint));
    }
    Ok(Json(Welcome {
        initialized: standing.initialized,
        ready: standing.admission == Admission::Full,
        invited: state.invited.contains_key(&id),
        revision: state.revision,
        roster: roster.now(),
    }))
}

/// What `GET /v1/observe` is asked for.
#[derive(Debug, Deserialize)]
struct Observe {
    /// Answer as soon as the server has replayed to here,
    reach: Option<Lsn>,
    /// but no later than this.
    #[serde(default)]
    within_ms: u64,
}

async fn observe(
    State(api): State<Api>,
    Query(asked): Query<Observe>,
) -> Result<Json<Option<PostgresObservation>>, Refused> {
    /// PostgreSQL announces replay to nobody.
    const PAUSE: Duration = Duration::from_millis(10);
    let Some(instance) = &api.instance else { return Ok(Json(None)) };
    let deadline = RealClock.now() + Duration::from_millis(asked.within_ms.min(2000));
    loop {
        let observation = instance.observe().await;
        let reached =
            asked.reach.is_none_or(|reach| observation.running().is_some_and(|r| r.position >= reach));
        if reached || RealClock.now() >= deadline {
            return Ok(Json(Some(observation)));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// What `GET /v1/left-wal` is asked for.
#[derive(Debug, Deserialize)]
struct LeftWalPart {
    timeline: u32,
    from: Lsn,
    length: u64,
}

/// WAL that nobody has but the disk of a primary that died, for the standby that is to take over.
async fn left_wal(
    State(api): State<Api>,
    uri: Uri,
    headers: HeaderMap,
    Query(part): Query<LeftWalPart>,
) -> Result<Vec<u8>, Refused> {
    let node = &api.config.node.name;
    let (Some(instance), Some(postgres)) = (&api.instance, &api.config.postgres) else {
        let error = format!("{node} is a witness: it has no WAL");
        return Err(Refused::new(StatusCode::NOT_FOUND, error, "ask the agent of a database node"));
    };
    let Some(secret) = postgres.shared_secret() else {
        let error = format!("{node} gives WAL only to who knows postgres.password, and has none itself");
        return Err(Refused::new(StatusCode::FORBIDDEN, error, "set postgres.password on all nodes"));
    };
    let request = uri.path_and_query().map_or("", |request| request.as_str());
    let proof = headers.get(proof::HEADER).and_then(|value| value.to_str().ok());
    if !proof.is_some_and(|proof| proof::holds(secret, request, proof)) {
        let error = format!("{node} gives WAL to agents of its cluster only");
        return Err(Refused::new(
            StatusCode::FORBIDDEN,
            error,
            "postgres.password must be the same on all nodes",
        ));
    }
    instance.read_left_wal(Timeline(part.timeline), part.from, part.length).await.map_err(|error| {
        let error = format!("{node} cannot give WAL from {} on: {error}", part.from);
        Refused::new(StatusCode::CONFLICT, error, "a standby streams it, if PostgreSQL runs")
    })
}

/// Whether people can be told, tried now.
async fn notify_test(State(api): State<Api>) -> Json<Vec<Tried>> {
    let tried = api.notifier.test().await.into_iter();
    Json(tried.map(|(channel, result)| Tried { channel, error: result.err() }).collect())
}

async fn report(State(api): State<Api>) -> Result<Json<Vec<String>>, Refused> {
    Ok(Json(api.picture().await?.report))
}

async fn push_link(State(api): State<Api>, upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(move |socket| api.hub.serve(socket))
}

#[cfg(test)]
mod tests;
