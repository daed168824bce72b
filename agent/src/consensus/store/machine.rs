//! The applied state and its snapshots.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, StoredMembership};
use tokio::sync::watch;

use super::super::types::{Group, LogId, Membership, Snapshot, SnapshotMeta};
use super::file::{AppliedState, StoredSnapshot};
use super::writer::{Write, Writer};
use crate::cluster::{Applied, ClusterState, apply};

/// The state machine. What it publishes is on disk, so a restarted node never shows an older state
/// than it has shown before.
#[derive(Debug)]
pub(in super::super) struct Machine {
    applied: AppliedState,
    snapshot: Arc<Mutex<Option<StoredSnapshot>>>,
    published: watch::Sender<Arc<ClusterState>>,
    writer: Writer,
}

impl Machine {
    pub(super) fn new(
        applied: AppliedState,
        snapshot: Option<StoredSnapshot>,
        writer: Writer,
    ) -> (Self, watch::Receiver<Arc<ClusterState>>) {
        let (published, state) = watch::channel(Arc::new(applied.state.clone()));
        (Self { applied, snapshot: Arc::new(Mutex::new(snapshot)), published, writer }, state)
    }

    fn publish(&self) {
        self.published.send_if_modified(|shown| {
            let changed = **shown != self.applied.state;
            if changed {
                *shown = Arc::new(self.applied.state.clone());
            }
            changed
        });
    }
}

/// Memory and file are changed under this lock in the same order, so that a snapshot built here never
/// takes the place of a newer one that was received meanwhile.
fn lock(snapshot: &Mutex<Option<StoredSnapshot>>) -> MutexGuard<'_, Option<StoredSnapshot>> {
    snapshot.lock().unwrap_or_else(PoisonError::into_inner)
}

fn readable(stored: StoredSnapshot) -> Snapshot {
    Snapshot { meta: stored.meta, snapshot: stored.state }
}

impl RaftStateMachine<Group> for Machine {
    type SnapshotData = ClusterState;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, Membership), io::Error> {
        Ok((self.applied.last, self.applied.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<Group>, io::Error>> + Unpin + OptionalSend,
    {
        let mut answers = Vec::new();
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            let answer = match entry.payload {
                EntryPayload::Blank => Applied::Unchanged,
                EntryPayload::Normal(proposal) => {
                    apply(&mut self.applied.state, &proposal.0, entry.log_id.index)
                }
                EntryPayload::Membership(membership) => {
                    self.applied.membership = StoredMembership::new(Some(entry.log_id), membership);
                    Applied::Unchanged
                }
            };
            self.applied.last = Some(entry.log_id);
            if let Some(responder) = responder {
                answers.push((responder, answer));
            }
        }
        self.writer.write(Write::Applied(Box::new(self.applied.clone()))).await?;
        self.publish();
        for (responder, answer) in answers {
            responder.send(answer);
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder {
            applied: self.applied.clone(),
            snapshot: Arc::clone(&self.snapshot),
            writer: self.writer.clone(),
        }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, state: ClusterState) -> Result<(), io::Error> {
        self.applied = AppliedState {
            last: meta.last_log_id,
            membership: meta.last_membership.clone(),
            state: state.clone(),
        };
        let stored = StoredSnapshot { meta: meta.clone(), state };
        let written = {
            let mut current = lock(&self.snapshot);
            *current = Some(stored.clone());
            self.writer.write(Write::Installed(Box::new(stored)))
        };
        written.await?;
        self.publish();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        Ok(lock(&self.snapshot).clone().map(readable))
    }
}

/// Makes a snapshot of the state at the time it was created.
#[derive(Debug)]
pub(in super::super) struct Builder {
    applied: AppliedState,
    snapshot: Arc<Mutex<Option<StoredSnapshot>>>,
    writer: Writer,
}

impl RaftSnapshotBuilder<Group> for Builder {
    type SnapshotData = ClusterState;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let meta =
            SnapshotMeta { last_log_id: self.applied.last, last_membership: self.applied.membership.clone() };
        let stored = StoredSnapshot { meta, state: self.applied.state.clone() };
        let written = {
            let mut current = lock(&self.snapshot);
            let newer =
                current.as_ref().is_some_and(|current| current.meta.last_log_id > stored.meta.last_log_id);
            if newer {
                None
            } else {
                *current = Some(stored.clone());
                Some(self.writer.write(Write::Built(Box::new(stored.clone()))))
            }
        };
        if let Some(written) = written {
            written.await?;
        }
        Ok(readable(stored))
    }
}
