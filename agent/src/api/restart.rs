//! Restarts that operators ask for: the primary's by the agent that leads, a standby's by its own.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use pgherd_common::HostPort;
use pgherd_common::errors::Chain;

use super::operator::{Answer, ask_agent, body, member, pass_on, propose};
use super::server::{Api, Refused};
use super::types::{Accepted, Capacity, Pending, RestartRequest};
use crate::cluster::Member;
use crate::driver::Event;

/// Restarts the standby of the agent asked.
pub(super) const HERE: &str = "/v1/restart-here";
/// What the PostgreSQL of the agent asked has to be restarted for.
pub(super) const PENDING: &str = "/v1/pending";
/// What a restart would give it of what standbys need as much of.
pub(super) const CAPACITY: &str = "/v1/capacity";

pub(super) async fn restart(State(api): State<Api>, headers: HeaderMap, bytes: Bytes) -> Answer {
    let request: RestartRequest = body(&bytes)?;
    if let Some(answer) = pass_on(&api, &headers, "/v1/restart", &request).await {
        return answer;
    }
    let state = api.consensus.state().borrow().clone();
    let member = member(&state, &request.node)?;
    if state.primary.is_none_or(|primary| primary.node != member.descriptor.id) {
        return ask_agent(&api, &member.descriptor.agent, HERE, &request).await;
    }
    standbys_have_enough(&api, member).await?;
    let (node, end) = (member.descriptor.id, request.end_transactions);
    let planned = api.ask(|answer| Event::PlanRestart(node, end, answer)).await?;
    let command = planned.map_err(|refused| Refused::new(StatusCode::CONFLICT, &refused, refused.hint()))?;
    propose(&api, command).await?;
    tracing::info!("an operator has primary {} restarted", request.node);
    let message = format!("restart of primary {} begun", request.node);
    Ok(Json(Accepted { message, generation: Some(state.generation.next()) }))
}

pub(super) async fn here(State(api): State<Api>) -> Answer {
    let ordered = api.ask(Event::Restart).await?;
    ordered.map_err(|refused| Refused::new(StatusCode::CONFLICT, &refused, refused.hint()))?;
    let node = &api.config.node.name;
    tracing::info!("an operator has PostgreSQL on this node restarted");
    Ok(Json(Accepted { message: format!("restart of standby {node} begun"), generation: None }))
}

pub(super) async fn pending(State(api): State<Api>) -> Result<Json<Pending>, Refused> {
    let Some(instance) = &api.instance else { return Ok(Json(Pending::default())) };
    let pending = instance.pending().await.map_err(|error| {
        let error =
            format!("what {} has to be restarted for is not known: {}", api.config.node.name, Chain(&error));
        Refused::new(StatusCode::SERVICE_UNAVAILABLE, error, "pgherd node-status says how PostgreSQL is")
    })?;
    Ok(Json(pending))
}

pub(super) async fn capacity(State(api): State<Api>) -> Result<Json<Option<Capacity>>, Refused> {
    let Some(instance) = &api.instance else { return Ok(Json(None)) };
    let capacity = instance.configured_capacity().await.map_err(|error| {
        let error =
            format!("what {} is configured for is not known: {}", api.config.node.name, Chain(&error));
        Refused::new(StatusCode::SERVICE_UNAVAILABLE, error, "its configuration may be damaged: see its log")
    })?;
    Ok(Json(Some(capacity)))
}

/// A primary is not restarted with more than a standby has of what that needs as much of: replay would pause there.
async fn standbys_have_enough(api: &Api, primary: &Member) -> Result<(), Refused> {
    let next: Option<Capacity> = ask(api, &primary.descriptor.agent).await?;
    let Some(next) = next else { return Ok(()) };
    let picture = api.picture().await?;
    let mut short = Vec::new();
    for member in picture.state.databases().filter(|member| member.descriptor.id != primary.descriptor.id) {
        let seen =
            picture.seen.get(&member.descriptor.id).filter(|(_, age)| *age < api.config.timings.node_timeout);
        let running = seen.and_then(|(seen, _)| seen.postgres.as_ref()?.running());
        if let Some(missing) = running.and_then(|running| running.capacity?.lacks(next)) {
            short.push(format!("{} has {missing}", member.descriptor.name));
        }
    }
    if short.is_empty() {
        return Ok(());
    }
    let name = &primary.descriptor.name;
    let error = format!(
        "{name} would start with more than its standbys have, and they would stop replaying: {}",
        short.join("; ")
    );
    let hint = "standbys first: `pgherd restart --pending` does it in that order; `pgherd pg-show` tells where a value was not taken";
    Err(Refused::new(StatusCode::CONFLICT, error, hint))
}

async fn ask(api: &Api, agent: &HostPort) -> Result<Option<Capacity>, Refused> {
    api.link
        .get(agent, CAPACITY)
        .await
        .map_err(|error| Refused::new(StatusCode::SERVICE_UNAVAILABLE, error, "try again in a few seconds"))
}
