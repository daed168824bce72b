//! A burst of logins: how many there are and what each costs the proxy; then a second burst, and what another
//! client feels of it.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep};

use super::client::ClientError;
use super::ground::{Faults, Ground, Way};
use super::probe::Probe;
use super::text::{maybe, number};
use super::{Figures, Row};
use crate::bench::stats::percentile;
use crate::bench::target::Target;
use crate::bench::usage::cpu_us;

/// So many are under way at the same time.
const AT_ONCE: usize = 50;

/// What was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Logins {
    /// How many in a second, by themselves.
    pub per_second: f64,
    /// Microseconds on the processor that the proxy spent on each.
    pub cpu_us: Option<f64>,
    /// Of the other client, when nobody logs in: what half of its answers did not exceed, in microseconds.
    pub quiet_p50_us: Option<f64>,
    /// What 99 of 100 did not.
    pub quiet_p99_us: Option<f64>,
    /// The same during a burst.
    pub burst_p50_us: Option<f64>,
    /// The same during a burst.
    pub burst_p99_us: Option<f64>,
}

impl Figures for Logins {
    const HEADS: &'static [&'static str] =
        &["logins/s", "CPU us each", "p50 us quiet", "p99 us quiet", "p50 us burst", "p99 us burst"];

    fn cells(&self) -> Vec<String> {
        vec![
            number(self.per_second, 0),
            maybe(self.cpu_us, 0),
            maybe(self.quiet_p50_us, 0),
            maybe(self.quiet_p99_us, 0),
            maybe(self.burst_p50_us, 0),
            maybe(self.burst_p99_us, 0),
        ]
    }
}

pub(super) async fn measure(ground: &Ground<'_>) -> Vec<Row<Logins>> {
    let time = Duration::from_secs(ground.options.seconds);
    let measured = async |way: &Way, faults: &Faults| one(way, faults, time).await;
    ground.each(&[Target::PgBouncer, Target::Pgherd], measured).await
}

async fn one(way: &Way, faults: &Faults, time: Duration) -> Result<Logins, ClientError> {
    let ((), mut quiet) = probed(way, sleep(time)).await?;
    let used = || way.pid.and_then(cpu_us);
    let before = used();
    let (logins, seconds) = burst(way, faults, time).await;
    let after = used();
    let (_, mut burst) = probed(way, burst(way, faults, time)).await?;
    let used = before.zip(after).map(|(before, after)| after.saturating_sub(before));
    Ok(Logins {
        per_second: logins as f64 / seconds,
        cpu_us: used.map(|used| used as f64 / logins as f64),
        quiet_p50_us: percentile(&mut quiet, 50),
        quiet_p99_us: percentile(&mut quiet, 99),
        burst_p50_us: percentile(&mut burst, 50),
        burst_p99_us: percentile(&mut burst, 99),
    })
}

/// Does the work while another client asks without a pause; what came of it, and that client's latencies.
async fn probed<T>(way: &Way, work: impl Future<Output = T>) -> Result<(T, Vec<u32>), ClientError> {
    let probe = Probe::start(way).await?;
    let done = work.await;
    Ok((done, probe.stop().await?))
}

/// Logins as fast as they come; how many, in how many seconds.
async fn burst(way: &Way, faults: &Faults, time: Duration) -> (u64, f64) {
    let begun = Instant::now();
    let until = begun + time;
    let one_after_the_other = || async {
        let mut count = 0;
        while Instant::now() < until {
            let client = faults.passed(way.open().await);
            let Some(client) = client else { continue };
            if faults.passed(client.close().await).is_some() {
                count += 1;
            }
        }
        count
    };
    let counts: Vec<u64> = join_all((0..AT_ONCE).map(|_| one_after_the_other())).await;
    (counts.iter().sum(), begun.elapsed().as_secs_f64())
}
