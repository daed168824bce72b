//! Patroni with etcd, behind HAProxy.

use std::path::Path;
use std::time::Duration;

use tokio_postgres::Config;

use super::ground::{Ground, tails};
use super::rivals::{self, ETCD_PORT, FRONT_PORT, PatroniKind, REST_PORT};
use super::stack::Programs;
use super::system::System;
use crate::bench::packages;
use crate::builder::write;
use crate::daemon::Daemon;
use crate::failure::Failure;
use crate::wait::wait_until;

const FIRST_TIME_MAX: Duration = Duration::from_secs(120);
const HEALTH_TIME_MAX: Duration = Duration::from_secs(2);
const ANSWER_TIME_MAX: Duration = Duration::from_secs(90);

#[derive(Debug)]
pub(super) struct Patroni {
    synchronous: bool,
    http: reqwest::Client,
    /// On each machine.
    agents: Vec<Daemon>,
    /// etcd and HAProxy.
    front: Vec<Daemon>,
    /// Dropped last: its undertaker ends everything.
    pub(super) ground: Ground,
}

impl Patroni {
    pub(super) async fn start(
        system: System,
        synchronous: bool,
        programs: &Programs,
    ) -> Result<Self, Failure> {
        let ground = Ground::prepare(&programs.bin_dir).await?;
        let program = programs.patroni();
        let kind = PatroniKind { system, synchronous, major: major(&packages::version(program).await) };
        let etcd = format!("{}:{ETCD_PORT}", ground.front.host);
        let (front, front_dir) = (ground.front.clone(), ground.front_dir.clone());
        let arguments = rivals::etcd(&front.host, &front_dir);
        let etcd_daemon =
            Daemon::of_postgres("etcd", Path::new("/usr/bin/etcd"), arguments, front.clone(), &front_dir);
        let file = front_dir.join("haproxy.cfg");
        write(&file, &rivals::haproxy(&ground, system))?;
        let arguments = vec!["-db".to_owned(), "-f".to_owned(), file.display().to_string()];
        let haproxy =
            Daemon::of_postgres("haproxy", Path::new("/usr/sbin/haproxy"), arguments, front, &front_dir);
        let mut agents = Vec::new();
        for machine in &ground.machines {
            let file = machine.dir.join("patroni.yml");
            write(&file, &rivals::patroni(&machine.name, &machine.postgres, &machine.dir, &etcd, kind))?;
            let (arguments, place) = (vec![file.display().to_string()], machine.postgres.place.clone());
            agents.push(Daemon::of_postgres("patroni", program, arguments, place, &machine.dir));
        }
        let http = reqwest::Client::new();
        let mut stack = Self { synchronous, http, agents, front: vec![etcd_daemon, haproxy], ground };
        stack.begin().await.map_err(|error| stack.explained(&error))?;
        Ok(stack)
    }

    async fn begin(&mut self) -> Result<(), Failure> {
        for daemon in self.front.iter_mut().chain(&mut self.agents) {
            daemon.start()?;
        }
        let ground = &self.ground;
        let told = |error: Failure| format!("{error:?}");
        let primary = wait_until("Patroni has made a primary", FIRST_TIME_MAX, async || {
            let primary = ground.primary().await.map_err(told)?;
            let client = ground.session(ground.machine(&primary).map_err(told)?).await.map_err(told)?;
            // Patroni makes its own roles when the server already runs.
            let made = client
                .query_one("SELECT count(*) FROM pg_roles WHERE rolreplication AND NOT rolsuper", &[])
                .await;
            let made: i64 = made.map_err(|error| error.to_string())?.get(0);
            if made > 0 { Ok(primary) } else { Err("its roles are missing".to_owned()) }
        });
        let primary = primary.await?;
        ground.machine(&primary)?.postgres.create_roles().await?;
        self.until_whole().await
    }

    fn explained(&self, error: &Failure) -> Failure {
        Failure::new(format!("{error:?}\n{}", self.log_tails().join("\n")))
    }

    pub(super) fn way_in(&self) -> Config {
        self.ground.way_in(FRONT_PORT)
    }

    pub(super) async fn until_whole(&self) -> Result<(), Failure> {
        self.ground.until_whole(FRONT_PORT, self.synchronous, async || self.all_running().await).await
    }

    /// Whether every Patroni calls its server healthy: one that does not yet takes nothing over.
    async fn all_running(&self) -> Result<(), Failure> {
        for machine in &self.ground.machines {
            let url = format!("http://{}:{REST_PORT}/health", machine.postgres.place.host);
            self.http.get(url).timeout(HEALTH_TIME_MAX).send().await?.error_for_status()?;
        }
        Ok(())
    }

    pub(super) async fn switch_over(&self, primary: &str) -> Result<(), Failure> {
        let (leader, candidate) = (self.ground.machine(primary)?, self.ground.other(primary)?);
        let url = format!("http://{}:{REST_PORT}/switchover", leader.postgres.place.host);
        let wanted = serde_json::json!({ "leader": leader.name, "candidate": candidate.name });
        let answer = self.http.post(url).json(&wanted).timeout(ANSWER_TIME_MAX).send().await?;
        let (fine, status) = (answer.status().is_success(), answer.status());
        if fine { Ok(()) } else { Err(Failure::new(format!("{status}: {}", answer.text().await?))) }
    }

    pub(super) async fn regain(&mut self, old: &str) -> Result<(), Failure> {
        self.ground.link(old, true).await?;
        let at = self.ground.machines.iter().position(|machine| machine.name == old);
        let agent = at.and_then(|at| self.agents.get_mut(at));
        Ok(agent.ok_or_else(|| Failure::new(format!("no Patroni on {old}")))?.start()?)
    }

    pub(super) fn log_tails(&self) -> Vec<String> {
        tails(self.agents.iter().chain(&self.front).map(Daemon::log))
    }
}

/// Of `patroni 3.0.2`.
fn major(version: &str) -> u32 {
    let number = version.split_whitespace().last().and_then(|number| number.split('.').next());
    number.and_then(|number| number.parse().ok()).unwrap_or(3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_understood() {
        assert_eq!(major("patroni 2.1.4"), 2);
        assert_eq!(major("patroni 4.0.7"), 4);
        assert_eq!(major("unknown"), 3);
    }
}
