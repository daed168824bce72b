//! `pgherd add-node`, `remove-node` and `reset-members`.

use std::time::Duration;

use pgherd_common::time::RealClock;
use pgherd_common::{Clock, NodeName};
use tokio::time::{MissedTickBehavior, interval};

use super::args::{AddArgs, RemoveArgs};
use super::client::Agent;
use super::error::CliError;
use super::promote::agents;
use super::{Outcome, confirm, done, print};
use crate::api::types::{
    Accepted, AddRequest, ClusterStatus, NodeStatus, RemoveRequest, Reset, ResetRequest,
};

/// A node is gone within a few seconds, unless PostgreSQL takes its time to stop.
const WAIT: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(300);

pub(super) async fn add(agent: &Agent, args: &AddArgs) -> Result<Outcome, CliError> {
    let AddArgs { node, id, address } = args.clone();
    done(&agent.order("/v1/add-node", &AddRequest { id, name: node, agent: address }).await?)
}

pub(super) async fn remove(agent: &Agent, args: &RemoveArgs) -> Result<Outcome, CliError> {
    let status: ClusterStatus = agent.fetch("/v1/status").await?;
    if !args.yes {
        confirm::ask(&question(&status, &args.node))?;
    }
    let request = RemoveRequest { node: args.node.clone(), force: args.force };
    let accepted: Accepted = agent.order("/v1/remove-node", &request).await?;
    print(&format!("{}\n", accepted.message))?;
    if args.no_wait {
        return Ok(Outcome::Good);
    }
    until_gone(agents(agent, &status), std::slice::from_ref(&args.node)).await
}

pub(super) async fn reset(agent: &Agent, yes: bool) -> Result<Outcome, CliError> {
    let silent: Reset = agent.post("/v1/reset-members", &ResetRequest { nodes: None }).await?;
    if !yes {
        confirm::ask(&reset_question(&silent.nodes))?;
    }
    let status: ClusterStatus = agent.fetch("/v1/status").await?;
    let request = ResetRequest { nodes: Some(silent.nodes) };
    let forgotten: Reset = agent.post("/v1/reset-members", &request).await?;
    print(&format!("being forgotten: {}\n", list(&forgotten.nodes)))?;
    until_gone(agents(agent, &status), &forgotten.nodes).await
}

/// Whoever is removed does not answer for long.
async fn until_gone(mut agents: Vec<Agent>, nodes: &[NodeName]) -> Result<Outcome, CliError> {
    let clock = RealClock;
    let begun = clock.now();
    let mut ticks = interval(POLL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let still = |status: &ClusterStatus| status.nodes.iter().any(|node| nodes.contains(&node.name));
    let mut told = None;
    while clock.now().since(begun) < WAIT {
        ticks.tick().await;
        let Some(agent) = agents.first() else { break };
        match agent.fetch::<ClusterStatus>("/v1/status").await {
            // One of those may not have heard that it is gone.
            Ok(status) if nodes.contains(&status.answered_by) => agents.rotate_left(1),
            Ok(status) if still(&status) => {
                let waits = status.report.into_iter().find(|line| line.contains("being removed"));
                if waits.is_some() && waits != told {
                    print(&format!("  {}\n", waits.as_deref().unwrap_or_default()))?;
                    told = waits;
                }
            }
            Ok(_) => {
                print(&format!("{} {} not in the cluster any more\n", list(nodes), verb(nodes)))?;
                return Ok(Outcome::Good);
            }
            Err(_) => agents.rotate_left(1),
        }
    }
    Err(CliError::NotGone { nodes: list(nodes), within: WAIT })
}

fn list(nodes: &[NodeName]) -> String {
    nodes.iter().map(NodeName::as_str).collect::<Vec<_>>().join(", ")
}

fn verb(nodes: &[NodeName]) -> &'static str {
    if nodes.len() == 1 { "is" } else { "are" }
}

fn question(status: &ClusterStatus, name: &NodeName) -> String {
    let node = status.nodes.iter().find(|node| node.name == *name);
    let what = match node {
        Some(NodeStatus { invited: true, .. }) => "Its invitation is taken back.".to_owned(),
        Some(NodeStatus { postgres: Some(address), .. }) => format!(
            "Its PostgreSQL ({address}) is stopped, its data is left where it is, its slots on the other nodes are dropped, and \
             its agent ends."
        ),
        Some(_) | None => "Its agent ends.".to_owned(),
    };
    format!("This removes {name} from cluster {}. {what}\nRemove it?", status.cluster)
}

fn reset_question(nodes: &[NodeName]) -> String {
    format!(
        "The agents of these nodes are silent: {}.\nThey are removed from the cluster. What runs there is not stopped before \
         their agents can reach the others again; to take part they have to be added anew (pgherd add-node).\nForget them?",
        list(nodes)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::cluster_status::tests::three_nodes;

    #[test]
    fn what_becomes_of_a_node_is_said_before_the_question() {
        let status = three_nodes();
        let ask = |name: &str| question(&status, &name.parse().unwrap());
        let text = ask("server2");
        assert!(
            text.contains("removes server2 from cluster demo. Its PostgreSQL (") && text.ends_with('?'),
            "{text}"
        );
        assert!(ask("server4").contains("Its agent ends."), "a witness");
        let mut status = status.clone();
        status.nodes[1].invited = true;
        assert!(question(&status, &status.nodes[1].name).contains("invitation is taken back"));
    }

    #[test]
    fn whoever_is_forgotten_is_named() {
        let names = ["server2".parse().unwrap(), "server3".parse().unwrap()];
        assert!(reset_question(&names).contains("silent: server2, server3.\n"));
    }
}
