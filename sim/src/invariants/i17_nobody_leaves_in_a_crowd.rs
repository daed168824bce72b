//! I17: no voter is let go while a second one is silent: that may be a cut in the network, and whoever is
//! on its other side must not find its vote gone.

use super::Violation;

/// A leader lets a voter go while these others were last heard so long ago.
pub(crate) fn alone(leaves: usize, silent: &[usize]) -> Option<Violation> {
    let other = silent.iter().copied().find(|other| *other != leaves)?;
    Some(Violation::LeftInACrowd { leaves, other })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_silent_voter_keeps_the_first() {
        assert_eq!(alone(1, &[1]), None);
        assert!(matches!(alone(1, &[1, 2]), Some(Violation::LeftInACrowd { leaves: 1, other: 2 })));
    }
}
