//! The layout of the store file, and opening it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use pgherd_common::{ClusterName, NodeId};
use pgherd_core::quorum::Admission;
use redb::{
    Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::super::errors::OpenError;
use super::super::types::{Entry, LogId, Membership, SnapshotMeta, Vote};
use super::log::LogContent;
use crate::cluster::ClusterState;

pub(super) const FILE_NAME: &str = "raft.redb";
/// Written whole before it takes the name above, so a file of that name always has a header.
const UNFINISHED_NAME: &str = "raft.redb.new";
const CACHE_BYTES: usize = 8 << 20;

/// Everything but the log, by name; JSON.
pub(super) const VALUES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("values");
/// The log, by index; JSON.
pub(super) const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");

pub(super) const HEADER: &str = "header";
pub(super) const VOTE: &str = "vote";
pub(super) const COMMITTED: &str = "committed";
pub(super) const PURGED: &str = "purged";
pub(super) const APPLIED: &str = "applied";
pub(super) const SNAPSHOT: &str = "snapshot";

/// Whose store it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    format: u32,
    cluster: ClusterName,
    node: NodeId,
    /// In the file of a new store: what is to be known of the one before. Durable before the first
    /// message is answered.
    admission: Admission,
}

impl Header {
    const FORMAT: u32 = 2;

    /// Of a store that is made now.
    pub(super) fn new(cluster: ClusterName, node: NodeId, admission: Admission) -> Self {
        Self { format: Self::FORMAT, cluster, node, admission }
    }

    fn check(&self, found: &Self, path: PathBuf) -> Result<(), OpenError> {
        if found.format != self.format {
            return Err(OpenError::Format { path, found: found.format, supported: self.format });
        }
        if found.cluster != self.cluster {
            return Err(OpenError::OtherCluster {
                path,
                found: found.cluster.clone(),
                expected: self.cluster.clone(),
            });
        }
        if found.node != self.node {
            return Err(OpenError::OtherNode { path, found: found.node, expected: self.node });
        }
        Ok(())
    }
}

/// What has been applied.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct AppliedState {
    pub(super) last: Option<LogId>,
    pub(super) membership: Membership,
    pub(super) state: ClusterState,
}

/// A snapshot, as stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredSnapshot {
    pub(super) meta: SnapshotMeta,
    pub(super) state: ClusterState,
}

/// All that the file holds.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) log: LogContent,
    pub(super) applied: AppliedState,
    pub(super) snapshot: Option<StoredSnapshot>,
    pub(super) admission: Admission,
}

/// Opens the store in `dir` and reads it; creates it when there is none.
pub(super) fn open(dir: &Path, header: &Header) -> Result<(Database, Loaded), OpenError> {
    fs::create_dir_all(dir).map_err(|source| OpenError::Directory { path: dir.to_owned(), source })?;
    let path = dir.join(FILE_NAME);
    let exists = path.try_exists().map_err(|source| OpenError::Io { path: path.clone(), source })?;
    if !exists {
        create(dir, header)?;
    }
    let database = builder().open(&path).map_err(|error| refuse(&path, error))?;
    let found = read_header(&database).map_err(|reason| damaged(&path, reason))?;
    header.check(&found, path.clone())?;
    let loaded = load(&database, found.admission).map_err(|reason| damaged(&path, reason))?;
    Ok((database, loaded))
}

fn builder() -> Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    // Reads every page and compares its checksum. Together with two-phase commits (see the writer) a
    // crash never costs a finished write, so what does not verify was damaged from outside.
    builder.set_check_integrity_on_open(true);
    builder
}

fn create(dir: &Path, header: &Header) -> Result<(), OpenError> {
    let (path, unfinished) = (dir.join(FILE_NAME), dir.join(UNFINISHED_NAME));
    let io = |source| OpenError::Io { path: unfinished.clone(), source };
    match fs::remove_file(&unfinished) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(io(error)),
    }
    let database = builder().create(&unfinished).map_err(|error| refuse(&unfinished, error))?;
    write_header(&database, header).map_err(|error| io(io::Error::other(error)))?;
    drop(database);
    let sync = |path: &Path| File::open(path).and_then(|file| file.sync_all());
    sync(&unfinished).map_err(io)?;
    // A link, unlike a rename, never takes the place of a store that appeared meanwhile.
    fs::hard_link(&unfinished, &path).map_err(io)?;
    fs::remove_file(&unfinished).map_err(io)?;
    sync(dir).map_err(io)
}

fn write_header(database: &Database, header: &Header) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_two_phase_commit(true);
    {
        let text = serde_json::to_vec(header).map_err(|error| redb::Error::from(io::Error::from(error)))?;
        transaction.open_table(VALUES)?.insert(HEADER, text.as_slice())?;
        transaction.open_table(LOG)?;
    }
    transaction.commit()?;
    Ok(())
}

fn refuse(path: &Path, error: DatabaseError) -> OpenError {
    match error {
        DatabaseError::DatabaseAlreadyOpen => OpenError::InUse { path: path.to_owned() },
        DatabaseError::Storage(StorageError::Io(source))
            if !matches!(source.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
        {
            OpenError::Io { path: path.to_owned(), source }
        }
        other => damaged(path, other.to_string()),
    }
}

fn damaged(path: &Path, reason: String) -> OpenError {
    OpenError::Damaged { path: path.to_owned(), reason }
}

fn read_header(database: &Database) -> Result<Header, String> {
    let reader = database.begin_read().map_err(|error| error.to_string())?;
    let values = reader.open_table(VALUES).map_err(|error| error.to_string())?;
    value(&values, HEADER)?.ok_or_else(|| "it has no header".to_owned())
}

fn value<T: DeserializeOwned>(
    values: &impl ReadableTable<&'static str, &'static [u8]>,
    key: &str,
) -> Result<Option<T>, String> {
    let Some(found) = values.get(key).map_err(|error| error.to_string())? else { return Ok(None) };
    let decoded =
        serde_json::from_slice(found.value()).map_err(|error| format!("cannot read its {key}: {error}"))?;
    Ok(Some(decoded))
}

fn load(database: &Database, admission: Admission) -> Result<Loaded, String> {
    let reader = database.begin_read().map_err(|error| error.to_string())?;
    let values = reader.open_table(VALUES).map_err(|error| error.to_string())?;
    let vote: Option<Vote> = value(&values, VOTE)?;
    let committed: Option<LogId> = value(&values, COMMITTED)?;
    let purged: Option<LogId> = value(&values, PURGED)?;
    let applied: AppliedState = value(&values, APPLIED)?.unwrap_or_default();
    let snapshot: Option<StoredSnapshot> = value(&values, SNAPSHOT)?;
    let table = reader.open_table(LOG).map_err(|error| error.to_string())?;
    let mut entries: BTreeMap<u64, Entry> = BTreeMap::new();
    for item in table.iter().map_err(|error| error.to_string())? {
        let (index, text) = item.map_err(|error| error.to_string())?;
        let index = index.value();
        let entry = serde_json::from_slice(text.value())
            .map_err(|error| format!("cannot read log entry {index}: {error}"))?;
        entries.insert(index, entry);
    }
    let log = LogContent { vote, committed, purged, entries };
    log.check()?;
    let known = applied.last.max(snapshot.as_ref().and_then(|snapshot| snapshot.meta.last_log_id));
    if log.purged > known {
        return Err("log entries were removed that the applied state does not contain".to_owned());
    }
    Ok(Loaded { log, applied, snapshot, admission })
}
