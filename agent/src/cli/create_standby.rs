//! `pgherd create-standby`: gives the node of this machine its data, so that its agent can start. An agent does not run
//! without a database, so this program does the work itself.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use pgherd_common::NodeName;
use pgherd_common::errors::Chain;
use tokio::time::{MissedTickBehavior, interval};

use super::args::{AgentArgs, CONFIG_DEFAULT, CreateArgs};
use super::client::Agent;
use super::error::CliError;
use super::meter::Meter;
use super::target::Target;
use super::{Outcome, print};
use crate::api::types::{AgentType, ClusterStatus, DatabaseState, NodeStatus};
use crate::app;
use crate::config::{self, Config};
use crate::postgres::{CreateError, Upstream, create_standby};
use crate::sole::{Sole, SoleError};
use crate::working::Working;

/// How often the bar moves.
const TICK: std::time::Duration = std::time::Duration::from_millis(200);

pub(super) async fn run(agent: &AgentArgs, args: &CreateArgs) -> Result<Outcome, CliError> {
    let refuse = |why: String, hint: &str| CliError::NotCreated { why, hint: hint.to_owned() };
    let path = agent.config.as_deref().unwrap_or(Path::new(CONFIG_DEFAULT));
    let config = config::load(path)?;
    let name = &config.node.name;
    let Some(postgres) = &config.postgres else {
        return Err(refuse(format!("{name} is a witness"), "a witness has no database; start its agent"));
    };
    let settings = app::settings(&config, postgres);
    as_the_agent(&config.node.state_dir)?;
    let _sole = Sole::lock(&config.node.state_dir).await.map_err(|error| {
        let hint = match &error {
            SoleError::Taken(_) => {
                "stop the agent of this node first: systemctl stop pgherd-agent".to_owned()
            }
            SoleError::Io { .. } => format!(
                "its directory has to be there and to belong to the agent's user: install -d -o {} -m 0700 {}",
                postgres.os_user,
                config.node.state_dir.display()
            ),
        };
        refuse(Chain(&error).to_string(), &hint)
    })?;
    let status = ask(&config).await?;
    let Some(identifier) = status.system_identifier else {
        let hint = "pgherd cluster-status says what the cluster is waiting for";
        return Err(refuse(format!("cluster {} has not formed yet", config.cluster), hint));
    };
    let (sources, upstream) = sources(&status, name, args.from.as_ref())?;
    let working = Working::default();
    let rate = args.rate.map(|rate| rate.0);
    let work = create_standby(&settings, identifier, &sources, &upstream, rate, &working);
    let mut meter = Meter::new();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tokio::pin!(work);
    let created = loop {
        tokio::select! {
            created = &mut work => break created,
            _ = ticks.tick() => {
                if let Some(step) = working.status().step {
                    meter.show(&step)?;
                }
            }
            // It ends in order.
            Ok(()) = tokio::signal::ctrl_c() => working.stop(),
        }
    };
    meter.end();
    let (from, copied) = created.map_err(|error| {
        let hint = match &error {
            CreateError::NotEmpty(_) | CreateError::Open(_) => "nothing was copied",
            CreateError::Clone(_) => {
                "the same command begins anew, and removes first what may be left; a copy that was complete it finishes"
            }
        };
        refuse(Chain(&error).to_string(), hint)
    })?;
    let size = super::units::bytes(copied);
    print(&format!(
        "{name} has the data of {} ({size}). Start its agent: it becomes a standby of {} then.\n",
        from.node, upstream.node
    ))?;
    Ok(Outcome::Good)
}

/// What is left in the agent's directory has to be the agent's own.
fn as_the_agent(state_dir: &Path) -> Result<(), CliError> {
    let Ok(metadata) = std::fs::metadata(state_dir) else { return Ok(()) };
    let (owner, user) = (metadata.uid(), rustix::process::geteuid().as_raw());
    if owner == user {
        return Ok(());
    }
    Err(CliError::NotCreated {
        why: format!("{} belongs to uid {owner}, and this runs as uid {user}", state_dir.display()),
        hint: "run it as the user that the agent runs as: sudo -u postgres pgherd create-standby".to_owned(),
    })
}

/// What the first agent that answers says of the cluster.
async fn ask(config: &Config) -> Result<ClusterStatus, CliError> {
    let mut last = None;
    for member in config.members.iter().filter(|member| member.id != config.node.id) {
        let agent = Agent::new(Target::parse(&member.agent.to_string())?)?;
        match agent.fetch("/v1/status").await {
            Ok(status) => return Ok(status),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or(CliError::NotCreated {
        why: "this node is the only member: there is nobody to copy".to_owned(),
        hint: "list the other nodes as [[members]]".to_owned(),
    }))
}

/// Whom to copy, the best one first, and whom to follow.
fn sources(
    status: &ClusterStatus,
    own: &NodeName,
    named: Option<&NodeName>,
) -> Result<(Vec<Upstream>, Upstream), CliError> {
    let refuse = |why: String| CliError::NotCreated {
        why,
        hint: "pgherd cluster-status shows how the nodes are".to_owned(),
    };
    let upstream = |node: &NodeStatus| {
        let address = node.postgres.clone()?;
        Some(Upstream { node: node.name.clone(), address, generation: None, copy_slots: false })
    };
    let up = |kind: AgentType| {
        let nodes = status.nodes.iter().filter(move |node| node.agent_type == kind && node.name != *own);
        nodes.filter(|node| node.db == DatabaseState::Up)
    };
    let primary = up(AgentType::Primary).find_map(upstream);
    let primary =
        primary.ok_or_else(|| refuse("no primary serves: there is nothing to follow".to_owned()))?;
    // Where nothing is tagged for it a standby: the primary has enough to do.
    let mut all: Vec<&NodeStatus> = up(AgentType::Standby).chain(up(AgentType::Primary)).collect();
    all.sort_by_key(|node| {
        let is_primary = node.agent_type == AgentType::Primary;
        (!node.tags.clone_from, is_primary, node.lag_bytes.unwrap_or(u64::MAX))
    });
    let all = all.into_iter().filter_map(upstream);
    let sources: Vec<Upstream> = all.filter(|node| named.is_none_or(|named| *named == node.node)).collect();
    match named {
        Some(named) if sources.is_empty() => {
            Err(refuse(format!("{named} runs neither as primary nor as standby")))
        }
        _ => Ok((sources, primary)),
    }
}
