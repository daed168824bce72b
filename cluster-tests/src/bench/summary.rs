//! From the rounds of a workload to one line for each target.
//!
//! Ratios are taken within a round, between runs that follow each other, so that what the machine
//! does beside hits both; then the median of the rounds counts.

use super::stats::Spread;
use super::target::Target;
use super::workload::Workload;

/// How long single transactions took, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Latency {
    /// Half of them no longer.
    pub p50: f64,
    /// All but one of a hundred no longer.
    pub p99: f64,
}

/// One run of pgbench.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// Transactions in a second.
    pub tps: f64,
    /// Microseconds of processor time in the proxy for each transaction; none for the direct way.
    pub cpu_us: Option<f64>,
    /// Megabytes that the proxy holds at the end; none for the direct way.
    pub pss_mb: Option<f64>,
    /// Only where it was asked for.
    pub latency: Option<Latency>,
}

/// A run, or why there are no figures.
pub type Outcome = Result<Sample, String>;

/// Every target once.
pub type Round = Vec<(Target, Outcome)>;

/// One target in one workload.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Which target.
    pub target: Target,
    /// Transactions in a second.
    pub tps: Option<Spread>,
    /// The same relative to the baseline.
    pub tps_ratio: Option<Spread>,
    /// Microseconds in the proxy for each transaction.
    pub cpu_us: Option<Spread>,
    /// The same relative to the baseline.
    pub cpu_ratio: Option<Spread>,
    /// Megabytes.
    pub pss_mb: Option<Spread>,
    /// Median latency.
    pub p50: Option<Spread>,
    /// 99th percentile of the latency.
    pub p99: Option<Spread>,
    /// Median latency less that of the direct way.
    pub p50_added: Option<Spread>,
    /// 99th percentile less that of the direct way.
    pub p99_added: Option<Spread>,
    /// Why rounds have no figures.
    pub failures: Vec<String>,
}

/// All targets in one workload.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// Which workload.
    pub workload: Workload,
    /// What the ratios refer to.
    pub baseline: Option<Target>,
    /// In the order of the first round.
    pub rows: Vec<Row>,
}

impl Summary {
    /// Sums the rounds up.
    pub fn of(workload: Workload, rounds: &[Round]) -> Self {
        let worked = |target: Target| rounds.iter().any(|round| sample(round, target).is_some());
        let baseline = [Target::PgBouncer, Target::PgBouncerSession, Target::Direct];
        let baseline = baseline.into_iter().find(|target| worked(*target));
        let first = rounds.first().map(Vec::as_slice).unwrap_or_default();
        let rows = first.iter().map(|(target, _)| Row::of(*target, baseline, rounds)).collect();
        Self { workload, baseline, rows }
    }

    /// The line of a target.
    pub fn row(&self, target: Target) -> Option<&Row> {
        self.rows.iter().find(|row| row.target == target)
    }
}

impl Row {
    fn of(target: Target, baseline: Option<Target>, rounds: &[Round]) -> Self {
        let own = |figure: fn(&Sample) -> Option<f64>| {
            Spread::of(rounds.iter().filter_map(|round| figure(sample(round, target)?)))
        };
        let against =
            |other: Option<Target>, figure: fn(&Sample) -> Option<f64>, compared: fn(f64, f64) -> f64| {
                Spread::of(rounds.iter().filter_map(|round| {
                    Some(compared(figure(sample(round, target)?)?, figure(sample(round, other?)?)?))
                }))
            };
        let p50 = |sample: &Sample| sample.latency.map(|latency| latency.p50);
        let p99 = |sample: &Sample| sample.latency.map(|latency| latency.p99);
        let outcomes = rounds.iter().flatten().filter(|(of, _)| *of == target);
        let direct = (target != Target::Direct).then_some(Target::Direct);
        Self {
            target,
            tps: own(|sample| Some(sample.tps)),
            tps_ratio: against(baseline, |sample| Some(sample.tps), |own, other| own / other),
            cpu_us: own(|sample| sample.cpu_us),
            cpu_ratio: against(baseline, |sample| sample.cpu_us, |own, other| own / other),
            pss_mb: own(|sample| sample.pss_mb),
            p50: own(p50),
            p99: own(p99),
            p50_added: against(direct, p50, |own, other| own - other),
            p99_added: against(direct, p99, |own, other| own - other),
            failures: outcomes.filter_map(|(_, outcome)| outcome.as_ref().err().cloned()).collect(),
        }
    }

    /// Whether no round has figures.
    pub fn failed(&self) -> bool {
        self.tps.is_none()
    }
}

fn sample(round: &Round, target: Target) -> Option<&Sample> {
    round.iter().find(|(of, _)| *of == target).and_then(|(_, outcome)| outcome.as_ref().ok())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::bench) fn run(tps: f64, cpu_us: f64) -> Outcome {
        Ok(Sample { tps, cpu_us: Some(cpu_us), pss_mb: Some(9.0), latency: None })
    }

    #[test]
    fn ratios_are_those_within_a_round() {
        // The machine is half as fast in the second round; the ratio is not.
        let rounds = vec![
            vec![(Target::PgBouncer, run(1000.0, 20.0)), (Target::Pgherd, run(900.0, 30.0))],
            vec![(Target::Pgherd, run(450.0, 60.0)), (Target::PgBouncer, run(500.0, 40.0))],
            vec![(Target::PgBouncer, run(1000.0, 20.0)), (Target::Pgherd, Err("no".to_owned()))],
        ];
        let summary = Summary::of(Workload::Simple, &rounds);
        assert_eq!(summary.baseline, Some(Target::PgBouncer));
        let row = summary.row(Target::Pgherd).unwrap();
        assert_eq!(row.cpu_ratio, Some(Spread { median: 1.5, min: 1.5, max: 1.5 }));
        assert_eq!(row.tps_ratio.unwrap().median, 0.9);
        assert_eq!(row.tps.unwrap().median, 675.0);
        assert_eq!(row.failures, ["no"]);
        assert!(!row.failed());
    }

    #[test]
    fn session_mode_stands_in_for_transaction_mode() {
        let rounds = vec![vec![
            (Target::PgBouncer, Err("prepared statement does not exist".to_owned())),
            (Target::PgBouncerSession, run(1000.0, 20.0)),
            (Target::Relay, run(2000.0, 10.0)),
        ]];
        let summary = Summary::of(Workload::Prepared, &rounds);
        assert_eq!(summary.baseline, Some(Target::PgBouncerSession));
        assert!(summary.row(Target::PgBouncer).unwrap().failed());
        assert_eq!(summary.row(Target::Relay).unwrap().cpu_ratio.unwrap().median, 0.5);
    }

    #[test]
    fn latency_is_what_is_added() {
        let timed = |p50, p99| {
            Ok(Sample { tps: 1.0, cpu_us: None, pss_mb: None, latency: Some(Latency { p50, p99 }) })
        };
        let rounds = vec![vec![(Target::Direct, timed(50.0, 90.0)), (Target::Relay, timed(80.0, 150.0))]];
        let summary = Summary::of(Workload::Latency, &rounds);
        let row = summary.row(Target::Relay).unwrap();
        assert_eq!((row.p50_added.unwrap().median, row.p99_added.unwrap().median), (30.0, 60.0));
        assert_eq!(summary.row(Target::Direct).unwrap().p50_added, None);
    }
}
