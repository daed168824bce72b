//! The one number that must outlive even a lost raft store: the highest generation this node has ever
//! heard of. Nothing here is ever done for an older one.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use pgherd_common::Generation;

const FILE_NAME: &str = "generation";

/// Why the number cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The file cannot be read or written.
    #[error("cannot read or write {path}: check its disk and that it belongs to the agent's user")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It holds something else.
    #[error(
        "{path} holds {found:?} instead of a generation number. It keeps this node from acting for a primary \
         that was replaced long ago. Write into it the generation that `pgherd cluster-status` shows on another \
         node, and start the agent again"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The beginning of what is in it.
        found: String,
    },
}

/// See the module.
#[derive(Debug)]
pub struct Memory {
    path: PathBuf,
    generation: Generation,
}

impl Memory {
    /// Reads what was remembered in the state directory; nothing yet in a new one.
    pub fn open(state_dir: &Path) -> Result<Self, MemoryError> {
        let path = state_dir.join(FILE_NAME);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self { path, generation: Generation::ZERO });
            }
            Err(source) => return Err(MemoryError::Io { path, source }),
        };
        match serde_json::from_str(&text) {
            Ok(generation) => Ok(Self { path, generation }),
            Err(_) => Err(MemoryError::Damaged { path, found: text.chars().take(40).collect() }),
        }
    }

    /// The highest generation.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// On return it is on disk.
    pub fn remember(&mut self, generation: Generation) -> Result<(), MemoryError> {
        let path = self.path.clone();
        self.write(generation).map_err(|source| MemoryError::Io { path, source })?;
        self.generation = generation;
        Ok(())
    }

    fn write(&self, generation: Generation) -> io::Result<()> {
        let new = self.path.with_extension("new");
        let mut file = File::create(&new)?;
        writeln!(file, "{generation}")?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        let dir = self.path.parent().unwrap_or(Path::new("."));
        File::open(dir)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_is_remembered_and_damage_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let second = Generation::ZERO.next().next();
        let mut memory = Memory::open(dir.path()).unwrap();
        assert_eq!(memory.generation(), Generation::ZERO);
        memory.remember(second).unwrap();
        assert_eq!(Memory::open(dir.path()).unwrap().generation(), second);
        fs::write(dir.path().join(FILE_NAME), "half a li").unwrap();
        let error = Memory::open(dir.path()).unwrap_err();
        assert!(matches!(&error, MemoryError::Damaged { found, .. } if found == "half a li"), "{error}");
    }
}
