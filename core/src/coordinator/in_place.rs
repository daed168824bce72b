//! A primary that crashed could be started again where it is: whether clients would wait for less time then.
//!
//! Both ways end with replay: of what the old primary wrote since its last checkpoint, or of what a standby has received
//! and not yet replayed. Most of the time a standby has replayed everything, and a promotion is quicker than a start, so
//! another node takes over. Where replay was held up (a slow disk, a long query, a pause), it may not be.

use std::time::Duration;

use pgherd_common::NodeId;

use super::candidate::Rank;
use super::view::View;
use crate::cluster::Outcome;
use crate::observation::Stopped;

/// Bytes of WAL that a server replays in a second: as many as were seen with a working set that does not fit into memory.
/// Both predictions rest on it, so that an error of it hardly changes which one is less.
const REPLAY_RATE: u64 = 64 << 20;

/// By how much a start takes longer than a promotion, replay aside: it syncs the data directory and ends with a
/// checkpoint. Seen on idle servers: 110 to 230 ms beside 30 to 60.
const START_TAKES_LONGER_BY: Duration = Duration::from_millis(200);

/// One that has served for so long since it was started in place has lasted.
const LASTS: Duration = Duration::from_secs(60);

impl View<'_> {
    /// Why the primary that crashed should be started again rather than one of these standbys be promoted; `None` if it
    /// should not, or nobody can tell.
    ///
    /// Not where commits wait for standbys: those with much to replay come back only once they have replayed it. And a
    /// server that did not last since it was started in place is not given a second try.
    pub(super) fn is_sooner_in_place(&self, from: NodeId, standbys: &[Rank]) -> Option<String> {
        if !self.state.cover.wanted.is_none() || !self.state.cover.promised.is_none() {
            return None;
        }
        let postgres = self.postgres(from)?;
        let crashed = |stopped: &&Stopped| {
            !stopped.clean && !stopped.standby && !stopped.found_down && postgres.fenced.is_none()
        };
        let stopped = postgres.stopped().filter(crashed)?;
        let well = postgres.health.is_fit() && postgres.health.failure(self.policy.local_timeout).is_none();
        let again = self.state.present_entry().is_some_and(|entry| {
            let until = entry.serving.map(|serving| serving + LASTS);
            entry.outcome == Outcome::StartedInPlace && until.is_none_or(|until| self.wall < until)
        });
        if !well || again || self.has_forgotten(from) || self.state.serving() != Some(from) {
            return None;
        }
        let end = stopped.left?.end;
        let here = end.bytes_since(stopped.redo);
        // What only the old primary has is fetched before the promotion, and has to be replayed as well.
        let to_replay = |rank: &Rank| {
            Some((end.max(rank.received()).bytes_since(self.running(rank.node())?.position), rank.node()))
        };
        let (there, best) = standbys.iter().filter_map(to_replay).min()?;
        (replay(here) + START_TAKES_LONGER_BY < replay(there)).then(|| {
            let (from, best) = (self.name(from), self.name(best));
            format!("{from} has {here} bytes of WAL to replay, {best} {there} bytes")
        })
    }
}

fn replay(bytes: u64) -> Duration {
    Duration::from_millis(bytes.saturating_mul(1000) / REPLAY_RATE)
}
