//! What operators want left alone for a while.

use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use pgherd_common::time::RealClock;
use pgherd_common::{Clock, NodeId, NodeName};

use super::operator::{Answer, body, member, pass_on, propose};
use super::server::{Api, Refused};
use super::types::{Accepted, PauseRequest, UnpauseRequest};
use crate::cluster::{ClusterState, Command};
use crate::coordinator::PAUSE_MAX;

pub(super) async fn pause(State(api): State<Api>, headers: HeaderMap, bytes: Bytes) -> Answer {
    let request: PauseRequest = body(&bytes)?;
    if let Some(answer) = pass_on(&api, &headers, "/v1/pause", &request).await {
        return answer;
    }
    let span = Duration::from_millis(request.for_ms);
    if span.is_zero() || span > PAUSE_MAX {
        let error = format!("a pause of {span:?} is not possible: it has to end, within {PAUSE_MAX:?}");
        return Err(Refused::new(StatusCode::BAD_REQUEST, error, "pgherd pause --for 2h"));
    }
    let state = api.consensus.state().borrow().clone();
    let node = request.node.as_ref().map(|name| id(&state, name)).transpose()?;
    let at = RealClock.wall();
    let until = at + span;
    let longer = state.pauses.iter().any(|(paused, _)| paused == node);
    propose(&api, Command::Pause { node, until, at }).await?;
    let what = spell(request.node.as_ref());
    tracing::info!("an operator has paused {what} until {until}");
    let again = if longer { "; it was paused already, and this is its end from now on" } else { "" };
    let message = match &request.node {
        Some(node) => format!(
            "PostgreSQL on {node} is left alone until {until}{again}: it is neither started nor stopped, and not promoted \
             or replaced. If it is the primary and too few agents can reach it, it is still fenced"
        ),
        None => format!(
            "every PostgreSQL is left alone until {until}{again}: nothing is started, stopped, promoted or replaced. A \
             primary that too few agents can reach is still fenced"
        ),
    };
    Ok(Json(Accepted { message, generation: None }))
}

pub(super) async fn unpause(State(api): State<Api>, headers: HeaderMap, bytes: Bytes) -> Answer {
    let request: UnpauseRequest = body(&bytes)?;
    if let Some(answer) = pass_on(&api, &headers, "/v1/unpause", &request).await {
        return answer;
    }
    let state = api.consensus.state().borrow().clone();
    let node = request.node.as_ref().map(|name| id(&state, name)).transpose()?;
    propose(&api, Command::Unpause { node, number: None }).await?;
    let what = spell(request.node.as_ref());
    tracing::info!("an operator has ended the pause of {what}");
    let state = api.consensus.state().borrow().clone();
    let still: Vec<String> = state
        .pauses
        .iter()
        .map(|(node, pause)| {
            let name = node.and_then(|node| state.members.get(&node)).map(|member| &member.descriptor.name);
            format!("{} until {}", spell(name), pause.until)
        })
        .collect();
    let still =
        if still.is_empty() { String::new() } else { format!("; still paused: {}", still.join(", ")) };
    let message = format!("{what} is looked after again{still}");
    Ok(Json(Accepted { message, generation: None }))
}

fn id(state: &ClusterState, name: &NodeName) -> Result<NodeId, Refused> {
    Ok(member(state, name)?.descriptor.id)
}

fn spell(node: Option<&NodeName>) -> String {
    node.map_or("the cluster".to_owned(), ToString::to_string)
}
