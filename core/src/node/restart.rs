//! An operator wants this node's PostgreSQL restarted, or stopped to be rebuilt. The primary's restart is a change in the log; a standby's
//! concerns nobody but the proxies, which send it nothing new once it says that it is about to stop.

use pgherd_common::{NodeName, WallTime};

use super::Node;
use crate::observation::PostgresObservation;

/// The restart of a standby that was asked for, or the stop before it is rebuilt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Restart {
    /// The postmaster to be stopped: what runs once it is gone has been restarted, whoever did it.
    pid: u32,
    /// When it was asked for.
    asked: WallTime,
}

impl Restart {
    /// Of a standby that runs; nothing else has to be stopped in good order.
    pub(super) fn of(own: &PostgresObservation, asked: WallTime) -> Option<Self> {
        let pid = own.pid.filter(|_| own.running().is_some_and(|running| running.in_recovery))?;
        Some(Self { pid, asked })
    }

    /// When it was asked for, unless it is over.
    pub(super) fn asked(self, own: &PostgresObservation) -> Option<WallTime> {
        (own.pid == Some(self.pid)).then_some(self.asked)
    }
}

/// Why a standby is not restarted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestartRefused {
    /// Nothing to restart.
    #[error("{0} is a witness: it has no database")]
    Witness(NodeName),
    /// It takes everybody's part.
    #[error("{0} is the primary: its restart is led by the agent that leads")]
    IsPrimary(NodeName),
    /// It has a part in it.
    #[error("a change of primary is in flight")]
    ChangeInFlight,
    /// It is in an operator's hands.
    #[error("{node} is paused until {until}: its agent leaves PostgreSQL as it is")]
    Paused {
        /// Which node.
        node: NodeName,
        /// When that ends.
        until: WallTime,
    },
    /// Not a standby in good order.
    #[error("PostgreSQL on {0} does not run as a standby")]
    NotRunning(NodeName),
}

impl RestartRefused {
    /// What to do next.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Witness(_) => "pgherd cluster-status shows which nodes have one",
            Self::IsPrimary(_) => "ask again: the primary has changed just now",
            Self::ChangeInFlight => "try again once pgherd cluster-status shows no change in flight",
            Self::Paused { .. } => "restart it by hand, or `pgherd unpause` first",
            Self::NotRunning(_) => "pgherd cluster-status says why; `pgherd resume NODE` starts it",
        }
    }
}

impl Node {
    /// An operator wants this standby restarted.
    pub fn order_restart(&mut self, wall: WallTime) -> Result<(), RestartRefused> {
        let name = || self.setup.descriptor.name.clone();
        let Some(own) = &self.own else { return Err(RestartRefused::Witness(name())) };
        if self.is_primary() {
            return Err(RestartRefused::IsPrimary(name()));
        }
        if self.state.change.is_some() {
            return Err(RestartRefused::ChangeInFlight);
        }
        if let Some(pause) = self.state.pauses.of(self.id()) {
            return Err(RestartRefused::Paused { node: name(), until: pause.until });
        }
        let restart = Restart::of(own, wall).ok_or_else(|| RestartRefused::NotRunning(name()))?;
        self.duty.restart = Some(restart);
        Ok(())
    }
}
