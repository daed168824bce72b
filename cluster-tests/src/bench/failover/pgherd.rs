//! Ours.

use std::time::Duration;

use tokio_postgres::Config;

use super::stack::Programs;
use crate::campaign::switchover;
use crate::cluster::Cluster;
use crate::failure::Failure;

const WHOLE_TIME_MAX: Duration = Duration::from_secs(120);
const LOG_LINES: usize = 5;

#[derive(Debug)]
pub(super) struct Pgherd {
    cluster: Cluster,
}

impl Pgherd {
    pub(super) async fn start(synchronous: bool, programs: &Programs) -> Result<Self, Failure> {
        let builder = Cluster::builder().name("bench").pg_bin(Some(programs.bin_dir.clone()));
        Ok(Self { cluster: builder.netns(true).synchronous(synchronous).start().await? })
    }

    pub(super) fn way_in(&self) -> Config {
        self.cluster.way_in(0)
    }

    pub(super) async fn until_whole(&mut self) -> Result<(), Failure> {
        self.cluster.until_healthy(WHOLE_TIME_MAX).await?;
        Ok(self.cluster.until_proxy_serves(0, WHOLE_TIME_MAX).await?)
    }

    pub(super) async fn primary(&self) -> Result<String, Failure> {
        Ok(self.cluster.primary().await?)
    }

    pub(super) async fn switch_over(&self, primary: &str) -> Result<(), Failure> {
        let standby = |postgres: bool, name: &str| postgres && name != primary;
        let mut nodes = self.cluster.nodes().iter();
        let target = nodes.find(|node| standby(node.postgres.is_some(), &node.name));
        let target = target.ok_or_else(|| Failure::new("there is no standby"))?;
        let witness = self.cluster.nodes().iter().find(|node| node.postgres.is_none());
        let asked = witness.map_or(&target.name, |witness| &witness.name);
        let wrong = switchover::to(&self.cluster, asked, &target.name).await?;
        wrong.map_or(Ok(()), |wrong| Err(Failure::new(wrong)))
    }

    pub(super) fn kill_postmaster(&self, primary: &str) -> Result<(), Failure> {
        let killed = self.cluster.kill_postmaster(primary).map(drop);
        killed.ok_or_else(|| Failure::new(format!("no postmaster on {primary}")))
    }

    pub(super) async fn lose(&mut self, primary: &str) -> Result<(), Failure> {
        self.cluster.lose(primary).await
    }

    pub(super) async fn regain(&mut self, old: &str) -> Result<(), Failure> {
        self.cluster.regain(old).await
    }

    pub(super) fn log_tails(&self) -> Vec<String> {
        self.cluster.log_tails(LOG_LINES)
    }
}
