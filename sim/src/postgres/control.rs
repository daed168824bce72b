//! `pg_control`, and what an agent concludes from it (as the agent's own reading of it does).

use pgherd_common::Lsn;

use super::wal::lsn;

/// `Database cluster state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ControlState {
    /// A primary runs, or was killed.
    InProduction,
    /// A primary was stopped in order.
    ShutDown,
    /// A standby runs, or was killed.
    InRecovery,
    /// A standby was stopped in order.
    ShutDownInRecovery,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Control {
    /// What the server was last doing.
    pub state: ControlState,
    /// Where the last checkpoint record starts.
    pub checkpoint: Lsn,
    /// Its timeline.
    pub checkpoint_timeline: u32,
    /// The least that must be replayed before the data are consistent, and its timeline.
    pub min_recovery: Option<(Lsn, u32)>,
    /// What a fast stop in progress will leave.
    pub(super) stopping_as_primary: bool,
}

impl Control {
    pub(super) fn new(primary: bool) -> Self {
        let state = if primary { ControlState::ShutDown } else { ControlState::ShutDownInRecovery };
        Self {
            state,
            checkpoint: lsn(0),
            checkpoint_timeline: 1,
            min_recovery: None,
            stopping_as_primary: primary,
        }
    }

    pub(super) fn checkpointed(&mut self, start: Lsn, timeline: u32) {
        (self.checkpoint, self.checkpoint_timeline) = (start, timeline);
        self.min_recovery = None;
    }

    /// Whether it was stopped in order.
    pub fn is_clean(&self) -> bool {
        matches!(self.state, ControlState::ShutDown | ControlState::ShutDownInRecovery)
    }

    /// The newest timeline whose changes are in the data files.
    pub fn timeline(&self) -> u32 {
        self.min_recovery.map_or(self.checkpoint_timeline, |(_, min)| min.max(self.checkpoint_timeline))
    }

    /// A position that any history containing this data directory must reach.
    pub fn end(&self) -> Lsn {
        match self.state {
            ControlState::ShutDown | ControlState::InProduction => Lsn(self.checkpoint.0 + 1),
            ControlState::ShutDownInRecovery | ControlState::InRecovery => {
                self.min_recovery.map_or(self.checkpoint, |(min, _)| min.max(self.checkpoint))
            }
        }
    }
}
