//! The one file of the configuration that does IO.

use std::io;
use std::path::{Path, PathBuf};

use pgherd_common::config::Problems;

use super::Config;

/// Why a configuration could not be had from a file.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file could not be read.
    #[error("cannot read the configuration {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The file was read and refused.
    #[error("the configuration {} is not valid", path.display())]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// Everything that is wrong with it.
        #[source]
        problems: Problems,
    },
}

/// Reads and checks an `agent.toml`.
pub fn load(path: &Path) -> Result<Config, LoadError> {
    load_text(path).map(|(config, _)| config)
}

/// The same, with the text.
pub fn load_text(path: &Path) -> Result<(Config, String), LoadError> {
    let text =
        std::fs::read_to_string(path).map_err(|cause| LoadError::Read { path: path.to_owned(), cause })?;
    match Config::parse(&text) {
        Ok(config) => Ok((config, text)),
        Err(problems) => Err(LoadError::Invalid { path: path.to_owned(), problems }),
    }
}

#[cfg(test)]
mod tests {
    use pgherd_common::errors::Chain;

    use super::*;

    #[test]
    fn an_unreadable_file_is_named() {
        let error = load(Path::new("/nowhere/agent.toml")).unwrap_err();
        let text = Chain(&error).to_string();
        assert!(
            text.starts_with("cannot read the configuration /nowhere/agent.toml: No such file"),
            "{text}"
        );
    }

    #[test]
    fn a_bad_file_is_named_with_its_problems() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "[cluster]\nname = 'Demo'\n").unwrap();
        let error = load(file.path()).unwrap_err();
        let text = Chain(&error).to_string();
        assert!(text.contains("is not valid: ") && text.contains("\n  cluster.name: "), "{text}");
    }
}
