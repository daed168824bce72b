//! The sources of PostgreSQL's own test suites, of the very version that is installed, and the little
//! of them that has to be compiled.
//!
//! apt-get gets package lists of its own, with sources in them: those of the machine stay as they are.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;

use crate::process::{CommandError, run};

/// Downloads, on a slow line.
const STEP_TIME_MAX: Duration = Duration::from_secs(600);

/// The suites cannot be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum SourcesError {
    /// PostgreSQL was installed some other way.
    #[error(
        "`postgres --version` says {said:?}, which names no Debian package: its sources cannot be found by version"
    )]
    NotPackaged {
        /// What it said.
        said: String,
    },
    /// A step failed.
    #[error(
        "cannot {step}. If the mirrors have a newer version only, upgrade the packages of PostgreSQL and try again"
    )]
    Step {
        /// What was to be done.
        step: &'static str,
        /// Why it was not.
        #[source]
        source: CommandError,
    },
    /// A file cannot be read or written.
    #[error("cannot read or write {path}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// The suites, ready for use.
#[derive(Debug, Clone)]
pub(super) struct Suites {
    /// `src/test` of PostgreSQL's sources.
    pub tests: PathBuf,
    /// Libraries that the tests load into servers.
    pub libraries: PathBuf,
    /// `pg_regress` and `pg_isolation_regress`, as packaged.
    pub drivers: PathBuf,
}

/// Finds them in `cache`, or fetches and compiles what is missing there.
pub(super) async fn suites(bin_dir: &Path, cache: &Path, say: &dyn Fn(&str)) -> Result<Suites, SourcesError> {
    let version = version(bin_dir).await?;
    let dir = cache.join(&version);
    let installed = bin_dir.join("../lib");
    let suites = Suites {
        tests: dir.join("source/src/test"),
        libraries: dir.join("lib"),
        drivers: installed.join("pgxs/src/test"),
    };
    if suites.libraries.join("regress.so").is_file() {
        return Ok(suites);
    }
    say(&format!("fetching the sources of PostgreSQL {version}"));
    let major = version.split('.').next().unwrap_or_default().to_owned();
    let apt = Apt::own(&dir).await?;
    apt.source(&format!("postgresql-{major}={version}")).await?;
    say("compiling the library that the tests load");
    let headers = apt.headers(&format!("postgresql-server-dev-{major}={version}")).await?;
    let include = headers.join(format!("usr/include/postgresql/{major}/server"));
    make_libraries(&suites, &installed, &include).await?;
    Ok(suites)
}

async fn version(bin_dir: &Path) -> Result<String, SourcesError> {
    let mut command = Command::new(bin_dir.join("postgres"));
    command.arg("--version");
    let said = step("ask PostgreSQL for its version", command).await?;
    let packaged = said.split_once("(Debian ").or_else(|| said.split_once("(Ubuntu "));
    let version = packaged.and_then(|(_, rest)| rest.split_once(')')).map(|(version, _)| version.to_owned());
    version.ok_or(SourcesError::NotPackaged { said })
}

async fn step(step: &'static str, command: Command) -> Result<String, SourcesError> {
    run(command, STEP_TIME_MAX).await.map_err(|source| SourcesError::Step { step, source })
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> SourcesError {
    let path = path.to_owned();
    move |source| SourcesError::Io { path, source }
}

/// `regress.so`, and beside it the two libraries of `contrib` that the tests expect there.
async fn make_libraries(suites: &Suites, installed: &Path, include: &Path) -> Result<(), SourcesError> {
    let to = &suites.libraries;
    std::fs::create_dir_all(to).map_err(io(to))?;
    for name in ["refint.so", "autoinc.so"] {
        let from = installed.join(name);
        std::fs::copy(&from, to.join(name)).map_err(io(&from))?;
    }
    let mut compile = Command::new("cc");
    compile.args(["-O1", "-fPIC", "-shared", "-w"]).arg(format!("-I{}", include.display()));
    compile.arg("-o").arg(to.join("regress.so.new")).arg(suites.tests.join("regress/regress.c"));
    step("compile regress.c", compile).await?;
    let done = to.join("regress.so");
    std::fs::rename(to.join("regress.so.new"), &done).map_err(io(&done))
}

/// apt-get with lists of its own.
struct Apt {
    dir: PathBuf,
}

impl Apt {
    async fn own(dir: &Path) -> Result<Self, SourcesError> {
        let apt = Self { dir: dir.to_owned() };
        let lists = dir.join("apt/lists/partial");
        std::fs::create_dir_all(&lists).map_err(io(&lists))?;
        let parts = dir.join("apt/parts");
        let _of_an_earlier_try = std::fs::remove_dir_all(&parts);
        std::fs::create_dir_all(&parts).map_err(io(&parts))?;
        for path in repositories() {
            let Ok(text) = std::fs::read_to_string(&path) else { continue };
            let Some(name) = path.file_name() else { continue };
            let to = parts.join(name);
            std::fs::write(&to, with_sources(&text)).map_err(io(&to))?;
        }
        step("update the package lists", apt.get(&["update"])).await?;
        Ok(apt)
    }

    fn get(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("apt-get");
        let own = self.dir.join("apt");
        command.args(["-qq", "-o", "APT::Sandbox::User=root", "-o", "Dir::Etc::sourcelist=/dev/null"]);
        command.arg("-o").arg(format!("Dir::Etc::sourceparts={}", own.join("parts").display()));
        command.arg("-o").arg(format!("Dir::State::lists={}", own.join("lists").display()));
        command.arg("-o").arg("Dir::Cache::pkgcache=").arg("-o").arg("Dir::Cache::srcpkgcache=");
        command.args(arguments).current_dir(&self.dir);
        command
    }

    /// Fetches and unpacks a source package into `source`.
    async fn source(&self, package: &str) -> Result<(), SourcesError> {
        step("fetch the sources of PostgreSQL", self.get(&["--download-only", "source", package])).await?;
        let description = self.fetched("dsc")?;
        let to = self.dir.join("source");
        let _of_an_earlier_try = std::fs::remove_dir_all(&to);
        let mut unpack = Command::new("dpkg-source");
        unpack.args(["--no-check", "-x"]).arg(description).arg(&to).current_dir(&self.dir);
        step("unpack the sources of PostgreSQL", unpack).await.map(drop)
    }

    /// Fetches the package of the server's headers and unpacks it, without installing it.
    async fn headers(&self, package: &str) -> Result<PathBuf, SourcesError> {
        step("fetch the headers of PostgreSQL", self.get(&["download", package])).await?;
        let to = self.dir.join("headers");
        let mut unpack = Command::new("dpkg-deb");
        unpack.arg("-x").arg(self.fetched("deb")?).arg(&to);
        step("unpack the headers of PostgreSQL", unpack).await?;
        Ok(to)
    }

    fn fetched(&self, extension: &str) -> Result<PathBuf, SourcesError> {
        let entries = std::fs::read_dir(&self.dir).map_err(io(&self.dir))?;
        let mut paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let found = paths.find(|path| path.extension().is_some_and(|found| found == extension));
        found.ok_or_else(|| io(&self.dir)(std::io::ErrorKind::NotFound.into()))
    }
}

/// The machine's repositories that may hold PostgreSQL.
fn repositories() -> Vec<PathBuf> {
    let entries = std::fs::read_dir("/etc/apt/sources.list.d");
    let more = entries.into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    std::iter::once(PathBuf::from("/etc/apt/sources.list")).chain(more).collect()
}

/// The same repositories with their source packages, and without those that cannot hold PostgreSQL.
fn with_sources(text: &str) -> String {
    let fits = |part: &str| part.contains("debian") || part.contains("ubuntu") || part.contains("postgresql");
    if text.lines().any(|line| line.starts_with("Types:")) {
        let stanzas = text.split("\n\n").filter(|stanza| fits(stanza));
        let wanted = |line: &str| {
            let types = line.starts_with("Types:");
            if types { "Types: deb deb-src".to_owned() } else { line.to_owned() }
        };
        let stanza = |stanza: &str| stanza.lines().map(wanted).collect::<Vec<_>>().join("\n");
        return stanzas.map(stanza).collect::<Vec<_>>().join("\n\n") + "\n";
    }
    let binary = text.lines().filter(|line| line.starts_with("deb ") && fits(line));
    binary.map(|line| format!("{line}\ndeb-src {}\n", line.trim_start_matches("deb "))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_packages_are_asked_for_in_both_notations() {
        let deb822 = "Types: deb\n# a note\nURIs: http://deb.debian.org/debian\nSuites: bookworm\n\nTypes: deb\nURIs: https://other.example\n";
        assert_eq!(
            with_sources(deb822),
            "Types: deb deb-src\n# a note\nURIs: http://deb.debian.org/debian\nSuites: bookworm\n"
        );
        let lines = "# x\ndeb http://deb.debian.org/debian bookworm main\ndeb https://other.example x y\n";
        assert_eq!(
            with_sources(lines),
            "deb http://deb.debian.org/debian bookworm main\ndeb-src http://deb.debian.org/debian bookworm main\n"
        );
    }
}
