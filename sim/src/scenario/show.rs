//! What scripts print.

use pgherd_common::NodeId;
use pgherd_core::cluster::{ClusterState, HistoryEntry, Service};

use crate::clock::{MS, Micros, SECOND, Time};
use crate::world::World;

/// `+1.25 s`: since time was last counted.
fn since(at: Time, from: Time) -> String {
    let span = at.since(from);
    format!("+{}.{:02} s", span / SECOND, span % SECOND / (10 * MS))
}

/// As `pgherd cluster-status` tells it, by the agent that leads.
pub(super) fn status(world: &World) -> Vec<String> {
    let Some(leader) = world.leader() else {
        return vec!["no agent leads the raft group: nothing can be decided".to_owned()];
    };
    let (Some(node), Some(state)) = (world.node(leader), world.state(leader)) else { return Vec::new() };
    let mut lines = vec![format!("{:<10} {:<8} {:<4} Service", "Agent Type", "Name", "DB")];
    for member in state.members.values() {
        let id = member.descriptor.id;
        let now = world.mono(leader);
        let heard = node.coordinator().seen().get(&id);
        let heard = heard.filter(|seen| now.since(seen.at) < world.timings.node_timeout);
        let running = heard.and_then(|seen| seen.observation.postgres.as_ref()?.running());
        let kind = match heard {
            None => "Down",
            Some(_) if !member.is_database() => "Witness",
            Some(_) => role(state, id, running.is_some()),
        };
        let database = match (member.is_database(), running) {
            (false, _) => "N/A",
            (true, Some(_)) => "UP",
            (true, None) if heard.is_none() => "?",
            (true, None) => "DOWN",
        };
        let service = match &member.service {
            Service::Up => "in service".to_owned(),
            Service::Joining => "joining".to_owned(),
            Service::Failed(reason) => format!("out of service: {reason}"),
        };
        lines.push(format!("{kind:<10} {:<8} {database:<4} {service}", member.descriptor.name.as_str()));
    }
    lines.push(String::new());
    let change = match &state.change {
        None => "no change in flight".to_owned(),
        Some(change) => format!("{} to generation {} in flight", change.kind, change.generation),
    };
    lines.push(format!("Generation {}, {change}", state.generation));
    lines.extend(node.report().iter().map(|line| format!("Last decision: {line}")));
    lines
}

fn role(state: &ClusterState, id: NodeId, up: bool) -> &'static str {
    if state.serving() == Some(id) {
        "Primary"
    } else if state.primary.is_some_and(|primary| primary.node == id) {
        "Promoting"
    } else if up {
        "Standby"
    } else {
        "Idle"
    }
}

/// As `pgherd history` tells it.
pub(super) fn history(world: &World) -> Vec<String> {
    let states = (0..world.machines.len()).filter_map(|index| world.state(index));
    let Some(newest) = states.max_by_key(|state| state.revision) else { return Vec::new() };
    newest.history.iter().map(entry).collect()
}

fn entry(entry: &HistoryEntry) -> String {
    let kind = entry.kind.map_or("formed".to_owned(), |kind| kind.to_string());
    let from = entry.from.as_ref().map_or("-", |from| from.as_str());
    format!(
        "{kind:<10}  {from:<8} {:<8} generation {}  {:<11}  {}",
        entry.to.as_str(),
        entry.generation,
        entry.outcome.to_string(),
        entry.reason
    )
}

/// What happened since the log was last shown, without what is only detail.
pub(super) fn decisions(world: &World, shown: usize, from: Time) -> Vec<String> {
    const DETAIL: [&str; 7] = [
        "proposal ended",
        "    log ",
        "aligns replication slots",
        "raft leadership",
        "the raft group",
        "checkpoints",
        "is in service",
    ];
    let news = world.log.lines().skip(shown).filter(|(_, line)| !DETAIL.iter().any(|d| line.contains(d)));
    news.map(|(at, line)| format!("{:>9}  {line}", since(*at, from))).collect()
}

/// Whether clients can write, and for how long they could not.
pub(super) fn writes(world: &World, acknowledged: &mut Vec<Time>, from: Time) -> Vec<String> {
    let mut times: Vec<Time> = acknowledged.drain(..).filter(|at| *at >= from).collect();
    times.insert(0, from);
    times.push(world.now);
    let pause: Micros =
        times.iter().zip(times.iter().skip(1)).map(|(a, b)| b.since(*a)).max().unwrap_or_default();
    let mut lines: Vec<String> = (1..)
        .zip(&world.proxies)
        .map(|(number, proxy)| match proxy.writes_to().and_then(|id| world.index_of(id)) {
            Some(index) => format!("proxy{number}: writes go to {}", world.name(index)),
            None => format!("proxy{number}: writes wait"),
        })
        .collect();
    let tenths = pause.div_ceil(100 * MS);
    lines.push(format!("longest pause between two acknowledged writes: {}.{} s", tenths / 10, tenths % 10));
    let errors: u64 = world.proxies.iter().map(|proxy| proxy.errors).sum();
    lines.push(format!("clients that saw an error so far: {errors}"));
    lines
}
