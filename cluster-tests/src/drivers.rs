//! The drivers that applications use, installed where they are missing. Their scripts are in `drivers/`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;

use crate::install::{InstallError, package};
use crate::process::{CommandError, run};

const TIME_MAX: Duration = Duration::from_secs(180);
const INSTALL_TIME_MAX: Duration = Duration::from_secs(300);

/// The version of node-postgres: it is no package of Debian that goes with every Node.js.
const NODE_POSTGRES: &str = "pg@8.13.1";

/// A driver, with the script that puts it to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// psycopg 3, and libpq with it.
    Psycopg3,
    /// asyncpg.
    Asyncpg,
    /// SQLAlchemy's ORM, with psycopg 2.
    SqlAlchemy,
    /// node-postgres.
    NodePostgres,
    /// The JDBC driver.
    Jdbc,
}

/// Where an application is to connect to.
#[derive(Debug, Clone)]
pub struct Target {
    /// A host.
    pub host: String,
    /// A port.
    pub port: u16,
    /// User, password and database alike.
    pub name: String,
}

/// A driver did not do what it does with a server.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// It cannot be had.
    #[error("a driver is missing and cannot be installed")]
    Install(#[from] InstallError),
    /// Its script failed, or npm did.
    #[error("a driver failed")]
    Command(#[from] CommandError),
}

impl Driver {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Psycopg3, Self::Asyncpg, Self::SqlAlchemy, Self::NodePostgres, Self::Jdbc];

    /// Debian's packages, each with a file that it brings.
    fn packages(self) -> &'static [(&'static str, &'static str)] {
        const PYTHON: (&str, &str) = ("/usr/bin/python3", "python3");
        match self {
            Self::Psycopg3 => &[PYTHON, ("/usr/lib/python3/dist-packages/psycopg", "python3-psycopg")],
            Self::Asyncpg => &[PYTHON, ("/usr/lib/python3/dist-packages/asyncpg", "python3-asyncpg")],
            Self::SqlAlchemy => &[
                PYTHON,
                ("/usr/lib/python3/dist-packages/psycopg2", "python3-psycopg2"),
                ("/usr/lib/python3/dist-packages/sqlalchemy", "python3-sqlalchemy"),
            ],
            Self::NodePostgres => &[("/usr/bin/node", "nodejs"), ("/usr/bin/npm", "npm")],
            Self::Jdbc => &[
                ("/usr/share/java/postgresql.jar", "libpostgresql-jdbc-java"),
                ("/usr/bin/javac", "default-jdk-headless"),
            ],
        }
    }

    fn script(self) -> &'static str {
        match self {
            Self::Psycopg3 => "psycopg3.py",
            Self::Asyncpg => "asyncpg_driver.py",
            Self::SqlAlchemy => "sqlalchemy_orm.py",
            Self::NodePostgres => "node_postgres.js",
            Self::Jdbc => "Jdbc.java",
        }
    }

    /// Runs the script to its end. What it says of itself: the checks it made, and its version.
    pub async fn run(self, target: &Target, progress: &dyn Fn(&str)) -> Result<String, DriverError> {
        for (file, name) in self.packages() {
            package(Path::new(file), name, progress).await?;
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("drivers").join(self.script());
        let mut command = match self {
            Self::Psycopg3 | Self::Asyncpg | Self::SqlAlchemy => Command::new("/usr/bin/python3"),
            Self::NodePostgres => {
                let mut node = Command::new("/usr/bin/node");
                node.env("NODE_PATH", node_modules().await?);
                node
            }
            Self::Jdbc => {
                let mut java = Command::new("/usr/bin/java");
                java.args(["-cp", "/usr/share/java/postgresql.jar"]);
                java
            }
        };
        let Target { host, port, name } = target;
        command
            .arg(script)
            .env("PGHERD_DSN", format!("host={host} port={port} user={name} password={name} dbname={name}"))
            .env("PGHERD_URL", format!("postgresql://{name}:{name}@{host}:{port}/{name}"))
            .env(
                "PGHERD_JDBC",
                format!("jdbc:postgresql://{host}:{port}/{name}?user={name}&password={name}"),
            );
        Ok(run(command, TIME_MAX).await?)
    }
}

/// Where node-postgres is, once it has been fetched.
async fn node_modules() -> Result<PathBuf, CommandError> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/drivers");
    let modules = dir.join("node_modules");
    if !modules.join("pg/package.json").exists() {
        let mut npm = Command::new("/usr/bin/npm");
        npm.args(["install", "--silent", "--no-save", "--no-audit", "--no-fund", "--prefix"]).arg(&dir);
        run(
            {
                npm.arg(NODE_POSTGRES);
                npm
            },
            INSTALL_TIME_MAX,
        )
        .await?;
    }
    Ok(modules)
}
