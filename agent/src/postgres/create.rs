//! A data directory for a node that has none: the same copy as of a rebuild, without an agent at work.

use std::path::PathBuf;

use super::clone::{self, CloneError, Copy};
use super::files::FileError;
use super::open::{self, OpenError};
use super::settings::{Settings, Upstream};
use crate::working::Working;

/// Why no standby was created.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// There is data.
    #[error(
        "{0:?} holds something already: a standby is created only where there is nothing. A member whose data is damaged is made anew with `pgherd rebuild`; what is of no use to anybody has to be moved away by hand"
    )]
    NotEmpty(PathBuf),
    /// This host is not ready.
    #[error("this node cannot have a standby")]
    Open(#[from] OpenError),
    /// The copy.
    #[error("no standby was created")]
    Clone(#[from] CloneError),
}

impl From<FileError> for CreateError {
    fn from(error: FileError) -> Self {
        Self::Clone(error.into())
    }
}

/// Copies the first of `sources` that can be copied and prepares the copy to follow `upstream`; from whom it was copied, and
/// how many bytes. The agent starts it. Called again after an interruption, it begins anew, or finishes what was complete.
pub async fn create_standby(
    settings: &Settings,
    system_identifier: u64,
    sources: &[Upstream],
    upstream: &Upstream,
    rate: Option<u64>,
    working: &Working,
) -> Result<(Upstream, u64), CreateError> {
    let complete = clone::is_swapping(settings);
    clone::settle(settings)?;
    if complete {
        return Ok((upstream.clone(), 0));
    }
    let mut entries = std::fs::read_dir(&settings.data_dir).into_iter().flatten();
    if entries.next().is_some() {
        return Err(CreateError::NotEmpty(settings.data_dir.clone()));
    }
    let owner = open::owner(&settings.os_user).await?;
    let copy = Copy { settings, owner: &owner, working, system_identifier, rate };
    let staged = copy.make(sources).await?;
    if let Err(error) = copy.make_standby(&staged, upstream) {
        copy.discard().await;
        return Err(error.into());
    }
    let (from, bytes) = (staged.from.clone(), staged.bytes);
    copy.swap(staged).await?;
    Ok((from, bytes))
}
