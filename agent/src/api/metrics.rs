//! What monitoring scrapes: `GET /metrics`, in the OpenMetrics text format. Everything is as this agent knows it.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use pgherd_core::cover::Durability;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::server::{Api, Refused};
use crate::cluster::{HistoryEntry, Outcome, Service};
use crate::driver::Picture;

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels = Vec<(&'static str, String)>;
type Gauges = Family<Labels, Gauge<f64, AtomicU64>>;

pub(super) async fn scrape(State(api): State<Api>) -> Result<Response, Refused> {
    let picture = api.picture().await?;
    let mut text = String::new();
    encode(&mut text, &measure(&api, &picture)).map_err(|error| {
        Refused::new(StatusCode::INTERNAL_SERVER_ERROR, error, "see the agent's log, and report it")
    })?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response())
}

fn measure(api: &Api, picture: &Picture) -> Registry {
    let mut registry = Registry::with_prefix("pgherd");
    let state = &picture.state;
    let one = |registry: &mut Registry, name: &str, help: &str, value: f64| {
        let gauge: Gauge<f64, AtomicU64> = Gauge::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    };
    one(&mut registry, "generation", "The fencing number in force", number(state.generation.number()));
    one(&mut registry, "raft_term", "Raft's term", number(picture.standing.term));
    one(&mut registry, "raft_leader", "Whether this agent leads", flag(picture.standing.is_leader));
    one(&mut registry, "change_in_flight", "Whether the primary changes", flag(state.change.is_some()));
    let heard = |age: &Duration| *age < api.config.timings.node_timeout;
    let voters = &state.voters.current;
    let heard_of = picture.seen.iter().filter(|(id, (_, age))| voters.contains(id) && heard(age)).count();
    one(&mut registry, "voters", "Members whose word counts", count(voters.len()));
    one(&mut registry, "voters_heard", "Those that this agent hears", count(heard_of));
    let durability = picture.seen.values().filter(|(_, age)| heard(age)).map(|(said, _)| said.durability);
    let asked = durability.fold(api.config.failover.durability, Durability::and).standbys;
    let waits = state.cover.wanted.standbys;
    one(&mut registry, "sync_standbys_asked", "For how many standbys commits are to wait", f64::from(asked));
    one(&mut registry, "sync_standbys", "For how many standbys commits wait", f64::from(waits));
    let paused = flag(state.pauses.cluster.is_some());
    one(&mut registry, "paused", "Whether an operator has paused the whole cluster", paused);
    nodes(&mut registry, picture);
    changes(&mut registry, &state.history);
    registry
}

/// One line for each member.
fn nodes(registry: &mut Registry, picture: &Picture) {
    let (primary, service, lag, paused) =
        (Gauges::default(), Gauges::default(), Gauges::default(), Gauges::default());
    let leaving = Gauges::default();
    let state = &picture.state;
    let running = |id| picture.seen.get(&id).and_then(|(said, _)| said.postgres.as_ref()?.running());
    let end = state.serving().and_then(running).filter(|up| !up.in_recovery).map(|up| up.position);
    for member in state.members.values() {
        let id = member.descriptor.id;
        let labels = || vec![("node", member.descriptor.name.to_string())];
        primary.get_or_create(&labels()).set(flag(state.serving() == Some(id)));
        service.get_or_create(&labels()).set(flag(member.service == Service::Up));
        leaving.get_or_create(&labels()).set(flag(member.leaving.is_some()));
        paused.get_or_create(&labels()).set(flag(state.pauses.of(id).is_some()));
        if let Some((up, end)) = running(id).filter(|up| up.in_recovery).zip(end) {
            lag.get_or_create(&labels()).set(number(end.bytes_since(up.position)));
        }
    }
    let held = Gauges::default();
    for (said, _) in picture.seen.values() {
        if let Some(address) = &said.address {
            let labels =
                vec![("node", said.descriptor.name.to_string()), ("address", address.address.clone())];
            held.get_or_create(&labels).set(flag(address.held));
        }
    }
    registry.register("vip_held", "Whether it has the virtual IP", held);
    registry.register("node_is_primary", "Whether it serves as the primary", primary);
    registry.register("node_in_service", "Whether it is in service", service);
    registry.register("node_leaving", "Whether it is being removed from the cluster", leaving);
    registry.register("node_paused", "Whether its PostgreSQL is left alone for now", paused);
    registry.register_with_unit("node_lag", "WAL that a standby has yet to replay", Unit::Bytes, lag);
}

/// The last change of each kind that brought a primary into service.
fn changes(registry: &mut Registry, history: &[HistoryEntry]) {
    let (took, steps) = (Gauges::default(), Gauges::default());
    let completed =
        history.iter().filter(|entry| matches!(entry.outcome, Outcome::Completed | Outcome::StartedInPlace));
    let last: BTreeMap<String, &HistoryEntry> =
        completed.filter_map(|entry| Some((entry.kind?.to_string(), entry))).collect();
    for (kind, entry) in last {
        let Some(serving) = entry.serving else { continue };
        let ms = serving.0.saturating_sub(entry.begun.0);
        took.get_or_create(&vec![("kind", kind.to_string())]).set(number(ms) / 1000.0);
        for step in &entry.took {
            let labels = vec![("kind", kind.to_string()), ("step", step.step.to_string())];
            steps.get_or_create(&labels).set(number(step.ms) / 1000.0);
        }
    }
    registry.register_with_unit(
        "last_change",
        "From its beginning until its primary served",
        Unit::Seconds,
        took,
    );
    registry.register_with_unit("last_change_step", "How long the steps of it took", Unit::Seconds, steps);
}

fn flag(is: bool) -> f64 {
    if is { 1.0 } else { 0.0 }
}

#[expect(clippy::cast_precision_loss, reason = "a gauge has no more digits")]
fn number(value: u64) -> f64 {
    value as f64
}

fn count(value: usize) -> f64 {
    number(u64::try_from(value).unwrap_or(u64::MAX))
}
