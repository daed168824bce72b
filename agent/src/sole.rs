//! One worker at a time per state directory: the port and the raft store belong to it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::oneshot;

const FILE_NAME: &str = "worker.lock";
/// A worker whose guardian was killed ends by itself, but not in the same moment.
const PATIENCE: Duration = Duration::from_secs(3);

/// This process may not use the state directory.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SoleError {
    /// Another one does.
    #[error("another agent works with {}: stop it, or give this one a node.state_dir of its own", .0.display())]
    Taken(PathBuf),
    /// Nobody can.
    #[error("cannot lock {}: check its disk and that it belongs to the agent's user", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Held until it is dropped or the process ends, however it does.
#[derive(Debug)]
pub(crate) struct Sole(#[expect(dead_code, reason = "the open file is the lock")] File);

impl Sole {
    /// Waits a moment for a predecessor that is ending.
    pub(crate) async fn lock(state_dir: &Path) -> Result<Self, SoleError> {
        Self::lock_within(state_dir, PATIENCE).await
    }

    async fn lock_within(state_dir: &Path, patience: Duration) -> Result<Self, SoleError> {
        let path = state_dir.join(FILE_NAME);
        let failed = |source| SoleError::Io { path: path.clone(), source };
        fs::create_dir_all(state_dir).map_err(failed)?;
        let file = File::create(&path).map_err(failed)?;
        let (locked, wait) = oneshot::channel();
        // A thread of its own, which may stay behind waiting: the runtime would wait for one of its.
        let thread = std::thread::Builder::new().name("lock".to_owned());
        let spawned = thread.spawn(move || {
            let result = file.lock().map(|()| file);
            // Too late, and nobody is there any more.
            drop(locked.send(result));
        });
        spawned.map_err(failed)?;
        match tokio::time::timeout(patience, wait).await {
            Ok(Ok(Ok(file))) => Ok(Self(file)),
            Ok(Ok(Err(source))) => Err(failed(source)),
            Ok(Err(_)) | Err(_) => Err(SoleError::Taken(state_dir.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_state_directory_has_one_worker() {
        let dir = tempfile::tempdir().unwrap();
        let first = Sole::lock(dir.path()).await.unwrap();
        let second = Sole::lock_within(dir.path(), Duration::from_millis(20)).await;
        assert!(matches!(second, Err(SoleError::Taken(_))), "{second:?}");
        drop(first);
    }
}
