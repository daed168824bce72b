//! Whether a server can stream from another, and what it takes to make a former primary follow one.

use pgherd_common::Timeline;

use super::wal::Wal;
use super::{ControlState, Server};
use pgherd_core::observation::Running;

/// Why a walreceiver gives up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamError {
    /// "requested starting point is ahead of the WAL flush position of this server".
    Ahead,
    /// "requested starting point is not in this server's history".
    NotInHistory,
}

/// What happens when the standby asks the upstream for WAL: it goes by timelines and positions, as
/// PostgreSQL does, never by content.
pub fn stream_from(standby: &Server, upstream: &Server) -> Result<(), StreamError> {
    let end = standby.wal.end();
    if standby.timeline == upstream.timeline {
        return if end <= upstream.wal.end() { Ok(()) } else { Err(StreamError::Ahead) };
    }
    match upstream.history.left(Timeline(standby.timeline)) {
        Some(fork) if end <= fork => Ok(()),
        Some(_) | None => Err(StreamError::NotInHistory),
    }
}

/// How a stopped data directory relates to a server it is to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kinship {
    /// All of it is part of the upstream's past.
    Ancestor,
    /// It has WAL the upstream never had.
    Diverged,
    /// Both call different histories by one timeline number.
    SameNumber,
}

/// As the agent judges it, from `pg_control`, the history files and what the upstream says of itself.
pub fn kinship(stopped: &Server, upstream: &Running) -> Kinship {
    let timeline = stopped.control.timeline();
    let theirs = &upstream.history.0;
    let known = Timeline(timeline) == upstream.timeline
        || theirs.iter().any(|(parent, _)| *parent == Timeline(timeline));
    let before = theirs.iter().take_while(|(parent, _)| *parent != Timeline(timeline));
    let same_branch = known && stopped.history_of(timeline).0.iter().eq(before);
    match (same_branch, Timeline(timeline) == upstream.timeline) {
        (false, true) => Kinship::SameNumber,
        (true, _)
            if upstream.history.contains(upstream.timeline, Timeline(timeline), stopped.control.end()) =>
        {
            Kinship::Ancestor
        }
        (true | false, _) => Kinship::Diverged,
    }
}

impl Server {
    /// What pg_rewind does: back to where the histories part, by the history files alone, then forward
    /// with the source's WAL. Believes the source's checkpoint about the source's timeline.
    pub fn rewind_to(&mut self, source: &Server) {
        self.rewinding = false;
        if source.control.checkpoint_timeline == self.control.timeline()
            && self.control.timeline() != source.timeline
        {
            // "no rewind required", which is wrong.
            return;
        }
        let own = &self.history.0;
        let shared = own.iter().zip(&source.history.0).take_while(|(a, b)| a == b).count();
        let fork = |history: &[(Timeline, pgherd_common::Lsn)]| {
            history.get(shared).map_or(usize::MAX, |(_, fork)| Wal::count_until(*fork))
        };
        let kept = fork(own).min(fork(&source.history.0)).min(self.wal.len());
        self.wal.truncate(kept);
        self.wal.extend_from(&source.wal, source.wal.len());
        self.half = false;
        (self.timeline, self.newest_known) = (source.timeline, source.timeline);
        self.history = source.history.clone();
        self.generation = source.generation;
        self.standby_signal = true;
        self.control.state = ControlState::InRecovery;
        self.control.checkpoint = source.control.checkpoint;
        self.control.checkpoint_timeline = source.control.checkpoint_timeline;
        self.control.min_recovery = Some((source.wal.end(), source.timeline));
    }

    /// Records of the upstream arrive.
    pub fn receive(&mut self, upstream: &Server, count: usize) {
        self.half = false;
        self.wal.extend_from(&upstream.wal, count);
        self.adopt_timeline(upstream);
    }

    /// Once it has reached the fork, a standby is on the upstream's timeline.
    pub fn adopt_timeline(&mut self, upstream: &Server) {
        let reached = upstream.history.0.last().is_none_or(|(_, fork)| self.wal.end() >= *fork);
        self.newest_known = self.newest_known.max(upstream.timeline);
        if reached && upstream.timeline > self.timeline {
            self.timeline = upstream.timeline;
            self.history = upstream.history.clone();
        }
    }
}
