//! A copy of the WAL of a node about to be rewound.
//!
//! pg_rewind finds out from that WAL what to undo, and overwrites it on the way. Interrupted, it could
//! not be repeated without this copy: the node would have to be cloned.

use std::cmp::Reverse;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use pgherd_common::wal::TimelineHistory;
use pgherd_common::{Lsn, Timeline};

use super::command::OsUser;

/// With more than this the oldest is left out: what was written since the last checkpoint before the
/// fork is needed, and that is seldom more.
const BYTES_MAX: u64 = 2 << 30;

/// Copies segments up to `end` and history files into `into`, all or nothing.
pub(super) fn save(data_dir: &Path, end: Lsn, into: &Path) -> io::Result<()> {
    let partial = into.with_extension("partial");
    for old in [&partial, &into.to_owned()] {
        if old.exists() {
            fs::remove_dir_all(old)?;
        }
    }
    fs::create_dir_all(&partial)?;
    let mut bytes = 0;
    for (name, path) in wanted(data_dir, end)? {
        bytes += fs::metadata(&path)?.len();
        if bytes > BYTES_MAX {
            break;
        }
        fs::copy(&path, partial.join(name))?;
    }
    rustix::fs::syncfs(fs::File::open(&partial)?)?;
    fs::rename(&partial, into)?;
    fs::File::open(into.parent().unwrap_or(into))?.sync_all()
}

/// Puts the copies back; true when there were any.
pub(super) fn restore(data_dir: &Path, from: &Path, owner: &OsUser) -> io::Result<bool> {
    if !from.exists() {
        return Ok(false);
    }
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        put(&entry.path(), &data_dir.join("pg_wal").join(entry.file_name()), owner)?;
    }
    Ok(true)
}

/// Gives the rewound data directory the segments that its source no longer has, so far as they are of
/// the past that both share: recovery begins at the last checkpoint before the fork. Returns how many.
pub(super) fn fill_gaps(
    data_dir: &Path,
    from: &Path,
    history: &TimelineHistory,
    owner: &OsUser,
) -> io::Result<usize> {
    if !from.exists() {
        return Ok(0);
    }
    let mut filled = 0;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = data_dir.join("pg_wal").join(entry.file_name());
        let length = entry.metadata()?.len();
        let shared =
            entry.file_name().to_str().and_then(|name| Some((timeline(name)?, begin(name, length)?)));
        let shared = shared.and_then(|(timeline, begin)| Some(begin + length <= history.left(timeline)?.0));
        if shared == Some(true) && !target.exists() {
            put(&entry.path(), &target, owner)?;
            filled += 1;
        }
    }
    Ok(filled)
}

fn put(from: &Path, target: &Path, owner: &OsUser) -> io::Result<()> {
    fs::copy(from, target)?;
    fs::set_permissions(target, fs::Permissions::from_mode(0o600))?;
    if owner.switch {
        chown(target, Some(owner.uid), Some(owner.gid))?;
    }
    Ok(())
}

/// History files, then segments, newest first. Segments past `end` are empty ones kept for reuse.
fn wanted(data_dir: &Path, end: Lsn) -> io::Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(data_dir.join("pg_wal"))? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let history = name.ends_with(".history");
        let segment = name.len() == 24 && name.chars().all(|c| c.is_ascii_hexdigit());
        if history || (segment && begins_before(&name, entry.metadata()?.len(), end)) {
            found.push((history, name, entry.path()));
        }
    }
    found.sort_by_key(|(history, name, _)| Reverse((*history, name.get(8..).unwrap_or_default().to_owned())));
    Ok(found.into_iter().map(|(_, name, path)| (name, path)).collect())
}

/// Whether the segment of `length` bytes begins before `end`.
fn begins_before(name: &str, length: u64, end: Lsn) -> bool {
    begin(name, length).is_some_and(|begin| begin <= end.0)
}

/// Where the segment `TTTTTTTTHHHHHHHHLLLLLLLL` of `length` bytes begins.
fn begin(name: &str, length: u64) -> Option<u64> {
    let part = |range| name.get(range).and_then(|hex| u64::from_str_radix(hex, 16).ok());
    Some((part(8..16)? << 32) + part(16..24)? * length)
}

fn timeline(name: &str) -> Option<Timeline> {
    name.get(..8).and_then(|hex| u32::from_str_radix(hex, 16).ok()).map(Timeline)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_written_segments_are_kept_and_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let (data, into) = (dir.path().join("data"), dir.path().join("saved"));
        let wal = data.join("pg_wal");
        fs::create_dir_all(&wal).unwrap();
        let names = [
            "000000010000000000000001",
            "000000010000000000000002",
            "000000010000000000000003",
            "00000001.history",
        ];
        for name in names {
            fs::write(wal.join(name), [b'w'; 16]).unwrap();
        }
        save(&data, Lsn(0x2A), &into).unwrap();
        let owner = OsUser { uid: 0, gid: 0, switch: false };
        for name in names {
            fs::write(wal.join(name), "").unwrap();
        }
        assert!(restore(&data, &into, &owner).unwrap());
        let lengths = names.map(|name| fs::metadata(wal.join(name)).unwrap().len());
        assert_eq!(lengths, [16, 16, 0, 16]);
        assert!(!restore(&data, &dir.path().join("none"), &owner).unwrap());

        // The fork lies at the end of the second segment: only what ends before it is shared.
        for name in names {
            fs::remove_file(wal.join(name)).unwrap();
        }
        let history = TimelineHistory(vec![(Timeline(1), Lsn(0x2F))]);
        assert_eq!(fill_gaps(&data, &into, &history, &owner).unwrap(), 1);
        assert!(wal.join(names[0]).exists() && !wal.join(names[1]).exists());
    }
}
