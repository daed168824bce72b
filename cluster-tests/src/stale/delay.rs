//! Holds replay on one standby back, in one way after the other, with room between them.

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::sleep;

use crate::cluster::Cluster;
use crate::process::{self, Signal};

/// How it is held back.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// `pg_wal_replay_pause()`.
    Pause,
    /// `recovery_min_apply_delay`, of so many milliseconds.
    Late(u64),
    /// The process that replays is stopped by the operating system.
    Freeze,
}

/// What happens to one standby, for ever.
pub(super) struct Delays {
    cluster: Arc<Cluster>,
    node: String,
    random: StdRng,
}

impl Delays {
    pub(super) fn new(cluster: &Arc<Cluster>, node: &str, seed: u64) -> Self {
        Self { cluster: Arc::clone(cluster), node: node.to_owned(), random: StdRng::seed_from_u64(seed) }
    }

    /// One delay after the other. A server that does not answer is asked again the next time.
    pub(super) async fn go_on(mut self) {
        loop {
            self.rest(50, 900).await;
            let way = match self.random.random_range(0..3) {
                0 => Way::Pause,
                1 => Way::Late(self.random.random_range(5..400)),
                _ => Way::Freeze,
            };
            self.set(way, true).await;
            self.rest(20, 900).await;
            self.set(way, false).await;
        }
    }

    async fn rest(&mut self, from_ms: u64, to_ms: u64) {
        sleep(Duration::from_millis(self.random.random_range(from_ms..to_ms))).await;
    }

    async fn set(&self, way: Way, on: bool) {
        match (way, on) {
            (Way::Pause, true) => self.execute(&["SELECT pg_wal_replay_pause()"]).await,
            (Way::Pause, false) => self.execute(&["SELECT pg_wal_replay_resume()"]).await,
            (Way::Late(ms), true) => {
                let late = format!("ALTER SYSTEM SET recovery_min_apply_delay = '{ms}ms'");
                self.execute(&[&late, "SELECT pg_reload_conf()"]).await;
            }
            (Way::Late(_), false) => {
                let reset = "ALTER SYSTEM RESET recovery_min_apply_delay";
                self.execute(&[reset, "SELECT pg_reload_conf()"]).await;
            }
            (Way::Freeze, on) => {
                let children = self.cluster.node(&self.node).postmaster().map(process::children);
                let replays = |child: &u32| process::title(*child).contains("startup");
                if let Some(startup) = children.unwrap_or_default().into_iter().find(replays) {
                    process::signal(startup, if on { Signal::STOP } else { Signal::CONT });
                }
            }
        }
    }

    async fn execute(&self, statements: &[&str]) {
        let Ok(client) = self.cluster.connect_server(&self.node, "postgres").await else { return };
        for statement in statements {
            // What is not done now is done another time: chance decides anyway.
            drop(client.batch_execute(statement).await);
        }
    }
}
