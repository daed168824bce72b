//! What `pg_control` says, through `pg_controldata`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::str::FromStr;
use std::time::Duration;

use pgherd_common::{Lsn, Timeline};
use pgherd_core::capacity::Capacity;
use tokio::process::Command;

/// It reads one small file.
const PATIENCE: Duration = Duration::from_secs(5);

/// The facts of `pg_control` that matter here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ControlData {
    pub(super) system_identifier: u64,
    pub(super) state: ClusterState,
    /// Start of the last checkpoint record.
    pub(super) checkpoint: Lsn,
    /// Where that checkpoint began: replay begins there.
    pub(super) redo: Lsn,
    pub(super) checkpoint_timeline: Timeline,
    /// How far a standby must replay to be consistent; 0 on a primary.
    pub(super) min_recovery: Lsn,
    pub(super) min_recovery_timeline: Option<Timeline>,
    /// Whether pg_rewind can work here: data checksums or `wal_log_hints`.
    pub(super) rewindable: bool,
    /// How much a standby must have to replay what is here.
    pub(super) capacity: Option<Capacity>,
}

/// "Database cluster state".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClusterState {
    /// A primary, stopped in order.
    ShutDown,
    /// A standby, stopped in order.
    ShutDownInRecovery,
    /// A standby, running or killed.
    InArchiveRecovery,
    /// A primary, running or killed.
    Primary,
}

/// Why `pg_control` could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ControlDataError {
    /// The program did not start.
    #[error("cannot run {program:?}; check postgres.bin_dir")]
    Run {
        /// `pg_controldata`.
        program: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The program refused.
    #[error("pg_controldata cannot read {data_dir:?}: {output}")]
    Refused {
        /// The data directory.
        data_dir: PathBuf,
        /// What it printed.
        output: String,
    },
    /// It hangs, as the disk does.
    #[error("pg_controldata hangs on {data_dir:?}; check the storage")]
    Hangs {
        /// The data directory.
        data_dir: PathBuf,
    },
    /// Its output lacks a field.
    #[error("pg_controldata of {data_dir:?} shows no usable {field:?} (found {found:?})")]
    Field {
        /// The data directory.
        data_dir: PathBuf,
        /// The label.
        field: &'static str,
        /// The value.
        found: Option<String>,
    },
}

impl ControlData {
    pub(super) async fn read(bin_dir: &Path, data_dir: &Path) -> Result<Self, ControlDataError> {
        let program = bin_dir.join("pg_controldata");
        let mut command = Command::new(&program);
        command.arg(data_dir).env("LC_ALL", "C").stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(PATIENCE, command.output())
            .await
            .map_err(|_| ControlDataError::Hangs { data_dir: data_dir.to_owned() })?
            .map_err(|source| ControlDataError::Run { program, source })?;
        if !output.status.success() {
            let output = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(ControlDataError::Refused { data_dir: data_dir.to_owned(), output });
        }
        Self::parse(&String::from_utf8_lossy(&output.stdout))
            .map_err(|(field, found)| ControlDataError::Field { data_dir: data_dir.to_owned(), field, found })
    }

    /// Reads the program's output; the error names the field that is missing or odd.
    fn parse(text: &str) -> Result<Self, (&'static str, Option<String>)> {
        let fields = Fields(text.lines().filter_map(|line| line.split_once(':')).collect());
        let state = match fields.text("Database cluster state")? {
            "shut down" => ClusterState::ShutDown,
            "shut down in recovery" => ClusterState::ShutDownInRecovery,
            "in archive recovery" => ClusterState::InArchiveRecovery,
            "in production" | "in crash recovery" | "shutting down" | "starting up" => ClusterState::Primary,
            other => return Err(("Database cluster state", Some(other.to_owned()))),
        };
        let min_timeline: u32 = fields.value("Min recovery ending loc's timeline")?;
        let hints = fields.text("wal_log_hints setting")? == "on";
        let checksums: u32 = fields.value("Data page checksum version")?;
        Ok(Self {
            system_identifier: fields.value("Database system identifier")?,
            state,
            checkpoint: fields.value("Latest checkpoint location")?,
            redo: fields.value("Latest checkpoint's REDO location")?,
            checkpoint_timeline: Timeline(fields.value("Latest checkpoint's TimeLineID")?),
            min_recovery: fields.value("Minimum recovery ending location")?,
            min_recovery_timeline: (min_timeline != 0).then_some(Timeline(min_timeline)),
            rewindable: hints || checksums != 0,
            capacity: Capacity::of(|name| fields.value(setting_of(name)?).ok()),
        })
    }

    /// Whether it was stopped in order.
    pub(super) fn is_clean(&self) -> bool {
        matches!(self.state, ClusterState::ShutDown | ClusterState::ShutDownInRecovery)
    }

    /// The newest timeline whose changes are in the data files. The checkpoint's timeline lags after
    /// a promotion and after a standby has followed one.
    pub(super) fn timeline(&self) -> Timeline {
        self.min_recovery_timeline.map_or(self.checkpoint_timeline, |min| min.max(self.checkpoint_timeline))
    }

    /// A position that any history containing this data directory must reach.
    ///
    /// After a clean stop of a primary nothing follows the checkpoint record, and a fork lies between
    /// records: a fork past the record's first byte is past all of it.
    pub(super) fn end(&self) -> Lsn {
        match self.state {
            ClusterState::ShutDown | ClusterState::Primary => Lsn(self.checkpoint.0 + 1),
            ClusterState::ShutDownInRecovery | ClusterState::InArchiveRecovery => {
                self.min_recovery.max(self.checkpoint)
            }
        }
    }
}

/// The label of a parameter that standbys need as much of.
fn setting_of(name: &str) -> Option<&'static str> {
    match name {
        "max_connections" => Some("max_connections setting"),
        "max_worker_processes" => Some("max_worker_processes setting"),
        "max_wal_senders" => Some("max_wal_senders setting"),
        "max_prepared_transactions" => Some("max_prepared_xacts setting"),
        "max_locks_per_transaction" => Some("max_locks_per_xact setting"),
        _ => None,
    }
}

struct Fields<'a>(BTreeMap<&'a str, &'a str>);

impl<'a> Fields<'a> {
    fn text(&self, field: &'static str) -> Result<&'a str, (&'static str, Option<String>)> {
        self.0.get(field).map(|value| value.trim()).ok_or((field, None))
    }

    fn value<T: FromStr>(&self, field: &'static str) -> Result<T, (&'static str, Option<String>)> {
        let text = self.text(field)?;
        text.parse().map_err(|_| (field, Some(text.to_owned())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "\
pg_control version number:            1300
Database system identifier:           7711287415420705246
Database cluster state:               shut down
pg_control last modified:             Mon Nov 23 08:53:32 2026
Latest checkpoint location:           0/17414F8
Latest checkpoint's REDO location:    0/17414C0
Latest checkpoint's TimeLineID:       1
Minimum recovery ending location:     0/0
Min recovery ending loc's timeline:   0
wal_log_hints setting:                off
Data page checksum version:           1
";

    #[test]
    fn the_output_is_read() {
        let control = ControlData::parse(SAMPLE).unwrap();
        assert_eq!(control.system_identifier, 7_711_287_415_420_705_246);
        assert_eq!(control.state, ClusterState::ShutDown);
        assert_eq!(
            (control.checkpoint, control.redo),
            ("0/17414F8".parse().unwrap(), "0/17414C0".parse().unwrap())
        );
        assert_eq!((control.timeline(), control.min_recovery_timeline), (Timeline(1), None));
        assert!(control.rewindable && control.is_clean());
        assert!(
            !ControlData::parse(&SAMPLE.replace("version:           1", "version: 0")).unwrap().rewindable
        );
    }

    #[test]
    fn what_a_standby_has_to_have_is_read() {
        let text = format!(
            "{SAMPLE}max_connections setting:              200\nmax_worker_processes setting:         8\n\
             max_wal_senders setting:              10\nmax_prepared_xacts setting:           0\n\
             max_locks_per_xact setting:           64\n"
        );
        assert_eq!(ControlData::parse(&text).unwrap().capacity, Some(Capacity::new([200, 8, 10, 0, 64])));
        assert_eq!(ControlData::parse(SAMPLE).unwrap().capacity, None);
    }

    #[test]
    fn a_standby_is_on_the_newest_timeline_it_has_seen() {
        let text = SAMPLE
            .replace("shut down", "in archive recovery")
            .replace("location:     0/0", "location:     0/5000000")
            .replace("timeline:   0", "timeline:   3");
        let control = ControlData::parse(&text).unwrap();
        assert_eq!((control.timeline(), control.end()), (Timeline(3), "0/5000000".parse().unwrap()));
        assert!(!control.is_clean());
    }

    #[test]
    fn an_odd_field_is_named() {
        let (field, found) = ControlData::parse(&SAMPLE.replace("shut down", "on fire")).unwrap_err();
        assert_eq!((field, found.as_deref()), ("Database cluster state", Some("on fire")));
        let (field, found) = ControlData::parse("").unwrap_err();
        assert_eq!((field, found), ("Database cluster state", None));
    }
}
