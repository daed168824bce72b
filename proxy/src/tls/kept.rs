//! Something made of files, made anew when they change. What cannot be made anew stays as it was.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use pgherd_common::errors::Chain;

use crate::control::lock;

use super::TlsError;

/// What is made, and of which files.
pub(crate) trait Source {
    /// What comes of it.
    type Made;
    /// For the log.
    const WHAT: &'static str;

    /// What has to be watched.
    fn files(&self) -> Vec<&Path>;

    /// Reads them.
    fn make(&self) -> Result<Self::Made, TlsError>;
}

/// What tells one version of a file from another: modification time in ns, size, inode.
type Stamp = Option<(i64, i64, u64, u64)>;

/// See the module.
#[derive(Debug)]
pub(crate) struct Kept<S: Source> {
    source: S,
    current: Mutex<Arc<S::Made>>,
    /// The files as they were when they were last read, whatever came of it.
    read: Mutex<Vec<(PathBuf, Stamp)>>,
}

impl<S: Source> Kept<S> {
    /// Reads the files for the first time.
    pub(crate) fn new(source: S) -> Result<Self, TlsError> {
        let read = stamps(&source);
        let made = source.make()?;
        Ok(Self { source, current: Mutex::new(Arc::new(made)), read: Mutex::new(read) })
    }

    /// What the files said when they were last good.
    pub(crate) fn current(&self) -> Arc<S::Made> {
        lock(&self.current).clone()
    }

    /// Reads the files again if they changed, or if that is `asked` for. Blocks for as long as the disk does.
    pub(crate) fn refresh(&self, asked: bool) {
        // Before the files are read: a change in between is seen the next time.
        let now = stamps(&self.source);
        let before = std::mem::replace(&mut *lock(&self.read), now.clone());
        if before == now && !asked {
            return;
        }
        match self.source.make() {
            Ok(made) => {
                *lock(&self.current) = Arc::new(made);
                tracing::info!(what = S::WHAT, "certificates read again; new connections use them");
            }
            Err(error) => {
                let error = Chain(&error);
                tracing::error!(what = S::WHAT, %error, "certificates cannot be used; the old ones stay in effect");
            }
        }
    }
}

fn stamps<S: Source>(source: &S) -> Vec<(PathBuf, Stamp)> {
    let stamp = |path: &Path| {
        let meta = std::fs::metadata(path).ok()?;
        Some((meta.mtime(), meta.mtime_nsec(), meta.size(), meta.ino()))
    };
    source.files().into_iter().map(|path| (path.to_owned(), stamp(path))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Length(PathBuf);

    impl Source for Length {
        type Made = usize;
        const WHAT: &'static str = "a test";

        fn files(&self) -> Vec<&Path> {
            vec![&self.0]
        }

        fn make(&self) -> Result<usize, TlsError> {
            let text = std::fs::read(&self.0).unwrap_or_default();
            if text.is_empty() { Err(TlsError::Empty { path: self.0.clone() }) } else { Ok(text.len()) }
        }
    }

    #[test]
    fn a_file_that_is_no_good_leaves_the_old_one_in_effect() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        assert!(Kept::new(Length(path.clone())).is_err(), "nothing to begin with");
        std::fs::write(&path, "one").unwrap();
        let kept = Kept::new(Length(path.clone())).unwrap();
        std::fs::write(&path, "three").unwrap();
        kept.refresh(false);
        assert_eq!(*kept.current(), 5);
        std::fs::write(&path, "").unwrap();
        kept.refresh(false);
        assert_eq!(*kept.current(), 5);
        std::fs::remove_file(&path).unwrap();
        kept.refresh(true);
        assert_eq!(*kept.current(), 5);
        std::fs::write(&path, "7654321").unwrap();
        kept.refresh(false);
        assert_eq!(*kept.current(), 7);
    }
}
