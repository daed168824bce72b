//! Reads by one instance, by two standbys and by all three, each held to the same share of a processor: what more
//! instances are worth.
//!
//! Rounds are interleaved: each visits all of them in turn, every second one in reverse.

use std::cell::RefCell;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use super::active::asked;
use super::ground::{Faults, Ground, Way};
use super::idle::{all, leave};
use super::text::number;
use super::{Figures, Promise, Row, WEIGHTS};
use crate::bench::stats::Spread;
use crate::bench::target::Target;
use crate::cgroup::{Held, Quota};
use crate::failure::Failure;
use crate::process::{Signal, postmaster, signal};
use crate::wait::wait_until;

/// Of each instance. So little that they rarely run at the same time: two that share a core are slower for that alone.
const SHARE: Quota = Quota { time_us: 10_000, period_us: 100_000 };
/// For each instance that takes reads: enough to have it at its limit all the time, and no more, since one that serves
/// very many at a time is slower for that alone.
const CLIENTS: usize = 12;
/// Of each visit.
const TIME: Duration = Duration::from_secs(4);
const RELOAD_TIME_MAX: Duration = Duration::from_secs(10);

/// Whom reads go to.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Case {
    target: Target,
    /// Of the primary and of each standby.
    weights: (u32, u32),
    instances: usize,
    shown: &'static str,
    /// What is promised of it, in reads of one instance alone.
    least: Option<f64>,
}

const CASES: [Case; 4] = [
    Case { target: Target::Direct, weights: (1, 0), instances: 1, shown: "alone", least: None },
    Case { target: Target::Pgherd, weights: (1, 0), instances: 1, shown: "1/0/0", least: None },
    Case { target: Target::Pgherd, weights: (0, 1), instances: 2, shown: "0/1/1", least: Some(1.9) },
    Case { target: Target::Pgherd, weights: (1, 1), instances: 3, shown: "1/1/1", least: Some(2.8) },
];

/// What was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Reads {
    /// Of the primary and the standbys.
    pub weights: &'static str,
    /// Median of the rounds.
    pub per_second: f64,
    /// Times what one instance alone answers in the same round.
    pub times: Spread,
    /// What was promised of that.
    least: Option<f64>,
}

impl Figures for Reads {
    const HEADS: &'static [&'static str] = &["weights", "tps", "times one", "least", "most"];

    fn cells(&self) -> Vec<String> {
        let Spread { median, min, max } = self.times;
        let times = [median, min, max].map(|times| number(times, 2));
        [vec![self.weights.to_owned(), number(self.per_second, 0)], times.into()].concat()
    }
}

pub(super) async fn measure(ground: &Ground<'_>) -> Vec<Row<Reads>> {
    let cases: Vec<(Case, Faults)> = CASES.into_iter().map(|case| (case, Faults::default())).collect();
    let measured = rounds(ground, &cases).await;
    let rounds = measured.unwrap_or_else(|failure| {
        cases.iter().for_each(|(_, faults)| faults.note(&format!("{failure:?}")));
        vec![]
    });
    let row = |(at, (case, faults)): (usize, (Case, Faults))| {
        let per_second = Spread::of(rounds.iter().filter_map(|round| round.get(at).copied()));
        let times = Spread::of(rounds.iter().filter_map(|round| Some(round.get(at)? / round.first()?)));
        let figures = per_second.zip(times).map(|(per_second, times)| Reads {
            weights: case.shown,
            per_second: per_second.median,
            times,
            least: case.least,
        });
        faults.row(case.target, figures)
    };
    cases.into_iter().enumerate().map(row).collect()
}

/// Reads per second of each case in each round.
async fn rounds(ground: &Ground<'_>, cases: &[(Case, Faults)]) -> Result<Vec<Vec<f64>>, Failure> {
    let cluster = ground.stand.cluster();
    let mut held = Vec::new();
    for node in cluster.nodes() {
        let Some(postgres) = &node.postgres else { continue };
        let root = postmaster(&postgres.data_dir);
        let root = root.ok_or_else(|| Failure::new(format!("PostgreSQL on {} has ended", node.name)))?;
        held.push(Held::hold(root, &format!("bench-{}", node.name), SHARE).map_err(|error| {
            Failure::new(format!(
                "cannot hold PostgreSQL on {} to a share of a processor ({error}): control groups have to be \
                 writable for root",
                node.name
            ))
        })?);
    }
    let shares = Shares::of(ground).await?;
    let mut rounds = Vec::new();
    for number in 0..ground.options.rounds {
        (ground.say)(&format!("  round {} of {}", number + 1, ground.options.rounds));
        let mut round = vec![0.0; cases.len()];
        let mut order: Vec<_> = cases.iter().zip(&mut round).collect();
        if number % 2 == 1 {
            order.reverse();
        }
        for ((case, faults), per_second) in order {
            shares.set(ground, *case).await?;
            *per_second = visit(ground, *case, faults).await?;
        }
        rounds.push(round);
    }
    drop(held);
    Ok(rounds)
}

async fn visit(ground: &Ground<'_>, case: Case, faults: &Faults) -> Result<f64, Failure> {
    let running = ground.stand.targets.iter().find(|running| running.target == case.target);
    let running = running.ok_or_else(|| Failure::new(format!("{} does not run", case.target)))?;
    let way: Way = ground.way(running).map_err(Failure::new)?;
    let clients = CLIENTS * case.instances;
    let waiting = RefCell::new(all(&way, faults, clients).await.into());
    let begun = Instant::now();
    let ask = || asked(&waiting, ground.accounts(), begun + TIME, faults);
    let answers = join_all((0..clients).map(|_| ask())).await.concat().len();
    let seconds = begun.elapsed().as_secs_f64();
    leave(waiting.into_inner().into(), faults).await;
    Ok(answers as f64 / seconds)
}

/// How the proxy shares reads out; as before once this is dropped.
struct Shares {
    pid: u32,
    file: PathBuf,
    before: String,
    primary: String,
    standbys: Vec<String>,
}

impl Shares {
    async fn of(ground: &Ground<'_>) -> Result<Self, Failure> {
        let cluster = ground.stand.cluster();
        let proxy = cluster.proxy(0);
        let pid = proxy.process.pid().ok_or_else(|| Failure::new("the proxy has ended"))?;
        let file = cluster.dir().join(&proxy.name).join("proxy.toml");
        let before = std::fs::read_to_string(&file)?;
        let primary = cluster.primary().await?;
        let servers = cluster.nodes().iter().filter(|node| node.postgres.is_some());
        let standbys = servers.map(|node| node.name.clone()).filter(|name| *name != primary).collect();
        Ok(Self { pid, file, before, primary, standbys })
    }

    async fn set(&self, ground: &Ground<'_>, case: Case) -> Result<(), Failure> {
        let (primary, standby) = case.weights;
        let standbys = self.standbys.iter().map(|name| format!("weights.{name} = {standby}\n"));
        let weights = standbys.fold(format!("primary_weight = {primary}\n"), |all, one| all + &one);
        std::fs::write(&self.file, self.before.replace(WEIGHTS, &weights))?;
        signal(self.pid, Signal::HUP);
        let what = format!("reads by the weights {}", case.shown);
        wait_until(&what, RELOAD_TIME_MAX, async || {
            let nodes =
                ground.stand.cluster().show(0, "SHOW NODES").await.map_err(|error| error.to_string())?;
            let told = |name: &String| {
                let node = nodes.iter().find(|node| node.get("name") == Some(name))?;
                node.get("weight")?.parse::<u32>().ok()
            };
            let done = told(&self.primary) == Some(primary)
                && self.standbys.iter().all(|name| told(name) == Some(standby));
            done.then_some(()).ok_or_else(|| format!("the proxy tells {nodes:?}"))
        })
        .await?;
        Ok(())
    }
}

impl Drop for Shares {
    fn drop(&mut self) {
        if std::fs::write(&self.file, &self.before).is_ok() {
            signal(self.pid, Signal::HUP);
        }
    }
}

pub(super) fn promises(rows: &[Row<Reads>]) -> Vec<Promise> {
    let figures = rows.iter().filter_map(|row| row.figures.as_ref());
    let of = |reads: &Reads| {
        let (least, times) = (reads.least?, reads.times.median);
        let what = format!(
            "reads: with weights {} the proxy answers {times:.2} times as many as one instance alone, at least \
             {least} are promised",
            reads.weights
        );
        Some(Promise { what, kept: times >= least })
    };
    figures.filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_more_instances_are_worth_is_promised() {
        let row = |weights, times, least| {
            let times = Spread::of([times]).unwrap();
            let figures = Some(Reads { weights, per_second: 1000.0, times, least });
            Row { target: Target::Pgherd, figures, errors: 0, told: vec![] }
        };
        let promises =
            promises(&[row("1/0/0", 1.0, None), row("0/1/1", 1.9, Some(1.9)), row("1/1/1", 2.7, Some(2.8))]);
        assert_eq!(promises.iter().map(|promise| promise.kept).collect::<Vec<_>>(), [true, false]);
        assert!(promises[1].what.contains("1/1/1"), "{promises:?}");
    }
}
