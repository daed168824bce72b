//! Decides which of the connections at rest a client gets, and which one gives way to a new one.
//!
//! A connection may be claimed by the client that used it last: state that nobody can see from outside
//! (what a sequence gave last, what a trigger set) is still on it. Others get it only when nothing else is
//! left.

use pgherd_common::MonoTime;

use crate::clients::ClientId;

/// A connection at rest.
#[derive(Debug)]
pub(crate) struct Resting<T, K> {
    pub(crate) connection: T,
    /// Only clients that want this very kind can use it.
    pub(crate) kind: K,
    /// The thread that watches it.
    pub(crate) worker: usize,
    /// Whose state may be on it, and is worth keeping.
    pub(crate) claim: Option<ClientId>,
    /// Who used it last; 0: it was emptied since.
    pub(crate) owner: ClientId,
    /// Since when it rests.
    pub(crate) since: MonoTime,
    /// When it was opened.
    pub(crate) born: MonoTime,
    /// What a login gets has changed since: nobody else may have it.
    pub(crate) stale: bool,
}

/// What a client asks for.
#[derive(Debug)]
pub(crate) struct Wanted<'a, K> {
    pub(crate) client: ClientId,
    pub(crate) kind: &'a K,
    /// The thread that serves the client.
    pub(crate) worker: usize,
}

/// What a client gets.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found<T> {
    /// This one.
    Ready(T),
    /// A new one, for which this one is closed first.
    Open(Option<T>),
}

/// Connections at rest, in the order in which they came.
#[derive(Debug)]
pub(crate) struct Shelf<T, K> {
    resting: Vec<Resting<T, K>>,
}

impl<T, K> Default for Shelf<T, K> {
    fn default() -> Self {
        Self { resting: Vec::new() }
    }
}

impl<T, K: PartialEq> Shelf<T, K> {
    /// A connection comes to rest.
    pub(crate) fn put(&mut self, resting: Resting<T, K>) {
        self.resting.push(resting);
    }

    /// How many rest here.
    pub(crate) fn len(&self) -> usize {
        self.resting.len()
    }

    /// How many of them somebody claims.
    pub(crate) fn claimed(&self) -> usize {
        self.resting.iter().filter(|resting| resting.claim.is_some()).count()
    }

    /// What a client gets. `room`: another connection may be opened without closing one. `suits`: it is like
    /// a new one to this client, once it is emptied.
    pub(crate) fn take(
        &mut self,
        wanted: &Wanted<'_, K>,
        room: bool,
        suits: impl Fn(&T) -> bool,
    ) -> Found<T> {
        let Wanted { client, kind, worker } = *wanted;
        let own = |resting: &Resting<T, K>| {
            resting.kind == *kind && (resting.claim == Some(client) || resting.owner == client)
        };
        let fits =
            |resting: &Resting<T, K>| resting.kind == *kind && !resting.stale && suits(&resting.connection);
        let free = |resting: &Resting<T, K>| resting.claim.is_none() && fits(resting);
        let newest = |wanted: &dyn Fn(&Resting<T, K>) -> bool| self.resting.iter().rposition(wanted);
        let oldest = |wanted: &dyn Fn(&Resting<T, K>) -> bool| self.resting.iter().position(wanted);
        // One that another thread watches has to be moved.
        let near = |resting: &Resting<T, K>| resting.worker == worker && free(resting);
        let ready = newest(&own).or_else(|| newest(&near)).or_else(|| newest(&free));
        let ready = ready.or_else(|| oldest(&fits).filter(|_| !room));
        if let Some(position) = ready {
            return Found::Ready(self.resting.remove(position).connection);
        }
        let evicted = oldest(&|resting| resting.claim.is_none()).or_else(|| oldest(&|_| true));
        let evicted = evicted.filter(|_| !room).map(|position| self.resting.remove(position).connection);
        Found::Open(evicted)
    }

    /// Takes all those away that `unwanted` says.
    pub(crate) fn remove(&mut self, unwanted: impl FnMut(&mut Resting<T, K>) -> bool) -> Vec<T> {
        self.resting.extract_if(.., unwanted).map(|resting| resting.connection).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: MonoTime = MonoTime::since_boot(std::time::Duration::ZERO);

    fn shelf(resting: &[(u32, char, Option<ClientId>)]) -> Shelf<u32, char> {
        let mut shelf = Shelf::default();
        for (connection, kind, claim) in resting.iter().copied() {
            shelf.put(Resting {
                connection,
                kind,
                worker: usize::from(connection > 9),
                claim,
                owner: claim.unwrap_or(0),
                since: NOW,
                born: NOW,
                stale: false,
            });
        }
        shelf
    }

    fn by(client: ClientId, kind: &char) -> Wanted<'_, char> {
        Wanted { client, kind, worker: 0 }
    }

    #[test]
    fn a_client_gets_its_own_connection_before_any_other() {
        let mut shelf = shelf(&[(1, 'a', Some(7)), (2, 'a', None), (3, 'a', Some(8))]);
        assert_eq!(shelf.take(&by(7, &'a'), false, |_| true), Found::Ready(1));
        assert_eq!(shelf.take(&by(7, &'a'), false, |_| true), Found::Ready(2));
    }

    #[test]
    fn what_does_not_suit_gives_way_only_where_it_must() {
        let resting = [(1, 'a', Some(1)), (2, 'a', None)];
        assert_eq!(shelf(&resting).take(&by(7, &'a'), true, |_| false), Found::Open(None));
        assert_eq!(shelf(&resting).take(&by(7, &'a'), false, |_| false), Found::Open(Some(2)));
        assert_eq!(shelf(&resting).take(&by(7, &'a'), false, |one| *one == 1), Found::Ready(1));
        assert_eq!(
            shelf(&resting).take(&by(1, &'a'), false, |_| false),
            Found::Ready(1),
            "its own always does"
        );
    }

    #[test]
    fn of_those_that_are_free_the_newest_is_used() {
        let mut shelf = shelf(&[(1, 'a', None), (2, 'b', None), (3, 'a', None), (4, 'b', None)]);
        assert_eq!(shelf.take(&by(7, &'a'), true, |_| true), Found::Ready(3));
    }

    #[test]
    fn what_the_own_thread_watches_is_rather_used() {
        let mut shelf = shelf(&[(1, 'a', None), (12, 'a', None), (13, 'a', Some(8))]);
        assert_eq!(shelf.take(&by(7, &'a'), true, |_| true), Found::Ready(1));
        assert_eq!(shelf.take(&by(7, &'a'), true, |_| true), Found::Ready(12), "rather than to open one");
        assert_eq!(shelf.take(&by(8, &'a'), true, |_| true), Found::Ready(13), "its own, wherever that is");
    }

    #[test]
    fn a_claim_holds_while_there_is_room_for_another_connection() {
        let claimed = [(1, 'a', Some(1)), (2, 'a', Some(2))];
        assert_eq!(shelf(&claimed).take(&by(7, &'a'), true, |_| true), Found::Open(None));
        assert_eq!(
            shelf(&claimed).take(&by(7, &'a'), false, |_| true),
            Found::Ready(1),
            "the one that rests longest"
        );
    }

    #[test]
    fn without_room_one_of_another_kind_gives_way() {
        let mut shelf = shelf(&[(1, 'b', Some(1)), (2, 'c', None)]);
        assert_eq!(
            shelf.take(&by(7, &'a'), false, |_| true),
            Found::Open(Some(2)),
            "rather one that nobody claims"
        );
        assert_eq!(shelf.take(&by(7, &'a'), false, |_| true), Found::Open(Some(1)));
        assert_eq!(shelf.take(&by(7, &'a'), false, |_| true), Found::Open(None), "the rest is in use");
    }

    #[test]
    fn what_is_stale_is_for_its_own_client_only() {
        let mut one = shelf(&[(1, 'a', Some(1))]);
        one.remove(|resting| {
            resting.stale = true;
            false
        });
        assert_eq!(one.take(&by(7, &'a'), false, |_| true), Found::Open(Some(1)));
        let mut other = shelf(&[(1, 'a', Some(1)), (2, 'a', None)]);
        assert_eq!(other.remove(|resting| resting.claim.is_none()), [2]);
        assert_eq!((other.len(), other.take(&by(1, &'a'), false, |_| true)), (1, Found::Ready(1)));
    }
}
