//! Pgpool-II with a script that promotes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;
use tokio_postgres::{Config, NoTls, SimpleQueryMessage};

use super::case::Case;
use super::ground::{Ground, tails};
use super::rivals::{self, FRONT_PORT, PCP_PORT, PCP_USER};
use super::stack::Programs;
use crate::bench::rivals::{pgpool_hba, pgpool_users};
use crate::builder::{make_dir_for_postgres, write};
use crate::daemon::Daemon;
use crate::failure::Failure;
use crate::postgres::PostgresServer;
use crate::process::run;
use crate::wait::wait_until;

/// A standby that can follow does so within this.
const FOLLOW_TIME_MAX: Duration = Duration::from_secs(15);
const REACHED_TIME_MAX: Duration = Duration::from_secs(20);
const CONTROL_TIME_MAX: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Pgpool {
    daemon: Daemon,
    /// Of the control's programs.
    passwords: PathBuf,
    /// Dropped last: its undertaker ends everything.
    pub(super) ground: Ground,
}

impl Pgpool {
    pub(super) async fn start(programs: &Programs) -> Result<Self, Failure> {
        let ground = Ground::prepare(&programs.bin_dir).await?;
        let file = |name: &str| ground.front_dir.join(name);
        write(&file("pgpool.conf"), &rivals::pgpool(&ground))?;
        write(&file("pool_hba.conf"), pgpool_hba())?;
        write(&file("pool_passwd"), &pgpool_users())?;
        write(&file("pcp.conf"), &rivals::pcp_users())?;
        write(&file("failover.sh"), &rivals::failover_script(&ground)?)?;
        let passwords = file("pcppass");
        write(&passwords, &rivals::pcp_password(&ground.front.host))?;
        let options = [("-f", "pgpool.conf"), ("-a", "pool_hba.conf"), ("-F", "pcp.conf")];
        let named = |(option, name): (&str, &str)| [option.to_owned(), file(name).display().to_string()];
        // Without what an earlier one remembers of its servers.
        let arguments = ["-n", "-D"].map(str::to_owned).into_iter();
        let arguments = arguments.chain(options.into_iter().flat_map(named)).collect();
        let (front, dir) = (ground.front.clone(), ground.front_dir.clone());
        let daemon = Daemon::of_postgres("pgpool", Path::new("/usr/sbin/pgpool"), arguments, front, &dir);
        let mut stack = Self { daemon, passwords, ground };
        stack
            .begin()
            .await
            .map_err(|error| Failure::new(format!("{error:?}\n{}", stack.log_tails().join("\n"))))?;
        Ok(stack)
    }

    async fn begin(&mut self) -> Result<(), Failure> {
        for machine in &self.ground.machines {
            let postgres = &machine.postgres;
            make_dir_for_postgres(&postgres.conf_dir)?;
            write(&postgres.config_file(), &postgres.config())?;
            write(&postgres.conf_dir.join("pg_hba.conf"), &postgres.hba())?;
            write(&postgres.conf_dir.join("pg_ident.conf"), "")?;
        }
        let [first, standbys @ ..] = self.ground.machines.as_slice() else {
            return Err(Failure::new("there are no machines"));
        };
        first.postgres.initdb().await?;
        first.postgres.start().await?;
        first.postgres.create_roles().await?;
        for standby in standbys {
            self.copy(&standby.name, &first.name).await?;
        }
        self.daemon.start()?;
        self.until_whole().await
    }

    /// Makes a standby and starts it.
    async fn copy(&self, name: &str, primary: &str) -> Result<(), Failure> {
        let (standby, primary) =
            (&self.ground.machine(name)?.postgres, &self.ground.machine(primary)?.postgres);
        standby.copy_of(primary).await?;
        write(&standby.data_dir.join("standby.signal"), "")?;
        // What the primary was told when it was a standby came along.
        let conninfo = rivals::conninfo(&primary.place.host, primary.port);
        write(&standby.data_dir.join("postgresql.auto.conf"), &format!("primary_conninfo = '{conninfo}'\n"))?;
        Ok(standby.start().await?)
    }

    pub(super) fn way_in(&self) -> Config {
        self.ground.way_in(FRONT_PORT)
    }

    pub(super) async fn until_whole(&self) -> Result<(), Failure> {
        self.ground.until_whole(FRONT_PORT, false, async || self.all_up().await).await
    }

    /// Whether Pgpool-II calls all its servers up. One that it has given up is attached again.
    async fn all_up(&self) -> Result<(), Failure> {
        let (client, connection) = self.way_in().connect(NoTls).await?;
        let connection = tokio::spawn(connection);
        let messages = client.simple_query("SHOW POOL_NODES").await;
        drop(client);
        let _its_end = connection.await;
        let mut seen = Vec::new();
        for message in messages? {
            if let SimpleQueryMessage::Row(row) = message {
                seen.push(row.get("status").unwrap_or_default().to_owned());
            }
        }
        for (number, _) in seen.iter().enumerate().filter(|(_, status)| *status == "down") {
            self.control("pcp_attach_node", &["--node-id", &number.to_string()]).await?;
        }
        let all = seen.len() == self.ground.machines.len() && seen.iter().all(|status| status == "up");
        if all { Ok(()) } else { Err(Failure::new(format!("Pgpool-II calls its servers {seen:?}"))) }
    }

    pub(super) async fn switch_over(&self, primary: &str) -> Result<(), Failure> {
        let target = self.number(&self.ground.other(primary)?.name)?;
        self.control("pcp_promote_node", &["--switchover", "--node-id", &target]).await
    }

    /// Makes a standby of the former primary, which Pgpool-II has given up, and of any other server that cannot
    /// follow the new one because it was ahead of it.
    pub(super) async fn make_anew(&self, case: Case, old: &str) -> Result<(), Failure> {
        // After a switchover it runs, and takes itself for a primary.
        self.ground.kill_all(old).await?;
        if case == Case::NodeLoss {
            self.ground.link(old, true).await?;
        }
        let primary = self.ground.primary().await?;
        self.replace(old, &primary).await?;
        for machine in self.ground.machines.iter().filter(|machine| machine.name != primary) {
            if !self.ground.follows(machine, &primary, FOLLOW_TIME_MAX).await? {
                self.ground.kill_all(&machine.name).await?;
                self.replace(&machine.name, &primary).await?;
            }
        }
        Ok(())
    }

    /// A new standby in the place of a server that is gone.
    async fn replace(&self, name: &str, primary: &str) -> Result<(), Failure> {
        let postgres = &self.ground.machine(name)?.postgres;
        std::fs::remove_dir_all(&postgres.data_dir)?;
        // Of a killed postmaster that nobody has collected yet the next one would think that it runs.
        std::fs::remove_dir_all(&postgres.socket_dir)?;
        make_dir_for_postgres(&postgres.socket_dir)?;
        self.until_reached(postgres, &self.ground.machine(primary)?.postgres).await?;
        self.copy(name, primary).await
    }

    /// A link that was down a moment ago does not carry anything yet.
    async fn until_reached(&self, from: &PostgresServer, to: &PostgresServer) -> Result<(), Failure> {
        let reached = wait_until("the primary can be reached", REACHED_TIME_MAX, async || {
            let mut command = from.place.postgres_command(from.bin_dir.join("pg_isready"));
            command.args(["-q", "-t", "1", "-h", &to.place.host, "-p", &to.port.to_string()]);
            run(command, CONTROL_TIME_MAX).await.map(drop)
        });
        Ok(reached.await?)
    }

    fn number(&self, name: &str) -> Result<String, Failure> {
        let at = self.ground.machines.iter().position(|machine| machine.name == name);
        at.map(|at| at.to_string()).ok_or_else(|| Failure::new(format!("there is no machine {name}")))
    }

    async fn control(&self, program: &str, arguments: &[&str]) -> Result<(), Failure> {
        let mut command = Command::new(Path::new("/usr/sbin").join(program));
        command.args(["-h", &self.ground.front.host, "-p", &PCP_PORT.to_string(), "-U", PCP_USER, "-w"]);
        command.args(arguments).env("PCPPASSFILE", &self.passwords);
        Ok(run(command, CONTROL_TIME_MAX).await.map(drop)?)
    }

    pub(super) fn log_tails(&self) -> Vec<String> {
        let servers = self.ground.machines.iter().map(|machine| machine.postgres.log.as_path());
        tails(std::iter::once(self.daemon.log()).chain(servers))
    }
}
