//! Taking part: introducing this agent to the others, and forming the raft group once.

use std::sync::Arc;
use std::time::Duration;

use crate::beat::Hello;
use crate::config::Config;
use crate::consensus::Consensus;
use crate::peers::{CallError, Link};

/// Another member does not want this agent.
#[derive(Debug, thiserror::Error)]
#[error(
    "{member} at {agent} turned this agent away: {reason}. Nothing was touched; correct the configuration and start again"
)]
pub(crate) struct TurnedAway {
    member: pgherd_common::NodeName,
    agent: pgherd_common::HostPort,
    reason: String,
}

/// Introduces this agent to everybody who answers. Returns whether all did and none belongs to a raft
/// group yet, which is when a group may be formed: an agent whose store was lost finds others that
/// belong to one, and waits for their leader instead.
pub(crate) async fn introduce(
    config: &Config,
    link: &Link,
    database: Option<(u64, u32)>,
) -> Result<bool, TurnedAway> {
    let hello = Hello { cluster: config.cluster.clone(), descriptor: config.descriptor(), database };
    let others = config.members.iter().filter(|member| member.id != config.node.id);
    let hello = &hello;
    let answers = others.map(|member| async move { (member, link.hello(&member.agent, hello).await) });
    let mut all_new = true;
    for (member, answer) in futures_util::future::join_all(answers).await {
        match answer {
            Ok(welcome) => all_new &= !welcome.initialized,
            Err(CallError::Unreachable(..)) => all_new = false,
            Err(CallError::Refused { reason, .. }) => {
                let (member, agent) = (member.name.clone(), member.agent.clone());
                return Err(TurnedAway { member, agent, reason });
            }
        }
    }
    Ok(all_new)
}

/// Forms the raft group as soon as every member is there and none belongs to one. Returns when this
/// agent belongs to a group.
pub(crate) async fn form_when_complete(
    config: Arc<Config>,
    link: Link,
    consensus: Consensus,
    database: Option<(u64, u32)>,
) -> Result<(), TurnedAway> {
    let mut standing = consensus.standing();
    loop {
        if standing.borrow_and_update().initialized {
            return Ok(());
        }
        if introduce(&config, &link, database).await? {
            tracing::info!("all {} agents are here: forming the raft group", config.members.len());
            if let Err(error) = consensus.form().await {
                tracing::error!("could not form the raft group: {error}");
            }
        }
        tokio::select! {
            changed = standing.changed() => if changed.is_err() { return Ok(()) },
            () = tokio::time::sleep(Duration::from_millis(300)) => {}
        }
    }
}
