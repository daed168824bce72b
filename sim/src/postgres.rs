//! A model of PostgreSQL: as much of it as decides who may be promoted and what is lost.
//!
//! WAL is a list of records of equal length, each chained to all before it, so that two servers can be
//! compared as no real one can. Nothing in here knows time: whoever calls decides when.

mod commits;
mod control;
mod follow;
mod wal;

pub use commits::{Cover, Sent, Waiting, Waits};
pub use control::{Control, ControlState};
pub use follow::{Kinship, StreamError, kinship, stream_from};
pub use wal::{Kind, Record, Wal, lsn};

use std::collections::{BTreeMap, BTreeSet};

use pgherd_common::wal::TimelineHistory;
use pgherd_common::{Generation, Lsn, Timeline};

/// What a postmaster is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Nobody is let in: recovery to a consistent state.
    Starting,
    /// A standby that answers.
    Recovery,
    /// A standby that has been told to become primary.
    Promoting,
    /// A primary that accepts writes.
    Primary,
    /// A fast stop: no client is left.
    Stopping,
}

/// A walreceiver that streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receiver {
    /// The node it receives from.
    pub upstream: usize,
    /// The postmaster there.
    pub upstream_life: u64,
    /// Tells it from earlier ones.
    pub connection: u64,
    /// Whether a batch is on its way already.
    pub pumping: bool,
}

/// A postmaster and its children.
#[derive(Debug, Clone)]
pub struct Process {
    /// Tells it from earlier ones.
    pub life: u64,
    /// What it is doing.
    pub phase: Phase,
    /// SIGSTOP: whoever is connected is served, nobody new is let in.
    pub hung: bool,
    /// Present while WAL comes in.
    pub receiver: Option<Receiver>,
    /// Records replayed, on a standby.
    pub replayed: usize,
    /// `pg_last_wal_receive_lsn()` is not null.
    pub received_known: bool,
    /// Nobody with the right to do so has promoted it.
    pub promoted_by_hand: bool,
    /// Its walsenders, by standby.
    pub walsenders: BTreeMap<usize, Sent>,
    /// Commits that wait for standbys.
    pub waiting: Vec<Waiting>,
    /// What commits are to wait for.
    pub cover: Option<Cover>,
    /// Connections of walreceivers that this server has ended.
    pub ended: BTreeSet<u64>,
}

/// A data directory and what runs on it.
#[derive(Debug, Clone)]
pub struct Server {
    /// What is flushed.
    pub wal: Wal,
    /// Half a record was received beyond that.
    pub half: bool,
    /// Of the last record.
    pub timeline: u32,
    /// The forks behind it.
    pub history: TimelineHistory,
    /// The newest timeline of which there is a history file.
    pub newest_known: u32,
    /// `pg_control`.
    pub control: Control,
    /// `standby.signal`.
    pub standby_signal: bool,
    /// `primary_conninfo`.
    pub conninfo: Option<usize>,
    /// The generation that the walreceiver calls itself by.
    pub conninfo_generation: Generation,
    /// `synchronous_standby_names`.
    pub waits: Waits,
    /// It was started as primary, and keeps clients out until its agent lets them in.
    pub gated: bool,
    /// A rewind was begun and has not finished.
    pub rewinding: bool,
    /// Physical slots.
    pub slots: Vec<String>,
    /// The postmaster, while there is one.
    pub process: Option<Process>,
    /// The generation whose primary this server became last.
    pub generation: Generation,
    lives: u64,
}

impl Server {
    /// A data directory that was made by initdb, or cloned from there.
    pub fn new(primary: bool) -> Self {
        Self {
            wal: Wal::default(),
            half: false,
            timeline: 1,
            history: TimelineHistory::default(),
            newest_known: 1,
            control: Control::new(primary),
            standby_signal: !primary,
            conninfo: None,
            conninfo_generation: Generation::ZERO,
            waits: Waits::Free,
            gated: false,
            rewinding: false,
            slots: Vec::new(),
            process: None,
            generation: Generation::ZERO,
            lives: 0,
        }
    }

    /// Whether clients can write here.
    pub fn accepts(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process.phase == Phase::Primary)
    }

    /// The phase of the postmaster, if there is one.
    pub fn phase(&self) -> Option<Phase> {
        self.process.as_ref().map(|process| process.phase)
    }

    /// The number of the postmaster, if there is one.
    pub fn life(&self) -> Option<u64> {
        self.process.as_ref().map(|process| process.life)
    }

    /// Whether this is still the same postmaster.
    pub fn is_life(&self, life: u64) -> bool {
        self.process.as_ref().is_some_and(|process| process.life == life)
    }

    /// Whether there still is a walsender at the other end.
    pub fn sends_on(&self, receiver: &Receiver) -> bool {
        let process = self.process.as_ref().filter(|process| process.life == receiver.upstream_life);
        process.is_some_and(|process| !process.ended.contains(&receiver.connection))
    }

    /// A postmaster begins to start. Its number.
    pub fn launch(&mut self) -> u64 {
        self.lives += 1;
        self.process = Some(Process {
            life: self.lives,
            phase: Phase::Starting,
            hung: false,
            receiver: None,
            replayed: 0,
            received_known: false,
            promoted_by_hand: false,
            walsenders: BTreeMap::new(),
            waiting: Vec::new(),
            cover: None,
            ended: BTreeSet::new(),
        });
        self.lives
    }

    /// The start ends: it lets clients in.
    pub fn ready(&mut self) {
        let standby = self.standby_signal;
        let (timeline, generation) = (self.timeline, self.generation);
        let Some(process) = &mut self.process else { return };
        if standby {
            // Everything that is here is replayed before anything new is asked for.
            process.phase = Phase::Recovery;
            process.replayed = self.wal.len();
            self.control.state = ControlState::InRecovery;
            return;
        }
        process.phase = Phase::Primary;
        self.half = false;
        let start = self.wal.append(Kind::Checkpoint, timeline, generation);
        self.control.checkpointed(start, timeline);
        self.control.state = ControlState::InProduction;
    }

    /// A client's row, if the server takes it: where its record is.
    pub fn write(&mut self, id: u64) -> Option<usize> {
        if !self.accepts() || self.gated {
            return None;
        }
        self.wal.append(Kind::Row(id), self.timeline, self.generation);
        Some(self.wal.len() - 1)
    }

    /// The end of recovery in a promotion, to primary of a generation unless somebody did it by hand.
    /// False when there is nothing to promote.
    pub fn promoted(&mut self, generation: Option<Generation>) -> bool {
        if self.phase() != Some(Phase::Promoting) {
            return false;
        }
        let generation = generation.unwrap_or(self.generation);
        let fork = self.wal.end();
        let next = self.newest_known.max(self.timeline) + 1;
        self.history.0.push((Timeline(self.timeline), fork));
        (self.timeline, self.newest_known, self.half) = (next, next, false);
        (self.standby_signal, self.generation) = (false, generation);
        self.wal.append(Kind::EndOfRecovery, next, generation);
        self.control.state = ControlState::InProduction;
        self.control.min_recovery = Some((self.wal.end(), next));
        if let Some(process) = &mut self.process {
            (process.phase, process.receiver) = (Phase::Primary, None);
        }
        true
    }

    /// CHECKPOINT on a primary.
    pub fn checkpoint(&mut self) {
        if self.phase() == Some(Phase::Primary) {
            let start = self.wal.append(Kind::Checkpoint, self.timeline, self.generation);
            self.control.checkpointed(start, self.timeline);
        }
    }

    /// A fast stop begins: on a primary the last checkpoint record is written.
    pub fn stop(&mut self) {
        let Some(process) = &mut self.process else { return };
        let before = std::mem::replace(&mut process.phase, Phase::Stopping);
        // Whoever waits for standbys is sent away.
        process.waiting.clear();
        process.receiver = None;
        match before {
            Phase::Primary => {
                let start = self.wal.append(Kind::Checkpoint, self.timeline, self.generation);
                self.control.checkpointed(start, self.timeline);
                self.control.stopping_as_primary = true;
            }
            Phase::Recovery | Phase::Promoting => {
                self.control.min_recovery = Some((lsn(process.replayed), self.timeline));
                self.control.stopping_as_primary = false;
            }
            Phase::Starting | Phase::Stopping => {}
        }
    }

    /// A fast stop ends.
    pub fn stopped(&mut self) {
        if self.phase() == Some(Phase::Stopping) {
            self.process = None;
            self.control.state = if self.control.stopping_as_primary {
                ControlState::ShutDown
            } else {
                ControlState::ShutDownInRecovery
            };
        }
    }

    /// SIGKILL to all of it. `half`: half a record had just come in.
    pub fn kill(&mut self, half: bool) {
        let Some(process) = self.process.take() else { return };
        match process.phase {
            Phase::Recovery | Phase::Promoting => {
                self.half |= half && process.receiver.is_some();
                // The history file of the new timeline may be there although it never began.
                if process.phase == Phase::Promoting && half {
                    self.newest_known = self.newest_known.max(self.timeline) + 1;
                }
            }
            Phase::Starting | Phase::Primary | Phase::Stopping => {}
        }
    }

    /// The history of a timeline as this data directory has it.
    pub fn history_of(&self, timeline: u32) -> TimelineHistory {
        let parents = self.history.0.iter().take_while(|(parent, _)| parent.0 < timeline);
        TimelineHistory(parents.copied().collect())
    }

    /// The end of what is safely here, as a look finds it.
    pub fn received(&self) -> Lsn {
        match &self.process {
            Some(process) if process.phase != Phase::Primary => {
                let known = if process.received_known {
                    Lsn(self.wal.end().0 + if self.half { wal::RECORD / 2 } else { 0 })
                } else {
                    Lsn::default()
                };
                known.max(lsn(process.replayed))
            }
            Some(_) | None => self.wal.end(),
        }
    }
}
