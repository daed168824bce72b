//! The library's own suite for stores, and what it leaves out: crashes, damage, mistaken identity.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use futures_util::stream;
use openraft::entry::RaftEntry;
use openraft::storage::{RaftLogStorage, RaftLogStorageExt, RaftSnapshotBuilder, RaftStateMachine};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::testing::{log_id, membership_ent};
use openraft::{RaftLogReader, StorageError};
use pgherd_common::{Generation, WallTime};
use tempfile::TempDir;

use super::super::types::{Entry, Group, LogId, Proposal, Vote};
use super::file::FILE_NAME;
use super::*;
use crate::cluster::Command;

fn cluster() -> ClusterName {
    "test".parse().unwrap()
}

fn open(dir: &Path) -> Result<Store, OpenError> {
    Store::open(dir, &cluster(), NodeId(1), Admission::Undecided)
}

fn id(term: u64, index: u64) -> LogId {
    log_id::<Group>(term, 1, index)
}

fn command(generation: u64) -> Command {
    Command::SetPriority { node: NodeId(generation), priority: 7 }
}

fn entry(term: u64, index: u64) -> Entry {
    Entry::new_normal(id(term, index), Proposal(command(index)))
}

struct InTempDir;

impl StoreBuilder<Group, LogStore, Machine, TempDir> for InTempDir {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine), StorageError<Group>> {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path()).unwrap();
        Ok((dir, store.log, store.machine))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_librarys_suite_passes() {
    Suite::test_all(InTempDir).await.unwrap();
}

/// Vote of term 3, log entries 4 to 9 of 10, membership and state applied up to 7, snapshot at 7.
async fn filled(dir: &Path) -> Store {
    let mut store = open(dir).unwrap();
    store.log.save_vote(&Vote::new(2, 1)).await.unwrap();
    let mut entries = vec![membership_ent::<Group>(1, 1, 0, vec![BTreeSet::from([1, 2, 3])])];
    entries.extend((1..=10).map(|index| entry(2, index)));
    store.log.blocking_append(entries.clone()).await.unwrap();
    store.log.save_vote(&Vote::new(3, 2)).await.unwrap();
    store.log.truncate_after(Some(id(2, 9))).await.unwrap();
    store.log.save_committed(Some(id(2, 7))).await.unwrap();
    let formed = Entry::new_normal(id(2, 1), Proposal(form()));
    let applied = entries
        .into_iter()
        .take(8)
        .map(|entry| if entry.log_id == formed.log_id { formed.clone() } else { entry });
    store.machine.apply(stream::iter(applied.map(|entry| Ok((entry, None))))).await.unwrap();
    store.machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    store.log.purge(id(2, 3)).await.unwrap();
    store
}

fn form() -> Command {
    use crate::cluster::{Descriptor, Identity, NodeKind};
    Command::Form {
        identity: Identity { cluster: cluster(), system_identifier: 7, major: 15 },
        primary: NodeId(1),
        members: vec![Descriptor {
            id: NodeId(1),
            name: "server1".parse().unwrap(),
            kind: NodeKind::Database,
            agent: "127.0.0.1:7800".parse().unwrap(),
            postgres: Some("127.0.0.1:5432".parse().unwrap()),
            priority: 100,
            weight: 1,
            tags: Default::default(),
            upstream: None,
        }],
        at: WallTime(1),
    }
}

async fn assert_filled(store: &mut Store) {
    assert_eq!(store.log.read_vote().await.unwrap(), Some(Vote::new(3, 2)));
    assert_eq!(store.log.read_committed().await.unwrap(), Some(id(2, 7)));
    let log = store.log.get_log_state().await.unwrap();
    assert_eq!((log.last_purged_log_id, log.last_log_id), (Some(id(2, 3)), Some(id(2, 9))));
    let expected: Vec<Entry> = (4..=9).map(|index| entry(2, index)).collect();
    assert_eq!(store.log.try_get_log_entries(0..100).await.unwrap(), expected);
    let (last, membership) = store.machine.applied_state().await.unwrap();
    assert_eq!(last, Some(id(2, 7)));
    assert_eq!(membership.voter_ids().collect::<Vec<_>>(), [1, 2, 3]);
    let state = store.state.borrow().clone();
    assert_eq!((state.generation, state.revision), (Generation::ZERO.next(), 1));
    assert_eq!(state.members[&NodeId(1)].priority(), 100);
    let snapshot = store.machine.get_current_snapshot().await.unwrap().unwrap();
    assert_eq!((snapshot.meta.last_log_id, &snapshot.snapshot), (Some(id(2, 7)), &*state));
}

/// What a crash leaves: the file as it is while the store is open.
fn crash_image(dir: &Path) -> (TempDir, PathBuf) {
    let copy = tempfile::tempdir().unwrap();
    let path = copy.path().join(FILE_NAME);
    fs::copy(dir.join(FILE_NAME), &path).unwrap();
    (copy, path)
}

#[tokio::test]
async fn a_crash_keeps_vote_log_and_state() {
    let dir = tempfile::tempdir().unwrap();
    let running = filled(dir.path()).await;
    let (copy, _) = crash_image(dir.path());
    assert_filled(&mut open(copy.path()).unwrap()).await;
    drop(running);
}

#[tokio::test]
async fn closing_keeps_vote_log_and_state() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = filled(dir.path()).await;
    store.writer.close().await;
    let late = store.log.save_vote(&Vote::new(9, 1)).await.unwrap_err();
    assert!(late.to_string().contains("closed"), "{late}");
    assert_filled(&mut open(dir.path()).unwrap()).await;
}

#[tokio::test]
async fn a_store_that_is_in_use_is_not_shared() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path()).unwrap();
    let error = open(dir.path()).err().unwrap();
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    assert!(error.to_string().contains(FILE_NAME), "{error}");
    first.writer.close().await;
    open(dir.path()).unwrap();
}

#[tokio::test]
async fn another_ones_store_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).unwrap().writer.close().await;
    let error = Store::open(dir.path(), &"other".parse().unwrap(), NodeId(1), Admission::Full).err().unwrap();
    assert!(matches!(error, OpenError::OtherCluster { .. }), "{error}");
    let error = Store::open(dir.path(), &cluster(), NodeId(2), Admission::Full).err().unwrap();
    assert!(matches!(error, OpenError::OtherNode { found: NodeId(1), expected: NodeId(2), .. }), "{error}");
    open(dir.path()).unwrap();
}

fn assert_damaged(dir: &Path, what: &str) {
    match open(dir).err() {
        Some(error @ OpenError::Damaged { .. }) => {
            let text = error.to_string();
            assert!(
                text.contains(dir.to_str().unwrap()) && text.contains("never recreated"),
                "{what}: {text}"
            );
        }
        Some(other) => panic!("{what}: {other}"),
        None => panic!("{what}: it opened"),
    }
    assert!(dir.join(FILE_NAME).exists(), "{what}: the file is gone");
}

#[tokio::test]
async fn torn_and_foreign_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let running = filled(dir.path()).await;
    for what in ["empty", "half", "one page less", "not a database"] {
        let (copy, path) = crash_image(dir.path());
        let length = fs::metadata(&path).unwrap().len();
        let truncate = |length| fs::File::options().write(true).open(&path).unwrap().set_len(length).unwrap();
        match what {
            "empty" => truncate(0),
            "half" => truncate(length / 2),
            "one page less" => truncate(length - 4096),
            _ => fs::write(&path, vec![b'x'; 100_000]).unwrap(),
        }
        assert_damaged(copy.path(), what);
    }
    drop(running);
}

/// Whatever single page is overwritten: the damage is found, or nothing that was stored is touched.
#[tokio::test]
async fn a_damaged_page_is_never_read_as_something_else() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path()).await;
    store.writer.close().await;
    let whole = fs::read(dir.path().join(FILE_NAME)).unwrap();
    let mut refused = 0;
    let used: Vec<usize> =
        (0..whole.len()).step_by(4096).filter(|at| whole[*at..*at + 4096].iter().any(|b| *b != 0)).collect();
    for at in used {
        let copy = tempfile::tempdir().unwrap();
        let mut bytes = whole.clone();
        for byte in &mut bytes[at + 64..at + 128] {
            *byte ^= 0xff;
        }
        fs::write(copy.path().join(FILE_NAME), bytes).unwrap();
        match open(copy.path()) {
            Ok(mut store) => assert_filled(&mut store).await,
            Err(OpenError::Damaged { .. }) => refused += 1,
            Err(other) => panic!("page at {at}: {other}"),
        }
    }
    assert!(refused >= 3, "only {refused} damaged pages were found");
}

#[tokio::test]
async fn an_unfinished_creation_is_begun_anew() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("raft.redb.new"), b"half").unwrap();
    let mut store = open(dir.path()).unwrap();
    assert_eq!(store.log.read_vote().await.unwrap(), None);
    assert!(!dir.path().join("raft.redb.new").exists());
}
