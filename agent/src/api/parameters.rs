//! PostgreSQL's parameters, set for all nodes or for one. The primary's PostgreSQL says whether it takes a value before
//! anything goes to the log.

use std::collections::{BTreeMap, BTreeSet};

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use pgherd_common::Clock;
use pgherd_common::NodeName;
use pgherd_common::errors::Chain;
use pgherd_common::time::RealClock;
use pgherd_core::parameters::{Facts, Verdict, forbidden, is_name, is_settable, judge};

use super::operator::{Answer, ask_agent, body, member, pass_on, propose};
use super::server::{Api, Refused};
use super::types::{
    Accepted, CheckParameters, Checked, NodeParameters, OverrideStatus, ParameterOnNode, ParameterStatus,
    ParametersHere, ParametersStatus, SetParameters,
};
use crate::cluster::{Applied, ClusterState, Command, Member};
use crate::postgres::{Instance, Standing};

/// What the PostgreSQL of the agent asked says of values.
pub(super) const CHECK: &str = "/v1/check-parameters";
/// How the parameters stand on the node of the agent asked.
pub(super) const HERE: &str = "/v1/parameters-here";

/// A value, or a list of names that somebody wants to be remembered, has an end.
const VALUE_BYTES_MAX: usize = 8192;
/// A name that is told of its setter is cut there.
const BY_CHARS_MAX: usize = 80;

pub(super) async fn set(State(api): State<Api>, headers: HeaderMap, bytes: Bytes) -> Answer {
    let request: SetParameters = body(&bytes)?;
    if let Some(answer) = pass_on(&api, &headers, "/v1/parameters", &request).await {
        return answer;
    }
    let request = lower(request)?;
    let state = api.consensus.state().borrow().clone();
    let place = request.node.as_ref().map(|name| member(&state, name)).transpose()?;
    let (checked, notes) = match examine(&api, &state, place, &request).await {
        // Taking back is what helps where PostgreSQL does not run for what was set: it needs nobody's word.
        Err(_) if request.set.is_empty() => (Checked::default(), Vec::new()),
        examined => examined?,
    };
    let set = request.set.iter().map(|(name, value)| (name.clone(), Some(value.clone())));
    let values = set.chain(request.reset.iter().map(|name| (name.clone(), None))).collect();
    let by: String = request.by.chars().filter(|c| !c.is_control()).take(BY_CHARS_MAX).collect();
    let command = Command::SetParameters {
        node: place.map(|member| member.descriptor.id),
        values,
        by: by.clone(),
        at: RealClock.wall(),
    };
    if propose(&api, command).await? == Applied::Unchanged {
        let message = "nothing to do: none of these is set".to_owned();
        return Ok(Json(Accepted { message, generation: None }));
    }
    tracing::info!(set = ?request.set, reset = ?request.reset, %by, "an operator has set parameters of PostgreSQL");
    Ok(Json(Accepted { message: told(&state, &request, &checked, &notes), generation: None }))
}

/// What a PostgreSQL says of it, and what should be known besides.
async fn examine(
    api: &Api,
    state: &ClusterState,
    place: Option<&Member>,
    request: &SetParameters,
) -> Result<(Checked, Vec<String>), Refused> {
    if let Some((why, instead)) = request.set.iter().find_map(|(name, value)| forbidden(name, value)) {
        return Err(Refused::new(StatusCode::CONFLICT, format!("{why}: {instead}"), "nothing was changed"));
    }
    let judge = judging(state, place)?;
    let asked = CheckParameters { set: request.set.clone(), reset: request.reset.clone() };
    let Json(checked) = ask_agent::<_, Checked>(api, &judge.descriptor.agent, CHECK, &asked).await?;
    let notes = refuse(api, state, request, &checked, &judge.descriptor.name)?;
    Ok((checked, notes))
}

/// Names in lower case, as PostgreSQL takes them, and nothing that no server could take.
fn lower(request: SetParameters) -> Result<SetParameters, Refused> {
    let refuse =
        |error: String| Err(Refused::new(StatusCode::BAD_REQUEST, error, "pgherd pg-set work_mem=64MB"));
    let set: BTreeMap<String, String> =
        request.set.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value)).collect();
    let reset: Vec<String> = request.reset.iter().map(|name| name.to_ascii_lowercase()).collect();
    if set.is_empty() && reset.is_empty() {
        return refuse("no parameter is named".to_owned());
    }
    if let Some(odd) = set.keys().chain(&reset).find(|name| !is_name(name)) {
        return refuse(format!("{odd:?} is not the name of a parameter"));
    }
    if let Some(both) = reset.iter().find(|name| set.contains_key(*name)) {
        return refuse(format!("{both} is to be set and to be taken back at once"));
    }
    let odd = |value: &String| value.len() > VALUE_BYTES_MAX || value.chars().any(char::is_control);
    if let Some((name, _)) = set.iter().find(|(_, value)| odd(value)) {
        let error =
            format!("the value of {name} has control characters, or more than {VALUE_BYTES_MAX} bytes");
        return refuse(error);
    }
    Ok(SetParameters { set, reset, ..request })
}

/// Whose PostgreSQL is to say what it takes: the node's own, or the primary's.
fn judging<'a>(state: &'a ClusterState, place: Option<&'a Member>) -> Result<&'a Member, Refused> {
    if let Some(place) = place {
        if !place.is_database() {
            let error = format!("{} is a witness: it has no PostgreSQL", place.descriptor.name);
            return Err(Refused::new(StatusCode::CONFLICT, error, "pgherd cluster-status lists the nodes"));
        }
        return Ok(place);
    }
    state.serving().and_then(|id| state.members.get(&id)).ok_or_else(|| {
        let error = "values are checked by the primary's PostgreSQL, and no primary serves now";
        Refused::new(StatusCode::CONFLICT, error, "try again once pgherd cluster-status shows one")
    })
}

/// What is against it; what should be known besides, if nothing is.
fn refuse(
    api: &Api,
    state: &ClusterState,
    request: &SetParameters,
    checked: &Checked,
    asked: &NodeName,
) -> Result<Vec<String>, Refused> {
    if !checked.problems.is_empty() {
        let error = format!("PostgreSQL on {asked} does not take this: {}", checked.problems.join("; "));
        return Err(Refused::new(
            StatusCode::CONFLICT,
            error,
            "nothing was changed; correct it and try again",
        ));
    }
    let facts = Facts {
        databases: u32::try_from(state.databases().count()).unwrap_or(u32::MAX),
        checksums: checked.checksums,
        synchronous: api.config.failover.durability.standbys > 0,
    };
    let (mut confirm, mut notes) = (Vec::new(), Vec::new());
    for (name, value) in &request.set {
        match judge(name, checked.normal.get(name).unwrap_or(value), &facts) {
            Verdict::Fine => {}
            Verdict::Confirm(why) if request.insist => notes.push(why),
            Verdict::Confirm(why) => confirm.push(why),
            Verdict::Refused { why, instead } => {
                return Err(Refused::new(
                    StatusCode::CONFLICT,
                    format!("{why}: {instead}"),
                    "nothing was changed",
                ));
            }
        }
    }
    if confirm.is_empty() {
        return Ok(notes);
    }
    let hint = "nothing was changed; the same with --yes does it all the same";
    Err(Refused::new(StatusCode::CONFLICT, confirm.join("; "), hint))
}

/// What was done, and when each of it takes effect.
fn told(state: &ClusterState, request: &SetParameters, checked: &Checked, notes: &[String]) -> String {
    let place = request.node.as_ref().map_or("every node".to_owned(), ToString::to_string);
    let mut lines: Vec<String> =
        request.set.iter().map(|(name, value)| format!("{name} = '{value}' on {place}")).collect();
    lines.extend(request.reset.iter().map(|name| format!("{name} on {place} is as its own files have it")));
    let context = |context: &str| {
        let names = request.set.keys().chain(&request.reset);
        names
            .filter(|name| checked.contexts.get(*name).is_some_and(|known| known == context))
            .cloned()
            .collect::<Vec<_>>()
    };
    let restart = context("postmaster");
    if !restart.is_empty() {
        lines.push(format!(
            "takes effect with a restart (`pgherd restart --pending`): {}",
            restart.join(", ")
        ));
    }
    let sessions = [context("backend"), context("superuser-backend")].concat();
    if !sessions.is_empty() {
        lines.push(format!("takes effect in new sessions: {}", sessions.join(", ")));
    }
    let unknown: Vec<&str> =
        request.set.keys().filter(|name| !checked.contexts.contains_key(*name)).map(String::as_str).collect();
    if !unknown.is_empty() {
        lines.push(format!(
            "of no module that is loaded, so nobody has checked its value: {}",
            unknown.join(", ")
        ));
    }
    if let Some(node) =
        request.node.is_none().then(|| overrides(state, request)).filter(|text| !text.is_empty())
    {
        lines.push(format!("other values stay on single nodes: {node}"));
    }
    lines.extend(notes.iter().map(|note| format!("beware: {note}")));
    lines.join("\n")
}

fn overrides(state: &ClusterState, request: &SetParameters) -> String {
    let own = state.parameters.nodes.iter().flat_map(|(node, own)| own.keys().map(move |name| (node, name)));
    let named = own.filter(|(_, name)| request.set.contains_key(*name) || request.reset.contains(name));
    let spell = |(node, name): (_, &String)| {
        let member = state.members.get(node).map(|member| member.descriptor.name.to_string());
        format!("{name} on {}", member.unwrap_or_else(|| format!("node {node}")))
    };
    named.map(spell).collect::<Vec<_>>().join(", ")
}

/// What this node's PostgreSQL says.
pub(super) async fn check(State(api): State<Api>, bytes: Bytes) -> Result<Json<Checked>, Refused> {
    let asked: CheckParameters = body(&bytes)?;
    let instance = own(&api)?;
    checked(instance, &asked).await.map(Json).map_err(|error| {
        let error = format!("{} cannot tell what its PostgreSQL takes: {error}", api.config.node.name);
        Refused::new(StatusCode::SERVICE_UNAVAILABLE, error, "pgherd node-status says how PostgreSQL is")
    })
}

async fn checked(instance: &Instance, asked: &CheckParameters) -> Result<Checked, String> {
    fn spell(error: &dyn std::error::Error) -> String {
        Chain(error).to_string()
    }
    // PostgreSQL would read any file for some of them.
    if let Some((name, _)) = asked.set.iter().find(|(name, value)| !is_settable(name, value)) {
        let problems = vec![format!("{name} is nothing that the cluster sets")];
        return Ok(Checked { problems, ..Checked::default() });
    }
    let names: Vec<&String> = asked.set.keys().chain(&asked.reset).collect();
    let contexts = instance.contexts(&names).await.map_err(|error| spell(&error))?;
    let mut problems: Vec<String> = Vec::new();
    for name in asked.set.keys() {
        match contexts.get(name).map(String::as_str) {
            None if !name.contains('.') => problems.push(format!("there is no parameter {name}")),
            Some("internal") => problems.push(format!(
                "{name} is fixed: it tells what was chosen by initdb or when PostgreSQL was built"
            )),
            Some(_) | None => {}
        }
    }
    let checksums = instance.has_checksums().await.ok();
    if !problems.is_empty() {
        return Ok(Checked { problems, contexts, checksums, ..Checked::default() });
    }
    problems.extend(instance.complaints(&asked.set).await.map_err(|error| spell(&error))?.into_values());
    // `postgres -C` does not load the extensions that know these.
    let of_extensions = asked.set.iter().filter(|(name, _)| name.contains('.'));
    for (name, value) in of_extensions {
        let in_sessions = matches!(contexts.get(name).map(String::as_str), Some("user" | "superuser"));
        if in_sessions && let Err(error) = instance.try_in_session(name, value).await {
            problems.push(spell(&error));
        }
    }
    let normal = if problems.is_empty() {
        instance.normal(&asked.set).await.map_err(|error| spell(&error))?
    } else {
        BTreeMap::new()
    };
    Ok(Checked { problems, contexts, checksums, normal })
}

fn own(api: &Api) -> Result<&Instance, Refused> {
    api.instance.as_ref().ok_or_else(|| {
        let error = format!("{} is a witness: it has no PostgreSQL", api.config.node.name);
        Refused::new(StatusCode::NOT_FOUND, error, "ask the agent of a database node")
    })
}

pub(super) async fn here(State(api): State<Api>) -> Result<Json<ParametersHere>, Refused> {
    let (applied, parameters) = own(&api)?.parameters_here().await;
    Ok(Json(ParametersHere { applied, parameters }))
}

/// All of it, as the nodes have it now.
pub(super) async fn show(State(api): State<Api>) -> Json<ParametersStatus> {
    let state = api.consensus.state().borrow().clone();
    let asks = state.databases().map(|member| async {
        let told: Result<ParametersHere, _> = api.link.get(&member.descriptor.agent, HERE).await;
        (member.descriptor.id, told.map_err(|error| error.to_string()))
    });
    let told: BTreeMap<_, _> = futures_util::future::join_all(asks).await.into_iter().collect();
    let name = |id| state.members.get(id).map(|member| member.descriptor.name.clone());
    let nodes = told.iter().filter_map(|(id, told)| {
        Some(NodeParameters {
            node: name(id)?,
            applied: told.as_ref().ok().map(|here| here.applied),
            trouble: told.as_ref().err().cloned(),
        })
    });
    let names: BTreeSet<&str> = state.parameters.names().collect();
    let parameters = names.into_iter().map(|parameter| {
        let set = state.parameters.cluster.get(parameter);
        let overrides = state.parameters.nodes.iter().filter_map(|(id, own)| {
            let own = own.get(parameter)?;
            Some(OverrideStatus { node: name(id)?, value: own.value.clone(), by: own.by.clone(), at: own.at })
        });
        let on_nodes = told.iter().filter_map(|(id, told)| {
            let wanted = state.parameters.of(*id).get(parameter)?.value.clone();
            let here = told.as_ref().ok().and_then(|here| here.parameters.get(parameter));
            let not_yet = || match told {
                Ok(_) => Standing::NotYet { why: "its agent has not come to it yet".to_owned() },
                Err(why) => Standing::NotYet { why: why.clone() },
            };
            Some(ParameterOnNode {
                node: name(id)?,
                wanted: wanted.clone(),
                running: here.and_then(|here| here.running.clone()),
                standing: here
                    .filter(|here| here.wanted == wanted)
                    .map_or_else(not_yet, |here| here.standing.clone()),
            })
        });
        ParameterStatus {
            name: parameter.to_owned(),
            value: set.map(|set| set.value.clone()),
            by: set.map(|set| set.by.clone()),
            at: set.map(|set| set.at),
            overrides: overrides.collect(),
            nodes: on_nodes.collect(),
        }
    });
    let parameters = parameters.collect();
    Json(ParametersStatus { number: state.parameters.number, nodes: nodes.collect(), parameters })
}
