//! What one client is at, for others to see, and how others reach it.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use pgherd_common::WallTime;

use crate::control::lock;
use crate::memory::Gauge;
use crate::sql::Why;

use super::bell::Bell;
use super::count::Counts;
use super::{ClientId, Guest};

/// What a client is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It is being connected to its first server.
    Login,
    /// Something runs for it.
    Active,
    /// It waits for a server connection.
    Waiting,
    /// It waits for the end of a pause.
    Paused,
    /// It says nothing.
    Idle,
    /// The same, with a transaction open.
    IdleInTransaction,
}

const PHASES: [Phase; 6] =
    [Phase::Login, Phase::Active, Phase::Waiting, Phase::Paused, Phase::Idle, Phase::IdleInTransaction];

impl Phase {
    /// In the words of `pg_stat_activity`, where that has one.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Login => "login",
            Self::Active => "active",
            Self::Waiting => "waiting",
            Self::Paused => "paused",
            Self::Idle => "idle",
            Self::IdleInTransaction => "idle in transaction",
        }
    }

    /// Whether it has, or is about to get, a server connection on which something runs.
    pub(crate) fn is_busy(self) -> bool {
        !matches!(self, Self::Idle | Self::Paused)
    }
}

/// See the module. Only its client writes what it is at.
#[derive(Debug)]
pub(crate) struct Badge {
    pub(crate) id: ClientId,
    pub(crate) guest: Guest,
    /// When it was logged in.
    pub(crate) since: WallTime,
    pub(crate) counts: Counts,
    phase: AtomicU8,
    /// Statements that it prepared.
    pub(crate) statements: Arc<Gauge>,
    /// Bytes of its buffers, as of a moment ago.
    buffers: AtomicUsize,
    /// How often it has asked for something.
    turns: AtomicU64,
    /// Server connections that it has.
    connections: AtomicUsize,
    kept_by: Mutex<Option<Why>>,
    /// Somebody wants something of it: see `killed`, `expired`, and whether the process is to end.
    pub(crate) bell: Bell,
    killed: AtomicBool,
    /// It has said nothing for too long since this turn, or a later one that it has yet to come to.
    expired: AtomicU64,
}

impl Badge {
    pub(super) fn new(id: ClientId, guest: Guest, since: WallTime) -> Self {
        Self {
            id,
            guest,
            since,
            counts: Counts::default(),
            phase: AtomicU8::new(0),
            statements: Arc::default(),
            buffers: AtomicUsize::new(0),
            turns: AtomicU64::new(0),
            connections: AtomicUsize::new(0),
            kept_by: Mutex::default(),
            bell: Bell::default(),
            killed: AtomicBool::new(false),
            expired: AtomicU64::new(u64::MAX),
        }
    }

    /// What it is at.
    pub(crate) fn phase(&self) -> Phase {
        PHASES.get(usize::from(self.phase.load(Ordering::SeqCst))).copied().unwrap_or(Phase::Login)
    }

    /// It is at something else now.
    pub(crate) fn is_at(&self, phase: Phase, connections: usize) {
        let position = PHASES.iter().position(|known| *known == phase);
        let position = position.and_then(|position| u8::try_from(position).ok()).unwrap_or(0);
        // Seen by whoever pauses something after that, or this client sees the pause.
        self.phase.store(position, Ordering::SeqCst);
        self.connections.store(connections, Ordering::Relaxed);
    }

    /// It asks for something.
    pub(crate) fn next_turn(&self) {
        let turns = self.turns();
        self.turns.store(turns + 1, Ordering::Relaxed);
    }

    /// How often it has asked for something.
    pub(crate) fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    /// Server connections that it has.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Bytes of its buffers, as of a moment ago.
    pub(crate) fn buffers(&self) -> usize {
        self.buffers.load(Ordering::Relaxed)
    }

    /// They take so many now.
    pub(crate) fn has_buffers(&self, bytes: usize) {
        self.buffers.store(bytes, Ordering::Relaxed);
    }

    /// What keeps it on its connection to the primary.
    pub(crate) fn kept_by(&self) -> Option<Why> {
        *lock(&self.kept_by)
    }

    /// That changed.
    pub(crate) fn is_kept_by(&self, why: Option<Why>) {
        *lock(&self.kept_by) = why;
    }

    /// An administrator wants it to go.
    pub(crate) fn kill(&self) {
        self.killed.store(true, Ordering::Release);
        self.bell.ring();
    }

    /// Whether it has to go, whatever it is at.
    pub(crate) fn is_killed(&self) -> bool {
        self.killed.load(Ordering::Acquire)
    }

    /// It has said nothing since `turn` for too long.
    pub(super) fn expire(&self, turn: u64) {
        self.expired.store(turn, Ordering::Release);
        self.bell.ring();
    }

    /// Whether it has to go for having said nothing since its last turn.
    pub(crate) fn is_expired(&self) -> bool {
        self.expired.load(Ordering::Acquire) == self.turns()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_speaks_again_has_not_expired() {
        let badge = Badge::new(1, Guest::default(), WallTime(0));
        badge.next_turn();
        assert!(!badge.is_expired());
        badge.expire(1);
        assert!(badge.is_expired());
        badge.next_turn();
        assert!(!badge.is_expired());
    }

    #[test]
    fn phases_are_kept_apart() {
        let badge = Badge::new(1, Guest::default(), WallTime(0));
        assert_eq!(badge.phase(), Phase::Login);
        for phase in PHASES {
            badge.is_at(phase, 2);
            assert_eq!((badge.phase(), badge.connections()), (phase, 2));
        }
    }
}
