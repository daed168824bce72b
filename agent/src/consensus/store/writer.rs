//! The one thread that writes the store file.
//!
//! Writes are done in the order they were handed in, as many as are waiting in one transaction, and
//! are reported done once they are on disk. After a failed write nothing is written any more: the
//! state of the file is then known only up to the write before.

use std::fmt;
use std::io;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use openraft::storage::IOFlushed;
use pgherd_common::{ClusterName, NodeId};
use pgherd_core::quorum::Admission;
use redb::{Database, WriteTransaction};
use serde::Serialize;
use tokio::sync::oneshot;

use super::super::types::{Entry, Group, LogId, Vote};
use super::file::{
    APPLIED, AppliedState, COMMITTED, HEADER, Header, LOG, PURGED, SNAPSHOT, StoredSnapshot, VALUES, VOTE,
};

/// A change of the file.
pub(super) enum Write {
    Vote(Vote),
    Header(Box<Header>),
    Append(Vec<Entry>),
    /// Removes this index and all after it.
    TruncateFrom(u64),
    /// Removes this entry and all before it.
    Purge(LogId),
    /// Goes to disk with the next other write: a restarted node that knows an older one only learns
    /// the newer one from the leader.
    Committed(Option<LogId>),
    Applied(Box<AppliedState>),
    /// A snapshot built here.
    Built(Box<StoredSnapshot>),
    /// A snapshot received, which becomes the applied state.
    Installed(Box<StoredSnapshot>),
}

/// Who is told that a write is on disk.
pub(super) enum Done {
    Nobody,
    Caller(oneshot::Sender<io::Result<()>>),
    Raft(IOFlushed<Group>),
}

impl Done {
    fn tell(self, result: io::Result<()>) {
        match self {
            Self::Nobody => {}
            // A caller that no longer waits does not need to know.
            Self::Caller(sender) => drop(sender.send(result)),
            Self::Raft(flushed) => flushed.io_completed(result),
        }
    }
}

enum Job {
    Write(Write, Done),
    Close(oneshot::Sender<()>),
}

/// Hands writes to the thread. When the last one is dropped the file is closed.
#[derive(Clone)]
pub(in super::super) struct Writer {
    jobs: Sender<Job>,
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Writer")
    }
}

impl Writer {
    /// Bound of writes in one transaction.
    const BATCH_MAX: usize = 256;

    pub(super) fn spawn(database: Database) -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel();
        thread::Builder::new().name("raft-store".to_owned()).spawn(move || run(database, &queue))?;
        Ok(Self { jobs })
    }

    /// Hands in a write and returns at once.
    pub(super) fn submit(&self, write: Write, done: Done) {
        if let Err(mpsc::SendError(Job::Write(_, done))) = self.jobs.send(Job::Write(write, done)) {
            done.tell(Err(closed()));
        }
    }

    /// Hands in a write at once; the future waits until it is on disk.
    pub(super) fn write(&self, write: Write) -> impl Future<Output = io::Result<()>> + use<> {
        let (sender, done) = oneshot::channel();
        self.submit(write, Done::Caller(sender));
        async move { done.await.unwrap_or_else(|_| Err(closed())) }
    }

    /// Writes down whose store this is and what its node's word is worth; waits until it is on disk.
    pub(in super::super) async fn mark(
        &self,
        cluster: ClusterName,
        node: NodeId,
        admission: Admission,
    ) -> io::Result<()> {
        self.write(Write::Header(Box::new(Header::new(cluster, node, admission)))).await
    }

    /// Closes the file once all that was handed in is written. Later writes fail.
    pub(in super::super) async fn close(&self) {
        let (sender, closed) = oneshot::channel();
        if self.jobs.send(Job::Close(sender)).is_ok() {
            // Either answered, or closed by an earlier call.
            drop(closed.await);
        }
    }
}

fn closed() -> io::Error {
    io::Error::other("the raft store is closed")
}

fn run(database: Database, queue: &Receiver<Job>) {
    let mut file = Some(StoreFile { database, committed: None });
    let mut failure: Option<String> = None;
    while let Ok(first) = queue.recv() {
        let mut batch = Vec::new();
        let mut close = None;
        for job in std::iter::once(first).chain(queue.try_iter()) {
            match job {
                Job::Write(write, done) => batch.push((write, done)),
                Job::Close(sender) => close = Some(sender),
            }
            if close.is_some() || batch.len() >= Writer::BATCH_MAX {
                break;
            }
        }
        let (writes, waiting): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        let result = match (&failure, &mut file) {
            (Some(reason), _) => Err(reason.clone()),
            (None, None) => Err(closed().to_string()),
            (None, Some(file)) => {
                file.write(writes).map_err(|error| format!("cannot write the raft store: {error}"))
            }
        };
        if let Err(reason) = &result
            && file.is_some()
            && failure.is_none()
        {
            tracing::error!("{reason}; this node stops taking part until its agent is restarted");
            failure = Some(reason.clone());
        }
        for done in waiting {
            done.tell(result.clone().map_err(io::Error::other));
        }
        if let Some(sender) = close {
            drop(file.take());
            // A caller that no longer waits does not need to know.
            let _ = sender.send(());
        }
    }
}

struct StoreFile {
    database: Database,
    /// Not yet written.
    committed: Option<Option<LogId>>,
}

impl StoreFile {
    fn write(&mut self, writes: Vec<Write>) -> Result<(), redb::Error> {
        let mut due = Vec::with_capacity(writes.len());
        for write in writes {
            match write {
                Write::Committed(committed) => self.committed = Some(committed),
                other => due.push(other),
            }
        }
        if due.is_empty() {
            return Ok(());
        }
        let mut transaction = self.database.begin_write()?;
        // Costs a second flush, and buys that a page which does not verify was damaged, not torn.
        transaction.set_two_phase_commit(true);
        if let Some(committed) = self.committed.take() {
            put(&transaction, COMMITTED, &committed)?;
        }
        for write in &due {
            apply(&transaction, write)?;
        }
        transaction.commit()?;
        Ok(())
    }
}

fn apply(transaction: &WriteTransaction, write: &Write) -> Result<(), redb::Error> {
    match write {
        Write::Vote(vote) => put(transaction, VOTE, vote),
        Write::Header(header) => put(transaction, HEADER, header),
        Write::Append(entries) => {
            let mut log = transaction.open_table(LOG)?;
            for entry in entries {
                log.insert(entry.log_id.index, encode(entry)?.as_slice())?;
            }
            Ok(())
        }
        Write::TruncateFrom(first) => {
            transaction.open_table(LOG)?.retain_in::<u64, _>(first.., |_, _| false)?;
            Ok(())
        }
        Write::Purge(upto) => {
            put(transaction, PURGED, upto)?;
            transaction.open_table(LOG)?.retain_in::<u64, _>(..=upto.index, |_, _| false)?;
            Ok(())
        }
        Write::Committed(committed) => put(transaction, COMMITTED, committed),
        Write::Applied(applied) => put(transaction, APPLIED, applied),
        Write::Built(snapshot) => put(transaction, SNAPSHOT, snapshot),
        Write::Installed(snapshot) => {
            let applied = AppliedState {
                last: snapshot.meta.last_log_id,
                membership: snapshot.meta.last_membership.clone(),
                state: snapshot.state.clone(),
            };
            put(transaction, SNAPSHOT, snapshot)?;
            put(transaction, APPLIED, &applied)
        }
    }
}

fn put(transaction: &WriteTransaction, key: &str, value: &impl Serialize) -> Result<(), redb::Error> {
    transaction.open_table(VALUES)?.insert(key, encode(value)?.as_slice())?;
    Ok(())
}

fn encode(value: &impl Serialize) -> Result<Vec<u8>, redb::Error> {
    serde_json::to_vec(value).map_err(|error| redb::Error::from(io::Error::from(error)))
}
