//! What must be right before the agent takes care of a data directory. Looks, touches nothing.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use super::command::OsUser;
use super::configuration::{included, same_file};
use super::controldata::{ControlData, ControlDataError};
use super::files::{FileError, own_file};
use super::settings::Settings;

/// Majors of PostgreSQL this was built for.
const MAJORS: std::ops::RangeInclusive<u32> = 14..=18;

/// Why this agent cannot take care of this PostgreSQL.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No such directory.
    #[error(
        "the data directory {path:?} is not there; check postgres.data_dir, or run `pgherd create-standby` to copy it from the cluster"
    )]
    NoDataDirectory {
        /// `postgres.data_dir`.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Empty.
    #[error(
        "the data directory {0:?} is empty; run `pgherd create-standby` to copy it from the cluster, or initdb for a new cluster"
    )]
    EmptyDataDirectory(PathBuf),
    /// Something else.
    #[error("{0:?} is not a PostgreSQL data directory (no PG_VERSION in it); check postgres.data_dir")]
    NotADataDirectory(PathBuf),
    /// Owned by somebody else.
    #[error("the data directory {path:?} belongs to uid {found}, but postgres.os_user {os_user} is uid {expected}; run: chown -R {os_user} {}", path.display())]
    WrongOwner {
        /// `postgres.data_dir`.
        path: PathBuf,
        /// Its owner.
        found: u32,
        /// `postgres.os_user`.
        os_user: String,
        /// Its uid.
        expected: u32,
    },
    /// PostgreSQL would refuse to start.
    #[error("the data directory {path:?} has mode {mode:04o}, with which PostgreSQL does not start; run: chmod 0700 {}", path.display())]
    WrongMode {
        /// `postgres.data_dir`.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// A program is missing.
    #[error(
        "cannot run {program:?}; set postgres.bin_dir to the directory of the PostgreSQL server programs"
    )]
    NoBinaries {
        /// Which program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The program's version is not understood.
    #[error("{program:?} --version printed {output:?}, which names no PostgreSQL version")]
    OddVersion {
        /// Which program.
        program: PathBuf,
        /// What it printed.
        output: String,
    },
    /// Data and programs differ.
    #[error(
        "{data_dir:?} is of PostgreSQL {data}, but the programs in {bin_dir:?} are of {binaries}; set postgres.bin_dir to those of {data}"
    )]
    MajorMismatch {
        /// `postgres.data_dir`.
        data_dir: PathBuf,
        /// Its major.
        data: String,
        /// `postgres.bin_dir`.
        bin_dir: PathBuf,
        /// Its major.
        binaries: u32,
    },
    /// Too old or too new.
    #[error("PostgreSQL {major} is not supported; supported are {} to {}", MAJORS.start(), MAJORS.end())]
    UnsupportedMajor {
        /// The major of `postgres.bin_dir`.
        major: u32,
    },
    /// The configuration cannot be read.
    #[error("cannot read the configuration {path:?}; check postgres.config_file")]
    NoConfiguration {
        /// `postgres.config_file`.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The agent's file is not part of the configuration.
    #[error("{config_file:?} does not include the agent's settings; add this line at its end:\ninclude_if_exists = '{}'", own_file.display())]
    NotIncluded {
        /// `postgres.config_file`.
        config_file: PathBuf,
        /// `pgherd.conf`.
        own_file: PathBuf,
    },
    /// No such user.
    #[error("there is no operating system user {0:?} on this host; check postgres.os_user")]
    UnknownUser(String),
    /// The agent has no right to act.
    #[error("the agent runs as uid {agent}, but must run as root or as {os_user}")]
    WrongUser {
        /// The agent's uid.
        agent: u32,
        /// `postgres.os_user`.
        os_user: String,
    },
    /// A copy could not take its place.
    #[error("cannot finish putting a copy in the place of the data directory")]
    Swap(#[from] FileError),
    /// `pg_control` cannot be read.
    #[error("the data directory has no readable pg_control")]
    Control(#[source] ControlDataError),
}

/// What was found out on the way.
pub(super) struct Opened {
    pub(super) owner: OsUser,
    pub(super) major: u32,
    pub(super) control: ControlData,
}

pub(super) async fn check(settings: &Settings) -> Result<Opened, OpenError> {
    let owner = owner(&settings.os_user).await?;
    check_directory(&settings.data_dir, &settings.os_user, &owner)?;
    let major = check_version(settings).await?;
    for program in ["pg_controldata", "pg_rewind"] {
        let program = settings.bin_dir.join(program);
        if let Err(source) = fs::metadata(&program) {
            return Err(OpenError::NoBinaries { program, source });
        }
    }
    check_configuration(settings)?;
    let control = ControlData::read(&settings.bin_dir, &settings.data_dir).await;
    Ok(Opened { owner, major, control: control.map_err(OpenError::Control)? })
}

/// The user, asked of `id`, which knows directory services too.
pub(super) async fn owner(os_user: &str) -> Result<OsUser, OpenError> {
    let number = async |option: &str| {
        let output =
            Command::new("id").arg(option).arg("--").arg(os_user).stdin(Stdio::null()).output().await;
        let output = output.ok().filter(|output| output.status.success())?;
        String::from_utf8_lossy(&output.stdout).trim().parse::<u32>().ok()
    };
    let (Some(uid), Some(gid)) = (number("-u").await, number("-g").await) else {
        return Err(OpenError::UnknownUser(os_user.to_owned()));
    };
    let agent = rustix::process::geteuid().as_raw();
    if agent != 0 && agent != uid {
        return Err(OpenError::WrongUser { agent, os_user: os_user.to_owned() });
    }
    Ok(OsUser { uid, gid, switch: agent != uid })
}

fn check_directory(path: &Path, os_user: &str, owner: &OsUser) -> Result<(), OpenError> {
    let missing = |source| OpenError::NoDataDirectory { path: path.to_owned(), source };
    let mut entries = fs::read_dir(path).map_err(missing)?;
    let metadata = fs::metadata(path).map_err(missing)?;
    if !path.join("PG_VERSION").exists() {
        return Err(match entries.next() {
            None => OpenError::EmptyDataDirectory(path.to_owned()),
            Some(_) => OpenError::NotADataDirectory(path.to_owned()),
        });
    }
    if metadata.uid() != owner.uid {
        return Err(OpenError::WrongOwner {
            path: path.to_owned(),
            found: metadata.uid(),
            os_user: os_user.to_owned(),
            expected: owner.uid,
        });
    }
    let mode = metadata.mode() & 0o7777;
    // PostgreSQL takes 0700 and 0750.
    if mode & 0o027 != 0 {
        return Err(OpenError::WrongMode { path: path.to_owned(), mode });
    }
    Ok(())
}

async fn check_version(settings: &Settings) -> Result<u32, OpenError> {
    let program = settings.bin_dir.join("postgres");
    let output =
        Command::new(&program).arg("--version").env("LC_ALL", "C").stdin(Stdio::null()).output().await;
    let output = output.map_err(|source| OpenError::NoBinaries { program: program.clone(), source })?;
    let output = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let Some(binaries) = major_of(&output) else { return Err(OpenError::OddVersion { program, output }) };
    let version = settings.data_dir.join("PG_VERSION");
    let data = fs::read_to_string(version).unwrap_or_default().trim().to_owned();
    if data.parse() != Ok(binaries) {
        let (data_dir, bin_dir) = (settings.data_dir.clone(), settings.bin_dir.clone());
        return Err(OpenError::MajorMismatch { data_dir, data, bin_dir, binaries });
    }
    if MAJORS.contains(&binaries) {
        Ok(binaries)
    } else {
        Err(OpenError::UnsupportedMajor { major: binaries })
    }
}

/// `postgres (PostgreSQL) 15.18 (Debian ...)`, `... 18beta1`.
fn major_of(version: &str) -> Option<u32> {
    let number = version.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn check_configuration(settings: &Settings) -> Result<(), OpenError> {
    let config_file = settings.config_file.clone();
    let files = included(&config_file)
        .map_err(|source| OpenError::NoConfiguration { path: config_file.clone(), source })?;
    let own_file = own_file(&settings.data_dir);
    if files.iter().any(|file| same_file(file, &own_file)) {
        return Ok(());
    }
    Err(OpenError::NotIncluded { config_file, own_file })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(major_of("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"), Some(15));
        assert_eq!(major_of("postgres (PostgreSQL) 18beta1"), Some(18));
        assert_eq!(major_of("postgres"), None);
    }
}
