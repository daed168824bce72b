//! I9: at most one change of primary is in flight, and it leads to the next generation.

use pgherd_core::cluster::{ChangePhase, ClusterState, Outcome};

use super::Violation;

/// The state after a log entry.
pub(crate) fn one_change(index: usize, before: &ClusterState, after: &ClusterState) -> Option<Violation> {
    let wrong = |why: String| Some(Violation::SeveralChanges { index, why });
    let steps = after.generation.number().saturating_sub(before.generation.number());
    if steps > 1 || after.generation < before.generation {
        return wrong(format!("generation {} became {}", before.generation, after.generation));
    }
    if let Some(change) = &after.change {
        let next = match change.phase {
            ChangePhase::Granted => after.generation,
            ChangePhase::Preparing | ChangePhase::Stopping | ChangePhase::Recruiting => {
                after.generation.next()
            }
        };
        if change.generation != next {
            return wrong(format!(
                "a change to generation {} is in flight in generation {}",
                change.generation, after.generation
            ));
        }
    }
    let in_flight = after.history.iter().filter(|entry| entry.outcome == Outcome::InFlight).count();
    if in_flight > 1 {
        return wrong(format!("the history has {in_flight} changes in flight"));
    }
    None
}

#[cfg(test)]
mod tests {
    use pgherd_common::Generation;

    use super::*;

    #[test]
    fn a_leap_of_the_generation_is_found() {
        let state = |generation: Generation| ClusterState { generation, ..ClusterState::default() };
        let first = Generation::ZERO.next();
        assert_eq!(one_change(1, &state(first), &state(first.next())), None);
        assert!(one_change(1, &state(first), &state(first.next().next())).is_some());
        assert!(one_change(1, &state(first.next()), &state(first)).is_some());
    }
}
