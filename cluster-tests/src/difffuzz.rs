//! Sessions of random statements, said byte for byte alike to the proxy of a cluster with two standbys and
//! to a PostgreSQL that stands alone: whoever can tell them apart has found a defect of the proxy.

mod generate;
mod line;
mod say;
mod script;
mod server;
mod shrink;
mod told;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::cluster::Cluster;
use crate::failure::Failure;
use crate::install;
use line::{Address, Line, Until};
use say::Say;
use script::{Difference, Pair, Room, Script};
use server::Alone;
use shrink::Shrink;

/// Nothing here is about durability, nor about failover: a loaded machine gets more patience than is usual.
const POSTGRES_SETTINGS: &str = "fsync = off\nmax_connections = 200\n";
const AGENT_SETTINGS: &str = "[timings]\nlease = \"8s\"\nlocal_timeout = \"60s\"\nnode_timeout = \"20s\"\n\
     node_lost_after = \"60s\"\nelection_timeout_min = \"2s\"\nelection_timeout_max = \"4s\"\n";
/// How often a session is run again to find what of it matters.
const TRIES_MAX: usize = 120;
/// So often a difference must stay away to be called one that does not come again.
const REPEATS: usize = 3;
/// How long an answer may take, and how long when a session is run again.
const PATIENCE: Duration = Duration::from_secs(45);
const PATIENCE_AGAIN: Duration = Duration::from_secs(5);
/// How often it is said how far the run is, in sessions.
const TOLD_EVERY: u64 = 500;

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Options {
    /// What all sessions are made of.
    pub seed: u64,
    /// The number of the first session.
    pub first: u64,
    /// How many sessions.
    pub sessions: u64,
    /// How many at the same time.
    pub parallel: usize,
    /// After so many differences the run ends.
    pub differences_max: u64,
    /// PostgreSQL's programs, if not the newest installed.
    pub pg_bin: Option<PathBuf>,
    /// Where logs are kept if something differs.
    pub keep: PathBuf,
}

/// What came of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Sessions that were run.
    pub sessions: u64,
    /// Statements in them.
    pub statements: u64,
    /// Messages of the stand-alone server's that were compared.
    pub messages: u64,
    /// Sessions whose answers differed.
    pub differences: u64,
    /// Reads that the proxy sent to standbys, and to all nodes.
    pub reads: (u64, u64),
}

/// From a worker to whoever counts.
enum News {
    Session { statements: usize, messages: usize },
    Difference(String),
}

/// What all workers share.
struct Plan {
    options: Options,
    pair: Pair,
    next: AtomicU64,
    serial: AtomicU32,
}

/// Runs it and tells `say` what it finds.
pub async fn run(options: &Options, say: &dyn Fn(&str)) -> Result<Tally, Failure> {
    let bin_dir = install::postgres_programs(options.pg_bin.as_deref(), say).await?;
    say("starting a primary, two standbys, their agents, a proxy, and a PostgreSQL that stands alone");
    // Fewer connections than sessions, so that they change hands.
    let pool = (options.parallel / 2).max(2);
    let cluster = Cluster::builder()
        .name("difffuzz")
        .pg_bin(options.pg_bin.clone())
        .postgres_settings(POSTGRES_SETTINGS)
        .agent_settings(AGENT_SETTINGS)
        .proxy_settings(&format!("[routing]\nprimary_weight = 0\n\n[pool]\nsize = {pool}\n"))
        .keep_logs(options.keep.clone())
        .start()
        .await?;
    let alone = Alone::start(&bin_dir, POSTGRES_SETTINGS).await?;
    let proxy = cluster.proxy(0);
    let pair = Pair {
        direct: Address { host: alone.postgres.place.host.clone(), port: alone.postgres.port },
        proxy: Address { host: proxy.place.host.clone(), port: proxy.port },
        patience: PATIENCE,
    };
    let plan = Plan {
        options: options.clone(),
        pair,
        next: AtomicU64::new(options.first),
        serial: AtomicU32::new(1),
    };
    let begun = tokio::time::Instant::now();
    let mut tally = all(Arc::new(plan), say).await?;
    tally.reads = reads(&cluster).await?;
    say(&told(options, &tally, begun.elapsed().as_secs()));
    if tally.differences == 0 {
        cluster.finish(&[])?;
    }
    Ok(tally)
}

/// All sessions, some at a time.
async fn all(plan: Arc<Plan>, say: &dyn Fn(&str)) -> Result<Tally, Failure> {
    let (sender, mut news) = mpsc::channel(1024);
    let mut workers = JoinSet::new();
    for slot in 1..=plan.options.parallel {
        let (plan, sender) = (plan.clone(), sender.clone());
        workers.spawn(async move { work(&plan, slot, &sender).await });
    }
    drop(sender);
    let mut tally = Tally::default();
    while let Some(news) = news.recv().await {
        match news {
            News::Session { statements, messages } => {
                tally.sessions += 1;
                tally.statements += u64::try_from(statements).unwrap_or(0);
                tally.messages += u64::try_from(messages).unwrap_or(0);
                if tally.sessions.is_multiple_of(TOLD_EVERY) {
                    say(&format!("{} sessions, {} differences", tally.sessions, tally.differences));
                }
            }
            News::Difference(report) => {
                tally.differences += 1;
                say(&report);
                if tally.differences >= plan.options.differences_max {
                    say("enough differences: ending the run");
                    return Ok(tally);
                }
            }
        }
    }
    while let Some(ended) = workers.join_next().await {
        ended.map_err(|error| Failure::new(error.to_string()))??;
    }
    Ok(tally)
}

/// One session after the other, all in one room.
async fn work(plan: &Plan, slot: usize, news: &mpsc::Sender<News>) -> io::Result<()> {
    let schema = format!("w{slot}");
    let mut altered = true;
    loop {
        let number = plan.next.fetch_add(1, Ordering::Relaxed);
        if number - plan.options.first >= plan.options.sessions {
            return Ok(());
        }
        let of_session = |error: io::Error| io::Error::other(format!("session {number}: {error}"));
        let script = prepare(plan, number, &schema, altered).await.map_err(of_session)?;
        altered = script.alters;
        let played = script.play(&plan.pair).await.map_err(of_session)?;
        let (statements, messages) = (played.statements, played.messages);
        if let Some(difference) = played.difference {
            altered = true;
            let report = examine(plan, number, &schema, &script, difference).await;
            if news.send(News::Difference(report)).await.is_err() {
                return Ok(());
            }
        }
        if news.send(News::Session { statements, messages }).await.is_err() {
            return Ok(());
        }
    }
}

/// Makes the room ready, and the session that will find it so.
async fn prepare(plan: &Plan, number: u64, schema: &str, altered: bool) -> io::Result<Script> {
    let serial = plan.serial.fetch_add(1, Ordering::Relaxed);
    let text = if altered { generate::furnish(schema) } else { generate::tidy(schema) };
    let mut query = Vec::new();
    Say::Query(text).put(&mut query);
    for address in [&plan.pair.direct, &plan.pair.proxy] {
        let (mut line, _) = Line::open(address, plan.pair.patience).await?;
        let mut answer = Vec::new();
        let answered = line.exchange(&query, Until::Ready(1), &mut answer).await;
        if !answered || answer.iter().any(|told| matches!(told.tag, 0 | b'E')) {
            let last: Vec<String> = answer.iter().rev().take(3).map(ToString::to_string).collect();
            return Err(io::Error::other(format!("cannot prepare the tables: {}", last.join(", "))));
        }
    }
    Ok(generate::session(plan.options.seed, number, &Room { schema: schema.to_owned(), serial }))
}

/// The report about a difference, with what matters of the session only.
async fn examine(plan: &Plan, number: u64, schema: &str, script: &Script, found: Difference) -> String {
    let seed = plan.options.seed;
    let title = format!(
        "DIFFERENCE in session {number} of seed {seed}; to run it alone:\n  \
         cargo xtask difffuzz --seed {seed} --first {number} --sessions 1"
    );
    let upto = found.step.map_or(0, |step| step + 1).min(script.steps.len());
    let all: Vec<usize> = (0..upto).collect();
    let mut comes_again = false;
    for _ in 0..REPEATS {
        comes_again = comes_again || again(plan, number, schema, &all).await.is_some();
    }
    if !comes_again {
        let note = format!("it did not come again in {REPEATS} runs; the whole session:");
        return shown(&title, &note, &script.clone().only(&all), &found);
    }
    let mut shrink = Shrink::new(upto);
    for _ in 0..TRIES_MAX {
        let Some(proposal) = shrink.proposal() else { break };
        let enough = again(plan, number, schema, &proposal).await.is_some();
        shrink.learn(proposal, enough);
    }
    let kept = shrink.kept();
    for _ in 0..REPEATS {
        if let Some((script, difference)) = again(plan, number, schema, &kept).await {
            let note = format!("{} of its steps are enough:", script.steps.len());
            return shown(&title, &note, &script, &difference);
        }
    }
    shown(&title, "it comes now and then; the steps left:", &script.clone().only(&kept), &found)
}

/// Runs these steps of a session once more; what they were if there is a difference.
async fn again(plan: &Plan, number: u64, schema: &str, kept: &[usize]) -> Option<(Script, Difference)> {
    let script = prepare(plan, number, schema, true).await.ok()?.only(kept);
    let pair = Pair { patience: PATIENCE_AGAIN, ..plan.pair.clone() };
    let difference = script.play(&pair).await.ok()?.difference?;
    Some((script, difference))
}

fn shown(title: &str, note: &str, script: &Script, difference: &Difference) -> String {
    let steps: Vec<String> = script.steps.iter().map(ToString::to_string).collect();
    format!("{title}\n  {note}\n{}{difference}", steps.join("    --\n"))
}

/// How many reads the proxy counted on standbys, and in all.
async fn reads(cluster: &Cluster) -> Result<(u64, u64), Failure> {
    let mut reads = (0, 0);
    for row in cluster.show(0, "SHOW NODES").await? {
        let count = row.get("select_cnt").and_then(|count| count.parse::<u64>().ok());
        let count = count.ok_or_else(|| Failure::new(format!("no select_cnt in {row:?}")))?;
        reads.0 += if row.get("role").is_some_and(|role| role == "standby") { count } else { 0 };
        reads.1 += count;
    }
    Ok(reads)
}

fn told(options: &Options, tally: &Tally, seconds: u64) -> String {
    let (standbys, reads) = tally.reads;
    let permille = standbys * 1000 / reads.max(1);
    format!(
        "seed {}: {} sessions, {} statements, {} messages compared, {} differences, {seconds} s; \
         reads on standbys: {}.{} % of {reads}",
        options.seed,
        tally.sessions,
        tally.statements,
        tally.messages,
        tally.differences,
        permille / 10,
        permille % 10
    )
}
