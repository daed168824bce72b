//! Taking part: introducing this agent to the others, finding out whether it has forgotten a raft
//! group, and forming one once.
//!
//! An agent with a new raft store takes part in nothing before every other member has answered. If one
//! of them belongs to a group, this agent has forgotten it, and is on probation. If none does, there is
//! nothing to forget, and it is ready. A group is formed only of members that are all ready; so when
//! one exists, a member that is not ready has forgotten it.

use std::sync::Arc;
use std::time::Duration;

use pgherd_common::errors::Chain;
use pgherd_core::quorum::Admission;

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

/// What the others say of raft groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Others {
    /// One of them belongs to a group.
    Grouped,
    /// Some have not answered, and no group is known.
    Silent,
    /// All have answered, none belongs to a group, but some are not ready to form one.
    New,
    /// All are ready to form a group.
    Ready,
}

/// Introduces this agent to everybody who answers.
pub(crate) async fn introduce(
    config: &Config,
    link: &Link,
    database: Option<(u64, u32)>,
) -> Result<Others, TurnedAway> {
    let hello = Hello { cluster: config.cluster.clone(), descriptor: config.descriptor(), database };
    let others = config.members.iter().filter(|member| member.id != config.node.id);
    let hello = &hello;
    let answers = others.map(|member| async move { (member, link.hello(&member.agent, hello).await) });
    let (mut grouped, mut silent, mut ready) = (false, false, true);
    for (member, answer) in futures_util::future::join_all(answers).await {
        match answer {
            Ok(welcome) => {
                grouped |= welcome.initialized;
                ready &= welcome.ready;
            }
            Err(CallError::Unreachable(..)) => silent = true,
            Err(CallError::Refused { reason, .. }) => {
                let (member, agent) = (member.name.clone(), member.agent.clone());
                return Err(TurnedAway { member, agent, reason });
            }
        }
    }
    Ok(match (grouped, silent, ready) {
        (true, _, _) => Others::Grouped,
        (false, true, _) => Others::Silent,
        (false, false, false) => Others::New,
        (false, false, true) => Others::Ready,
    })
}

/// Finds out whether there is a group to be let into again, and forms one as soon as every member is
/// ready. Returns when there is nothing left to do.
pub(crate) async fn form_when_complete(
    config: Arc<Config>,
    link: Link,
    consensus: Consensus,
    database: Option<(u64, u32)>,
) -> Result<(), TurnedAway> {
    let mut standing = consensus.standing();
    loop {
        let (initialized, admission) = {
            let standing = standing.borrow_and_update();
            (standing.initialized, standing.admission)
        };
        if matches!(admission, Admission::Probation(_) | Admission::Learner(_)) {
            tracing::error!(
                "the raft store of this node is new, but the cluster is not: the store before was lost. This node \
                 takes no part in decisions until the others have let it in again, which they do by themselves if \
                 they are a majority"
            );
            return Ok(());
        }
        if initialized {
            return Ok(());
        }
        let others = introduce(&config, &link, database).await?;
        let decided = match (admission, others) {
            (Admission::Undecided, Others::Grouped) => consensus.has_forgotten().await,
            (Admission::Undecided, Others::New | Others::Ready) => consensus.nothing_forgotten().await,
            (_, Others::Ready) => {
                tracing::info!("all {} agents are here: forming the raft group", config.members.len());
                if let Err(error) = consensus.form().await {
                    tracing::error!("could not form the raft group: {error}");
                }
                Ok(())
            }
            (_, Others::Grouped | Others::Silent | Others::New) => Ok(()),
        };
        if let Err(error) = decided {
            tracing::error!("{}", Chain(&error));
        }
        tokio::select! {
            changed = standing.changed() => if changed.is_err() { return Ok(()) },
            () = tokio::time::sleep(Duration::from_millis(300)) => {}
        }
    }
}
