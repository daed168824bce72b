//! Our proxy beside others, in front of the same servers: what it costs for each transaction.
//!
//! Rounds are interleaved: each visits all targets in turn, every second one in reverse, so that a drift
//! of the machine hits all alike. What counts is the time that the proxy's processes spent on the
//! processor, which depends little on what else competes for it.

mod chart;
pub mod document;
pub mod failover;
pub mod machine;
mod measure;
mod packages;
pub mod rejoin;
pub mod relay;
mod rivals;
pub mod scale;
pub mod sections;
mod stand;
pub mod stats;
pub mod summary;
pub mod svg;
pub mod table;
pub mod target;
mod usage;
pub mod workload;

use std::path::{Path, PathBuf};

use document::Conditions;
use machine::Machine;
use stand::{Running, Setup, Stand};
use summary::{Round, Summary};
use target::Target;
use workload::Workload;

use crate::failure::Failure;

const PROXY_SETTINGS: &str = "[pool]\nmode = \"auto\"\n\n[routing]\nread_consistency = \"session\"\n";
/// More than any workload has.
const CLIENTS_MAX: usize = 1000;

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long each run is.
    pub seconds: u64,
    /// How often each is done.
    pub rounds: usize,
    /// pgbench's scale: 100,000 rows each.
    pub scale: u32,
    /// Which work.
    pub workloads: Vec<Workload>,
    /// Through what.
    pub targets: Vec<Target>,
    /// PostgreSQL's programs, if not the newest installed.
    pub pg_bin: Option<PathBuf>,
    /// Another PgBouncer than Debian's.
    pub pgbouncer: Option<PathBuf>,
}

impl Options {
    fn setup(&self) -> Setup {
        Setup {
            targets: self.targets.clone(),
            prepares: self.workloads.iter().any(|workload| workload.prepares()),
            scale: self.scale,
            pg_bin: self.pg_bin.clone(),
            pgbouncer: self.pgbouncer.clone(),
            proxy_settings: PROXY_SETTINGS,
            clients_max: CLIENTS_MAX,
        }
    }
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct Report {
    /// One for each workload.
    pub summaries: Vec<Summary>,
    /// How it was measured.
    pub conditions: Conditions,
}

impl Report {
    /// Writes the proxy's section of the document, and its plot, into this directory.
    pub fn write(&self, dir: &Path) -> std::io::Result<()> {
        sections::write(dir, document::SECTION, &document::document(&self.summaries, &self.conditions))?;
        std::fs::write(dir.join(document::PLOT), svg::svg(&self.summaries))
    }
}

/// Measures, and tells every step and each workload's table to `say`.
pub async fn run(options: &Options, say: &dyn Fn(&str)) -> Result<Report, Failure> {
    let machine = Machine::here();
    say(&format!("load average: {}", machine.load));
    let stand = Stand::start(&options.setup(), say).await?;
    let mut summaries = Vec::new();
    for workload in &options.workloads {
        let mut rounds = Vec::new();
        for number in 0..options.rounds {
            say(&format!("{workload}: round {} of {}", number + 1, options.rounds));
            rounds.push(round(&stand, *workload, options.seconds, number).await);
        }
        let summary = Summary::of(*workload, &rounds);
        say(&table::table(&summary));
        summaries.push(summary);
    }
    let conditions = Conditions {
        machine,
        versions: stand.versions.clone(),
        seconds: options.seconds,
        rounds: options.rounds,
        scale: options.scale,
    };
    stand.end().await?;
    Ok(Report { summaries, conditions })
}

/// Every target once, in an order that is another in every second round.
async fn round(stand: &Stand, workload: Workload, seconds: u64, number: usize) -> Round {
    // Where transaction mode does all, session mode need not stand in for it.
    let takes_part = |running: &&Running| running.target != Target::PgBouncerSession || workload.prepares();
    let mut visited: Vec<&Running> = stand.targets.iter().filter(takes_part).collect();
    let backwards = number % 2 == 1;
    if backwards {
        visited.reverse();
    }
    let mut round = Vec::new();
    for running in visited {
        round.push((running.target, measure::run(stand, running, workload, seconds).await));
    }
    round
}
