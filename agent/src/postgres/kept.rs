//! Data directories that were replaced by a copy: kept aside for a while, in case somebody wants something from them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pgherd_common::WallTime;
use serde::{Deserialize, Serialize};

use super::files::{FileError, failed, remove_durably, write_durably};
use super::process::{self, Process};

/// What is kept of one of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    /// When it was replaced.
    pub(super) since: WallTime,
    /// Its directories, that of the data itself last.
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

    /// Why it is to stay although its time has come. Nothing of it may be taken from a server.
    fn in_use(&self, data_dir: &Path) -> Option<String> {
        let main = self.paths.last()?;
        if is_gone(main) && self.paths.iter().any(|path| !is_gone(path)) {
            return Some(format!(
                "{} is gone, and may be in use elsewhere with what belongs to it; remove the rest by hand if it is not",
                main.display()
            ));
        }
        match at_work_in(main) {
            Ok(None) => {}
            Ok(Some(pid)) => {
                return Some(format!("process {pid} is a server's and works in {}", main.display()));
            }
            Err(error) => {
                return Some(format!("no telling whether a server works in {}: {error}", main.display()));
            }
        }
        match places_of(data_dir) {
            Ok(places) => {
                let ours = |place: &PathBuf| {
                    let real = |path: &PathBuf| path.canonicalize().unwrap_or_else(|_| path.clone());
                    self.paths.iter().any(|path| place.starts_with(real(path)))
                };
                let used = places.into_iter().find(ours)?;
                Some(format!("{} is part of {}", used.display(), data_dir.display()))
            }
            Err(error) => Some(format!("no telling what belongs to {}: {error}", data_dir.display())),
        }
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

/// Removes what was kept for longer than `keep`, unless a server uses it: that of `data_dir` or another one.
pub(super) fn expire(
    state_dir: &Path,
    data_dir: &Path,
    keep: Duration,
    now: WallTime,
) -> Result<(), FileError> {
    for kept in all(state_dir).iter().filter(|kept| now.since(kept.since) >= keep) {
        match kept.in_use(data_dir) {
            Some(why) => tracing::warn!(paths = ?kept.paths, "old data is not removed: {why}"),
            None => kept.remove(state_dir)?,
        }
    }
    Ok(())
}

fn is_gone(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// A process of a server that has its data there.
fn at_work_in(dir: &Path) -> io::Result<Option<u32>> {
    for pid in process::everybody()? {
        if Process::of_instance(pid, dir)?.is_some() {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}

/// Where a data directory, its WAL and its tablespaces are.
fn places_of(data_dir: &Path) -> io::Result<Vec<PathBuf>> {
    let spaces: Vec<PathBuf> = match fs::read_dir(data_dir.join("pg_tblspc")) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    let mut places = Vec::new();
    for path in [data_dir.to_owned(), data_dir.join("pg_wal")].into_iter().chain(spaces) {
        match path.canonicalize() {
            Ok(place) => places.push(place),
            // A link that leads nowhere.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(places)
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
        let data = dir.path().join("data");
        expire(dir.path(), &data, hour, WallTime(1_000 + 3_599_999)).unwrap();
        assert!(old.exists());
        assert_eq!(all(dir.path()), [kept]);
        expire(dir.path(), &data, hour, WallTime(1_000 + 3_600_000)).unwrap();
        assert!(!old.exists());
        assert_eq!(all(dir.path()), []);
    }

    /// A data directory, and what was kept of its predecessor: a tablespace, the WAL, and the rest.
    struct Kit {
        root: tempfile::TempDir,
        data: PathBuf,
        paths: Vec<PathBuf>,
    }

    impl Kit {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let at = |name: &str| root.path().join(name);
            let paths = ["ts.pgherd-old-1", "wal.pgherd-old-1", "data.pgherd-old-1"].map(at).to_vec();
            let data = at("data");
            let dirs = [data.join("pg_tblspc"), data.join("pg_wal"), at("clone")];
            paths.iter().chain(&dirs).for_each(|dir| fs::create_dir_all(dir).unwrap());
            Kept { since: WallTime(1_000), paths: paths.clone() }.remember(root.path()).unwrap();
            Self { root, data, paths }
        }

        /// Whether all of it stays, or all of it goes.
        fn stays(&self) -> bool {
            let before = self.left();
            expire(self.root.path(), &self.data, Duration::ZERO, WallTime(2_000)).unwrap();
            assert!(self.left() == before || self.left() == 0, "{before} {}", self.left());
            assert_eq!(all(self.root.path()).is_empty(), self.left() == 0);
            self.left() > 0
        }

        fn left(&self) -> usize {
            self.paths.iter().filter(|path| path.exists()).count()
        }
    }

    #[test]
    fn what_the_data_directory_leads_to_stays() {
        let kit = Kit::new();
        let link = kit.data.join("pg_tblspc/16384");
        std::os::unix::fs::symlink(&kit.paths[0], &link).unwrap();
        assert!(kit.stays());
        fs::remove_file(&link).unwrap();
        let wal = kit.data.join("pg_wal");
        fs::remove_dir(&wal).unwrap();
        std::os::unix::fs::symlink(&kit.paths[1], &wal).unwrap();
        assert!(kit.stays());
        fs::remove_file(&wal).unwrap();
        assert!(!kit.stays());
    }

    #[test]
    fn what_belongs_to_data_that_was_moved_away_stays() {
        let kit = Kit::new();
        let moved = kit.root.path().join("moved");
        fs::rename(&kit.paths[2], &moved).unwrap();
        assert!(kit.stays());
        fs::rename(&moved, &kit.paths[2]).unwrap();
        assert!(!kit.stays());
        assert!(kit.data.exists());
    }

    #[test]
    fn what_a_server_was_started_on_stays() {
        let kit = Kit::new();
        let program = kit.root.path().join("postgres");
        fs::copy("/bin/sleep", &program).unwrap();
        let mut server =
            std::process::Command::new(&program).arg("60").current_dir(&kit.paths[2]).spawn().unwrap();
        let stays = kit.stays();
        server.kill().unwrap();
        server.wait().unwrap();
        assert!(stays);
        assert!(!kit.stays());
    }
}
