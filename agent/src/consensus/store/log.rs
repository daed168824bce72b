//! The log and the vote.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};

use super::super::types::{Entry, Group, LogId, Vote};
use super::writer::{Done, Write, Writer};

/// The log, as it is in memory; the file follows it.
#[derive(Debug, Default)]
pub(super) struct LogContent {
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    pub(super) purged: Option<LogId>,
    pub(super) entries: BTreeMap<u64, Entry>,
}

impl LogContent {
    /// Refuses a log with holes or misplaced entries.
    pub(super) fn check(&self) -> Result<(), String> {
        let first = self.purged.map_or(0, |purged| purged.index + 1);
        for (expected, (index, entry)) in (first..).zip(&self.entries) {
            if *index != expected || entry.log_id.index != *index {
                return Err(format!("log entry {expected} is missing"));
            }
        }
        Ok(())
    }

    fn last(&self) -> Option<LogId> {
        self.entries.values().next_back().map(|entry| entry.log_id).or(self.purged)
    }
}

/// The log storage of the raft library, and its own reader: clones share one log.
#[derive(Debug, Clone)]
pub(in super::super) struct LogStore {
    content: Arc<Mutex<LogContent>>,
    writer: Writer,
}

impl LogStore {
    pub(super) fn new(content: LogContent, writer: Writer) -> Self {
        Self { content: Arc::new(Mutex::new(content)), writer }
    }

    fn content(&self) -> MutexGuard<'_, LogContent> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RaftLogReader<Group> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        Ok(self.content().entries.range(range).map(|(_, entry)| entry.clone()).collect())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.content().vote)
    }
}

impl RaftLogStorage<Group> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Group>, io::Error> {
        let content = self.content();
        Ok(LogState { last_purged_log_id: content.purged, last_log_id: content.last() })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.writer.write(Write::Vote(*vote)).await?;
        self.content().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.content().committed = committed;
        self.writer.submit(Write::Committed(committed), Done::Nobody);
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.content().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Group>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        self.content().entries.extend(entries.iter().map(|entry| (entry.log_id.index, entry.clone())));
        self.writer.submit(Write::Append(entries), Done::Raft(callback));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let first = last.map_or(0, |last| last.index + 1);
        drop(self.content().entries.split_off(&first));
        self.writer.write(Write::TruncateFrom(first)).await
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        {
            let mut content = self.content();
            content.purged = content.purged.max(Some(upto));
            content.entries = content.entries.split_off(&(upto.index + 1));
        }
        self.writer.write(Write::Purge(upto)).await
    }
}
