//! `pgherd promote`: confirm, order, follow until it is over.

use std::io::{self, IsTerminal};
use std::time::Duration;

use chrono::Local;
use pgherd_common::time::RealClock;
use pgherd_common::{Clock, MonoTime, NodeName};
use tokio::time::{MissedTickBehavior, interval};

use super::args::PromoteArgs;
use super::client::Agent;
use super::confirm;
use super::error::CliError;
use super::progress::{Awaited, Progress, failure, newest, success};
use super::target::Target;
use super::units::{bytes, millis};
use super::{Outcome, done, print};
use crate::api::types::{AgentType, ClusterStatus, PromoteRequest};
use crate::cluster::HistoryEntry;

/// A change of primary that is not over by then needs a human being, not a patient one.
const WAIT: Duration = Duration::from_secs(60);

/// How often an agent is asked meanwhile.
const POLL: Duration = Duration::from_millis(100);

pub(super) async fn run(agent: &Agent, args: &PromoteArgs) -> Result<Outcome, CliError> {
    if args.cancel_scheduled {
        return done(&agent.order("/v1/cancel-scheduled", &()).await?);
    }
    let at = match &args.at {
        Some(at) => {
            let when = at.resolve(RealClock.wall(), &Local)?;
            print(&format!("{at} means {}\n", when.shown))?;
            Some(when.at)
        }
        None => None,
    };
    let before: ClusterStatus = agent.fetch("/v1/status").await?;
    let history: Vec<HistoryEntry> = agent.fetch("/v1/history").await?;
    if !args.switchover && !args.yes {
        confirm::ask(&question(&before, args.to.as_ref()))?;
    }
    let request = PromoteRequest {
        switchover: args.switchover,
        to: args.to.clone(),
        at,
        explain: args.explain,
        end_transactions: args.end_transactions,
        allow_data_loss: args.allow_data_loss,
    };
    let accepted = agent.order("/v1/promote", &request).await?;
    print(&format!("{}\n", accepted.message))?;
    let Some(generation) = accepted.generation.filter(|_| !args.no_wait) else {
        return Ok(Outcome::Good);
    };
    let awaited = Awaited { generation, newest_before: newest(&history).cloned() };
    await_change(agent, &before, &awaited).await
}

/// Follows a change of primary until it is over, and tells how it went.
pub(super) async fn await_change(
    agent: &Agent,
    before: &ClusterStatus,
    awaited: &Awaited,
) -> Result<Outcome, CliError> {
    match follow(agents(agent, before), awaited).await? {
        Some(Progress::Done(entry)) => {
            print(&success(&entry))?;
            Ok(Outcome::Good)
        }
        Some(Progress::RolledBack(entry)) => {
            print(&failure(&entry))?;
            Ok(Outcome::Bad)
        }
        Some(Progress::Going(_)) | None => Err(CliError::NotOver { within: WAIT }),
    }
}

/// What a forced promotion may cost, and the question.
fn question(status: &ClusterStatus, to: Option<&NodeName>) -> String {
    let primary = status.nodes.iter().find(|node| node.agent_type == AgentType::Primary);
    let successor = to.or(status.priority.first()).map_or("a standby", NodeName::as_str);
    let mut text = format!("Forced promotion in cluster {}:\n", status.cluster);
    match primary {
        Some(node) => {
            text += &format!(
                "  {} is the primary, and its database is {}. It is not stopped cleanly: it is killed.\n",
                node.name, node.db
            );
        }
        None => text += "  There is no primary now.\n",
    }
    text += &match to {
        Some(name) => format!("  {name} takes its place, even where another standby has more.\n"),
        None => {
            format!("  The standby that has most takes its place; among equals, {successor} comes first.\n")
        }
    };
    text += "  Committed transactions that the new primary has not received are lost for good.\n";
    for node in status.nodes.iter().filter(|node| node.agent_type == AgentType::Standby) {
        let lag = node
            .lag_bytes
            .map_or("not known to be in sync".to_owned(), |lag| format!("{} behind", bytes(lag)));
        text += &format!("    {}: {lag}\n", node.name);
    }
    if primary.is_some() {
        text += "  While the primary runs, `pgherd promote --switchover` loses nothing.\n";
    }
    text + "Promote by force?"
}

/// The agent that took the order, then the others: the change may cost us the first.
pub(super) fn agents(agent: &Agent, status: &ClusterStatus) -> Vec<Agent> {
    let address = |target: Target| agent.sibling(target);
    let mut agents = vec![agent.sibling(agent.target().clone())];
    let others = status.nodes.iter().filter(|node| node.name != status.answered_by);
    agents.extend(others.filter_map(|node| Target::parse(&node.agent.to_string()).ok()).map(address));
    agents
}

/// `None` when it is not over in time.
async fn follow(mut agents: Vec<Agent>, awaited: &Awaited) -> Result<Option<Progress>, CliError> {
    let clock = RealClock;
    let begun = clock.now();
    let mut phases = Phases::new(begun);
    let mut ticks = interval(POLL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while clock.now().since(begun) < WAIT {
        ticks.tick().await;
        let Some(agent) = agents.first() else { break };
        match look(agent, awaited).await {
            Ok(Progress::Going(phase)) => phases.show(phase.as_deref(), clock.now())?,
            Ok(over) => {
                phases.end()?;
                return Ok(Some(over));
            }
            Err(_) => {
                phases.show(
                    Some(&format!("no answer from {}; asking another agent", agent.target())),
                    clock.now(),
                )?;
                agents.rotate_left(1);
            }
        }
    }
    phases.end()?;
    Ok(None)
}

async fn look(agent: &Agent, awaited: &Awaited) -> Result<Progress, CliError> {
    let status: ClusterStatus = agent.fetch("/v1/status").await?;
    let history: Vec<HistoryEntry> =
        if status.change.is_some() { Vec::new() } else { agent.fetch("/v1/history").await? };
    Ok(awaited.progress(&status, &history))
}

/// Shows each phase once; on a terminal its line counts on until the next phase comes.
struct Phases {
    begun: MonoTime,
    shown: Option<String>,
    live: bool,
}

impl Phases {
    fn new(begun: MonoTime) -> Self {
        Self { begun, shown: None, live: io::stdout().is_terminal() }
    }

    fn show(&mut self, phase: Option<&str>, now: MonoTime) -> Result<(), CliError> {
        let Some(phase) = phase else { return Ok(()) };
        let elapsed = millis(u64::try_from(now.since(self.begun).as_millis()).unwrap_or(u64::MAX));
        let is_new = self.shown.as_deref() != Some(phase);
        let ended = if is_new && self.live && self.shown.is_some() { "\n" } else { "" };
        self.shown = Some(phase.to_owned());
        if self.live {
            print(&format!("{ended}\r\x1b[K  {elapsed:>8}  {phase}"))
        } else if is_new {
            print(&format!("  {elapsed:>8}  {phase}\n"))
        } else {
            Ok(())
        }
    }

    fn end(&self) -> Result<(), CliError> {
        if self.live && self.shown.is_some() { print("\n") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::cluster_status::tests::three_nodes;

    #[test]
    fn the_price_is_named_before_the_question() {
        let status = three_nodes();
        assert_eq!(
            question(&status, None),
            "\
Forced promotion in cluster demo:
  server1 is the primary, and its database is UP. It is not stopped cleanly: it is killed.
  The standby that has most takes its place; among equals, server2 comes first.
  Committed transactions that the new primary has not received are lost for good.
    server2: 1.5 MB behind
  While the primary runs, `pgherd promote --switchover` loses nothing.
Promote by force?"
        );
        let server3 = "server3".parse().unwrap();
        let text = question(&status, Some(&server3));
        assert!(text.contains("  server3 takes its place, even where another standby has more.\n"), "{text}");
    }

    #[test]
    fn the_agent_that_took_the_order_is_asked_first() {
        let agent = Agent::new(Target::parse("10.0.0.1:7800").unwrap()).unwrap();
        let urls: Vec<_> =
            agents(&agent, &three_nodes()).iter().map(|agent| agent.target().url.clone()).collect();
        assert_eq!(
            urls,
            ["http://10.0.0.1:7800", "http://10.0.0.2:7800", "http://10.0.0.3:7800", "http://10.0.0.4:7800"]
        );
    }
}
