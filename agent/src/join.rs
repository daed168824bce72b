//! Taking part: introducing this agent to the others, finding out whether it has forgotten a raft
//! group, and forming one once.
//!
//! An agent with a new raft store takes part in nothing before every other member has answered. If one
//! of them belongs to a group, this agent has forgotten it, and is on probation. If none does, there is
//! nothing to forget, and it is ready. A group is formed only of members that are all ready; so when
//! one exists, a member that is not ready has forgotten it. A node that was added to a cluster has nothing to forget, but
//! what it has does not show that: it comes in the same way. Every other member are also those whom only others list.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use pgherd_common::NodeId;
use pgherd_common::errors::Chain;
use pgherd_core::quorum::Admission;

use crate::beat::Hello;
use crate::cluster::Contacts;
use crate::config::Config;
use crate::consensus::Consensus;
use crate::peers::{CallError, Link};
use crate::roster::Introduced;

/// Another member does not want this agent.
#[derive(Debug, thiserror::Error)]
#[error(
    "{member} at {agent} turned this agent away: {reason}. Nothing was touched; set that right and start again"
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

/// Introduces this agent to everybody who answers, of those that are known; what they say.
pub(crate) async fn introduce(
    config: &Config,
    known: Contacts,
    link: &Link,
    database: Option<(u64, u32)>,
) -> Result<(Others, Introduced), TurnedAway> {
    let hello = Hello { cluster: config.cluster.clone(), descriptor: config.descriptor(), database };
    let asked: BTreeSet<NodeId> = known.keys().copied().collect();
    let others = known.into_iter().filter(|(id, _)| *id != config.node.id);
    let hello = &hello;
    let answers = others.map(|(_, member)| async move {
        let answer = link.hello(&member.agent, hello).await;
        (member, answer)
    });
    let mut introduced = Introduced::default();
    let (mut grouped, mut silent, mut ready) = (false, false, true);
    for (member, answer) in futures_util::future::join_all(answers).await {
        match answer {
            Ok(welcome) => {
                grouped |= welcome.initialized;
                ready &= welcome.ready;
                // Whom this agent does not know may know the group that it has forgotten.
                silent |= welcome.roster.keys().any(|id| *id != config.node.id && !asked.contains(id));
                introduced.invited |= welcome.invited;
                introduced.welcomed = introduced.welcomed.max(welcome.revision);
                introduced.contacts.extend(welcome.roster);
            }
            Err(CallError::Unreachable(..)) => silent = true,
            Err(CallError::Refused { reason, .. }) => {
                return Err(TurnedAway { member: member.name, agent: member.agent, reason });
            }
        }
    }
    let others = match (grouped, silent, ready) {
        (true, _, _) => Others::Grouped,
        (false, true, _) => Others::Silent,
        (false, false, false) => Others::New,
        (false, false, true) => Others::Ready,
    };
    Ok((others, introduced))
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
            say_why_new(&consensus);
            return Ok(());
        }
        if initialized {
            return Ok(());
        }
        let known = consensus.roster().now();
        let (others, introduced) = introduce(&config, known, &link, database).await?;
        consensus.roster().introduced(introduced);
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

fn say_why_new(consensus: &Consensus) {
    if consensus.roster().is_invited() {
        tracing::info!(
            "this node is new in the cluster: it takes no part in decisions until the others have let it in, which they do \
             by themselves if they are a majority"
        );
        return;
    }
    tracing::error!(
        "the raft store of this node is new, but the cluster is not: the store before was lost. This node \
         takes no part in decisions until the others have let it in again, which they do by themselves if \
         they are a majority"
    );
}
