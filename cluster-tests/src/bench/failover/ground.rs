//! What a peer runs on: three machines for PostgreSQL and one for what applications connect to, each in a network
//! namespace of its own, as [`Cluster`] has them.
//!
//! [`Cluster`]: crate::Cluster

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_postgres::{Client, Config, NoTls};

use crate::builder::{Builder, make_dir_for_postgres};
use crate::failure::Failure;
use crate::logs;
use crate::network::{Network, Place, set_link};
use crate::postgres::{APP, PostgresServer};
use crate::process::{self, Signal};
use crate::undertaker::Undertaker;
use crate::wait::wait_until;

const DATABASES: usize = 3;
const CONNECT_TIME_MAX: Duration = Duration::from_secs(2);
/// Some peers look at their servers every ten seconds only.
const WHOLE_TIME_MAX: Duration = Duration::from_secs(180);
const LOG_LINES: usize = 5;

/// A machine with a server.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) name: String,
    pub(super) dir: PathBuf,
    pub(super) postgres: PostgresServer,
}

/// All machines.
#[derive(Debug)]
pub(super) struct Ground {
    pub(super) machines: Vec<Machine>,
    /// The machine that nothing happens to.
    pub(super) front: Place,
    /// Its directory.
    pub(super) front_dir: PathBuf,
    #[expect(dead_code, reason = "kept for its drop")]
    network: Network,
    /// Ends and removes everything.
    #[expect(dead_code, reason = "kept for its drop")]
    undertaker: Undertaker,
}

impl Ground {
    /// Empty machines.
    pub(super) async fn prepare(bin_dir: &Path) -> Result<Self, Failure> {
        let mut undertaker = Undertaker::start()?;
        let dir = Builder::default().make_dir(&mut undertaker).await?;
        let mut network = Network::namespaces(DATABASES + 1, &mut undertaker).await?;
        let mut places = network.places().to_vec();
        let front = places.pop().ok_or_else(|| Failure::new("there are no machines"))?;
        let mut machines = Vec::new();
        for (place, number) in places.into_iter().zip(1..) {
            let name = format!("server{number}");
            let dir = dir.join(&name);
            make_dir_for_postgres(&dir)?;
            let port = network.port(5432, 5432)?;
            let postgres = PostgresServer::within(&dir, bin_dir, place, port);
            make_dir_for_postgres(&postgres.socket_dir)?;
            machines.push(Machine { name, dir, postgres });
        }
        let front_dir = dir.join("front");
        make_dir_for_postgres(&front_dir)?;
        Ok(Self { machines, front, front_dir, network, undertaker })
    }

    /// The machine with this name.
    pub(super) fn machine(&self, name: &str) -> Result<&Machine, Failure> {
        let found = self.machines.iter().find(|machine| machine.name == name);
        found.ok_or_else(|| Failure::new(format!("there is no machine {name}")))
    }

    /// The first machine but for this one.
    pub(super) fn other(&self, name: &str) -> Result<&Machine, Failure> {
        let found = self.machines.iter().find(|machine| machine.name != name);
        found.ok_or_else(|| Failure::new(format!("there is no machine but {name}")))
    }

    /// How applications get in where the front listens on this port.
    pub(super) fn way_in(&self, port: u16) -> Config {
        let mut config = Config::new();
        config.host(&self.front.host).port(port).user(APP).password(APP).dbname(APP);
        config
    }

    /// A superuser's session, past the front and past any cut network.
    pub(super) async fn session(&self, machine: &Machine) -> Result<Client, Failure> {
        let mut config = Config::new();
        config.host_path(&machine.postgres.socket_dir).port(machine.postgres.port);
        config.user("postgres").dbname("postgres").connect_timeout(CONNECT_TIME_MAX);
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// The one server that accepts writes.
    pub(super) async fn primary(&self) -> Result<String, Failure> {
        let mut writable = Vec::new();
        for machine in &self.machines {
            if let Ok(client) = self.session(machine).await
                && client.query_one("SELECT NOT pg_is_in_recovery()", &[]).await?.get(0)
            {
                writable.push(machine.name.clone());
            }
        }
        match writable.as_slice() {
            [primary] => Ok(primary.clone()),
            _ => Err(Failure::new(format!("these servers accept writes: {writable:?}"))),
        }
    }

    /// Waits until there is one primary, which has all the standbys, commits wait for one of them if they are to, and
    /// applications can write through this port. `more` tells what else is missing.
    pub(super) async fn until_whole(
        &self,
        port: u16,
        synchronous: bool,
        mut more: impl AsyncFnMut() -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let whole = wait_until("the cluster is whole", WHOLE_TIME_MAX, async || {
            let look = async {
                self.at_full_strength(synchronous).await?;
                more().await?;
                writes(&self.way_in(port)).await
            };
            let looked = tokio::time::timeout(CONNECT_TIME_MAX * 2, look).await;
            let told = |error: Failure| format!("{error:?}");
            looked.map_err(|_| "no answer".to_owned())?.map_err(told)
        });
        Ok(whole.await?)
    }

    async fn at_full_strength(&self, synchronous: bool) -> Result<(), Failure> {
        let primary = self.primary().await?;
        let client = self.session(self.machine(&primary)?).await?;
        let standbys = "SELECT count(*) FILTER (WHERE state = 'streaming'), \
                        count(*) FILTER (WHERE sync_state IN ('sync', 'quorum')) FROM pg_stat_replication";
        let row = client.query_one(standbys, &[]).await?;
        let (streaming, waited_for): (i64, i64) = (row.get(0), row.get(1));
        let enough = usize::try_from(streaming) == Ok(DATABASES - 1) && (waited_for > 0) == synchronous;
        let told =
            || format!("{streaming} standbys of {primary} stream, commits wait for {waited_for} of them");
        if enough { Ok(()) } else { Err(Failure::new(told())) }
    }

    /// Whether a standby gets the primary's WAL, now or soon.
    pub(super) async fn follows(
        &self,
        standby: &Machine,
        primary: &str,
        within: Duration,
    ) -> Result<bool, Failure> {
        let client = self.session(self.machine(primary)?).await?;
        let host = &standby.postgres.place.host;
        let query =
            "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND host(client_addr) = $1";
        let waited = wait_until("it follows", within, async || {
            let row = client.query_one(query, &[host]).await.map_err(|error| error.to_string())?;
            let streams: i64 = row.get(0);
            if streams > 0 { Ok(()) } else { Err("not yet".to_owned()) }
        });
        Ok(waited.await.is_ok())
    }

    /// `kill -9`.
    pub(super) fn kill_postmaster(&self, name: &str) -> Result<(), Failure> {
        let postmaster = process::postmaster(&self.machine(name)?.postgres.data_dir);
        let postmaster = postmaster.ok_or_else(|| Failure::new(format!("no postmaster on {name}")))?;
        process::signal(postmaster, Signal::KILL);
        Ok(())
    }

    /// Loses a machine: it is cut off, and every process on it is gone.
    pub(super) async fn lose(&self, name: &str) -> Result<(), Failure> {
        self.link(name, false).await?;
        self.kill_all(name).await
    }

    /// Kills every process of a machine.
    pub(super) async fn kill_all(&self, name: &str) -> Result<(), Failure> {
        if let Some(netns) = &self.machine(name)?.postgres.place.netns {
            process::kill_netns(netns).await;
        }
        Ok(())
    }

    /// Connects a machine, or cuts it off.
    pub(super) async fn link(&self, name: &str, up: bool) -> Result<(), Failure> {
        match &self.machine(name)?.postgres.place.host_if {
            Some(host_if) => Ok(set_link(host_if, up).await?),
            None => Err(Failure::new(format!("{name} has no link"))),
        }
    }
}

/// Whether applications can write.
async fn writes(way_in: &Config) -> Result<(), Failure> {
    let (client, connection) = way_in.connect(NoTls).await?;
    let connection = tokio::spawn(connection);
    let written = client.batch_execute("BEGIN; CREATE TEMP TABLE try (n int) ON COMMIT DROP; COMMIT").await;
    drop(client);
    let _its_end = connection.await;
    Ok(written?)
}

/// The ends of these logs.
pub(super) fn tails<'a>(all: impl Iterator<Item = &'a Path>) -> Vec<String> {
    all.map(|log| format!("{}\n{}", log.display(), logs::tail(log, LOG_LINES))).collect()
}
