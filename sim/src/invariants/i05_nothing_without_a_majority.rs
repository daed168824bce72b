//! I5: nothing is decided, no failover least of all, that is not on the disks of a majority of voters.

use super::Violation;

/// An entry is taken for committed; it is on so many voters' disks.
pub(crate) fn majority(index: usize, on_disk: usize, voters: usize) -> Option<Violation> {
    (on_disk <= voters / 2).then_some(Violation::NoMajority { index, on_disk, voters })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_is_no_majority() {
        assert_eq!(majority(1, 3, 4), None);
        assert!(majority(1, 2, 4).is_some());
        assert!(majority(1, 1, 3).is_some());
    }
}
