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
    for (from, to) in &moves {
        // Each name is given once, so what has it was moved already.
        if fs::symlink_metadata(to).is_ok() {
            continue;
        }
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).map_err(failed("create", parent))?;
        }
        fs::rename(from, to).map_err(failed("rename", from))?;
        sync_parent(from)?;
        sync_parent(to)?;
    }
    for (link, target) in &links {
        point_durably(link, target)?;
    }
    kept.remember(&settings.state_dir)?;
    for dir in &emptied {
        gone(fs::remove_dir(dir), dir)?;
    }
    remove_durably(&path(settings))
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
