//! A system that runs, whichever it is.

use std::path::{Path, PathBuf};

use tokio_postgres::Config;

use super::case::Case;
use super::patroni::Patroni;
use super::pgherd::Pgherd;
use super::pgpool::Pgpool;
use super::system::System;
use crate::bench::packages;
use crate::binaries::Binaries;
use crate::failure::Failure;

/// Where programs are.
#[derive(Debug)]
pub(super) struct Programs {
    /// PostgreSQL's.
    pub(super) bin_dir: PathBuf,
    patroni: Option<PathBuf>,
}

impl Programs {
    pub(super) fn new(bin_dir: PathBuf, patroni: Option<PathBuf>) -> Self {
        Self { bin_dir, patroni }
    }

    /// Patroni's.
    pub(super) fn patroni(&self) -> &Path {
        self.patroni.as_deref().unwrap_or(Path::new("/usr/bin/patroni"))
    }

    /// What has to be installed before the system can be measured.
    pub(super) fn missing(&self, system: System) -> Option<String> {
        let of_patroni = |package: &str| matches!(package, "patroni" | "python3-etcd");
        let mut packages = Vec::new();
        for (file, package) in system.files() {
            let given = self.patroni.as_ref().filter(|_| of_patroni(package));
            match given {
                Some(program) if !program.exists() => {
                    return Some(format!("there is no {}", program.display()));
                }
                None if !Path::new(file).exists() => packages.push(*package),
                Some(_) | None => (),
            }
        }
        packages.dedup();
        let told = format!("`apt-get install {}` brings what is missing", packages.join(" "));
        (!packages.is_empty()).then_some(told)
    }

    /// Name and version of all programs of a system.
    pub(super) async fn versions(&self, system: System) -> Vec<(String, String)> {
        let mut programs = vec![("PostgreSQL", self.bin_dir.join("postgres"))];
        let mut ours = None;
        match system {
            System::Pgherd => {
                if let Ok(binaries) = Binaries::find().await {
                    ours = Some(packages::our_version(&binaries.agent).await);
                }
            }
            System::Patroni | System::PatroniTuned => {
                programs.push(("Patroni", self.patroni().to_owned()));
                programs.push(("etcd", "/usr/bin/etcd".into()));
                programs.push(("HAProxy", "/usr/sbin/haproxy".into()));
            }
            System::Pgpool => programs.push(("Pgpool-II", "/usr/sbin/pgpool".into())),
        }
        let mut versions: Vec<_> = ours.map(|version| ("pgherd".to_owned(), version)).into_iter().collect();
        for (name, program) in programs {
            versions.push((name.to_owned(), packages::version(&program).await));
        }
        versions
    }
}

/// The system.
#[derive(Debug)]
pub(super) enum Stack {
    Pgherd(Box<Pgherd>),
    Patroni(Box<Patroni>),
    Pgpool(Box<Pgpool>),
}

impl Stack {
    /// Starts it and waits until it works.
    pub(super) async fn start(
        system: System,
        synchronous: bool,
        programs: &Programs,
    ) -> Result<Self, Failure> {
        Ok(match system {
            System::Pgherd => Self::Pgherd(Box::new(Pgherd::start(synchronous, programs).await?)),
            System::Patroni | System::PatroniTuned => {
                Self::Patroni(Box::new(Patroni::start(system, synchronous, programs).await?))
            }
            System::Pgpool => Self::Pgpool(Box::new(Pgpool::start(programs).await?)),
        })
    }

    /// How applications get in.
    pub(super) fn way_in(&self) -> Config {
        match self {
            Self::Pgherd(stack) => stack.way_in(),
            Self::Patroni(stack) => stack.way_in(),
            Self::Pgpool(stack) => stack.way_in(),
        }
    }

    /// Waits until there is one primary, which has all the standbys, and applications can write.
    pub(super) async fn until_whole(&mut self) -> Result<(), Failure> {
        match self {
            Self::Pgherd(stack) => stack.until_whole().await,
            Self::Patroni(stack) => stack.until_whole().await,
            Self::Pgpool(stack) => stack.until_whole().await,
        }
    }

    /// The server that is primary.
    pub(super) async fn primary(&self) -> Result<String, Failure> {
        match self {
            Self::Pgherd(stack) => stack.primary().await,
            Self::Patroni(stack) => stack.ground.primary().await,
            Self::Pgpool(stack) => stack.ground.primary().await,
        }
    }

    /// Does it to the primary.
    pub(super) async fn inflict(&mut self, case: Case, primary: &str) -> Result<(), Failure> {
        match (case, self) {
            (Case::Switchover | Case::SwitchoverTransactions, Self::Pgherd(stack)) => {
                stack.switch_over(primary).await
            }
            (Case::Switchover | Case::SwitchoverTransactions, Self::Patroni(stack)) => {
                stack.switch_over(primary).await
            }
            (Case::Switchover | Case::SwitchoverTransactions, Self::Pgpool(stack)) => {
                stack.switch_over(primary).await
            }
            (Case::Crash | Case::CrashSynchronous, Self::Pgherd(stack)) => stack.kill_postmaster(primary),
            (Case::Crash | Case::CrashSynchronous, Self::Patroni(stack)) => {
                stack.ground.kill_postmaster(primary)
            }
            (Case::Crash | Case::CrashSynchronous, Self::Pgpool(stack)) => {
                stack.ground.kill_postmaster(primary)
            }
            (Case::NodeLoss, Self::Pgherd(stack)) => stack.lose(primary).await,
            (Case::NodeLoss, Self::Patroni(stack)) => stack.ground.lose(primary).await,
            (Case::NodeLoss, Self::Pgpool(stack)) => stack.ground.lose(primary).await,
        }
    }

    /// Repairs what a person would have to repair.
    pub(super) async fn mend(&mut self, case: Case, old: &str) -> Result<(), Failure> {
        match (case, self) {
            (Case::NodeLoss, Self::Pgherd(stack)) => stack.regain(old).await,
            (Case::NodeLoss, Self::Patroni(stack)) => stack.regain(old).await,
            (_, Self::Pgherd(_) | Self::Patroni(_)) => Ok(()),
            (_, Self::Pgpool(stack)) => stack.make_anew(case, old).await,
        }
    }

    /// The ends of its logs.
    pub(super) fn log_tails(&self) -> String {
        let logs = match self {
            Self::Pgherd(stack) => stack.log_tails(),
            Self::Patroni(stack) => stack.log_tails(),
            Self::Pgpool(stack) => stack.log_tails(),
        };
        logs.iter().map(|log| format!("\n--- {log}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let of = |patroni: Option<&str>| Programs::new("/bin".into(), patroni.map(PathBuf::from));
        assert_eq!(of(None).missing(System::Pgherd), None);
        let absent = of(Some("/no/patroni"));
        assert_eq!(absent.missing(System::PatroniTuned), Some("there is no /no/patroni".to_owned()));
        assert_eq!(absent.missing(System::Pgpool), of(None).missing(System::Pgpool));
    }
}
