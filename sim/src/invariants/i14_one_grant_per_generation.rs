//! I14: the log gives a generation away once.

use pgherd_common::Generation;

use super::Violation;

/// The same generation is given away again.
pub(super) fn second_grant(generation: Generation, first: usize, second: usize) -> Option<Violation> {
    (first != second).then_some(Violation::TwoGrants { generation, first, second })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_grant_is_found() {
        assert_eq!(second_grant(Generation::ZERO, 1, 1), None);
        assert!(second_grant(Generation::ZERO, 1, 2).is_some());
    }
}
