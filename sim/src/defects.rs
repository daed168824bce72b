//! The proof that the simulator bites: each deliberate mistake, and how many seeds it takes to find it.

use std::process::ExitCode;

use pgherd_core::defect::Defect;
use pgherd_sim::run::{Options, run};

/// Makes the simulation on this thread defective.
#[cfg(feature = "defects")]
pub(crate) fn plant(defect: Option<Defect>) {
    pgherd_core::defect::plant(defect);
}

/// Built without defects.
#[cfg(not(feature = "defects"))]
pub(crate) fn plant(_defect: Option<Defect>) {}

/// The defect of this name.
pub(crate) fn by_name(name: &str) -> Result<Defect, String> {
    if !cfg!(feature = "defects") {
        return Err("this program was built without defects: use `cargo xtask sim`".to_owned());
    }
    let names = || Defect::ALL.iter().map(|defect| defect.name()).collect::<Vec<_>>().join(", ");
    let found = Defect::ALL.iter().find(|defect| defect.name() == name);
    found.copied().ok_or_else(|| format!("there is no defect {name}; there are: {}", names()))
}

/// Seeds between the first seeds of two searches.
const APART: u64 = 1_000_000;

/// Searches for every defect and prints a table.
pub(crate) fn table(
    only: Option<&str>,
    (times, within, quick): (u64, u64, bool),
    options: &Options,
) -> ExitCode {
    if let Err(error) = by_name(only.unwrap_or(Defect::SkipRecruit.name())) {
        println!("{error}");
        return ExitCode::FAILURE;
    }
    println!("| Defect | Seeds to find it (median) | Fewest | Most | Found as |");
    println!("|---|---|---|---|---|");
    let mut missed = 0;
    let slow = |defect: &Defect| matches!(defect, Defect::LongestWalWins | Defect::CommitsNotHeld);
    let all = Defect::ALL.iter().filter(|defect| !(quick && slow(defect)));
    for defect in all.filter(|defect| only.is_none_or(|only| only == defect.name())) {
        let searches: Vec<_> =
            (1..=times).map(|search| search_for(*defect, search * APART, within, options)).collect();
        let mut counts: Vec<u64> = searches.iter().flatten().map(|(count, _)| *count).collect();
        counts.sort_unstable();
        let mut rules: Vec<&str> = searches.iter().flatten().map(|(_, rule)| *rule).collect();
        rules.sort_unstable();
        rules.dedup();
        let all = counts.len() == searches.len();
        missed += usize::from(!all);
        let cell = |at: usize| counts.get(at).map_or("-".to_owned(), u64::to_string);
        let most = if all { cell(counts.len().saturating_sub(1)) } else { format!("not within {within}") };
        println!(
            "| {} | {} | {} | {most} | {} |",
            defect.name(),
            cell(counts.len() / 2),
            cell(0),
            rules.join(", ")
        );
    }
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// How many seeds it takes, and the rule that was broken.
fn search_for(defect: Defect, first: u64, within: u64, options: &Options) -> Option<(u64, &'static str)> {
    let of_sync = matches!(defect, Defect::CommitsNotHeld | Defect::IgnoreCover | Defect::SettleUnmet);
    let options = Options { synchronous: of_sync, ..*options };
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU64, Ordering};
    let (next, best) = (AtomicU64::new(0), Mutex::new(None::<(u64, &'static str)>));
    std::thread::scope(|scope| {
        for _ in 0..super::many::threads() {
            scope.spawn(|| {
                plant(Some(defect));
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= within || super::many::lock(&best).is_some_and(|(found, _)| found < number) {
                        return;
                    }
                    let Some((_, violation)) = run(first + number, &options).violation else { continue };
                    let mut best = super::many::lock(&best);
                    if best.is_none_or(|(found, _)| number + 1 < found) {
                        *best = Some((number + 1, violation.rule()));
                    }
                }
            });
        }
    });
    best.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
}
