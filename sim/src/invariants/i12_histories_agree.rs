//! I12: a standby that streams has a beginning of its upstream's WAL. PostgreSQL itself compares numbers
//! only, so a node that has diverged must never be started as it is.

use super::Violation;

/// A standby begins to stream; whether its WAL is the beginning of the upstream's.
pub(crate) fn beginning(standby: usize, upstream: usize, agrees: bool) -> Option<Violation> {
    (!agrees).then_some(Violation::HistoriesDiffer { standby, upstream })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_past_is_found() {
        assert_eq!(beginning(1, 0, true), None);
        assert!(beginning(1, 0, false).is_some());
    }
}
