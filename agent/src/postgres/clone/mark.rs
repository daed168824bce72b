//! What is on the way to a new data directory, in the agent's own directory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::super::files::{FileError, failed, point_durably, remove_durably, sync_parent, write_durably};
use super::super::kept::Kept;
use super::super::settings::Settings;

/// How far it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Mark {
    /// The copy is being made. What there is of it is of no use to anybody else.
    Copying {
        /// Where it is.
        staged: Vec<PathBuf>,
    },
    /// The copy is complete and takes its place.
    Swapping {
        /// Renames in their order, each to a name that is not taken.
        moves: Vec<(PathBuf, PathBuf)>,
        /// Links of the old data directory, to what was its own before.
        links: Vec<(PathBuf, PathBuf)>,
        /// Directories that are empty afterwards.
        emptied: Vec<PathBuf>,
        /// What is kept of the old one.
        kept: Kept,
    },
}

fn path(settings: &Settings) -> PathBuf {
    settings.state_dir.join("clone").join("mark.json")
}

impl Mark {
    fn read(settings: &Settings) -> Result<Option<Self>, FileError> {
        let path = path(settings);
        match fs::read(&path) {
            Ok(text) => {
                let mark = serde_json::from_slice(&text).map_err(io::Error::other);
                mark.map(Some).map_err(failed("understand", &path))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", &path)(error)),
        }
    }

    /// On return it outlives a crash of the machine.
    pub(super) fn write(&self, settings: &Settings) -> Result<(), FileError> {
        let path = path(settings);
        let dir = path.parent().unwrap_or(&path);
        fs::create_dir_all(dir).map_err(failed("create", dir))?;
        let text = serde_json::to_vec(self).map_err(io::Error::other).map_err(failed("write", &path))?;
        write_durably(&path, &text, 0o600, None)
    }
}

/// Whether the data directory is between the old and the new one: nothing may be started then.
pub(in super::super) fn is_swapping(settings: &Settings) -> bool {
    !matches!(Mark::read(settings), Ok(None | Some(Mark::Copying { .. })))
}

/// Finishes what an interrupted process had begun to put in its place.
pub(in super::super) fn settle(settings: &Settings) -> Result<(), FileError> {
    let Some(Mark::Swapping { moves, links, emptied, kept }) = Mark::read(settings)? else { return Ok(()) };
    finish(&moves)?;
    for (link, target) in &links {
        point_durably(link, target)?;
    }
    kept.remember(&settings.state_dir)?;
    for dir in &emptied {
        gone(fs::remove_dir(dir), dir)?;
    }
    remove_durably(&path(settings))
}

/// Makes those of the renames that were not made yet. What has the name that another one gives up takes it only after that.
fn finish(moves: &[(PathBuf, PathBuf)]) -> Result<(), FileError> {
    let look = |(from, to): &(PathBuf, PathBuf)| -> Result<(bool, bool), FileError> {
        Ok((is_there(from)?, is_there(to)?))
    };
    let found = moves.iter().map(look).collect::<Result<Vec<_>, _>>()?;
    // They are made in their order. Of the last that was made, only the new name is left.
    let made = found.iter().rposition(|found| *found == (false, true)).map_or(0, |last| last + 1);
    for (index, ((from, to), (_, arrived))) in moves.iter().zip(found).enumerate() {
        if index < made {
            if arrived {
                continue;
            }
            let lost = "what was renamed to it is gone: somebody has moved it; put it back";
            return Err(failed("find", to)(io::Error::other(lost)));
        }
        if is_there(to)? {
            let taken = format!("{} is there already; move away the one that is not wanted", to.display());
            return Err(failed("rename", from)(io::Error::other(taken)));
        }
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).map_err(failed("create", parent))?;
        }
        fs::rename(from, to).map_err(failed("rename", from))?;
        sync_parent(from)?;
        sync_parent(to)?;
    }
    Ok(())
}

fn is_there(path: &Path) -> Result<bool, FileError> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed("look at", path)(error)),
    }
}

/// Removes a copy that was never completed.
pub(in super::super) fn tidy(settings: &Settings) -> Result<(), FileError> {
    let Some(Mark::Copying { staged }) = Mark::read(settings)? else { return Ok(()) };
    for dir in &staged {
        gone(fs::remove_dir_all(dir), dir)?;
    }
    remove_durably(&path(settings))
}

fn gone(removed: io::Result<()>, path: &Path) -> Result<(), FileError> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Directories with these names, each with a file that tells them apart.
    fn dirs(names: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for name in names {
            fs::create_dir(root.path().join(name)).unwrap();
            fs::write(root.path().join(name).join("name"), name).unwrap();
        }
        root
    }

    fn swap(root: &Path) -> Result<(), FileError> {
        let at = |name: &str| root.join(name);
        finish(&[(at("data"), at("old")), (at("copy"), at("data"))])
    }

    fn is(root: &Path, name: &str) -> String {
        fs::read_to_string(root.join(name).join("name")).unwrap()
    }

    #[test]
    fn renames_are_finished_from_wherever_they_stopped_and_made_once() {
        let root = dirs(&["data", "copy"]);
        swap(root.path()).unwrap();
        // All of them were made, and the mark is still there.
        swap(root.path()).unwrap();
        assert_eq!((is(root.path(), "data"), is(root.path(), "old")), ("copy".to_owned(), "data".to_owned()));
        let root = dirs(&["old", "copy"]);
        swap(root.path()).unwrap();
        assert_eq!((is(root.path(), "data"), is(root.path(), "old")), ("copy".to_owned(), "old".to_owned()));
    }

    #[test]
    fn nothing_is_renamed_where_a_name_is_taken_or_something_is_gone() {
        for names in [["data", "copy", "old"].as_slice(), &["data"]] {
            let root = dirs(names);
            assert!(swap(root.path()).is_err());
            assert_eq!(fs::read_dir(root.path()).unwrap().count(), names.len());
            assert_eq!(is(root.path(), "data"), "data");
        }
    }
}
