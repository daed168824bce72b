//! Making a stopped node a standby again, as it is or rewound.

use pgherd_common::Timeline;

use super::StartError;
use super::controldata::{ClusterState, ControlData, ControlDataError};
use super::fence::FenceError;
use super::files::{self, FileError, Following};
use super::instance::Instance;
use super::rewind::{self, RewindError};
use super::settings::Upstream;
use super::timelines::{self, Kinship};
use crate::observation::Running;

/// How a node came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rejoined {
    /// All of its WAL is part of the upstream's past, so far as can be told from outside: WAL that was
    /// received and never replayed shows only when it runs.
    AsWas,
    /// By pg_rewind.
    Rewound {
        /// The timeline it was on.
        from: Timeline,
        /// What pg_rewind printed.
        output: String,
    },
}

/// Why a node did not come back.
#[derive(Debug, thiserror::Error)]
pub enum RejoinError {
    /// Something runs on the data directory.
    #[error("PostgreSQL runs; only a stopped node can rejoin")]
    Running,
    /// Processes cannot be listed.
    #[error("cannot tell whether PostgreSQL runs; is /proc mounted?")]
    Blind(#[source] std::io::Error),
    /// Something else is at work on the data directory.
    #[error("the processes of an earlier attempt are in the way")]
    InTheWay(#[from] FenceError),
    /// The upstream is itself a standby.
    #[error("{0} is not a primary; a node rejoins by following the primary")]
    NotAPrimary(Upstream),
    /// pg_rewind would be wrong about the upstream.
    #[error(
        "{upstream} was promoted to timeline {timeline} but its last checkpoint is on timeline {checkpoint}; pg_rewind has to wait for the next one (run CHECKPOINT there)"
    )]
    NotYet {
        /// The server to follow.
        upstream: Upstream,
        /// What it writes.
        timeline: Timeline,
        /// What pg_rewind would see.
        checkpoint: Timeline,
    },
    /// Two promotions took the same number.
    #[error(
        "this node and {upstream} were both promoted to timeline {timeline}, at different points; pg_rewind cannot tell them apart: copy this node anew with `pgherd rebuild NODE --clone`"
    )]
    SameNumber {
        /// The server to follow.
        upstream: Upstream,
        /// The number.
        timeline: Timeline,
    },
    /// Killed while it wrote the timeline the upstream writes.
    #[error(
        "this node was killed as primary of timeline {timeline}, which {upstream} writes too; what only this node has cannot be told: promote one of them, or copy this node anew with `pgherd rebuild NODE --clone`"
    )]
    SameTimeline {
        /// The server to follow.
        upstream: Upstream,
        /// The timeline.
        timeline: Timeline,
    },
    /// pg_rewind cannot work here.
    #[error(
        "this node has diverged from {0}, and pg_rewind needs data checksums or wal_log_hints = on, which this data directory has not: copy it anew with `pgherd rebuild NODE --clone`"
    )]
    NotRewindable(Upstream),
    /// pg_rewind ended well, but did not do it.
    #[error(
        "pg_rewind ended without an error, but the data directory (timeline {timeline}) is still not part of the past of {upstream}; if this persists, copy this node anew with `pgherd rebuild NODE --clone`. It said:\n{output}"
    )]
    NotRewound {
        /// The server to follow.
        upstream: Upstream,
        /// Where the data directory is now.
        timeline: Timeline,
        /// What pg_rewind printed.
        output: String,
    },
    /// `pg_control` cannot be read.
    #[error("cannot tell what state the data directory is in")]
    Control(#[from] ControlDataError),
    /// A file could not be written.
    #[error("cannot prepare the data directory")]
    File(#[from] FileError),
    /// pg_rewind failed.
    #[error("cannot rewind this node")]
    Rewind(#[from] RewindError),
    /// It is a standby now, but did not start.
    #[error("the node was made a standby, but did not start")]
    Start(#[from] StartError),
}

impl Instance {
    /// Makes the stopped node a standby of `upstream`, whose latest look is `running`, rewinding it
    /// when it has WAL that `upstream` never had; then starts it. After a failure it can be called
    /// again, with a newer look.
    pub async fn rejoin(&self, upstream: &Upstream, running: &Running) -> Result<Rejoined, RejoinError> {
        let _acting = self.shared.acting.lock().await;
        let fenced = *self.births();
        self.ready_for_rejoin(upstream, running).await?;
        let rejoined = self.come_back(upstream, running).await?;
        self.bring_up_standby(Some(upstream), running.capacity, fenced).await?;
        Ok(rejoined)
    }

    /// Nothing runs here, and there is somebody to follow.
    pub(super) async fn ready_for_rejoin(
        &self,
        upstream: &Upstream,
        running: &Running,
    ) -> Result<(), RejoinError> {
        match self.postmaster() {
            Ok(None) => {}
            Ok(Some(_)) => return Err(RejoinError::Running),
            Err(source) => return Err(RejoinError::Blind(source)),
        }
        // A pg_rewind or its crash recovery may have outlived the agent that ran it.
        self.clear().await?;
        if running.in_recovery {
            return Err(RejoinError::NotAPrimary(upstream.clone()));
        }
        Ok(self.lay_out_what_works().await?)
    }

    /// Everything but the start.
    pub(super) async fn come_back(
        &self,
        upstream: &Upstream,
        running: &Running,
    ) -> Result<Rejoined, RejoinError> {
        let rejoined = if self.needs_rewind(upstream, running).await? {
            self.rewind(upstream, running).await?
        } else {
            let control = self.control().await?;
            self.remove_foreign(&control, running)?;
            Rejoined::AsWas
        };
        Ok(rejoined)
    }

    /// Leaves no WAL in `pg_wal` that recovery could take for the upstream's.
    fn remove_foreign(&self, control: &ControlData, running: &Running) -> Result<(), FileError> {
        let removed = timelines::remove_foreign(self.data_dir(), control, running)?;
        if !removed.is_empty() {
            tracing::info!(files = ?removed, "removed WAL of a timeline that is not the upstream's");
        }
        Ok(())
    }

    pub(super) async fn needs_rewind(
        &self,
        upstream: &Upstream,
        running: &Running,
    ) -> Result<bool, RejoinError> {
        if rewind::is_pending(self.settings()) {
            return Ok(true);
        }
        // A clone that was never started. Its pg_control is the source's.
        if rewind::backup_method(self.data_dir()).as_deref() == Some("streamed") {
            return Ok(false);
        }
        let control = self.control().await?;
        let timeline = control.timeline();
        let killed_primary = control.state == ClusterState::Primary;
        match timelines::kinship(self.data_dir(), &control, running) {
            Kinship::SameNumber => Err(RejoinError::SameNumber { upstream: upstream.clone(), timeline }),
            Kinship::Ancestor if killed_primary && timeline == running.timeline => {
                Err(RejoinError::SameTimeline { upstream: upstream.clone(), timeline })
            }
            // Where the WAL of a killed primary ends, pg_control does not tell. Nothing reached the data files
            // that is not in the WAL: if the upstream has all of that, recovery is enough.
            Kinship::Ancestor if killed_primary => {
                let left = self.left_wal().await;
                Ok(!left.is_some_and(|left| timelines::is_shared(self.data_dir(), left, running)))
            }
            Kinship::Ancestor => Ok(false),
            Kinship::Diverged => Ok(true),
        }
    }

    async fn rewind(&self, upstream: &Upstream, running: &Running) -> Result<Rejoined, RejoinError> {
        if running.checkpoint_timeline != running.timeline {
            return Err(RejoinError::NotYet {
                upstream: upstream.clone(),
                timeline: running.timeline,
                checkpoint: running.checkpoint_timeline,
            });
        }
        let before = self.control().await?;
        if !before.rewindable {
            return Err(RejoinError::NotRewindable(upstream.clone()));
        }
        let from = before.timeline();
        tracing::info!(%upstream, timeline = %from, "rewinding this node");
        let output = self.run_rewind(upstream).await?;
        let control = self.control().await?;
        let kinship = timelines::kinship(self.data_dir(), &control, running);
        // Whoever starts it from here on gets a standby, and one with its own name.
        files::create_standby_signal(self.data_dir(), &self.shared.owner)?;
        Following::of(self.settings(), upstream).write(self.data_dir(), &self.shared.owner)?;
        self.fill_gaps(&running.history)?;
        // pg_rewind keeps the segments that it has read itself, also those of a timeline it undoes. The
        // next promotion takes that timeline's number, and recovery would take them for its own.
        self.remove_foreign(&control, running)?;
        self.finish_rewind()?;
        if kinship != Kinship::Ancestor {
            let timeline = control.timeline();
            return Err(RejoinError::NotRewound { upstream: upstream.clone(), timeline, output });
        }
        Ok(Rejoined::Rewound { from, output })
    }
}
