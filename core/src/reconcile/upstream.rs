//! Whom a standby is to follow, and whether it can.

use super::Situation;
use super::action::Upstream;
use crate::observation::Running;

/// The primary to follow, when there is one and no change in flight that may give it up.
pub(super) fn serving_upstream(s: &Situation<'_>) -> Option<Upstream> {
    let descriptor = &s.state.members.get(&s.state.upstream()?)?.descriptor;
    let (node, address) = (descriptor.name.clone(), descriptor.postgres.clone()?);
    let generation = (s.state.cover.number > 0).then_some(s.state.generation);
    Some(Upstream { node, address, generation })
}

/// Why a standby cannot follow this primary as it is.
pub(super) fn divergence(primary: &Running, running: &Running, upstream: &Upstream) -> Option<String> {
    if !primary.history.contains(primary.timeline, running.timeline, running.position) {
        return Some(format!(
            "it has replayed timeline {} to {}, past the point where {} left that timeline: it has to be rewound",
            running.timeline, running.position, upstream.node
        ));
    }
    // PostgreSQL compares numbers only, and would stream.
    (!primary.history.may_share(running.timeline, &running.history)).then(|| {
        format!(
            "its timeline {0} is another than the timeline {0} of {1}: both came from a promotion of their own",
            running.timeline, upstream.node
        )
    })
}
