//! What a process and its children have used: time on the processor, and memory.

use crate::process::children;

/// In `/proc` the kernel counts in hundredths of a second, whatever its own clock does.
const TICK_US: u64 = 10_000;

/// The process and all below it.
fn tree(root: u32) -> Vec<u32> {
    let mut found = vec![root];
    let mut at = 0;
    while let Some(next) = found.get(at).copied() {
        found.extend(children(next));
        at += 1;
    }
    found
}

/// Microseconds on the processor, in user and kernel mode, of the process, its children, and children
/// that have ended. `None` if it is gone.
pub(super) fn cpu_us(root: u32) -> Option<u64> {
    ticks(root)?;
    Some(tree(root).into_iter().filter_map(ticks).sum::<u64>() * TICK_US)
}

fn ticks(pid: u32) -> Option<u64> {
    ticks_in(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// utime, stime, cutime and cstime: the 14th to 17th field. The second may hold anything.
fn ticks_in(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<u64> =
        rest.split_whitespace().skip(11).take(4).map_while(|field| field.parse().ok()).collect();
    (fields.len() == 4).then(|| fields.iter().sum())
}

/// Megabytes of memory, where each process that shares some counts for its part of it.
pub(super) fn pss_mb(root: u32) -> Option<f64> {
    pss_kb(root)?;
    let kilobytes: u32 = tree(root).into_iter().filter_map(pss_kb).sum();
    Some(f64::from(kilobytes) / 1024.0)
}

fn pss_kb(pid: u32) -> Option<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_process_confuses_nobody() {
        let stat = "7 (a b) 1 (c) S 1 7 7 0 -1 4194560 150 80 0 0 3 4 5 6 20 0 1 0 100 1 1 1\n";
        assert_eq!(ticks_in(stat), Some(18));
        assert_eq!(ticks_in("7 (x) S 1"), None);
    }

    #[test]
    fn this_process_has_used_something() {
        let own = std::process::id();
        assert!(cpu_us(own).is_some());
        assert!(pss_mb(own).unwrap() > 0.1);
        assert_eq!(cpu_us(u32::MAX), None);
    }
}
