//! Making a data directory anew as a copy of another server's.
//!
//! The copy is made beside the data directory, on the same disks, and takes its place by renaming when it is complete and on
//! disk; the old one is kept aside (`kept.rs`). So a copy that fails, is stopped or is interrupted leaves everything as it
//! was, and nothing half copied is ever where a server could be started on it. The few renames in the middle are written
//! down first (`mark.rs`) and finished by the next process.

mod copy;
mod mark;
mod place;
mod source;

use std::path::PathBuf;

use pgherd_common::errors::Chain;
use pgherd_common::{Clock, time::RealClock};

use super::command::OsUser;
use super::fence::FenceError;
use super::files::{self, FileError, Following, failed, remove_durably};
use super::kept::{self, Kept};
use super::session::SessionError;
use super::settings::{Settings, Upstream};
use crate::working::Working;

pub(super) use mark::{is_swapping, settle, tidy};

use mark::Mark;
use place::Layout;

/// Why no copy was made.
#[derive(Debug, thiserror::Error)]
pub enum CloneError {
    /// Nobody to copy from.
    #[error("there is nobody to copy from: no other server streams, and the primary is not heard")]
    NoSource,
    /// The source does not answer.
    #[error("cannot learn from {source_node} what there is to copy")]
    Ask {
        /// Whom.
        source_node: Box<Upstream>,
        /// Why.
        #[source]
        source: SessionError,
    },
    /// Of another cluster.
    #[error(
        "{source_node} is another database (system identifier {found}, the cluster's is {wanted}): nothing is copied from it"
    )]
    ForeignSource {
        /// Whom.
        source_node: Upstream,
        /// What it is.
        found: u64,
        /// What it should be.
        wanted: u64,
    },
    /// The present data is not the cluster's.
    #[error(
        "{path:?} is of another database (system identifier {found}, the cluster's is {wanted}): it is not touched; move it away if it is not wanted any more"
    )]
    Foreign {
        /// The data directory.
        path: PathBuf,
        /// What it is.
        found: u64,
        /// What it should be.
        wanted: u64,
    },
    /// Something is in the way.
    #[error("{path:?} cannot be replaced by a copy: {why}")]
    Place {
        /// What.
        path: PathBuf,
        /// Why, and what to do.
        why: String,
    },
    /// Too little room.
    #[error(
        "there is too little room on the disk of {path:?}: the copy takes about {needed_mb} MB, {free_mb} MB are free, and the old data is kept until the copy is complete{kept}"
    )]
    NoRoom {
        /// Where.
        path: PathBuf,
        /// For the copy.
        needed_mb: u64,
        /// There is.
        free_mb: u64,
        /// What could be removed.
        kept: String,
    },
    /// A file could not be written.
    #[error("cannot prepare or finish the copy")]
    File(#[from] FileError),
    /// The program did not start.
    #[error("cannot run {program:?}; check postgres.bin_dir")]
    Run {
        /// `pg_basebackup`.
        program: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It failed.
    #[error(
        "pg_basebackup of {source_node} failed ({status}); the old data is as it was. It said:\n{output}"
    )]
    Failed {
        /// Whom it copied.
        source_node: Box<Upstream>,
        /// Its exit status.
        status: String,
        /// The end of what it printed.
        output: String,
    },
    /// What was left of an earlier copy could not be ended.
    #[error("an earlier copy is in the way")]
    InTheWay(#[from] FenceError),
    /// An operator had enough.
    #[error("stopped by an operator; the old data is as it was")]
    Stopped,
    /// The runtime ended first.
    #[error("the agent shut down during the copy; it is begun anew")]
    Interrupted,
}

impl CloneError {
    /// Whether another source may do better.
    fn is_of_the_source(&self) -> bool {
        matches!(self, Self::Ask { .. } | Self::ForeignSource { .. } | Self::Failed { .. })
    }
}

/// What is copied, and to where.
#[derive(Debug)]
pub(super) struct Copy<'a> {
    pub(super) settings: &'a Settings,
    pub(super) owner: &'a OsUser,
    pub(super) working: &'a Working,
    /// The cluster's.
    pub(super) system_identifier: u64,
    /// No more than so many bytes per second.
    pub(super) rate: Option<u64>,
}

/// A complete copy, which has yet to take its place.
#[derive(Debug)]
pub(super) struct Staged {
    layout: Layout,
    /// Who was copied.
    pub(super) from: Upstream,
    /// How much it was.
    pub(super) bytes: u64,
}

impl Staged {
    /// Where the copy is for now.
    pub(super) fn data_dir(&self) -> &std::path::Path {
        &self.layout.data.staged
    }
}

impl Copy<'_> {
    /// Copies the first of `sources` that can be copied. What an earlier attempt has left is removed.
    pub(super) async fn make(&self, sources: &[Upstream]) -> Result<Staged, CloneError> {
        settle(self.settings)?;
        let mut last = CloneError::NoSource;
        for from in sources {
            if !matches!(last, CloneError::NoSource) {
                tracing::warn!(%from, "{}; trying the next server", Chain(&last));
            }
            match self.copy_of(from).await {
                Ok(staged) => return Ok(staged),
                Err(error) if error.is_of_the_source() => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    async fn copy_of(&self, from: &Upstream) -> Result<Staged, CloneError> {
        self.working.step(&format!("asking {} what there is to copy", from.node), 0, 0);
        let facts = source::Facts::of(self.settings, from).await?;
        if facts.system_identifier != self.system_identifier {
            let (found, wanted) = (facts.system_identifier, self.system_identifier);
            return Err(CloneError::ForeignSource { source_node: from.clone(), found, wanted });
        }
        let layout = Layout::plan(self.settings, &facts, RealClock.wall())?;
        let staged = layout.data.staged.clone();
        blocking(move || copy::end_leftovers(&staged)).await??;
        let earlier = self.settings.clone();
        blocking(move || tidy(&earlier)).await??;
        layout.check_room(&facts, kept::all(&self.settings.state_dir).as_slice())?;
        Mark::Copying { staged: layout.staged() }.write(self.settings)?;
        let bytes = match layout.make_room(self.owner) {
            Ok(()) => {
                tracing::info!(%from, bytes = facts.total(), into = %layout.data.staged.display(), "copying");
                self.run(from, &layout).await
            }
            Err(error) => Err(error.into()),
        };
        if bytes.is_err() {
            self.discard().await;
        }
        Ok(Staged { bytes: bytes?, layout, from: from.clone() })
    }

    /// Removes a copy that comes to nothing. What cannot be removed now is by whoever copies next.
    pub(super) async fn discard(&self) {
        let settings = self.settings.clone();
        let tidied = blocking(move || tidy(&settings)).await;
        if let Err(error) = tidied.and_then(|tidied| tidied.map_err(CloneError::from)) {
            tracing::warn!("what was copied in vain is left for now: {}", Chain(&error));
        }
    }

    /// What is the node's own in a complete copy: that it is a standby, and whom it follows.
    pub(super) fn make_standby(&self, staged: &Staged, upstream: &Upstream) -> Result<(), FileError> {
        let dir = staged.data_dir();
        for strange in [
            "recovery.signal",
            "pgherd.conf",
            "pgherd.parameters.conf",
            "pgherd_gate.conf",
            "pgherd_hba.conf",
            "postmaster.opts",
        ] {
            remove_durably(&dir.join(strange))?;
        }
        files::create_standby_signal(dir, self.owner)?;
        Following::of(self.settings, upstream).write(dir, self.owner)
    }

    /// Puts a complete copy where the data directory is.
    pub(super) async fn swap(&self, staged: Staged) -> Result<Kept, CloneError> {
        self.working.step("putting the copy in the place of the old data", 0, 0);
        let (settings, layout) = (self.settings.clone(), staged.layout);
        let swapped = blocking(move || {
            layout.finish_links()?;
            // pg_basebackup has synced what it wrote, and each file that was changed since was: only names are left.
            for place in layout.staged() {
                let synced = std::fs::File::open(&place).and_then(|dir| dir.sync_all());
                synced.map_err(failed("sync", &place))?;
            }
            let (mark, kept) = layout.swap(RealClock.wall())?;
            mark.write(&settings)?;
            settle(&settings)?;
            Ok::<_, FileError>(kept)
        });
        let swapped = swapped.await.and_then(|swapped| swapped.map_err(CloneError::from));
        if swapped.is_err() {
            // Once it is about to take its place, it is finished, not removed.
            self.discard().await;
        }
        swapped
    }
}

/// Work on disks that may take long, on a thread of its own.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, CloneError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done),
        Err(join) => match join.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(CloneError::Interrupted),
        },
    }
}
