//! Making a stopped node a standby by whatever it takes: pg_rewind, or a copy of another server.

use pgherd_common::errors::Chain;
use pgherd_common::{Clock, NodeName, Timeline, time::RealClock};
use pgherd_core::rebuild::{Means, Rebuild, Setback};

use super::StartError;
use super::clone::{self, CloneError, Copy};
use super::instance::Instance;
use super::kept;
use super::rejoin::{RejoinError, Rejoined};
use crate::working::Working;

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rebuilt {
    /// Nothing had to be done to its data.
    AsWas,
    /// By pg_rewind.
    Rewound {
        /// The timeline it was on.
        from: Timeline,
    },
    /// By a copy.
    Copied {
        /// Of whom.
        from: NodeName,
        /// How much.
        bytes: u64,
        /// Where the old data is, while it is kept.
        kept: Option<String>,
    },
}

impl std::fmt::Display for Rebuilt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AsWas => f.write_str("started as it was: all of its WAL is part of the primary's past"),
            Self::Rewound { from } => write!(f, "rewound from timeline {from}"),
            Self::Copied { from, bytes, kept } => {
                write!(f, "copied from {from}, {} MB", bytes >> 20)?;
                kept.as_ref().map_or(Ok(()), |kept| write!(f, "; the old data is kept in {kept} for a while"))
            }
        }
    }
}

/// Why a node was not rebuilt.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// Before or during a rewind.
    #[error("the node was not rebuilt")]
    Rejoin(#[from] RejoinError),
    /// The copy.
    #[error("the node was not rebuilt")]
    Clone(#[from] CloneError),
    /// It does not start.
    #[error("the node was made anew, but did not start")]
    Start(#[from] StartError),
}

impl RejoinError {
    /// What it teaches, if it is of any use.
    pub fn setback(&self) -> Option<Setback> {
        match self {
            Self::SameNumber { .. }
            | Self::SameTimeline { .. }
            | Self::NotRewindable(_)
            | Self::NotRewound { .. } => Some(Setback::NeedsClone),
            Self::Rewind(error) => error.setback(),
            Self::Running
            | Self::Blind(_)
            | Self::InTheWay(_)
            | Self::NotAPrimary(_)
            | Self::NotYet { .. }
            | Self::Control(_)
            | Self::File(_)
            | Self::Start(_) => None,
        }
    }
}

impl Instance {
    /// Makes the stopped node a standby of `wanted.upstream`, and starts it. After a failure or an interruption it can be
    /// called again: a copy leaves the old data as it was, a rewind is repeated.
    pub async fn rebuild(&self, wanted: &Rebuild, working: &Working) -> Result<Rebuilt, RebuildError> {
        let _acting = self.shared.acting.lock().await;
        let fenced = *self.births();
        self.ready_for_rejoin(&wanted.upstream, &wanted.running).await?;
        let rebuilt = match wanted.means {
            Means::Clone => self.copy(wanted, working).await?,
            Means::Rewind => {
                working.step("rewinding", 0, 0);
                let rejoined = self.come_back(&wanted.upstream, &wanted.running).await?;
                Rebuilt::from(rejoined)
            }
            Means::Best => self.rewind_or_copy(wanted, working).await?,
        };
        working.step("starting PostgreSQL as a standby", 0, 0);
        self.bring_up_standby(Some(&wanted.upstream), wanted.running.capacity, fenced).await?;
        if let Rebuilt::Copied { .. } = &rebuilt {
            // It may be large, and where nothing is to be kept it goes at once.
            let instance = self.clone();
            tokio::spawn(async move { instance.expire_kept().await });
        }
        Ok(rebuilt)
    }

    async fn rewind_or_copy(&self, wanted: &Rebuild, working: &Working) -> Result<Rebuilt, RebuildError> {
        match self.needs_rewind(&wanted.upstream, &wanted.running).await {
            Ok(true) => {
                working.step("rewinding", 0, 0);
                match self.come_back(&wanted.upstream, &wanted.running).await {
                    Ok(rejoined) => return Ok(rejoined.into()),
                    Err(error) if error.setback().is_none() => return Err(error.into()),
                    Err(error) => tracing::warn!("making a copy instead: {}", Chain(&error)),
                }
            }
            // There is nothing to rewind, and somebody wants it made anew.
            Ok(false) => {}
            Err(error) => tracing::warn!("making a copy: {}", Chain(&error)),
        }
        self.copy(wanted, working).await
    }

    async fn copy(&self, wanted: &Rebuild, working: &Working) -> Result<Rebuilt, RebuildError> {
        let system_identifier = self.shared.system_identifier;
        if let Ok(control) = self.control().await
            && control.system_identifier != system_identifier
        {
            let (path, found) = (self.data_dir().to_owned(), control.system_identifier);
            return Err(CloneError::Foreign { path, found, wanted: system_identifier }.into());
        }
        let copy = Copy {
            settings: self.settings(),
            owner: &self.shared.owner,
            working,
            system_identifier,
            rate: wanted.rate,
        };
        clone::settle(self.settings()).map_err(CloneError::File)?;
        // What cannot be saved is better known before hours of copying.
        self.keep_files().map_err(CloneError::File)?;
        let staged = copy.make(&wanted.sources).await?;
        let restored = self.restore_files(staged.data_dir());
        if let Err(error) = restored.and_then(|()| copy.make_standby(&staged, &wanted.upstream)) {
            copy.discard().await;
            return Err(CloneError::File(error).into());
        }
        let (from, bytes) = (staged.from.node.clone(), staged.bytes);
        let kept = copy.swap(staged).await?;
        let kept = kept.paths.last().filter(|_| !self.settings().keep_old_data.is_zero());
        Ok(Rebuilt::Copied { from, bytes, kept: kept.map(|path| path.display().to_string()) })
    }

    /// Removes what was kept of earlier data for long enough. While PostgreSQL is down it removes nothing: a copy that never
    /// started may be of no use.
    pub async fn expire_kept(&self) {
        let runs = matches!(self.postmaster(), Ok(Some(_)));
        if !runs || self.session().await.is_err() {
            return;
        }
        let settings = self.settings().clone();
        let work = tokio::task::spawn_blocking(move || {
            kept::expire(&settings.state_dir, &settings.data_dir, settings.keep_old_data, RealClock.wall())
        });
        if let Ok(Err(error)) = work.await {
            tracing::warn!("{}", Chain(&error));
        }
    }
}

impl From<Rejoined> for Rebuilt {
    fn from(rejoined: Rejoined) -> Self {
        match rejoined {
            Rejoined::AsWas => Self::AsWas,
            Rejoined::Rewound { from, .. } => Self::Rewound { from },
        }
    }
}
