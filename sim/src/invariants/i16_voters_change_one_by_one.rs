//! I16: from one state of the log to the next, the sets of voters whose answers and promises count have a
//! set in common: in it the group that holds a lease and the group that frees the way for a successor have
//! a voter in common, even if the holder lags by a step.

use pgherd_core::cluster::LeaseVoters;

use super::Violation;

/// Two states that follow each other.
pub(crate) fn neighbours(index: usize, before: &LeaseVoters, after: &LeaseVoters) -> Option<Violation> {
    let shared = before.sets().any(|set| after.sets().any(|other| set == other));
    let why = || format!("the voters that count changed from {before:?} to {after:?} at once");
    (!before.current.is_empty() && !shared).then(|| Violation::VotersLeapt { index, why: why() })
}

#[cfg(test)]
mod tests {
    use pgherd_common::NodeId;
    use pgherd_core::cluster::VoterPlan;

    use super::*;

    #[test]
    fn a_leap_is_found() {
        let set = |ids: &[u64]| ids.iter().copied().map(NodeId).collect::<std::collections::BTreeSet<_>>();
        let four = LeaseVoters::only(set(&[1, 2, 3, 4]));
        let planned =
            LeaseVoters { plan: Some(VoterPlan { next: set(&[1, 2, 3]), revision: 5 }), ..four.clone() };
        let three = LeaseVoters::only(set(&[1, 2, 3]));
        assert_eq!(neighbours(1, &LeaseVoters::default(), &four), None);
        assert_eq!(neighbours(1, &four, &planned), None);
        assert_eq!(neighbours(1, &planned, &three), None);
        assert!(neighbours(1, &four, &three).is_some());
    }
}
