//! `pgherd restart`: one node after the other, standbys first.

use std::time::Duration;

use pgherd_common::time::RealClock;
use pgherd_common::{Clock, NodeName};
use tokio::time::{MissedTickBehavior, interval};

use super::args::RestartArgs;
use super::client::Agent;
use super::confirm;
use super::error::CliError;
use super::progress::{Awaited, newest};
use super::promote::{agents, await_change};
use super::units::millis;
use super::{Outcome, print};
use crate::api::types::{AgentType, ClusterStatus, NodeStatus, RestartRequest};
use crate::cluster::{HistoryEntry, NodeKind};

/// A standby that is not back by then needs a human being, not a patient one: its transactions had time to end,
/// PostgreSQL to stop, to replay what it has, and to stream again.
const WAIT: Duration = Duration::from_secs(300);

/// How often an agent is asked meanwhile.
const POLL: Duration = Duration::from_millis(200);

/// How long a standby may take to replay what the primary had written when its turn came.
const REPLAY_WAIT: Duration = Duration::from_secs(60);

pub(super) async fn run(agent: &Agent, args: &RestartArgs) -> Result<Outcome, CliError> {
    let before: ClusterStatus = agent.fetch("/v1/status").await?;
    let order = order(&before, args)?;
    if order.is_empty() {
        print("no node has a changed setting that waits for a restart\n")?;
        return Ok(Outcome::Good);
    }
    if !args.yes {
        confirm::ask(&question(&order))?;
    }
    for (index, node) in order.iter().enumerate() {
        let outcome = take_turn(agent, &node.name, args.end_transactions).await;
        if !matches!(outcome, Ok(Outcome::Good)) {
            print(&left_out(order.get(index + 1..).unwrap_or_default()))?;
            return outcome;
        }
    }
    Ok(Outcome::Good)
}

/// One node's restart, to its end.
pub(super) async fn take_turn(
    agent: &Agent,
    name: &NodeName,
    end_transactions: bool,
) -> Result<Outcome, CliError> {
    // The primary may be another one by now.
    let now: ClusterStatus = agent.fetch("/v1/status").await?;
    let Some(node) = now.nodes.iter().find(|known| known.name == *name) else { return Ok(Outcome::Good) };
    if node.agent_type == AgentType::Standby && !node.pending_lowered.is_empty() {
        await_replay(agent, &now, node).await?;
    }
    let outcome = restart(agent, &now, node, end_transactions).await?;
    let after: ClusterStatus = agent.fetch("/v1/status").await?;
    let known = after.nodes.iter().find(|known| known.name == *name);
    let news = known.into_iter().flat_map(|known| &known.refused).filter(|what| !node.refused.contains(what));
    let news: String = news.map(|what| format!("{name} runs again, but does not take {what}\n")).collect();
    print(&news)?;
    Ok(if news.is_empty() { outcome } else { Outcome::Bad })
}

/// A standby comes up with what its WAL says the primary has: it has to know that this is less by now. One that does not
/// get there in time is restarted all the same, with as much as before.
async fn await_replay(agent: &Agent, begun: &ClusterStatus, node: &NodeStatus) -> Result<(), CliError> {
    let primary = begun.nodes.iter().find(|known| known.agent_type == AgentType::Primary);
    let Some(wanted) = primary.and_then(|primary| primary.replayed) else { return Ok(()) };
    let mut agents = agents(agent, begun);
    let since = RealClock.now();
    while RealClock.now().since(since) < REPLAY_WAIT {
        let Some(agent) = agents.first() else { break };
        match agent.fetch::<ClusterStatus>("/v1/status").await {
            Ok(status) => {
                let now = status.nodes.iter().find(|known| known.name == node.name);
                if now.and_then(|now| now.replayed).is_some_and(|replayed| replayed >= wanted) {
                    return Ok(());
                }
            }
            Err(_) => agents.rotate_left(1),
        }
        tokio::time::sleep(POLL).await;
    }
    let names = node.pending_lowered.join(", ");
    print(&format!(
        "{} has not replayed the primary's WAL yet: it keeps its present {names} for now\n",
        node.name
    ))
}

/// Whose turn does not come any more.
fn left_out(rest: &[&NodeStatus]) -> String {
    if rest.is_empty() {
        return String::new();
    }
    let names: Vec<&str> = rest.iter().map(|node| node.name.as_str()).collect();
    format!("not restarted, since that went wrong: {}\n", names.join(", "))
}

/// Standbys first, then the primary; after it those again that are to have less of what they need as much of as the
/// primary has. Such a standby has nothing to be restarted for before, unless it waits for something else besides.
fn order<'a>(status: &'a ClusterStatus, args: &RestartArgs) -> Result<Vec<&'a NodeStatus>, CliError> {
    let known = |name: &NodeName| status.nodes.iter().find(|node| node.name == *name);
    if let Some(unknown) = args.nodes.iter().find(|name| known(name).is_none()) {
        return Err(CliError::NoSuchNode { node: unknown.clone() });
    }
    let mut wanted: Vec<&NodeStatus> = match args.nodes.as_slice() {
        [] => status.nodes.iter().filter(|node| node.kind == NodeKind::Database).collect(),
        names => names.iter().filter_map(known).collect(),
    };
    wanted.retain(|node| !args.pending || !node.pending_restart.is_empty());
    wanted.sort_by_key(|node| (node.agent_type == AgentType::Primary, node.id));
    wanted.dedup_by_key(|node| node.id);
    if !wanted.iter().any(|node| node.agent_type == AgentType::Primary) {
        return Ok(wanted);
    }
    let lowered =
        |node: &&NodeStatus| node.agent_type != AgentType::Primary && !node.pending_lowered.is_empty();
    let after: Vec<&NodeStatus> = wanted.iter().copied().filter(lowered).collect();
    let only =
        |node: &NodeStatus| node.pending_restart.iter().all(|name| node.pending_lowered.contains(name));
    wanted.retain(|node| !(lowered(node) && only(node)));
    wanted.extend(after);
    Ok(wanted)
}

fn question(order: &[&NodeStatus]) -> String {
    let mut text = "PostgreSQL is restarted, on one node after the other:\n".to_owned();
    let primary = order.iter().position(|node| node.agent_type == AgentType::Primary);
    for (place, node) in order.iter().enumerate() {
        text += &match node.agent_type {
            AgentType::Primary => {
                format!("  {}, the primary: new work is held until it is back\n", node.name)
            }
            _ if primary.is_some_and(|primary| place > primary) => {
                let names = node.pending_lowered.join(", ");
                format!("  {}, for a lower {names}: it takes no reads meanwhile\n", node.name)
            }
            _ => format!("  {}: it takes no reads meanwhile\n", node.name),
        };
    }
    text + "Restart?"
}

async fn restart(
    agent: &Agent,
    before: &ClusterStatus,
    node: &NodeStatus,
    end_transactions: bool,
) -> Result<Outcome, CliError> {
    let history: Vec<HistoryEntry> = agent.fetch("/v1/history").await?;
    let request = RestartRequest { node: node.name.clone(), end_transactions };
    let accepted = agent.order("/v1/restart", &request).await?;
    print(&format!("{}\n", accepted.message))?;
    match accepted.generation {
        Some(generation) => {
            let awaited = Awaited { generation, newest_before: newest(&history).cloned() };
            await_change(agent, before, &awaited).await
        }
        None => await_standby(agents(agent, before), node).await,
    }
}

/// Waits until another postmaster streams, and is in service again.
async fn await_standby(mut agents: Vec<Agent>, before: &NodeStatus) -> Result<Outcome, CliError> {
    let clock = RealClock;
    let begun = clock.now();
    let mut ticks = interval(POLL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = None;
    while clock.now().since(begun) < WAIT {
        ticks.tick().await;
        let Some(agent) = agents.first() else { break };
        let status: Result<ClusterStatus, CliError> = agent.fetch("/v1/status").await;
        let Ok(status) = status else {
            agents.rotate_left(1);
            continue;
        };
        last = status.nodes.into_iter().find(|node| node.name == before.name);
        if last.as_ref().is_some_and(|now| is_back(before, now)) {
            let took = u64::try_from(clock.now().since(begun).as_millis()).unwrap_or(u64::MAX);
            print(&format!("{} is back in service after {}\n", before.name, millis(took)))?;
            return Ok(Outcome::Good);
        }
    }
    let info = last.map(|node| node.info).filter(|info| !info.is_empty());
    let info = info.unwrap_or_else(|| "nothing more is known".to_owned());
    print(&format!("{} is not back in service after {} s: {info}\n", before.name, WAIT.as_secs()))?;
    Ok(Outcome::Bad)
}

fn is_back(before: &NodeStatus, now: &NodeStatus) -> bool {
    now.agent_type == AgentType::Standby && now.in_service && now.pid.is_some() && now.pid != before.pid
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::cluster_status::tests::three_nodes;

    fn args(nodes: &[&str], pending: bool) -> RestartArgs {
        let nodes = nodes.iter().map(|node| node.parse().unwrap()).collect();
        RestartArgs { nodes, pending, end_transactions: false, yes: true }
    }

    fn names(order: &[&NodeStatus]) -> Vec<String> {
        order.iter().map(|node| node.name.to_string()).collect()
    }

    #[test]
    fn the_primary_comes_last_and_nobody_twice() {
        let mut status = three_nodes();
        assert_eq!(names(&order(&status, &args(&[], false)).unwrap()), ["server2", "server3", "server1"]);
        let twice = args(&["server1", "server3", "server3"], false);
        assert_eq!(names(&order(&status, &twice).unwrap()), ["server3", "server1"]);
        assert!(names(&order(&status, &args(&[], true)).unwrap()).is_empty());
        status.nodes[0].pending_restart = vec!["shared_buffers".to_owned()];
        assert_eq!(names(&order(&status, &args(&[], true)).unwrap()), ["server1"]);
        let unknown = order(&status, &args(&["server9"], false)).unwrap_err();
        assert_eq!(unknown.to_string(), "there is no node server9");
    }

    #[test]
    fn a_standby_gets_less_of_what_it_needs_after_the_primary_and_the_rest_before() {
        let mut status = three_nodes();
        let lowered = vec!["max_connections".to_owned()];
        for node in &mut status.nodes {
            (node.pending_restart, node.pending_lowered) = (lowered.clone(), lowered.clone());
        }
        assert_eq!(names(&order(&status, &args(&[], true)).unwrap()), ["server1", "server2", "server3"]);
        status.nodes[2].pending_restart.push("shared_buffers".to_owned());
        let mixed = args(&[], true);
        let both = order(&status, &mixed).unwrap();
        assert_eq!(names(&both), ["server3", "server1", "server2", "server3"]);
        assert!(
            question(&both).contains("  server3, for a lower max_connections: it"),
            "{}",
            question(&both)
        );
        // The primary has less already, or is not to be restarted.
        (status.nodes[0].pending_restart, status.nodes[0].pending_lowered) = Default::default();
        assert_eq!(names(&order(&status, &args(&[], true)).unwrap()), ["server2", "server3"]);
    }

    #[test]
    fn a_standby_is_back_once_another_postmaster_is_in_service() {
        let before = NodeStatus { pid: Some(10), in_service: true, ..three_nodes().nodes[1].clone() };
        let back = NodeStatus { pid: Some(11), ..before.clone() };
        assert!(is_back(&before, &back));
        assert!(!is_back(&before, &before));
        assert!(!is_back(&before, &NodeStatus { in_service: false, ..back.clone() }));
        assert!(!is_back(&before, &NodeStatus { pid: None, agent_type: AgentType::Idle, ..back }));
    }

    #[test]
    fn what_is_restarted_is_named_before_the_question() {
        let status = three_nodes();
        let order = order(&status, &args(&["server1", "server2"], false)).unwrap();
        let text = "PostgreSQL is restarted, on one node after the other:\n  server2: it takes no reads meanwhile\n  \
                    server1, the primary: new work is held until it is back\nRestart?";
        assert_eq!(question(&order), text);
    }

    #[test]
    fn whoever_is_left_out_is_named() {
        let status = three_nodes();
        let order = order(&status, &args(&[], false)).unwrap();
        assert_eq!(left_out(&order[1..]), "not restarted, since that went wrong: server3, server1\n");
        assert_eq!(left_out(&order[3..]), "");
    }
}
