//! Data directories that were replaced by a copy: kept aside for a while, in case somebody wants something from them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pgherd_common::WallTime;
use serde::{Deserialize, Serialize};

use super::files::{FileError, failed, remove_durably, write_durably};

/// What is kept of one of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    /// When it was replaced.
    pub(super) since: WallTime,
    /// Its directories.
    pub(super) paths: Vec<PathBuf>,
}

impl Kept {
    fn file(&self, state_dir: &Path) -> PathBuf {
        state_dir.join("clone").join(format!("kept-{}.json", self.since.0))
    }

    /// Writes down that there is something to remove one day.
    pub(super) fn remember(&self, state_dir: &Path) -> Result<(), FileError> {
        if self.paths.is_empty() {
            return Ok(());
        }
        let path = self.file(state_dir);
        let text = serde_json::to_vec(self).map_err(io::Error::other).map_err(failed("write", &path))?;
        write_durably(&path, &text, 0o600, None)
    }

    /// The directory itself last, since the others are found through it.
    fn remove(&self, state_dir: &Path) -> Result<(), FileError> {
        for path in &self.paths {
            match fs::remove_dir_all(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("remove", path)(error));
                }
                Ok(()) => tracing::info!(path = %path.display(), "removed data that a copy had replaced"),
                Err(_) => {}
            }
        }
        remove_durably(&self.file(state_dir))
    }
}

/// All that is kept now.
pub(super) fn all(state_dir: &Path) -> Vec<Kept> {
    let Ok(entries) = fs::read_dir(state_dir.join("clone")) else { return Vec::new() };
    let ours = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with("kept-");
    let read = |entry: fs::DirEntry| serde_json::from_slice(&fs::read(entry.path()).ok()?).ok();
    entries.flatten().filter(ours).filter_map(read).collect()
}

/// Removes what was kept for longer than `keep`.
pub(super) fn expire(state_dir: &Path, keep: Duration, now: WallTime) -> Result<(), FileError> {
    let due = |kept: &Kept| now.since(kept.since) >= keep;
    all(state_dir).iter().filter(|kept| due(kept)).try_for_each(|kept| kept.remove(state_dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_removed_when_its_time_has_come() {
        let dir = tempfile::tempdir().unwrap();
        let old = dir.path().join("data.pgherd-old-1");
        fs::create_dir_all(old.join("base")).unwrap();
        fs::create_dir_all(dir.path().join("clone")).unwrap();
        let kept = Kept { since: WallTime(1_000), paths: vec![old.clone()] };
        kept.remember(dir.path()).unwrap();
        let hour = Duration::from_secs(3600);
        expire(dir.path(), hour, WallTime(1_000 + 3_599_999)).unwrap();
        assert!(old.exists());
        assert_eq!(all(dir.path()), [kept]);
        expire(dir.path(), hour, WallTime(1_000 + 3_600_000)).unwrap();
        assert!(!old.exists());
        assert_eq!(all(dir.path()), []);
    }
}
