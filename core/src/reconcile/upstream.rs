//! Whom a standby is to follow, and whether it can.

use super::Situation;
use super::action::Upstream;
use crate::observation::Running;

/// The primary to follow, when there is one and no change in flight that may give it up.
pub(super) fn serving_upstream(s: &Situation<'_>) -> Option<Upstream> {
    let primary = s.state.upstream()?;
    let descriptor = &s.state.members.get(&primary)?.descriptor;
    let (node, address) = (descriptor.name.clone(), descriptor.postgres.clone()?);
    let generation = (s.state.cover.number > 0).then_some(s.state.generation);
    // Copies that are no longer wanted are removed by who makes them, and by nobody else.
    let copies =
        s.state.slot_sync.is_some() || s.own.running().is_some_and(|own| !own.logical.slots.is_empty());
    let direct = s.state.members.get(&s.me).is_none_or(|me| s.state.is_direct(me, primary));
    Some(Upstream { node, address, generation, copy_slots: copies && direct })
}

/// Whom to stream from: the standby that the log names, otherwise the primary.
pub(super) fn feeding(s: &Situation<'_>, primary: Upstream) -> Upstream {
    let relay = s.state.relay(s.me).and_then(|relay| s.state.members.get(&relay));
    let relay = relay.and_then(|member| {
        let (node, address) = (member.descriptor.name.clone(), member.descriptor.postgres.clone()?);
        // No commit waits for it, and PostgreSQL copies slots from primaries only.
        Some(Upstream { node, address, generation: None, copy_slots: false })
    });
    relay.unwrap_or(primary)
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
