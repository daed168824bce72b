//! What the primary of a switchover does, until it has stopped.

use super::{LocalAction, Reconciliation, Situation, give_up};
use crate::cluster::{Change, ChangePhase};
use crate::observation::PostgresState;

/// The next step of the primary that is to be left, or restarted.
pub(super) fn switch_over(s: &Situation<'_>, change: &Change) -> Reconciliation {
    match (change.phase, &s.own.state) {
        (ChangePhase::Preparing, _) if s.own.undrained == Some(change.begun) => {
            Reconciliation::wait("waiting for the switchover to be given up")
        }
        (ChangePhase::Preparing, PostgresState::Running(_)) if s.own.prepared != Some(change.generation) => {
            let (generation, begun) = (change.generation, change.begun);
            Reconciliation::act(LocalAction::Prepare { generation, begun })
        }
        (ChangePhase::Stopping, PostgresState::Running(_)) if !s.work_is_held => {
            Reconciliation::wait("waiting for the proxies to hold new work")
        }
        (ChangePhase::Stopping, PostgresState::Running(_)) if s.own.undrained == Some(change.begun) => {
            Reconciliation::wait(
                "transactions did not end in time: waiting for the switchover to be rolled back",
            )
        }
        (ChangePhase::Stopping, PostgresState::Running(_) | PostgresState::Starting { .. }) => {
            let (begun, end_transactions) = (change.begun, change.end_transactions);
            Reconciliation::act(LocalAction::DrainAndStop { begun, end_transactions })
        }
        (ChangePhase::Stopping, PostgresState::Down(_)) => give_up(s, "switchover".to_owned()),
        (_, _) => Reconciliation::default(),
    }
}
