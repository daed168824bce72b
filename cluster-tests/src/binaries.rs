//! Where the agent, the proxy and the command line are.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;

use crate::process::{CommandError, run};

/// A cold build of everything on a slow machine.
const BUILD_TIME_MAX: Duration = Duration::from_secs(1800);

/// The programs of this project.
#[derive(Debug, Clone)]
pub struct Binaries {
    /// `pgherd-agent`.
    pub agent: PathBuf,
    /// `pgherd-proxy`.
    pub proxy: PathBuf,
    /// `pgherd`.
    pub cli: PathBuf,
}

/// No programs to run.
#[derive(Debug, thiserror::Error)]
pub enum BinariesError {
    /// They are not where they should be.
    #[error(
        "{missing} does not exist: build it with `cargo build --bins`, or let PGHERD_BIN_DIR point to the programs"
    )]
    Missing {
        /// The one that is not there.
        missing: PathBuf,
    },
    /// They cannot be built.
    #[error("cannot build the programs")]
    Build(#[source] CommandError),
    /// The running program has no path.
    #[error("cannot tell where this program is")]
    Here(#[source] std::io::Error),
}

impl Binaries {
    /// In `PGHERD_BIN_DIR` if that is set, else beside this program; a test builds them first.
    pub async fn find() -> Result<Self, BinariesError> {
        if let Some(dir) = std::env::var_os("PGHERD_BIN_DIR") {
            return Self::within(Path::new(&dir));
        }
        let here = std::env::current_exe().map_err(BinariesError::Here)?;
        let dir = here.parent().unwrap_or(Path::new("/"));
        // Cargo puts tests into `deps`, beneath the programs.
        if !dir.ends_with("deps") {
            return Self::within(dir);
        }
        let dir = dir.parent().unwrap_or(dir);
        let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        // The whole workspace, as everybody builds it: fewer packages would mean other features, and
        // everything compiled again.
        build.args(["build", "--quiet", "--workspace", "--bins"]);
        build.current_dir(env!("CARGO_MANIFEST_DIR"));
        // Build scripts look at these: with those of a test everything behind them would be compiled again.
        let of_the_test = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(of_the_test)) {
            build.env_remove(name);
        }
        if dir.ends_with("release") {
            build.arg("--release");
        }
        run(build, BUILD_TIME_MAX).await.map_err(BinariesError::Build)?;
        Self::within(dir)
    }

    fn within(dir: &Path) -> Result<Self, BinariesError> {
        let found = |name: &str| {
            let path = dir.join(name);
            if path.is_file() { Ok(path) } else { Err(BinariesError::Missing { missing: path }) }
        };
        Ok(Self { agent: found("pgherd-agent")?, proxy: found("pgherd-proxy")?, cli: found("pgherd")? })
    }
}
