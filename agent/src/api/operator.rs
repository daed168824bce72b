//! What operators want changed. Passed on to the raft leader, since only it can write to the log.

use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use pgherd_common::errors::Chain;
use pgherd_common::time::RealClock;
use pgherd_common::topology::ChangeKind;
use pgherd_common::{Clock, HostPort, NodeId, NodeName, WallTime};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::server::{Api, Refused};
use super::types::{Accepted, Busy, NodeRequest, PriorityRequest, PromoteRequest};
use crate::cluster::{Applied, ClusterState, Command, HistoryEntry, Member, Outcome, Rejected};
use crate::consensus::ProposeError;
use crate::coordinator::{SCHEDULE_PATIENCE, SwitchoverRefused};
use crate::driver::Event;
use crate::peers::CallError;
use crate::publish::Unmovable;

pub(super) type Answer = Result<Json<Accepted>, Refused>;

pub(super) fn body<T: DeserializeOwned>(bytes: &Bytes) -> Result<T, Refused> {
    let refuse = |error| {
        Refused::new(
            StatusCode::BAD_REQUEST,
            format!("the request was not understood: {error}"),
            "see the API's documentation",
        )
    };
    serde_json::from_slice(bytes).map_err(refuse)
}

/// What runs on an agent's PostgreSQL.
pub(super) const BUSY: &str = "/v1/busy";

pub(super) async fn promote(State(api): State<Api>, headers: HeaderMap, bytes: Bytes) -> Answer {
    let request: PromoteRequest = body(&bytes)?;
    if let Some(answer) = pass_on(&api, &headers, "/v1/promote", &request).await {
        return answer;
    }
    if request.at.is_some() && !request.switchover {
        let error = "only a switchover can be scheduled, not a forced promotion";
        return Err(Refused::new(StatusCode::BAD_REQUEST, error, "pgherd promote --switchover --at TIME"));
    }
    if request.explain {
        return explain(&api, &request).await;
    }
    let command = plan(&api, &request).await?;
    match &command {
        Command::Begin { kind, generation, .. } => {
            let (message, generation) = (format!("{kind} begun"), Some(generation.next()));
            propose(&api, command).await?;
            Ok(Json(Accepted { message, generation }))
        }
        Command::Schedule { due, from, to, .. } => {
            let what = spell(&api, *due, *from, *to);
            schedule(&api, request, command, &what).await
        }
        other => unreachable!("a plan is of a change of primary, not {other:?}"),
    }
}

/// Has the log remember a switchover. What would be in its way now is told, and may be gone by then.
async fn schedule(api: &Api, request: PromoteRequest, command: Command, what: &str) -> Answer {
    let at_once = PromoteRequest { at: None, ..request };
    let doubt = match api.ask(|answer| Event::Plan(at_once, answer)).await? {
        Err(refused) => format!("\nas things are now it could not begin: {refused}"),
        Ok(_) => String::new(),
    };
    propose(api, command).await?;
    tracing::info!("an operator has scheduled {what}");
    let patience = format!("if it cannot begin within {SCHEDULE_PATIENCE:?} of its time, it is given up");
    Ok(Json(Accepted { message: format!("{what} is scheduled; {patience}{doubt}"), generation: None }))
}

/// Takes a scheduled switchover back.
pub(super) async fn cancel_scheduled(State(api): State<Api>, headers: HeaderMap) -> Answer {
    if let Some(answer) = pass_on(&api, &headers, "/v1/cancel-scheduled", &()).await {
        return answer;
    }
    let state = api.consensus.state().borrow().clone();
    let refuse = |rejected: Rejected| Refused::new(StatusCode::CONFLICT, &rejected, hint(&rejected));
    let scheduled = state.scheduled.as_ref().ok_or(Rejected::NotScheduled).map_err(refuse)?;
    let (number, at) = (scheduled.number, RealClock.wall());
    propose(&api, Command::Unschedule { number, why: None, at }).await?;
    let what = spell(&api, scheduled.due, scheduled.from, scheduled.to);
    tracing::info!("an operator has taken back {what}");
    let message = format!("{what} is not scheduled any more");
    Ok(Json(Accepted { message, generation: None }))
}

/// A scheduled switchover, for people.
fn spell(api: &Api, due: WallTime, from: NodeId, to: Option<NodeId>) -> String {
    let name = |id: NodeId| api.consensus.roster().get(id).map(|member| member.name.to_string());
    let from = name(from).unwrap_or_default();
    let to = to.and_then(name).unwrap_or_else(|| "the best standby".to_owned());
    format!("a switchover from {from} to {to} at {due}")
}

/// What a switchover would do, and wait for. Nothing is changed.
async fn explain(api: &Api, request: &PromoteRequest) -> Answer {
    let refuse = |refused: SwitchoverRefused| Refused::new(StatusCode::CONFLICT, &refused, refused.hint());
    if request.at.is_some() {
        api.ask(|answer| Event::Plan(request.clone(), answer)).await?.map_err(refuse)?;
    }
    let explained = api.ask(|answer| Event::Explain(request.to.clone(), answer)).await?;
    let mut lines = explained.map_err(refuse)?;
    if let Some(at) = request.at {
        lines.insert(0, format!("it would begin at {at}; this is what it would be now:"));
    }
    let state = api.consensus.state().borrow().clone();
    if let Some(primary) = state.primary_member() {
        let name = &primary.descriptor.name;
        let busy: Result<Busy, CallError> = api.link.get(&primary.descriptor.agent, BUSY).await;
        let patience = api.config.timings.drain_timeout;
        lines.push(match busy {
            Ok(Busy { count: 0, .. }) => format!("no transaction runs on {name} now"),
            Ok(Busy { count, oldest }) => format!(
                "transactions or statements run on {name} now, {count} in all, and would be waited for, up to \
                 {patience:?}; the oldest is {oldest}"
            ),
            Err(error) => format!("what runs on {name} is not known: {error}"),
        });
    }
    let Unmovable { sessions, example } = api.hub.unmovable().await;
    if let Some(example) = example {
        lines.push(format!(
            "{sessions} sessions cannot move to another server (switchover.unmovable says what becomes of them); the first is \
             of {example}"
        ));
    }
    let took: Vec<u64> = state.history.iter().rev().filter_map(took).take(5).collect();
    lines.push(match (took.iter().min(), took.iter().max()) {
        (Some(least), Some(most)) => {
            format!("the last {} switchovers took {least} to {most} ms, the checkpoint included", took.len())
        }
        _ => "no switchover has completed yet, so how long it takes cannot be told".to_owned(),
    });
    Ok(Json(Accepted { message: lines.join("\n"), generation: None }))
}

/// Milliseconds that a switchover took, if it was one.
fn took(entry: &HistoryEntry) -> Option<u64> {
    let switchover = entry.kind == Some(ChangeKind::Switchover) && entry.outcome == Outcome::Completed;
    let serving = entry.serving.filter(|_| switchover)?;
    Some(serving.0.saturating_sub(entry.begun.0))
}

pub(super) async fn busy(State(api): State<Api>) -> Result<Json<Busy>, Refused> {
    let node = &api.config.node.name;
    let Some(instance) = &api.instance else {
        let error = format!("{node} is a witness: nothing runs there");
        return Err(Refused::new(StatusCode::NOT_FOUND, error, "ask the agent of a database node"));
    };
    let (count, oldest) = instance.busy(None).await.map_err(|error| {
        let error = format!("what runs on {node} cannot be told: {}", Chain(&error));
        Refused::new(StatusCode::SERVICE_UNAVAILABLE, error, "pgherd node-status says how PostgreSQL is")
    })?;
    Ok(Json(Busy { count, oldest }))
}

/// Right after another change of primary, standbys need a moment until they stream again and have said
/// so: nobody is turned away for that.
async fn plan(api: &Api, request: &PromoteRequest) -> Result<Command, Refused> {
    const PATIENCE: Duration = Duration::from_secs(2);
    let deadline = RealClock.now() + PATIENCE;
    loop {
        let planned = api.ask(|answer| Event::Plan(request.clone(), answer)).await?;
        match planned {
            Ok(command) => return Ok(command),
            Err(SwitchoverRefused::NoTarget(_)) if RealClock.now() < deadline => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(refused) => return Err(Refused::new(StatusCode::CONFLICT, &refused, refused.hint())),
        }
    }
}

pub(super) async fn resume(State(api): State<Api>, headers: HeaderMap, bytes: Bytes) -> Answer {
    let at = RealClock.wall();
    let message = |node: &NodeName| format!("{node} is on its way back into the cluster");
    on_node(&api, &headers, "/v1/resume", &bytes, message, |member| Command::Resume {
        node: member.descriptor.id,
        at,
    })
    .await
}

pub(super) async fn attach(State(api): State<Api>, headers: HeaderMap, bytes: Bytes) -> Answer {
    let message = |node: &NodeName| format!("{node} takes reads again");
    on_node(&api, &headers, "/v1/attach", &bytes, message, |member| Command::SetAttached {
        node: member.descriptor.id,
        attached: true,
    })
    .await
}

pub(super) async fn detach(State(api): State<Api>, headers: HeaderMap, bytes: Bytes) -> Answer {
    let message = |node: &NodeName| format!("{node} takes no reads until it is attached again");
    on_node(&api, &headers, "/v1/detach", &bytes, message, |member| Command::SetAttached {
        node: member.descriptor.id,
        attached: false,
    })
    .await
}

pub(super) async fn allow(State(api): State<Api>, headers: HeaderMap, bytes: Bytes) -> Answer {
    let at = RealClock.wall();
    let message = |node: &NodeName| format!("{node} is allowed in the cluster");
    on_node(&api, &headers, "/v1/allow-node", &bytes, message, |member| Command::SetAllowed {
        node: member.descriptor.id,
        allowed: true,
        at,
    })
    .await
}

pub(super) async fn disallow(State(api): State<Api>, headers: HeaderMap, bytes: Bytes) -> Answer {
    let at = RealClock.wall();
    let message = |node: &NodeName| format!("{node} is out of the cluster until it is allowed again");
    on_node(&api, &headers, "/v1/disallow-node", &bytes, message, |member| Command::SetAllowed {
        node: member.descriptor.id,
        allowed: false,
        at,
    })
    .await
}

pub(super) async fn set_priority(State(api): State<Api>, headers: HeaderMap, bytes: Bytes) -> Answer {
    let request: PriorityRequest = body(&bytes)?;
    if let Some(answer) = pass_on(&api, &headers, "/v1/set-priority", &request).await {
        return answer;
    }
    let state = api.consensus.state().borrow().clone();
    let found = member(&state, &request.node)?;
    if request.priority > 0 && !found.descriptor.tags.promotable {
        let name = &request.node;
        return Err(Refused::new(
            StatusCode::CONFLICT,
            format!(
                "{name} is tagged promotable = false: with any priority it would never be promoted by itself"
            ),
            &format!("remove node.tags.promotable from the agent.toml of {name} and restart its agent first"),
        ));
    }
    let node = found.descriptor.id;
    propose(&api, Command::SetPriority { node, priority: request.priority }).await?;
    let message = match request.priority {
        0 => format!("{} will not be promoted", request.node),
        place => format!("{} has priority {place}", request.node),
    };
    Ok(Json(Accepted { message, generation: None }))
}

/// Stops all agents that can be reached, this one last. No database is touched.
pub(super) async fn stop_cluster(State(api): State<Api>) -> Answer {
    let mut missed = Vec::new();
    for member in api.consensus.roster().others(api.config.node.id).into_values() {
        let stopped: Result<Accepted, CallError> = api.link.post(&member.agent, "/v1/stop", &()).await;
        if let Err(error) = stopped {
            tracing::warn!("could not stop the agent of {}: {error}", member.name);
            missed.push(member.name.to_string());
        }
    }
    api.stop.notify_one();
    let mut message = "the agents stop; every PostgreSQL is left as it is, and nobody watches it".to_owned();
    if !missed.is_empty() {
        message.push_str(&format!(". Not reached, and still running: {}", missed.join(", ")));
    }
    Ok(Json(Accepted { message, generation: None }))
}

/// Stops this agent.
pub(super) async fn stop(State(api): State<Api>) -> Answer {
    tracing::info!("stopping: an operator stops the whole cluster");
    api.stop.notify_one();
    Ok(Json(Accepted { message: "stopping".to_owned(), generation: None }))
}

async fn on_node(
    api: &Api,
    headers: &HeaderMap,
    path: &'static str,
    bytes: &Bytes,
    message: impl FnOnce(&NodeName) -> String,
    command: impl FnOnce(&Member) -> Command,
) -> Answer {
    let request: NodeRequest = body(bytes)?;
    if let Some(answer) = pass_on(api, headers, path, &request).await {
        return answer;
    }
    let state = api.consensus.state().borrow().clone();
    let command = command(member(&state, &request.node)?);
    let message = match propose(api, command).await? {
        Applied::Unchanged => format!("nothing to do: {}", message(&request.node)),
        Applied::Changed | Applied::Rejected(_) => message(&request.node),
    };
    Ok(Json(Accepted { message, generation: None }))
}

pub(super) fn member<'a>(state: &'a ClusterState, name: &NodeName) -> Result<&'a Member, Refused> {
    state.by_name(name).ok_or_else(|| {
        let names: Vec<&str> = state.members.values().map(|member| member.descriptor.name.as_str()).collect();
        let hint = match names.as_slice() {
            [] => "the cluster has not formed yet: see pgherd cluster-status".to_owned(),
            names => format!("the nodes are {}", names.join(", ")),
        };
        Refused::new(StatusCode::NOT_FOUND, format!("there is no node {name}"), &hint)
    })
}

pub(super) async fn propose(api: &Api, command: Command) -> Result<Applied, Refused> {
    let unavailable = |error: ProposeError| {
        let hint = "a majority of the agents has to be up: see pgherd cluster-status";
        Refused::new(StatusCode::SERVICE_UNAVAILABLE, error, hint)
    };
    match api.consensus.propose(command).await.map_err(unavailable)? {
        Applied::Rejected(rejected) => {
            Err(Refused::new(StatusCode::CONFLICT, in_names(api, &rejected), hint(&rejected)))
        }
        applied @ (Applied::Changed | Applied::Unchanged) => Ok(applied),
    }
}

/// The log knows members by number, operators by name.
fn in_names(api: &Api, rejected: &Rejected) -> String {
    let members = api.consensus.roster().now().into_iter();
    members.fold(rejected.to_string(), |text, (id, member)| {
        text.replace(&format!("node {id} "), &format!("{} ", member.name))
    })
}

fn hint(rejected: &Rejected) -> &'static str {
    match rejected {
        Rejected::NotFormed => "pgherd cluster-status says what the cluster is waiting for",
        Rejected::IsPrimary(_) => "pgherd promote --switchover",
        Rejected::Taken(_) => "pgherd cluster-status lists the nodes",
        Rejected::TooManyMembers | Rejected::Leaving(_) => "pgherd remove-node NODE takes one away for good",
        Rejected::ScheduledTo(_) => "`pgherd promote --cancel-scheduled` takes it away",
        Rejected::TooFewVoters(_) => "add another node or a witness first: pgherd add-node",
        Rejected::NotAllowed(_) => "pgherd allow-node NODE",
        Rejected::NotFailed(_) => "nothing has to be done",
        Rejected::Paused { .. } => "`pgherd unpause`, or `pgherd unpause --node NODE`, ends that",
        Rejected::NotPaused(_) => "pgherd cluster-status shows what is paused",
        Rejected::AlreadyScheduled(_) => "`pgherd promote --cancel-scheduled` takes it away",
        Rejected::NotScheduled => {
            "pgherd cluster-status shows what is scheduled, pgherd history what became of it"
        }
        Rejected::AlreadyFormed
        | Rejected::Stale { .. }
        | Rejected::UnknownMember(_)
        | Rejected::Witness(_)
        | Rejected::ChangeInFlight { .. }
        | Rejected::NoSuchChange(_)
        | Rejected::WrongPhase
        | Rejected::NotPrimary(_)
        | Rejected::NotServing(_)
        | Rejected::VotersChanging
        | Rejected::NoSuchPlan(_)
        | Rejected::UnfitVoters
        | Rejected::CoverChanged(_)
        | Rejected::NotAVoter(_)
        | Rejected::NotInvited(_)
        | Rejected::NotLeft(_)
        | Rejected::IsVoter(_)
        | Rejected::NotARelay(_)
        | Rejected::Circle(_) => "see pgherd cluster-status",
    }
}

/// Marks a request that an agent has passed on, so that two agents with different ideas of who leads
/// do not send it back and forth.
const PASSED_ON: &str = "x-pgherd-passed-on";

/// Whether another agent has passed this request on.
pub(super) fn is_passed_on(headers: &HeaderMap) -> bool {
    headers.contains_key(PASSED_ON)
}

/// Has the leader answer, unless this agent leads. `None`: answer here.
pub(super) async fn pass_on<T: Serialize + Sync, A: DeserializeOwned>(
    api: &Api,
    headers: &HeaderMap,
    path: &'static str,
    request: &T,
) -> Option<Result<Json<A>, Refused>> {
    let standing = api.consensus.standing().borrow().clone();
    if standing.is_leader || is_passed_on(headers) {
        return None;
    }
    let leader = standing.leader.and_then(|leader| api.consensus.roster().agent(leader));
    let Some(leader) = leader else {
        let error = "the agents have no leader now: fewer than a majority of them can be reached, or an election runs";
        let hint = "start the missing agents, or try again in a few seconds";
        return Some(Err(Refused::new(StatusCode::SERVICE_UNAVAILABLE, error, hint)));
    };
    Some(ask_agent(api, &leader, path, request).await)
}

/// Has another agent answer.
pub(super) async fn ask_agent<T: Serialize + Sync, A: DeserializeOwned>(
    api: &Api,
    agent: &HostPort,
    path: &str,
    request: &T,
) -> Result<Json<A>, Refused> {
    let unreachable = |error: reqwest::Error| {
        let error = format!("the agent at {agent} does not answer: {error}");
        Refused::new(StatusCode::SERVICE_UNAVAILABLE, error, "try again in a few seconds")
    };
    let response = api.link.pass_on(agent, path, PASSED_ON, request).await.map_err(unreachable)?;
    if response.status().is_success() {
        return response.json().await.map(Json).map_err(unreachable);
    }
    let status = response.status();
    Err(Refused(status, response.json().await.map_err(unreachable)?))
}
