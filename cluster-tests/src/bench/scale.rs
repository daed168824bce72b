//! Our proxy at the edges: very many clients, very long answers, very many logins. Beside it PgBouncer, and no
//! proxy at all, at the same servers.
//!
//! Clients are of our own make, so that ten thousand of them fit in one process and cost little. Each answer
//! is compared with what it must be. A wrong one is an error; a figure that is larger than was promised is told.

pub mod active;
mod client;
pub mod copy;
mod ground;
pub mod idle;
pub mod latency;
mod limits;
pub mod logins;
pub mod memory;
pub mod part;
pub mod pipelines;
mod probe;
pub mod reads;
pub mod report;
pub mod rows;
mod scram;
mod tally;
mod text;

use std::path::PathBuf;

use ground::Ground;
use part::Part;
pub use report::{Figures, Promise, Report, Row};

use super::machine::Machine;
use super::stand::{Setup, Stand};
use super::target::Target;
use crate::failure::Failure;

/// All places of a pool belong to one node: of the two standbys only the first takes reads. So they are as
/// many as those of PgBouncer, which knows one server.
const PROXY_SETTINGS: &str = "[pool]\nmode = \"auto\"\nsize = 40\n\n[routing]\nread_consistency = \"session\"\n\
     weights.server3 = 0\n";
/// What of that says who takes reads.
const WEIGHTS: &str = "weights.server3 = 0\n";
/// What that comes to, for each of them.
const SERVER_CONNECTIONS: u64 = 40;
/// Besides those that are measured.
const MORE_CLIENTS: usize = 200;
/// What figures are compared between.
pub const TARGETS: [Target; 3] = [Target::Direct, Target::PgBouncer, Target::Pgherd];

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which parts.
    pub parts: Vec<Part>,
    /// Through what.
    pub targets: Vec<Target>,
    /// How many clients say nothing.
    pub idle: usize,
    /// How many there are of which some ask.
    pub active: usize,
    /// How many of those at the same time.
    pub at_once: usize,
    /// How long whatever has no other end goes on.
    pub seconds: u64,
    /// Of the large result, in millions of bytes.
    pub rows_megabytes: u64,
    /// Of each COPY, in millions of bytes.
    pub copy_megabytes: u64,
    /// How often latency is measured.
    pub rounds: usize,
    /// pgbench's scale: 100,000 rows each.
    pub scale: u32,
    /// PostgreSQL's programs, if not the newest installed.
    pub pg_bin: Option<PathBuf>,
    /// Another PgBouncer than Debian's.
    pub pgbouncer: Option<PathBuf>,
}

impl Options {
    fn clients_max(&self) -> usize {
        self.idle.max(self.active) + MORE_CLIENTS
    }

    fn setup(&self) -> Setup {
        Setup {
            targets: self.targets.clone(),
            prepares: self.parts.contains(&Part::Latency),
            scale: self.scale,
            pg_bin: self.pg_bin.clone(),
            pgbouncer: self.pgbouncer.clone(),
            proxy_settings: PROXY_SETTINGS,
            clients_max: self.clients_max(),
        }
    }
}

/// Measures, and tells every step and each part's table to `say`.
pub async fn run(options: &Options, say: &dyn Fn(&str)) -> Result<Report, Failure> {
    limits::allow_sockets(options.clients_max())?;
    let machine = Machine::here();
    say(&format!("load average: {}", machine.load));
    let stand = Stand::start(&options.setup(), say).await?;
    let ground = Ground::new(&stand, options, say);
    let mut report = Report::new(machine, stand.versions.clone());
    for part in &options.parts {
        say(&format!("{part}: {}", part.told()));
        match part {
            Part::Idle => report.idle = idle::measure(&ground).await,
            Part::Active => report.active = active::measure(&ground).await,
            Part::Rows => report.rows = rows::measure(&ground).await,
            Part::Copy => (report.copy_in, report.copy_out) = copy::measure(&ground).await,
            Part::Logins => report.logins = logins::measure(&ground).await,
            Part::Pipelines => report.pipelines = pipelines::measure(&ground).await,
            Part::Latency => report.latency = latency::measure(&ground).await,
            Part::Reads => report.reads = reads::measure(&ground).await,
        }
    }
    report.alarms = stand.cluster().alarms(&[]);
    say(&report.text());
    Ok(report)
}
