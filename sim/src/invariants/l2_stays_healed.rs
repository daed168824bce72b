//! L2: a cluster that is whole stays as it is: no change of primary without a reason, nobody leaves.

use pgherd_common::Generation;

use super::{Health, Violation};
use crate::clock::{Micros, SECOND};

/// For how long a healed cluster is watched.
pub const STEADY: Micros = 20 * SECOND;

/// A cluster when it was found whole.
#[derive(Debug, Clone, Copy)]
pub struct Steady {
    /// Its generation.
    pub generation: Generation,
}

impl Steady {
    /// The same cluster later.
    pub fn compare(self, later: Generation, health: &Health) -> Option<Violation> {
        let why = match health.trouble() {
            _ if later != self.generation => {
                format!("the primary changed without a reason: generation {} became {later}", self.generation)
            }
            Some(sick) => format!("a whole cluster fell ill again: {sick}"),
            None => return None,
        };
        Some(Violation::Restless { why })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invariants::Sick;

    #[test]
    fn a_change_without_a_reason_is_found() {
        let steady = Steady { generation: Generation::ZERO };
        assert_eq!(steady.compare(Generation::ZERO, &Health::default()), None);
        assert!(steady.compare(Generation::ZERO.next(), &Health::default()).is_some());
        let ill = Health { sick: vec![Sick::NoLeader], ..Health::default() };
        assert!(steady.compare(Generation::ZERO, &ill).is_some());
    }
}
