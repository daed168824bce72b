//! Running a segment: reach a server, exchange, and decide what an unhappy end means.

use std::sync::atomic::Ordering;

use pgherd_common::NodeId;

use crate::session::{Consistency, Freshness, Segment, Wanted};
use crate::sql::Route;
use crate::sqlstate::Trouble;
use crate::topology::Role;

use super::exchange::Outcome;
use super::fresh::{Look, Waited};
use super::state::{Client, Gone};

/// A segment that may be repeated is given to so many servers at most.
const RUNS_MAX: u32 = 5;

impl Client {
    /// Runs `segment`, and what belongs to its batch, to the end.
    pub(super) async fn work(&mut self, segment: Box<Segment>) -> Result<(), Gone> {
        if self.topology.has_changed().unwrap_or(false) {
            self.reap();
        }
        // What it asks next may rest on what is gone.
        self.heed()?;
        self.begin_turn(&segment);
        if self.is_envied()
            && self.session.tx_node().is_none()
            && let Waited::Trouble(trouble) = self.let_go().await
        {
            self.refuse(&trouble, segment.ends_when_refused(), segment.rest);
            return Ok(());
        }
        if let Some(node) = self.session.tx_node() {
            self.look_at(node).await;
        }
        if let Some(trouble) = self.session.take_lost(&segment) {
            self.refuse(&trouble, segment.ends_when_refused(), segment.rest);
            return Ok(());
        }
        if segment.mixed {
            let what =
                "a statement that the proxy answers must be sent by itself, not in a pipeline or with others";
            if self.session.tx_node().is_some() {
                // The server's transaction stays open whatever is said here: it ends with the session.
                return Err(Gone::Trouble(Trouble::NotOffered(what)));
            }
            self.refuse(&Trouble::NotOffered(what), segment.ends_when_refused(), segment.rest);
            return Ok(());
        }
        if let Some(why) = self.refused_by_mode(&segment) {
            return self.refuse_in_place(&Trouble::NeedsConnection(why), &segment).await;
        }
        if let Some(show) = segment.show {
            self.answer(show, &segment);
            return Ok(());
        }
        if self.session.has_suspects() {
            self.session.acquit(&self.shared.catalogs.edition(self.login.database()).facts);
        }
        let Some(databases) = segment.changes_logins().cloned() else {
            let done = self.run_somewhere(segment).await;
            self.end_turn();
            return done;
        };
        // Before it connections stand in its way; those that came in between are older than the change.
        let eviction = databases.map(|names| self.shared.pool.evict(names));
        self.shared.pool.give_way();
        let done = self.run_somewhere(segment).await;
        self.shared.pool.give_way();
        drop(eviction);
        self.end_turn();
        done
    }

    async fn run_somewhere(&mut self, segment: Box<Segment>) -> Result<(), Gone> {
        if segment.turns_read_only()
            && let Some(node) = self.session.tx_node().filter(|_| self.session.begun().is_some())
            && self.reading_transaction().is_none()
            && self.consistency() != Consistency::Global
        {
            Box::pin(self.move_to_reader(node)).await?;
        }
        // Each of its statements would have to see what was committed just before.
        let at_once = segment.opens() && self.consistency() == Consistency::Global;
        let (mut segment, mut runs, mut on_primary) = (segment, 0, at_once);
        loop {
            if let Some(standby) = self.session.take_stranded()
                && let Err(trouble) = Box::pin(self.go_on_on_primary(standby)).await?
            {
                self.refuse(&trouble, segment.ends_when_refused(), segment.rest);
                return Ok(());
            }
            if let Some(node) = self.reading_transaction()
                && (on_primary || self.must_move(&segment))
                && let Err(trouble) = Box::pin(self.move_transaction(node)).await?
            {
                self.refuse(&trouble, segment.ends_when_refused(), segment.rest);
                return Ok(());
            }
            let wanted = match self.session.wanted(&segment) {
                Wanted::Reader | Wanted::Any if on_primary => Wanted::Writer,
                wanted => wanted,
            };
            let (node, wanted) = match self.place_for(&segment, wanted).await? {
                Ok(Some(place)) => place,
                Ok(None) => {
                    on_primary = true;
                    continue;
                }
                Err(trouble) => {
                    self.refuse(&trouble, segment.ends_when_refused(), segment.rest);
                    return Ok(());
                }
            };
            self.count(node, wanted, segment.route);
            runs += 1;
            match self.exchange(node, segment, runs < RUNS_MAX).await? {
                Outcome::Done => return Ok(()),
                Outcome::Elsewhere(again) => segment = again,
                Outcome::OnPrimary(again) => (segment, on_primary) = (again, true),
            }
        }
    }

    /// A connection where `segment` can run now and sees what it must; `None`: only the primary has all
    /// that.
    async fn place_for(
        &mut self,
        segment: &Segment,
        wanted: Wanted,
    ) -> Result<Result<Option<(NodeId, Wanted)>, Trouble>, Gone> {
        let (node, wanted) = match self.place_at_once(segment, wanted) {
            Some(place) => place,
            None => match Box::pin(self.place_by_and_by(segment, wanted)).await? {
                Ok(place) => place,
                Err(trouble) => return Ok(Err(trouble)),
            },
        };
        if wanted != Wanted::Reader || self.freshness(node) == Some(Freshness::Fresh) {
            return Ok(Ok(Some((node, wanted))));
        }
        Ok(match self.look_for_writes(node).await? {
            Look::Fresh => Ok(Some((node, wanted))),
            Look::Behind => Ok(None),
            Look::Trouble(trouble) => Err(trouble),
        })
    }

    async fn place_by_and_by(
        &mut self,
        segment: &Segment,
        wanted: Wanted,
    ) -> Result<Result<(NodeId, Wanted), Trouble>, Gone> {
        // A topology that came while something ran was only looked at for where that ran.
        self.reap();
        let wanted = match self.with_regard_to_writes(wanted).await? {
            Ok(wanted) => wanted,
            Err(trouble) => return Ok(Err(trouble)),
        };
        Ok(self.reach(segment, wanted).await?.map(|node| (node, wanted)))
    }

    fn count(&mut self, node: NodeId, wanted: Wanted, route: Route) {
        if wanted == Wanted::Reader {
            self.session.reads_from(node);
        }
        let Some(server) = self.servers.get(node) else { return };
        match route {
            Route::Read => server.counts.reads.fetch_add(1, Ordering::Relaxed),
            Route::Primary => server.counts.writes.fetch_add(1, Ordering::Relaxed),
            Route::Neutral => return,
        };
        let (counts, standby) = (&self.presence.badge.counts, server.role == Role::Standby);
        match (route, standby) {
            (Route::Read, true) => counts.standby_reads.add(1),
            (Route::Read, false) => counts.primary_reads.add(1),
            (Route::Primary | Route::Neutral, _) => counts.writes.add(1),
        }
    }
}
