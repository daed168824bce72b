//! For which standbys a primary's commits wait: `synchronous_standby_names`, walsenders' positions, and who waits.

use std::collections::{BTreeMap, BTreeSet};

use pgherd_common::Generation;

use crate::clock::{Micros, Time};

use super::{Process, Server};

/// What `synchronous_standby_names` says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Waits {
    /// For nobody.
    #[default]
    Free,
    /// For so many of these, as far as they call themselves by this generation.
    For {
        /// How many.
        standbys: usize,
        /// Of which.
        of: BTreeSet<usize>,
        /// Part of their names.
        generation: Generation,
    },
}

/// What a walsender knows of its standby.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    /// Of the walreceiver.
    pub connection: u64,
    /// Part of the standby's name.
    pub generation: Generation,
    /// Records that are flushed there.
    pub flushed: usize,
}

/// What commits are to wait for, as far as it is shown.
#[derive(Debug, Clone, Copy)]
pub struct Cover {
    /// Of the wish.
    pub number: u64,
    /// How many records there were when they began to wait.
    pub upto: usize,
    /// The last connection from before that.
    pub before: u64,
    /// Since when walsenders have had time to show that they know.
    pub since: Time,
}

/// A commit that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// Records up to and with its own.
    pub upto: usize,
    /// Its row.
    pub row: u64,
    /// The proxy and its session; `None` for a direct client.
    pub through: Option<(usize, usize)>,
}

impl Process {
    fn listed<'a>(&'a self, waits: &'a Waits) -> impl Iterator<Item = (usize, &'a Sent)> {
        let (of, generation) = match waits {
            Waits::For { of, generation, .. } => (Some(of), *generation),
            Waits::Free => (None, Generation::ZERO),
        };
        let walsenders: &BTreeMap<usize, Sent> = &self.walsenders;
        walsenders
            .iter()
            .filter(move |(standby, sent)| {
                of.is_some_and(|of| of.contains(standby)) && sent.generation == generation
            })
            .map(|(standby, sent)| (*standby, sent))
    }

    /// Those that may not know yet for whom commits wait.
    fn behind(&self, waits: &Waits, cover: Cover) -> Vec<usize> {
        let late = |sent: &Sent| sent.connection <= cover.before && sent.flushed < cover.upto;
        self.listed(waits).filter(|(_, sent)| late(sent)).map(|(standby, _)| standby).collect()
    }

    fn has(&self, waits: &Waits, upto: usize) -> bool {
        match waits {
            Waits::Free => true,
            Waits::For { standbys, .. } => {
                self.listed(waits).filter(|(_, sent)| sent.flushed >= upto).count() >= *standbys
            }
        }
    }
}

impl Server {
    /// Commits wait for these from now on.
    pub fn cover(&mut self, waits: Waits, number: u64, before: u64, since: Time) {
        let upto = self.wal.len();
        self.waits = waits;
        if let Some(process) = &mut self.process {
            process.cover = Some(Cover { number, upto, before, since });
        }
    }

    /// The number of what is in effect, and whether all from before it is where commits wait for it.
    pub fn covered(&self) -> Option<(u64, bool)> {
        let process = self.process.as_ref()?;
        let cover = process.cover?;
        Some((
            cover.number,
            process.behind(&self.waits, cover).is_empty() && process.has(&self.waits, cover.upto),
        ))
    }

    /// Those that keep the others' word from counting, of whom it has been enough now: they are ended.
    pub fn end_walsenders(&mut self, now: Time, patience: Micros) -> Vec<usize> {
        let Some(process) = &mut self.process else { return Vec::new() };
        let Some(cover) = process.cover.filter(|cover| now.since(cover.since) > patience) else {
            return Vec::new();
        };
        let behind = process.behind(&self.waits, cover);
        if behind.is_empty() || !process.has(&self.waits, cover.upto) {
            return Vec::new();
        }
        for standby in &behind {
            process.ended.extend(process.walsenders.remove(standby).map(|sent| sent.connection));
        }
        process.cover = Some(Cover { since: now, ..cover });
        behind
    }

    /// Those whose wait has ended.
    pub fn release(&mut self) -> Vec<Waiting> {
        let Some(process) = &mut self.process else { return Vec::new() };
        let waiting = std::mem::take(&mut process.waiting);
        let (done, rest) = waiting.into_iter().partition(|waiting| process.has(&self.waits, waiting.upto));
        process.waiting = rest;
        done
    }
}
