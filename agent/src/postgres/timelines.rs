//! History files in `pg_wal`, and whether local WAL belongs to an upstream's past.

use std::fs;
use std::path::{Path, PathBuf};

use pgherd_common::Timeline;
use pgherd_common::wal::TimelineHistory;

use super::controldata::ControlData;
use super::files::{FileError, remove_durably};
use crate::observation::Running;
use crate::salvage::LeftWal;

/// The forks behind `timeline` as this data directory has them. Timeline 1 has none; `None` when the
/// file is not here.
pub(super) fn history(data_dir: &Path, timeline: Timeline) -> Option<TimelineHistory> {
    if timeline == Timeline(1) {
        return Some(TimelineHistory::default());
    }
    let path = wal_dir(data_dir).join(format!("{:08X}.history", timeline.0));
    Some(TimelineHistory::parse(&fs::read_to_string(path).ok()?))
}

/// How a stopped data directory relates to a server it is to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kinship {
    /// All of it is part of the upstream's past.
    Ancestor,
    /// It has WAL the upstream never had.
    Diverged,
    /// Both call different histories by one timeline number: two promotions from one timeline.
    SameNumber,
}

pub(super) fn kinship(data_dir: &Path, control: &ControlData, upstream: &Running) -> Kinship {
    let timeline = control.timeline();
    let same_branch = is_branch_of(upstream, timeline, history(data_dir, timeline).as_ref());
    match (same_branch, timeline == upstream.timeline) {
        (false, true) => Kinship::SameNumber,
        (true, _) if upstream.history.contains(upstream.timeline, timeline, control.end()) => {
            Kinship::Ancestor
        }
        (true | false, _) => Kinship::Diverged,
    }
}

/// Whether the WAL that a killed primary has left is part of the upstream's past, to its end.
pub(super) fn is_shared(data_dir: &Path, left: LeftWal, upstream: &Running) -> bool {
    left.timeline != upstream.timeline
        && is_branch_of(upstream, left.timeline, history(data_dir, left.timeline).as_ref())
        && upstream.history.contains(upstream.timeline, left.timeline, left.end)
}

/// Whether `timeline` with this history is the upstream's timeline of that number. A history we do not
/// have cannot contradict.
fn is_branch_of(upstream: &Running, timeline: Timeline, ours: Option<&TimelineHistory>) -> bool {
    let theirs = &upstream.history.0;
    let known = timeline == upstream.timeline || theirs.iter().any(|(parent, _)| *parent == timeline);
    let before = theirs.iter().take_while(|(parent, _)| *parent != timeline);
    known && ours.is_none_or(|ours| ours.0.iter().eq(before))
}

/// Removes what a promotion that never finished has left in `pg_wal` of a standby: a timeline newer
/// than its data that is not the upstream's. Recovery would take that for the newest timeline and
/// follow it.
pub(super) fn remove_foreign(
    data_dir: &Path,
    control: &ControlData,
    upstream: &Running,
) -> Result<Vec<String>, FileError> {
    let Ok(entries) = fs::read_dir(wal_dir(data_dir)) else { return Ok(Vec::new()) };
    let names: Vec<String> =
        entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    let foreign = |name: &&String| {
        let Some(timeline) = timeline_of(name) else { return false };
        timeline > control.timeline()
            && !is_branch_of(upstream, timeline, history(data_dir, timeline).as_ref())
    };
    // History files last: they tell what is foreign, should this be interrupted.
    let mut doomed: Vec<String> = names.iter().filter(foreign).cloned().collect();
    doomed.sort_by_key(|name| (name.ends_with(".history"), name.clone()));
    for name in &doomed {
        remove_durably(&wal_dir(data_dir).join(name))?;
    }
    Ok(doomed)
}

/// The timeline of a segment (`0000000200000000000000A1`, `...partial`) or history file.
pub(super) fn timeline_of(name: &str) -> Option<Timeline> {
    let (stem, extension) = name.split_once('.').map_or((name, None), |(stem, rest)| (stem, Some(rest)));
    let hex = stem.chars().all(|c| matches!(c, '0'..='9' | 'A'..='F'));
    let shape = matches!((stem.len(), extension), (24, None | Some("partial")) | (8, Some("history")));
    let number = stem.get(..8).filter(|_| hex && shape)?;
    u32::from_str_radix(number, 16).ok().map(Timeline)
}

pub(super) fn wal_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("pg_wal")
}
