//! From what the writers saw in a run to one line for each case and system.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use tokio::time::{Duration, Instant};

use super::case::Case;
use super::system::System;
use crate::bench::stats::Spread;

/// One run.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The longest time in which no writer got a commit acknowledged.
    pub outage: Duration,
    /// Sessions that were closed.
    pub dropped: usize,
    /// Failed statements by SQLSTATE, or by what else went wrong.
    pub errors: BTreeMap<String, usize>,
    /// Rows that were acknowledged.
    pub acked: usize,
    /// Of those, the ones that are gone.
    pub lost: usize,
    /// Rows that are there more than once.
    pub duplicated: usize,
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { dropped, errors, acked, lost, duplicated, .. } = self;
        let outage = milliseconds(self.outage);
        write!(
            f,
            "{outage:.0} ms, {dropped} sessions dropped, {acked} rows acknowledged, {lost} lost, {duplicated} twice"
        )?;
        errors.iter().try_for_each(|(kind, times)| write!(f, ", {times} x {kind}"))
    }
}

/// A run, or why there are no figures.
pub type Outcome = Result<Sample, String>;

/// All runs of a case on a system.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// On which.
    pub system: System,
    /// What was done.
    pub case: Case,
    /// How many runs have figures.
    pub runs: usize,
    /// Milliseconds.
    pub outage: Option<Spread>,
    /// Sessions that were closed.
    pub dropped: Option<Spread>,
    /// Failed statements by SQLSTATE; a run without one counts as none.
    pub errors: BTreeMap<String, Spread>,
    /// Rows acknowledged and gone.
    pub lost: Option<Spread>,
    /// Rows there more than once.
    pub duplicated: Option<Spread>,
    /// Why runs have no figures.
    pub failures: Vec<String>,
}

impl Row {
    /// Sums the runs up.
    pub fn of<'a>(system: System, case: Case, outcomes: impl Iterator<Item = &'a Outcome>) -> Self {
        let (mut samples, mut failures) = (Vec::new(), Vec::new());
        for outcome in outcomes {
            match outcome {
                Ok(sample) => samples.push(sample),
                Err(failure) => failures.push(failure.clone()),
            }
        }
        let count =
            |figure: fn(&Sample) -> usize| Spread::of(samples.iter().map(|sample| figure(sample) as f64));
        let kinds: BTreeSet<&String> = samples.iter().flat_map(|sample| sample.errors.keys()).collect();
        let times = |kind: &String| {
            let times = samples.iter().map(|sample| sample.errors.get(kind).copied().unwrap_or(0) as f64);
            Some((kind.clone(), Spread::of(times)?))
        };
        Self {
            system,
            case,
            runs: samples.len(),
            outage: Spread::of(samples.iter().map(|sample| milliseconds(sample.outage))),
            dropped: count(|sample| sample.dropped),
            errors: kinds.into_iter().filter_map(times).collect(),
            lost: count(|sample| sample.lost),
            duplicated: count(|sample| sample.duplicated),
            failures,
        }
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// The longest time without an answer from the last one before `begun` to `ended`.
pub(super) fn outage(answers: &[Instant], begun: Instant, ended: Instant) -> Duration {
    let mut answers = answers.to_vec();
    answers.sort_unstable();
    let before = answers.iter().rev().find(|at| **at <= begun).copied();
    let (mut last, mut longest) = (before.unwrap_or(begun), Duration::ZERO);
    for at in answers.into_iter().filter(|at| *at > begun && *at <= ended) {
        longest = longest.max(at - last);
        last = at;
    }
    longest.max(ended.saturating_duration_since(last))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::bench::failover) fn sample(ms: u64, lost: usize, errors: &[(&str, usize)]) -> Outcome {
        let errors = errors.iter().map(|(kind, times)| ((*kind).to_owned(), *times)).collect();
        let outage = Duration::from_millis(ms);
        Ok(Sample { outage, dropped: 4, errors, acked: 1000, lost, duplicated: 0 })
    }

    #[test]
    fn the_longest_silence_is_the_outage() {
        let now = Instant::now();
        let at = |ms| now + Duration::from_millis(ms);
        let ms = |answers: &[u64], begun, ended| {
            let answers: Vec<Instant> = answers.iter().map(|ms| at(*ms)).collect();
            outage(&answers, at(begun), at(ended)).as_millis()
        };
        assert_eq!(ms(&[0, 500, 510, 900, 905], 520, 910), 390, "from the last answer before it");
        assert_eq!(ms(&[0, 500, 510, 905, 900], 520, 910), 390, "whatever their order is");
        assert_eq!(ms(&[510, 600, 610], 520, 900), 290, "the silence at the end counts");
        assert_eq!(ms(&[], 520, 900), 380);
        assert_eq!(ms(&[0, 400, 410], 402, 412), 10, "what was before does not");
    }

    #[test]
    fn a_run_without_an_error_counts_as_none() {
        let runs = [sample(200, 0, &[("57P01", 4)]), sample(400, 2, &[]), Err("not back".to_owned())];
        let row = Row::of(System::Pgpool, Case::Crash, runs.iter());
        assert_eq!((row.runs, row.failures.len()), (2, 1));
        assert_eq!(row.outage, Some(Spread { median: 300.0, min: 200.0, max: 400.0 }));
        assert_eq!(row.errors["57P01"], Spread { median: 2.0, min: 0.0, max: 4.0 });
        assert_eq!(row.lost.unwrap().max, 2.0);
        let none = Row::of(System::Pgpool, Case::Crash, [Err("no".to_owned())].iter());
        assert_eq!((none.outage, none.runs), (None, 0));
    }
}
