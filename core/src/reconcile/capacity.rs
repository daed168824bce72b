//! A standby must have as much of some parameters as its primary has.

use super::action::LocalAction;
use super::{Reconciliation, Situation};
use crate::observation::Running;

/// What a standby does that has less than the primary it is about to follow, or follows: it is stopped, and comes back
/// with as much. Before it follows, it has read nothing yet that would pause its replay.
pub(super) fn too_small(s: &Situation<'_>, primary: &Running, running: &Running) -> Option<Reconciliation> {
    let missing = running.capacity?.lacks(primary.capacity?)?;
    let why = format!("it has less than a standby of this primary needs: {missing}");
    Some(match s.state.pauses.of(s.me) {
        None => Reconciliation::act(LocalAction::StopFast { reason: why }),
        Some(pause) => Reconciliation::wait(format!("{why}; it is left alone: paused until {}", pause.until)),
    })
}
