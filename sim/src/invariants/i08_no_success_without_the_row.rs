//! I8: a client never hears of success when its row was refused or never arrived.

use super::Violation;

/// A client is told that its row is there.
pub(super) fn success(written: bool, node: usize, row: u64) -> Option<Violation> {
    (!written).then_some(Violation::FalseSuccess { row, node })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn success_needs_the_row() {
        assert_eq!(success(true, 0, 1), None);
        assert_eq!(success(false, 0, 1), Some(Violation::FalseSuccess { row: 1, node: 0 }));
    }
}
