//! What an operator has asked this node for, on disk: an agent that dies over it goes on when it is back.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use pgherd_core::rebuild::Order;

fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("order.json")
}

/// The order that is not done yet.
pub(crate) fn pending(state_dir: &Path) -> Option<Order> {
    let path = path(state_dir);
    let text = fs::read(&path).ok()?;
    match serde_json::from_slice(&text) {
        Ok(order) => Some(order),
        Err(error) => {
            tracing::warn!(path = %path.display(), "an operator's order cannot be read, and is forgotten: {error}");
            None
        }
    }
}

/// On return it is on disk.
pub(crate) fn keep(state_dir: &Path, order: &Order) -> io::Result<()> {
    let path = path(state_dir);
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(&serde_json::to_vec(order)?)?;
    file.sync_all()?;
    fs::rename(&new, &path)?;
    File::open(state_dir)?.sync_all()
}

/// It is settled.
pub(crate) fn forget(state_dir: &Path) -> io::Result<()> {
    match fs::remove_file(path(state_dir)) {
        // Else it might be back after a crash of the machine, and be carried out again.
        Ok(()) => File::open(state_dir)?.sync_all(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}
