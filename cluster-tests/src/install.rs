//! Installing what a clean Debian machine lacks.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;

use crate::process::{CommandError, run};

/// Debian's default for `pg_createcluster`, read when a server package is installed.
const CREATE_CLUSTER: &str = "/etc/postgresql-common/createcluster.conf";
const INSTALL_TIME_MAX: Duration = Duration::from_secs(600);

/// Something is missing and cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The given directory holds no PostgreSQL.
    #[error(
        "{0} holds no `initdb`: name the directory of PostgreSQL's programs, such as /usr/lib/postgresql/15/bin"
    )]
    NotPostgres(PathBuf),
    /// Nothing was found after the installation either.
    #[error("PostgreSQL was installed but is not under /usr/lib/postgresql: name its programs with --pg-bin")]
    StillMissing,
    /// apt-get failed.
    #[error("cannot install {package}: install it by hand and try again")]
    Apt {
        /// What was to be installed.
        package: String,
        /// Why it was not.
        #[source]
        source: CommandError,
    },
    /// Debian's configuration cannot be changed.
    #[error("cannot write {CREATE_CLUSTER}")]
    CreateCluster(#[source] std::io::Error),
}

/// PostgreSQL's programs: the given ones, else the newest installed ones, else installed now.
pub async fn postgres_programs(
    given: Option<&Path>,
    progress: &dyn Fn(&str),
) -> Result<PathBuf, InstallError> {
    if let Some(dir) = given {
        let fine = dir.join("initdb").is_file();
        return if fine { Ok(dir.to_owned()) } else { Err(InstallError::NotPostgres(dir.to_owned())) };
    }
    if let Some(dir) = newest_postgres() {
        return Ok(dir);
    }
    progress("PostgreSQL is missing: apt-get update");
    apt(&["update"], "the package lists").await?;
    progress("installing postgresql-common");
    apt(&["install", "postgresql-common"], "postgresql-common").await?;
    // Debian would create and start a server of its own, on the port that applications try first.
    let before = std::fs::read_to_string(CREATE_CLUSTER).map_err(InstallError::CreateCluster)?;
    let without = format!("{before}\ncreate_main_cluster = false\n");
    std::fs::write(CREATE_CLUSTER, without).map_err(InstallError::CreateCluster)?;
    progress("installing postgresql");
    let installed = apt(&["install", "postgresql"], "postgresql").await;
    std::fs::write(CREATE_CLUSTER, before).map_err(InstallError::CreateCluster)?;
    installed?;
    newest_postgres().ok_or(InstallError::StillMissing)
}

/// A program of the system that not every machine has.
#[derive(Debug, Clone, Copy)]
pub struct Tool {
    program: &'static str,
    package: &'static str,
}

/// For network namespaces.
pub const IP: Tool = Tool { program: "ip", package: "iproute2" };
/// For cutting connections one by one.
pub const NFT: Tool = Tool { program: "nft", package: "nftables" };
/// For disks of their own.
pub const MKFS: Tool = Tool { program: "mkfs.ext4", package: "e2fsprogs" };

/// Installs a tool if it is missing.
pub async fn tool(tool: Tool, progress: &dyn Fn(&str)) -> Result<(), InstallError> {
    let places = ["/sbin", "/usr/sbin", "/bin"].map(|dir| Path::new(dir).join(tool.program));
    match places.iter().find(|path| path.exists()) {
        Some(_) => Ok(()),
        None => fetch(tool.program, tool.package, progress).await,
    }
}

/// Installs a package if a file that it brings is missing.
pub async fn package(file: &Path, package: &str, progress: &dyn Fn(&str)) -> Result<(), InstallError> {
    if file.exists() {
        return Ok(());
    }
    fetch(&file.display().to_string(), package, progress).await
}

async fn fetch(missing: &str, package: &str, progress: &dyn Fn(&str)) -> Result<(), InstallError> {
    progress(&format!("`{missing}` is missing: apt-get update"));
    apt(&["update"], "the package lists").await?;
    progress(&format!("installing {package}"));
    apt(&["install", package], package).await
}

fn newest_postgres() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let major = |path: &Path| path.file_name()?.to_str()?.parse::<u32>().ok();
    let installed = versions.filter_map(|entry| Some(entry.ok()?.path()));
    let usable =
        installed.filter(|path| path.join("bin/initdb").is_file() && path.join("bin/postgres").is_file());
    usable.max_by_key(|path| major(path)).map(|path| path.join("bin"))
}

async fn apt(arguments: &[&str], package: &str) -> Result<(), InstallError> {
    let mut command = Command::new("apt-get");
    command.args(["-qq", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120"]).args(arguments);
    command.env("DEBIAN_FRONTEND", "noninteractive");
    let done = run(command, INSTALL_TIME_MAX).await;
    done.map(drop).map_err(|source| InstallError::Apt { package: package.to_owned(), source })
}
