//! `pgherd rebuild`: confirm, order, follow until it is over. The work is the agent's, and goes on without this program.

use std::time::Duration;

use pgherd_common::Clock;
use pgherd_common::NodeName;
use pgherd_common::time::RealClock;
use tokio::time::{MissedTickBehavior, interval};

use super::args::RebuildArgs;
use super::client::Agent;
use super::confirm;
use super::error::CliError;
use super::meter::Meter;
use super::target::Target;
use super::{Outcome, done, print};
use crate::api::types::{AgentType, ClusterStatus, Means, NodeStatus, Ordered, RebuildRequest, Refusal};
use crate::working::{Step, WorkStatus};

/// How often the agent is asked meanwhile.
const POLL: Duration = Duration::from_millis(200);

/// An agent that is restarted is back by then.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) async fn run(agent: &Agent, args: &RebuildArgs) -> Result<Outcome, CliError> {
    let status: ClusterStatus = agent.fetch("/v1/status").await?;
    let node = status.nodes.iter().find(|node| node.name == args.node);
    let node = node.ok_or_else(|| unknown(&args.node, &status))?;
    // Only a node's own agent touches its PostgreSQL.
    let own = agent.sibling(Target::parse(&node.agent.to_string())?);
    if args.stop {
        return done(&own.order("/v1/stop-rebuild", &()).await?);
    }
    let going: WorkStatus = own.fetch("/v1/rebuild").await?;
    if going.order.is_none() && !args.yes {
        confirm::ask(&question(args, node))?;
    }
    let request = RebuildRequest {
        node: args.node.clone(),
        means: args.means(),
        from: args.from.clone(),
        rate: args.rate.map(|rate| rate.0),
    };
    let Ordered { message, number } = own.post("/v1/rebuild", &request).await?;
    print(&format!("{message}\n"))?;
    if args.no_wait {
        return Ok(Outcome::Good);
    }
    tokio::select! {
        ended = follow(&own, number) => ended,
        // Where nobody can be told of a Ctrl-C, there is none.
        Ok(()) = tokio::signal::ctrl_c() => {
            print(&format!(
                "\n{0} is being rebuilt without this command: the same command follows it again, `pgherd rebuild {0} --stop` ends it\n",
                args.node
            ))?;
            Ok(Outcome::Bad)
        }
    }
}

fn unknown(name: &NodeName, status: &ClusterStatus) -> CliError {
    let names: Vec<&str> = status.nodes.iter().map(|node| node.name.as_str()).collect();
    let hint = format!("the nodes are {}", names.join(", "));
    CliError::Refused(Refusal { error: format!("there is no node {name}"), hint })
}

/// What it costs, and the question.
fn question(args: &RebuildArgs, node: &NodeStatus) -> String {
    let name = &args.node;
    let mut text = format!("Rebuild of {name}:\n");
    if node.agent_type == AgentType::Standby {
        text += &format!(
            "  {name} is a standby that runs. It is stopped, and serves no reads until it is back.\n"
        );
    }
    text += match args.means() {
        Means::Best => {
            "  It is rewound if it has WAL that the primary never had; otherwise all of its data is copied anew.\n"
        }
        Means::Rewind => {
            "  It is rewound if it has WAL that the primary never had; otherwise it is only started again.\n"
        }
        Means::Clone => "  All of its data is copied anew.\n",
    };
    text += match args.means() {
        Means::Best => {
            "  A copy keeps the old data directory aside for failover.keep_old_data; a rewind keeps nothing.\n"
        }
        Means::Rewind => "  Nothing is kept of what a rewind undoes.\n",
        Means::Clone => "  The old data directory is kept aside for failover.keep_old_data.\n",
    };
    text + "  What only this node has is not part of the cluster any more.\nRebuild it?"
}

/// Until the order has come to its end.
async fn follow(own: &Agent, number: u64) -> Result<Outcome, CliError> {
    let clock = RealClock;
    let mut meter = Meter::new();
    let (mut heard, mut silent) = (clock.now(), false);
    let mut ticks = interval(POLL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let status: WorkStatus = match own.fetch("/v1/rebuild").await {
            Ok(status) => status,
            Err(error) if clock.now().since(heard) >= PATIENCE => return Err(error),
            Err(_) => {
                if !std::mem::replace(&mut silent, true) {
                    meter.say("the agent does not answer; it goes on with the rebuild when it is back")?;
                }
                continue;
            }
        };
        (heard, silent) = (clock.now(), false);
        if let Some(ended) = status.last.filter(|ended| ended.order == number) {
            meter.end();
            return if ended.succeeded {
                print(&format!("{}\n", ended.message))?;
                Ok(Outcome::Good)
            } else {
                Err(CliError::NotRebuilt { why: ended.message })
            };
        }
        if status.order != Some(number) {
            meter.end();
            return Err(CliError::Forgotten);
        }
        let waiting = Step { what: "waiting to begin".to_owned(), done: 0, total: 0 };
        meter.show(&status.step.unwrap_or(waiting))?;
    }
}
