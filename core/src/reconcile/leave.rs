//! What a node does to its PostgreSQL when it leaves the cluster: one that nobody looks after, and that may hold back the
//! primary's WAL, does not stay.

use super::{LocalAction, Reconciler, Reconciliation, Situation};
use crate::observation::PostgresState;

impl Reconciler {
    /// Stops what runs. What is down stays so.
    pub fn leave(&self, s: &Situation<'_>, why: &str) -> Reconciliation {
        let wanted = match &s.own.state {
            PostgresState::Running(running) if running.in_recovery => {
                Reconciliation::act(LocalAction::StopFast { reason: why.to_owned() })
            }
            PostgresState::Running(_) | PostgresState::Starting { standby: false, .. } => {
                Reconciliation::act(LocalAction::Fence { reason: why.to_owned() })
            }
            PostgresState::Unresponsive { for_ms, reason } => self.unresponsive(s, *for_ms, reason),
            PostgresState::Starting { standby: true, .. }
            | PostgresState::Down(_)
            | PostgresState::Unusable(_) => Reconciliation::wait(why),
        };
        self.paced(wanted, s)
    }
}
