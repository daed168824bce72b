//! Nodes that operators add and remove.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use pgherd_common::time::RealClock;
use pgherd_common::{Clock, NodeName};

use super::operator::{Answer, body, pass_on, propose};
use super::server::{Api, Refused};
use super::types::{Accepted, AddRequest, RemoveRequest, Reset, ResetRequest};
use crate::cluster::{Applied, Command};
use crate::coordinator::RemoveRefused;
use crate::driver::Event;

pub(super) async fn add(State(api): State<Api>, headers: HeaderMap, bytes: Bytes) -> Answer {
    let request: AddRequest = body(&bytes)?;
    if let Some(answer) = pass_on(&api, &headers, "/v1/add-node", &request).await {
        return answer;
    }
    let AddRequest { id, name, agent } = request;
    let configured = api.consensus.roster().configured(id);
    if let Some(known) = configured.filter(|known| known.name == name && known.agent != agent) {
        let error = format!(
            "the configuration of {} has {name} at {}, not at {agent}, and an address there wins",
            api.config.node.name, known.agent
        );
        let hint = "correct [[members]] on all nodes and restart their agents, or take the entry away";
        return Err(Refused::new(StatusCode::CONFLICT, error, hint));
    }
    let at = RealClock.wall();
    let invite = Command::Invite { id, name: name.clone(), agent: agent.clone(), at };
    let again = propose(&api, invite).await? == Applied::Unchanged;
    if !again {
        tracing::info!("an operator lets {name} (id {id}, {agent}) join the cluster");
    }
    let was = if again { "was invited already" } else { "is invited" };
    let message = format!(
        "{name} {was}: its agent at {agent} is let in when it is started with node.id = {id}, node.name = \"{name}\" and at \
         least one member besides itself in [[members]]. A database without data is made by `pgherd create-standby` there, \
         before"
    );
    Ok(Json(Accepted { message, generation: None }))
}

pub(super) async fn remove(State(api): State<Api>, headers: HeaderMap, bytes: Bytes) -> Answer {
    let request: RemoveRequest = body(&bytes)?;
    if let Some(answer) = pass_on(&api, &headers, "/v1/remove-node", &request).await {
        return answer;
    }
    let RemoveRequest { node, force } = request;
    let planned = api.ask(|answer| Event::PlanRemove(Some((node.clone(), force)), answer)).await?;
    let mut again = true;
    for command in planned.map_err(|refused| refuse(&refused))? {
        again &= propose(&api, command).await? == Applied::Unchanged;
    }
    let message = if again {
        format!("{node} is being removed already")
    } else {
        tracing::info!(force, "an operator has {node} removed from the cluster");
        format!("{node} is being removed: its PostgreSQL is stopped, and its agent ends")
    };
    Ok(Json(Accepted { message, generation: None }))
}

/// Two questions: who it would be, and that it is to be so.
pub(super) async fn reset(
    State(api): State<Api>,
    headers: HeaderMap,
    bytes: Bytes,
) -> Result<Json<Reset>, Refused> {
    let request: ResetRequest = body(&bytes)?;
    if let Some(answer) = pass_on(&api, &headers, "/v1/reset-members", &request).await {
        return answer;
    }
    let commands = api.ask(|answer| Event::PlanRemove(None, answer)).await?;
    let commands = commands.map_err(|refused| refuse(&refused))?;
    let name = |command: &Command| match command {
        Command::Remove { node, .. } => api.consensus.roster().get(*node).map(|contact| contact.name),
        _ => None,
    };
    let silent: Vec<NodeName> = commands.iter().filter_map(name).collect();
    let Some(confirmed) = request.nodes else { return Ok(Json(Reset { nodes: silent })) };
    let names = silent.iter().map(NodeName::as_str).collect::<Vec<_>>().join(", ");
    if confirmed != silent {
        let error = format!("other agents are silent by now than those that were confirmed: {names}");
        return Err(Refused::new(StatusCode::CONFLICT, error, "run the command again"));
    }
    for command in commands {
        propose(&api, command).await?;
    }
    tracing::info!("an operator has the silent nodes {names} removed from the cluster");
    Ok(Json(Reset { nodes: silent }))
}

fn refuse(refused: &RemoveRefused) -> Refused {
    Refused::new(StatusCode::CONFLICT, refused, refused.hint())
}
