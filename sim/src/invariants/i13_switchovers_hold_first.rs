//! I13: a switchover stops the primary only when the proxies that can be reached hold new work, or were
//! given the time to.

use crate::clock::{MS, Micros};

use super::Violation;

/// What the agents give a proxy, less what a clock may be off.
const PATIENCE: Micros = 495 * MS;

/// The primary is stopped, so long after it learned of the order. `sends`: a proxy in reach that would
/// still send it new work.
pub(crate) fn held(node: usize, sends: Option<usize>, after: Micros) -> Option<Violation> {
    let proxy = sends.filter(|_| after < PATIENCE)?;
    Some(Violation::StoppedUnheld { node, proxy, after })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_before_the_hold_is_found() {
        assert_eq!(held(0, None, 0), None);
        assert!(held(0, Some(1), 10 * MS).is_some());
        assert_eq!(held(0, Some(1), 500 * MS), None, "a proxy that is lost delays nobody for ever");
    }
}
