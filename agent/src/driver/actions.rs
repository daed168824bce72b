//! Carries out local actions, and keeps looking at the local PostgreSQL.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pgherd_common::config::Secret;
use pgherd_common::errors::Chain;
use pgherd_common::{Lsn, NodeName};
use pgherd_core::node::{Before, Done};
use pgherd_core::rebuild::Setback;
use tokio::sync::{mpsc, watch};

use super::Event;
use crate::config::Unmovable;
use crate::peers::Link;
use crate::postgres::{Instance, RejoinError};
use crate::publish::{self, Hub};
use crate::reconcile::{Commits, LocalAction, Wait};
use crate::salvage::Offer;
use crate::scripts::Scripts;
use crate::working::Working;

/// What actions are carried out with.
pub(super) struct Hands {
    pub(super) instance: Instance,
    pub(super) stop_timeout: Duration,
    pub(super) drain_timeout: Duration,
    /// The proxies.
    pub(super) hub: Hub,
    /// What becomes of sessions that cannot move.
    pub(super) unmovable: Unmovable,
    /// For what another agent has.
    pub(super) link: Link,
    /// How far it is.
    pub(super) working: Working,
    /// What shows that this is an agent of the cluster.
    pub(super) secret: Option<Secret>,
    /// Scripts of the operators.
    pub(super) scripts: Scripts,
}

impl Hands {
    /// Does it, then looks.
    pub(super) async fn perform(self, action: LocalAction, before: Before, ended: Arc<AtomicU64>) -> Done {
        let mut setback = None;
        let result = self.act(&action, &mut setback).await;
        // Whatever was observed until now may show the time before.
        ended.fetch_add(1, Ordering::AcqRel);
        let observation = self.instance.observe().await;
        Done { action, before, result, setback, observation }
    }

    async fn act(&self, action: &LocalAction, setback: &mut Option<Setback>) -> Result<(), String> {
        let instance = &self.instance;
        match action {
            LocalAction::Fence { .. } => text(instance.fence().await),
            LocalAction::StartPrimary(_, commits) => {
                text(instance.start_primary(commits).await)?;
                self.cover(commits).await
            }
            LocalAction::StartStandby => text(instance.start_standby(None).await),
            LocalAction::Rejoin { upstream, running } => {
                let rejoined = instance.rejoin(upstream, running).await;
                *setback = rejoined.as_ref().err().and_then(RejoinError::setback);
                text(rejoined)
            }
            LocalAction::Rebuild(wanted) => {
                let rebuilt = instance.rebuild(wanted, &self.working).await;
                if let Ok(rebuilt) = &rebuilt {
                    tracing::info!("this node was {rebuilt}");
                    self.working.achieved(&rebuilt.to_string());
                }
                text(rebuilt)
            }
            LocalAction::StopFast { .. } => text(instance.stop_fast(self.stop_timeout).await),
            LocalAction::DrainAndStop { end_transactions, .. } => {
                match instance.drain(self.drain_timeout).await {
                    Err(error) if *end_transactions => {
                        tracing::warn!("ending transactions: {}", Chain(&error));
                    }
                    drained => text(drained)?,
                }
                text(instance.stop_fast(self.stop_timeout).await)
            }
            LocalAction::Prepare { .. } => {
                text(instance.checkpoint().await)?;
                self.wait_for_unmovable().await
            }
            LocalAction::Checkpoint => text(instance.checkpoint().await),
            LocalAction::Recruit(_) => text(instance.recruit().await),
            LocalAction::Salvage { offer, .. } => self.salvage(offer).await,
            LocalAction::FenceScript { generation, old } => {
                self.scripts.fence(*generation, old.clone()).await
            }
            // After a clean switchover the walreceiver still looks for the old primary.
            LocalAction::Promote(_, commits) => {
                text(instance.cut(commits).await)?;
                text(instance.promote().await)?;
                self.cover(commits).await
            }
            LocalAction::Cover(wait) => text(instance.cover(wait).await),
            LocalAction::LetIn => text(instance.let_in().await),
            LocalAction::Follow(upstream) => text(instance.follow(upstream).await),
            LocalAction::AlignSlots { members, in_recovery, upto } => {
                text(instance.align_slots(members, *in_recovery).await)?;
                text(instance.move_slots(upto).await)
            }
            LocalAction::HoldBack(standbys) => text(instance.hold_back(standbys).await),
        }
    }

    /// Nobody is held up meanwhile: they may come to their end.
    async fn wait_for_unmovable(&self) -> Result<(), String> {
        const PAUSE: Duration = Duration::from_millis(100);
        if self.unmovable == Unmovable::End {
            return Ok(());
        }
        let until = tokio::time::Instant::now() + self.drain_timeout;
        loop {
            let publish::Unmovable { sessions, example } = self.hub.unmovable().await;
            if sessions == 0 {
                return Ok(());
            }
            if tokio::time::Instant::now() >= until {
                let example = example.unwrap_or_default();
                let told = format!(
                    "sessions that cannot move to another server are still there after {} s, {sessions} in all; the first is of \
                     {example}",
                    self.drain_timeout.as_secs_f64()
                );
                if self.unmovable == Unmovable::Refuse {
                    return Err(told);
                }
                tracing::warn!("going on, which ends them: {told}");
                return Ok(());
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Commits that are to wait for standbys do so already; this tells when.
    async fn cover(&self, commits: &Commits) -> Result<(), String> {
        match commits {
            Commits::Free => Ok(()),
            Commits::WaitFor(wait) => text(self.instance.cover(wait).await),
        }
    }

    /// An error only if another attempt may do better.
    async fn salvage(&self, offer: &Offer) -> Result<(), String> {
        let (from, end) = (&offer.node, offer.wal.end);
        let Some(secret) = &self.secret else {
            tracing::error!(%from, "agents give WAL to each other only with a password: set postgres.password on all nodes");
            return Ok(());
        };
        let timeline = offer.wal.timeline;
        let fetch = |at: Lsn, length: u64| self.link.left_wal(&offer.agent, secret, timeline, at, length);
        match self.instance.salvage(offer.wal, fetch).await {
            Ok(replayed) => {
                tracing::info!(%from, %replayed, %end, "took over the WAL that the old primary left");
            }
            Err(error) if error.is_final() => tracing::error!(%from, %end, "{}", Chain(&error)),
            Err(error) => return Err(Chain(&error).to_string()),
        }
        Ok(())
    }
}

fn text<T, E: std::error::Error>(result: Result<T, E>) -> Result<(), String> {
    result.map(|_| ()).map_err(|error| Chain(&error).to_string())
}

/// One line for the log.
pub(super) fn describe(action: &LocalAction) -> String {
    match action {
        LocalAction::Fence { reason } => format!("fencing PostgreSQL: {reason}"),
        LocalAction::StartPrimary(generation, _) => {
            format!("starting PostgreSQL as primary of generation {generation}")
        }
        LocalAction::StartStandby => "starting PostgreSQL as a standby".to_owned(),
        LocalAction::Rejoin { upstream, .. } => {
            format!("rejoining the cluster as a standby of {}", upstream.node)
        }
        LocalAction::Rebuild(rebuild) => {
            format!("rebuilding this node as a standby of {}", rebuild.upstream.node)
        }
        LocalAction::StopFast { reason } => format!("stopping PostgreSQL: {reason}"),
        LocalAction::DrainAndStop { .. } => "stopping PostgreSQL once its transactions have ended".to_owned(),
        LocalAction::Prepare { generation, .. } => {
            format!("checkpoint before the switchover to generation {generation}")
        }
        LocalAction::Checkpoint => "checkpoint after the promotion".to_owned(),
        LocalAction::Recruit(generation) => {
            format!("recruited for generation {generation}: cutting the walreceiver")
        }
        LocalAction::Salvage { offer, .. } => {
            format!("fetching the WAL that {} has left (to {})", offer.node, offer.wal.end)
        }
        LocalAction::FenceScript { generation, .. } => {
            format!("running the fence script before the promotion to generation {generation}")
        }
        LocalAction::Promote(generation, _) => {
            format!("promoting PostgreSQL to primary of generation {generation}")
        }
        LocalAction::Cover(Wait { standbys: 0, .. }) => "commits wait for no standby any more".to_owned(),
        LocalAction::Cover(Wait { standbys, of, .. }) => {
            let of: Vec<&str> = of.iter().map(NodeName::as_str).collect();
            format!("having commits wait for any {standbys} of {}", of.join(", "))
        }
        LocalAction::LetIn => "letting clients in: standbys have what this primary has".to_owned(),
        LocalAction::Follow(upstream) => format!("following {} at {}", upstream.node, upstream.address),
        LocalAction::AlignSlots { upto, .. } if upto.is_empty() => {
            "aligning replication slots with the members".to_owned()
        }
        LocalAction::AlignSlots { .. } => "aligning replication slots, and moving them on".to_owned(),
        LocalAction::HoldBack(standbys) => {
            let whom = pgherd_core::reconcile::held_back(standbys).unwrap_or("none".to_owned());
            format!("having logical slots send nothing that these slots lack: {whom}")
        }
    }
}

/// Says why an action failed, if it did.
pub(super) fn log_failure(done: &Done) {
    let Err(error) = &done.result else { return };
    let action = describe(&done.action);
    if done.was_cut_short() {
        tracing::warn!(action, "PostgreSQL went away meanwhile: {error}");
    } else {
        tracing::error!(action, "{error}");
    }
}

/// Looks at PostgreSQL whenever it is time or its postmaster dies, and without pause in a hurry.
pub(super) async fn watch(
    instance: Instance,
    mut hurry: watch::Receiver<bool>,
    ended: Arc<AtomicU64>,
    events: mpsc::Sender<Event>,
) {
    /// In a hurry: as often as a look costs, without drowning the machine in them.
    const QUICK: Duration = Duration::from_millis(5);
    loop {
        let begun = ended.load(Ordering::Acquire);
        let observation = instance.observe().await;
        if events.send(Event::Postgres(Box::new(observation), begun)).await.is_err() {
            return;
        }
        let quick = *hurry.borrow_and_update();
        tokio::select! {
            () = instance.changed() => {}
            changed = hurry.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(QUICK), if quick => {}
        }
    }
}
