//! `RELOAD`: the configuration file is read again. What is wrong with it leaves everything as it was.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use pgherd_common::config::Problems;

use crate::config::{Change, Config};
use crate::control::lock;
use crate::shared::Shared;

/// The columns of its answer.
pub(crate) const COLUMNS: &[&str] = &["key", "old", "new", "effect"];

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReloadError {
    #[error("the proxy was started without a configuration file")]
    NoFile,
    #[error("the configuration file {path} cannot be read", path = path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the configuration file {path} has {problems}", path = path.display())]
    Wrong { path: PathBuf, problems: Problems },
}

/// Reads the file again, and certificates with it; in what it differs from what was in effect. Blocks.
pub(crate) fn reload(shared: &Shared) -> Result<Vec<Change>, ReloadError> {
    // One at a time.
    let mut waiting = lock(&shared.waiting);
    let before = shared.config();
    let path = before.file.clone().ok_or(ReloadError::NoFile)?;
    let text =
        std::fs::read_to_string(&path).map_err(|source| ReloadError::Read { path: path.clone(), source })?;
    let file =
        Config::parse(&text).map_err(|problems| ReloadError::Wrong { path: path.clone(), problems })?;
    let changes = before.changes(&file);
    shared.config.send_replace(Arc::new(before.reloaded(file)));
    shared.pool.resize();
    shared.refresh_certificates(true);
    *waiting = changes.iter().filter(|change| change.waits).cloned().collect();
    tracing::info!(file = %path.display(), changes = changes.len(), waiting = waiting.len(), "configuration read again");
    Ok(changes)
}

/// The answer for people.
pub(crate) fn rows(changes: &[Change]) -> Vec<Vec<String>> {
    let row = |change: &Change| {
        let effect = if change.waits { "waits for a restart" } else { "in effect" };
        vec![change.path.clone(), change.old.clone(), change.new.clone(), effect.to_owned()]
    };
    changes.iter().map(row).collect()
}
