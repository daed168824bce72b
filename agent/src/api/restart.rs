//! Restarts that operators ask for: the primary's by the agent that leads, a standby's by its own.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use pgherd_common::errors::Chain;

use super::operator::{Answer, ask_agent, body, member, pass_on, propose};
use super::server::{Api, Refused};
use super::types::{Accepted, RestartRequest};
use crate::driver::Event;

/// Restarts the standby of the agent asked.
pub(super) const HERE: &str = "/v1/restart-here";
/// What the PostgreSQL of the agent asked has to be restarted for.
pub(super) const PENDING: &str = "/v1/pending";

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

pub(super) async fn pending(State(api): State<Api>) -> Result<Json<Vec<String>>, Refused> {
    let Some(instance) = &api.instance else { return Ok(Json(Vec::new())) };
    let pending = instance.pending_restart().await.map_err(|error| {
        let error =
            format!("what {} has to be restarted for is not known: {}", api.config.node.name, Chain(&error));
        Refused::new(StatusCode::SERVICE_UNAVAILABLE, error, "pgherd node-status says how PostgreSQL is")
    })?;
    Ok(Json(pending))
}
