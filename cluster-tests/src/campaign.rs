//! The fault campaign: a real cluster under load, one random fault after the other, and after each of
//! them the questions whether two nodes ever wrote, whether a row is missing, whether a session was
//! dropped, and whether all is well again without a human.
//!
//! What is done to whom, for how long, comes from a seed. The interleaving of real processes does not,
//! so a seed repeats the faults and their order, not every moment.

mod direct_load;
mod firewall;
mod inflict;
pub mod judge;
pub mod kind;
mod plan;
pub(crate) mod proxy_load;
mod round;
pub(crate) mod switchover;
pub mod tell;
mod terms;

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::cluster::Cluster;
use crate::failure::Failure;
use crate::install;
use crate::vip::Watch;
use direct_load::DirectLoad;
use kind::{Kind, Replication};
use plan::Plan;
use proxy_load::{Load, ProxyLoad};
use round::Campaign;
pub use tell::Round;

/// Sessions through the proxy.
const SESSIONS: usize = 4;
/// Before the first fault.
const QUIET: Duration = Duration::from_secs(2);

/// What campaign is wanted.
#[derive(Debug, Clone)]
pub struct Options {
    /// No fault begins after so long.
    pub length: Duration,
    /// Decides everything that is left to chance.
    pub seed: u64,
    /// Only these kinds; all if empty.
    pub only: Vec<Kind>,
    /// End after so many faults.
    pub count: Option<usize>,
    /// No fault lasts longer; kinds that must are left out.
    pub hold_max: Duration,
    /// How the servers replicate, which decides what may be lost.
    pub replication: Replication,
    /// Where the logs are kept if anything was wrong.
    pub logs: PathBuf,
}

/// How it ended.
#[derive(Debug)]
pub struct Outcome {
    /// Every fault.
    pub rounds: Vec<Round>,
    /// All that was wrong.
    pub violations: Vec<String>,
}

/// Runs it and tells every step to `say`.
pub async fn run(options: &Options, say: &dyn Fn(&str)) -> Result<Outcome, Failure> {
    install::tool(install::NFT, say).await?;
    say(&format!("seed {}", options.seed));
    let builder = Cluster::builder().name("campaign").netns(true).keep_logs(options.logs.clone());
    let builder = builder.virtual_ip("").synchronous(options.replication == Replication::Synchronous);
    let mut cluster = builder.start().await?;
    say(&format!("the cluster is healthy; its files are in {}", cluster.dir().display()));
    let direct = DirectLoad::start(&cluster).await?;
    let proxied = ProxyLoad::start(&Load::through(&cluster, SESSIONS)).await?;
    let watch = Watch::start(&cluster)?;
    let epoch = Instant::now();
    sleep(QUIET).await;
    let mut campaign = Campaign::new(&mut cluster, direct, proxied, epoch, options.replication, watch);
    let (mut rounds, mut violations) = (Vec::new(), Vec::new());
    for fault in Plan::new(options.seed, &options.only) {
        let enough = options.count.is_some_and(|count| rounds.len() >= count);
        if enough || epoch.elapsed() >= options.length {
            break;
        }
        let least = Duration::from_millis(fault.kind.rule().hold_ms.0);
        if least > options.hold_max {
            continue;
        }
        let mut fault = fault;
        fault.hold = fault.hold.min(options.hold_max);
        let number = rounds.len() + 1;
        let round = campaign.round(number, &fault).await?;
        say(&tell::line(&round, epoch.elapsed()));
        let name = round.kind.rule().name;
        violations.extend(round.violations.iter().map(|violation| format!("#{number} {name}: {violation}")));
        let healed = round.healed.is_some();
        rounds.push(round);
        if !healed {
            break;
        }
        sleep(fault.pause).await;
    }
    violations.extend(campaign.finish().await);
    if violations.is_empty() {
        // The logs were read after each fault, with what that fault brings.
        cluster.finish(&[""])?;
    }
    Ok(Outcome { rounds, violations })
}

/// The command that does the same again.
pub fn reproduction(options: &Options) -> String {
    let mut line = format!(
        "cargo xtask campaign --minutes {} --seed {} --hold-max {}",
        options.length.as_secs().div_ceil(60),
        options.seed,
        options.hold_max.as_secs()
    );
    if options.replication == Replication::Synchronous {
        line.push_str(" --sync");
    }
    if !options.only.is_empty() {
        let names: Vec<&str> = options.only.iter().map(|kind| kind.rule().name).collect();
        line.push_str(&format!(" --only {}", names.join(",")));
    }
    if let Some(count) = options.count {
        line.push_str(&format!(" --count {count}"));
    }
    line
}

/// The last word, for people: the table is in Markdown.
pub fn summary(options: &Options, outcome: &Outcome) -> String {
    let replication = match options.replication {
        Replication::Asynchronous => "asynchronous",
        Replication::Synchronous => "synchronous",
    };
    let (faults, wrong) = (outcome.rounds.len(), outcome.violations.len());
    let seed = options.seed;
    let table = tell::table(&outcome.rounds);
    let told =
        format!("\nseed {seed}, {faults} faults, {replication} replication, {wrong} violations\n\n{table}");
    if outcome.violations.is_empty() {
        return told;
    }
    format!(
        "{told}\nviolations:\n  {}\nlogs: {}\nagain: {}",
        outcome.violations.join("\n  "),
        options.logs.display(),
        reproduction(options)
    )
}
