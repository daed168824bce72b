//! A small disk for one server's data: an ext4 file system in a file, which can be filled and broken.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;

use crate::failure::Failure;
use crate::node::Node;
use crate::process::{CommandError, run};

/// Making, mounting and checking take fractions of a second.
const STEP_TIME_MAX: Duration = Duration::from_secs(60);

/// The disk under the data directory of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SmallDisk {
    image: PathBuf,
    at: PathBuf,
}

impl SmallDisk {
    /// The disk of this node, whether it exists or not; `None` on a witness.
    pub fn of(node: &Node) -> Option<Self> {
        Some(Self { image: node.dir.join("disk.img"), at: node.data_dir()?.to_owned() })
    }

    /// The disk of this node's agent: its state directory, with the raft store in it.
    pub fn of_agent(node: &Node) -> Self {
        Self { image: node.dir.join("state.img"), at: node.dir.join("state") }
    }

    /// Where it is mounted.
    pub fn at(&self) -> &Path {
        &self.at
    }

    /// Makes it and mounts it.
    pub async fn make(&self, megabytes: u64) -> Result<(), CommandError> {
        let at = |source| CommandError::Start { command: format!("create {}", self.image.display()), source };
        let image = std::fs::File::create(&self.image).map_err(at)?;
        image.set_len(megabytes << 20).map_err(at)?;
        std::fs::create_dir_all(&self.at).map_err(at)?;
        // Errors stop all writing, as most distributions have it; a journal that is small.
        let made = ["-q", "-E", "lazy_itable_init=0,root_owner=0:0", "-J", "size=4", "-e", "remount-ro"];
        self.tool("mkfs.ext4", &made, &self.image).await?;
        self.mount().await?;
        self.tool("chown", &["postgres:postgres"], &self.at).await?;
        self.tool("chmod", &["700"], &self.at).await
    }

    /// Fills it to the last byte that PostgreSQL's user may have.
    pub async fn fill(&self) -> Result<(), CommandError> {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--init-groups", "--", "dd", "if=/dev/zero"]);
        command.arg(format!("of={}", self.ballast().display())).args([
            "bs=16k",
            "oflag=append",
            "conv=notrunc",
        ]);
        match run(command, STEP_TIME_MAX).await {
            // "No space left" is what was wanted.
            Ok(_) | Err(CommandError::Failed { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Gives the space back. A rewind may have done so by then: it removes what the new primary does not have.
    pub fn free(&self) -> std::io::Result<()> {
        match std::fs::remove_file(self.ballast()) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Makes the kernel treat it as it treats a disk with an I/O error: read-only from now on, also for
    /// files that are open for writing.
    pub async fn break_down(&self) -> Result<(), CommandError> {
        self.tool("mount", &["-o", "remount,abort"], &self.at).await
    }

    /// Makes it hang: whoever writes to it waits, and cannot be killed, until it is [thawed](Self::thaw).
    pub async fn freeze(&self) -> Result<(), CommandError> {
        self.tool("fsfreeze", &["--freeze"], &self.at).await
    }

    /// Ends what [`freeze`](Self::freeze) began.
    pub async fn thaw(&self) -> Result<(), CommandError> {
        self.tool("fsfreeze", &["--unfreeze"], &self.at).await
    }

    /// Another disk with the same content. Fails while somebody uses the broken one.
    pub async fn replace(&self) -> Result<(), Failure> {
        self.tool("umount", &[], &self.at).await?;
        match self.tool("e2fsck", &["-fy"], &self.image).await {
            // 1: errors were found and put right.
            Err(CommandError::Failed { status, .. }) if status.code() == Some(1) => {}
            other => other?,
        }
        Ok(self.mount().await?)
    }

    async fn mount(&self) -> Result<(), CommandError> {
        let mut command = Command::new("mount");
        command.args(["-o", "loop,errors=remount-ro"]).arg(&self.image).arg(&self.at);
        run(command, STEP_TIME_MAX).await?;
        // PostgreSQL wants the directory for itself, and its programs choke on what is root's.
        self.tool("rmdir", &["--ignore-fail-on-non-empty"], &self.at.join("lost+found")).await
    }

    async fn tool(&self, program: &str, options: &[&str], on: &Path) -> Result<(), CommandError> {
        let mut command = Command::new(program);
        command.args(options).arg(on);
        run(command, STEP_TIME_MAX).await.map(drop)
    }

    fn ballast(&self) -> PathBuf {
        self.at.join("ballast")
    }
}
