//! For whom a primary's commits wait, and when that lets clients in.

use super::Situation;
use pgherd_common::NodeId;

use super::action::{Commits, LocalAction, Wait};
use crate::defect::{Defect, planted};
use crate::observation::Running;

/// For whom a new primary's commits wait.
pub(super) fn commits(s: &Situation<'_>) -> Commits {
    let waits = !s.state.cover.wanted.is_none() && !planted(Defect::CommitsNotHeld);
    if waits { Commits::WaitFor(wait(s)) } else { Commits::Free }
}

fn wait(s: &Situation<'_>) -> Wait {
    let cover = &s.state.cover;
    let name = |id: &NodeId| s.state.members.get(id).map(|member| member.descriptor.name.clone());
    Wait {
        generation: s.state.generation,
        number: cover.number,
        standbys: cover.wanted.standbys,
        of: cover.wanted.of.iter().filter_map(name).collect(),
    }
}

/// Whether a primary that was started in place has nothing any more that the next failover might lose. Proxies are told
/// later: they must not be turned away.
pub(super) fn may_let_in(s: &Situation<'_>, running: &Running) -> bool {
    let cover = &s.state.cover;
    let met = running.cover.is_some_and(|seen| seen.met && seen.number == cover.number);
    cover.wanted.is_none() || met || s.state.serving() == Some(s.me)
}

/// Has commits wait for whom the log says.
pub(super) fn cover_action(s: &Situation<'_>, running: &Running) -> Option<LocalAction> {
    let done = running.cover.map_or(0, |seen| seen.number) == s.state.cover.number;
    (!done).then(|| LocalAction::Cover(wait(s)))
}
