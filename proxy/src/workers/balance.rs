//! Which thread serves whom: as few of them as can do the work, since one that finds more to do each time it wakes is
//! woken less often, and more of them before they are too few.

use std::time::Duration;

/// Between two looks at the loads.
pub(super) const LOOK: Duration = Duration::from_millis(100);

/// A load beyond this is too much for one thread. Loads are shares of a processor's time, in thousandths.
const TOO_MUCH: u32 = 700;

/// A thread that has less than this may serve another client.
const ENOUGH: u32 = 500;

/// Two that have less than this together are better one.
const LITTLE: u32 = 450;

/// A load below this is none.
const NOTHING: u32 = 5;

/// Clients that move from one worker to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Move {
    pub(super) from: usize,
    pub(super) to: usize,
    /// So many of a thousand of those that have something to do meanwhile.
    pub(super) share: u32,
}

/// Who serves a client that comes.
pub(super) fn host(loads: &[u32]) -> usize {
    let ranked = || loads.iter().copied().zip(0..);
    let enough = ranked().filter(|(load, _)| *load < ENOUGH);
    // The first of several.
    let busiest = enough.max_by_key(|(load, number)| (*load, std::cmp::Reverse(*number)));
    busiest.or_else(|| ranked().min()).map_or(0, |(_, number)| number)
}

/// What is to be changed, if anything. Those that have little gather at the first thread, which waits for clients.
pub(super) fn plan(loads: &[u32]) -> Option<Move> {
    let ranked = || loads.iter().copied().zip(0..);
    let (most, from) = ranked().max()?;
    let (least, to) = ranked().min()?;
    if most > TOO_MUCH {
        let share = (most - least) * 500 / most;
        // Between two that have about the same, clients would go back and forth.
        return (least < ENOUGH).then_some(Move { from, to, share });
    }
    let mut working: Vec<(u32, usize)> = ranked().filter(|(load, _)| *load >= NOTHING).collect();
    working.sort_unstable();
    let (load, from, to) = match *working.as_slice() {
        [] => return None,
        [(load, one)] => (load, one, 0),
        [(less, one), (more, other), ..] => (less + more, one.max(other), one.min(other)),
    };
    (load < LITTLE && from != to).then_some(Move { from, to, share: 1000 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_gather_where_there_is_room() {
        assert_eq!(host(&[0, 0, 0]), 0, "the first of several that do nothing");
        assert_eq!(host(&[0, 300, 100]), 1);
        assert_eq!(host(&[0, 700, 300]), 2);
        assert_eq!(host(&[900, 600, 700]), 1, "all have much to do");
    }

    #[test]
    fn who_has_too_much_gives_some_to_who_has_least() {
        assert_eq!(plan(&[900, 0]), Some(Move { from: 0, to: 1, share: 500 }));
        assert_eq!(plan(&[300, 900, 400]), Some(Move { from: 1, to: 0, share: 333 }));
        assert_eq!(plan(&[900, 800]), None, "nobody has room");
        assert_eq!(plan(&[1000]), None);
    }

    #[test]
    fn those_that_have_little_become_one_and_stay_so() {
        assert_eq!(plan(&[200, 0, 100]), Some(Move { from: 2, to: 0, share: 1000 }));
        assert_eq!(plan(&[100, 100]), Some(Move { from: 1, to: 0, share: 1000 }));
        assert_eq!(plan(&[400, 0]), None, "there is but one");
        assert_eq!(
            plan(&[0, 400]),
            Some(Move { from: 1, to: 0, share: 1000 }),
            "where clients are waited for"
        );
        assert_eq!(plan(&[0, 500]), None, "it has enough to do there");
        assert_eq!(plan(&[360, 360]), None, "as one that had too much was split");
        assert_eq!(plan(&[]), None);
    }
}
