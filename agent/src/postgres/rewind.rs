//! Running `pg_rewind`, and surviving its interruption.
//!
//! pg_rewind makes the data directory like its source: it copies the source's configuration over ours
//! and removes every file the source lacks. So the mark that a rewind is in progress, and the saved
//! files of the DBA, live in the agent's own directory. The mark names the data directory's
//! `pg_control` by inode and birth time: a directory cloned anew is not half rewound.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::PoisonError;
use std::time::UNIX_EPOCH;

use pgherd_common::wal::TimelineHistory;
use pgherd_core::rebuild::Setback;

use super::configuration::included;
use super::conninfo::Conninfo;
use super::controldata::{ClusterState, ControlData, ControlDataError};
use super::files::{FileError, failed, remove_durably, standby_signal, write_durably};
use super::instance::Instance;
use super::saved_wal;
use super::settings::{Settings, Upstream};

/// Files of PostgreSQL itself, which must come from the source or not be there.
const NOT_OF_THE_DBA: [&str; 12] = [
    "PG_VERSION",
    "backup_label",
    "backup_label.old",
    "backup_manifest",
    "current_logfiles",
    "pgherd.conf",
    "pgherd.parameters.conf",
    "pgherd_gate.conf",
    "pgherd_hba.conf",
    "postmaster.opts",
    "postmaster.pid",
    "tablespace_map",
];
/// Larger files beside the configuration are somebody's data, not configuration.
const SAVED_BYTES_MAX: u64 = 1 << 20;

/// Why a data directory was not rewound.
#[derive(Debug, thiserror::Error)]
pub enum RewindError {
    /// A file could not be saved, written or restored.
    #[error("cannot prepare or finish the rewind")]
    File(#[from] FileError),
    /// A program did not start.
    #[error("cannot run {program:?}")]
    Run {
        /// Which program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Crash recovery, which has to come first, failed.
    #[error(
        "crash recovery before the rewind failed ({status}); run `pgherd rebuild NODE --clone` if this persists. PostgreSQL said:\n{output}"
    )]
    Recovery {
        /// Its exit status.
        status: String,
        /// What it printed.
        output: String,
    },
    /// `pg_rewind` failed.
    #[error(
        "pg_rewind failed ({status}); it is tried again, but if it says that WAL or a file is missing, run `pgherd rebuild NODE --clone`. It said:\n{output}"
    )]
    Failed {
        /// Its exit status.
        status: String,
        /// What it printed.
        output: String,
    },
    /// The runtime ended first.
    #[error("the agent shut down during the rewind")]
    Interrupted,
    /// `pg_control` cannot be read.
    #[error("cannot read pg_control around the rewind")]
    Control(#[from] ControlDataError),
}

impl RewindError {
    /// What it teaches, if it is of any use.
    pub(super) fn setback(&self) -> Option<Setback> {
        /// What pg_rewind says when the WAL or the history it needs is nowhere any more.
        const HOPELESS: [&str; 4] = [
            "could not find previous WAL record",
            "could not read WAL record",
            "could not find common ancestor",
            "could not open file",
        ];
        /// The source is away: that is no fault of this node's data.
        const AWAY: [&str; 3] = ["connection to server", "could not connect", "server closed the connection"];
        let says = |output: &str, marks: &[&str]| marks.iter().any(|mark| output.contains(mark));
        match self {
            Self::Failed { output, .. } if says(output, &AWAY) => None,
            Self::Failed { output, .. } if says(output, &HOPELESS) => Some(Setback::NeedsClone),
            Self::Failed { .. } | Self::Recovery { .. } => Some(Setback::RewindFailed),
            Self::File(_) | Self::Run { .. } | Self::Interrupted | Self::Control(_) => None,
        }
    }
}

/// Whether a rewind of this data directory was begun and has not finished.
pub(super) fn is_pending(settings: &Settings) -> bool {
    let Ok(mark) = fs::read_to_string(mark(settings)) else { return false };
    identity(&settings.data_dir).is_ok_and(|identity| mark.lines().next() == Some(identity.as_str()))
}

/// Whether a rewind has finished, so far as pg_rewind is concerned: it writes these two last.
fn is_complete(data_dir: &Path, control: &ControlData) -> bool {
    control.state == ClusterState::InArchiveRecovery
        && backup_method(data_dir).as_deref() == Some("pg_rewind")
}

/// Who made the `backup_label` of this data directory; `None` when there is none.
pub(super) fn backup_method(data_dir: &Path) -> Option<String> {
    let label = fs::read_to_string(data_dir.join("backup_label")).ok()?;
    let method = label.lines().find_map(|line| line.strip_prefix("BACKUP METHOD: "));
    Some(method.unwrap_or_default().trim().to_owned())
}

impl Instance {
    /// Makes the data directory a copy of `upstream`'s past. Until [`Self::finish_rewind`] it must not
    /// be started. Called again after an interruption, it repeats what is needed.
    pub(super) async fn run_rewind(&self, upstream: &Upstream) -> Result<String, RewindError> {
        let settings = self.settings();
        if !is_pending(settings) {
            self.save_files()?;
            let text = identity(&settings.data_dir).map_err(failed("read", &settings.data_dir))?;
            let text = format!("{text}\npg_rewind of {} is in progress\n", settings.data_dir.display());
            write_durably(&mark(settings), text.as_bytes(), 0o600, None)?;
        }
        let control = self.control().await?;
        if is_complete(self.data_dir(), &control) {
            return Ok("finishing an interrupted rewind".to_owned());
        }
        if !control.is_clean() {
            self.recover().await?;
        }
        // It would stumble over a link that is a file over there.
        self.forget_gate()?;
        self.keep_wal().await?;
        self.pg_rewind(upstream).await
    }

    /// Gives back the WAL of the shared past that the source no longer has.
    pub(super) fn fill_gaps(&self, history: &TimelineHistory) -> Result<(), FileError> {
        let (data_dir, kept) = (self.data_dir(), wal_dir(self.settings()));
        let filled = saved_wal::fill_gaps(data_dir, &kept, history, &self.shared.owner);
        let filled = filled.map_err(failed("complete the WAL in", data_dir))?;
        if filled > 0 {
            tracing::info!(segments = filled, "kept WAL that the new primary no longer has");
        }
        Ok(())
    }

    /// Brings the DBA's files back and lifts the ban on starting.
    pub(super) fn finish_rewind(&self) -> Result<(), FileError> {
        let settings = self.settings();
        self.restore_files(&settings.data_dir)?;
        let synced = fs::File::open(&settings.data_dir).and_then(|dir| Ok(rustix::fs::syncfs(dir)?));
        synced.map_err(failed("sync", &settings.data_dir))?;
        remove_durably(&mark(settings))?;
        let kept = wal_dir(settings);
        if kept.exists() {
            fs::remove_dir_all(&kept).map_err(failed("remove", &kept))?;
        }
        let saved = saved_dir(settings);
        fs::remove_dir_all(&saved).map_err(failed("remove", &saved))
    }

    /// Saves the DBA's files of this node for another data directory that is to take the place of its own.
    pub(super) fn keep_files(&self) -> Result<(), FileError> {
        // Half rewound, it has the files of the server it was rewound to, and its own were saved before.
        if is_pending(self.settings()) { Ok(()) } else { self.save_files() }
    }

    /// Gives a data directory the files of the DBA that were saved.
    pub(super) fn restore_files(&self, data_dir: &Path) -> Result<(), FileError> {
        let from = saved_dir(self.settings());
        for saved in files_below(&from).map_err(failed("read", &from))? {
            let Ok(relative) = saved.strip_prefix(&from) else { continue };
            let path = data_dir.join(relative);
            let restore = || {
                fs::create_dir_all(path.parent().unwrap_or(&path))?;
                Ok((fs::read(&saved)?, fs::metadata(&saved)?))
            };
            let (content, metadata) = restore().map_err(failed("restore", &path))?;
            write_durably(&path, &content, metadata.permissions().mode() & 0o7777, None)?;
            give(&path, &metadata).map_err(failed("restore", &path))?;
        }
        Ok(())
    }

    /// Makes sure that the WAL is as it was before pg_rewind first ran.
    async fn keep_wal(&self) -> Result<(), RewindError> {
        let end = self.control().await?.checkpoint;
        let (instance, kept) = (self.clone(), wal_dir(self.settings()));
        let work = tokio::task::spawn_blocking(move || {
            let _one = instance.shared.copying.lock().unwrap_or_else(PoisonError::into_inner);
            let (data_dir, owner) = (instance.data_dir(), &instance.shared.owner);
            if saved_wal::restore(data_dir, &kept, owner).map_err(failed("restore the WAL in", data_dir))? {
                return Ok(());
            }
            if let Err(error) = saved_wal::save(data_dir, end, &kept) {
                // Worth a warning, not the node: without the copy all is well unless it is interrupted.
                tracing::warn!(%error, path = %kept.display(), "cannot keep a copy of the WAL for the rewind");
            }
            Ok(())
        });
        match work.await {
            Ok(done) => Ok(done.map_err(RewindError::File)?),
            Err(join) => match join.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(RewindError::Interrupted),
            },
        }
    }

    /// Crash recovery in a standalone backend. pg_rewind could run it too, but not for every version
    /// with a configuration file outside the data directory.
    async fn recover(&self) -> Result<(), RewindError> {
        let settings = self.settings();
        // A standalone backend refuses to be a standby.
        remove_durably(&standby_signal(&settings.data_dir))?;
        self.clear_stale_locks()?;
        let program = settings.bin_dir.join("postgres");
        let mut command = self.shared.owner.command(&program);
        command.arg("--single").arg("-D").arg(&settings.data_dir).current_dir(&settings.data_dir);
        command.arg("-c").arg(format!("config_file={}", settings.config_file.display()));
        // The checkpoint that ends recovery would remove the very WAL that pg_rewind reads to find the
        // last checkpoint before the fork.
        command.args(["-c", "wal_keep_size=1TB"]);
        command.arg("template1").env("LC_ALL", "C").kill_on_drop(true);
        let output = command.output().await.map_err(|source| RewindError::Run { program, source })?;
        if output.status.success() {
            return Ok(());
        }
        Err(RewindError::Recovery { status: output.status.to_string(), output: printed(&output) })
    }

    async fn pg_rewind(&self, upstream: &Upstream) -> Result<String, RewindError> {
        let settings = self.settings();
        let program = settings.bin_dir.join("pg_rewind");
        let source = Conninfo::to(&upstream.address)
            .set("user", &settings.user)
            .set("dbname", &settings.database)
            .set("application_name", "pgherd-rewind")
            .set("connect_timeout", "5")
            // The only bound on its run time: a source that has gone away ends it.
            .set("tcp_user_timeout", "15000")
            .finish();
        let mut command = self.shared.owner.command(&program);
        command.arg("--target-pgdata").arg(&settings.data_dir).arg("--source-server").arg(source);
        command.arg("--no-ensure-shutdown").env("LC_ALL", "C").kill_on_drop(true);
        if let Some(password) = &settings.password {
            // Not on the command line, which everybody on the host can read.
            command.env("PGPASSWORD", &password.0);
        }
        // Where a later agent looks for it, should this one die.
        command.current_dir(&settings.data_dir);
        let output = command.output().await.map_err(|source| RewindError::Run { program, source })?;
        let text = printed(&output);
        if output.status.success() {
            return Ok(text);
        }
        Err(RewindError::Failed { status: output.status.to_string(), output: text })
    }

    fn save_files(&self) -> Result<(), FileError> {
        let settings = self.settings();
        let into = saved_dir(settings);
        for old in [&into, &wal_dir(settings)] {
            if old.exists() {
                fs::remove_dir_all(old).map_err(failed("remove", old))?;
            }
        }
        fs::create_dir_all(&into).map_err(failed("create", &into))?;
        // It may hold TLS keys.
        fs::set_permissions(&into, fs::Permissions::from_mode(0o700)).map_err(failed("protect", &into))?;
        for path in self.files_of_the_dba()? {
            let Ok(relative) = path.strip_prefix(&settings.data_dir) else { continue };
            let target = into.join(relative);
            let saved = (|| {
                fs::create_dir_all(target.parent().unwrap_or(&into))?;
                let metadata = fs::metadata(&path)?;
                fs::copy(&path, &target)?;
                give(&target, &metadata)?;
                fs::File::open(&target)?.sync_all()
            })();
            saved.map_err(failed("save", &path))?;
        }
        let synced = fs::File::open(&into).and_then(|dir| Ok(rustix::fs::syncfs(dir)?));
        synced.map_err(failed("sync", &into))
    }

    /// Configuration in the data directory: what lies at its top, and what is included from below it.
    fn files_of_the_dba(&self) -> Result<Vec<PathBuf>, FileError> {
        let data_dir = self.data_dir();
        let entries = fs::read_dir(data_dir).map_err(failed("read", data_dir))?;
        let top = entries.flatten().map(|entry| entry.path());
        let config_file = &self.settings().config_file;
        let included = included(config_file).map_err(failed("read", config_file))?;
        let included = included.into_iter().filter(|path| path.starts_with(data_dir));
        let wanted = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let plain = fs::symlink_metadata(path).is_ok_and(|m| m.is_file() && m.len() <= SAVED_BYTES_MAX);
            plain && !NOT_OF_THE_DBA.contains(&name) && !name.ends_with(".signal")
        };
        Ok(top.chain(included).filter(wanted).collect())
    }
}

fn mark(settings: &Settings) -> PathBuf {
    settings.state_dir.join("rewind").join("in-progress")
}

fn saved_dir(settings: &Settings) -> PathBuf {
    settings.state_dir.join("rewind").join("saved")
}

fn wal_dir(settings: &Settings) -> PathBuf {
    settings.state_dir.join("rewind").join("wal")
}

/// pg_rewind and PostgreSQL write `pg_control` in place; a clone has a new one.
fn identity(data_dir: &Path) -> io::Result<String> {
    let metadata = fs::metadata(data_dir.join("global/pg_control"))?;
    // Not every file system knows when a file was born.
    let born =
        metadata.created().ok().and_then(|born| born.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    Ok(format!("pg_control {}:{} born {}", metadata.dev(), metadata.ino(), born.as_nanos()))
}

/// Has it belong to whom its original does. Only root may do that; otherwise it is the agent's user's own.
fn give(path: &Path, like: &fs::Metadata) -> io::Result<()> {
    match chown(path, Some(like.uid()), Some(like.gid())) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            // PostgreSQL takes a TLS key that others may read only if it is root's.
            let mode = like.permissions().mode() & 0o700;
            fs::set_permissions(path, fs::Permissions::from_mode(mode))
        }
        done => done,
    }
}

fn files_below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(files_below(&entry.path())?);
        } else {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn printed(output: &Output) -> String {
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    String::from_utf8_lossy(&text).trim().to_owned()
}
