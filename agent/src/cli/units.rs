//! Sizes and spans for people.

use pgherd_common::WallTime;

/// `16 MB`, `1.5 GB`.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [(&str, u64); 4] = [("TB", 1 << 40), ("GB", 1 << 30), ("MB", 1 << 20), ("kB", 1 << 10)];
    for (unit, size) in UNITS {
        if count >= size {
            let (whole, tenths) = (count / size, count % size * 10 / size);
            return if tenths == 0 { format!("{whole} {unit}") } else { format!("{whole}.{tenths} {unit}") };
        }
    }
    format!("{count} {}", if count == 1 { "byte" } else { "bytes" })
}

/// `412 ms`, `1.6 s`.
pub(super) fn millis(count: u64) -> String {
    if count < 1000 { format!("{count} ms") } else { format!("{}.{} s", count / 1000, count % 1000 / 100) }
}

/// `12 s`, `5 min`, `3 h 12 min`, `2 d 4 h`: the two largest units.
pub(super) fn span(millis: u64) -> String {
    const UNITS: [(&str, u64); 4] = [("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)];
    let mut left = millis / 1000;
    let mut parts = Vec::new();
    for (unit, seconds) in UNITS {
        let count = left / seconds;
        left %= seconds;
        if count > 0 {
            parts.push(format!("{count} {unit}"));
        } else if !parts.is_empty() {
            break;
        }
    }
    parts.truncate(2);
    if parts.is_empty() { "less than 1 s".to_owned() } else { parts.join(" ") }
}

/// The span from one time to a later one.
pub(super) fn between(from: WallTime, to: WallTime) -> String {
    millis(to.0.saturating_sub(from.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(bytes(1), "1 byte");
        assert_eq!(bytes(0), "0 bytes");
        assert_eq!(bytes(16 << 20), "16 MB");
        assert_eq!(bytes((3 << 30) / 2), "1.5 GB");
        assert_eq!(millis(999), "999 ms");
        assert_eq!(millis(61_650), "61.6 s");
        assert_eq!(span(900), "less than 1 s");
        assert_eq!(span(61_000), "1 min 1 s");
        assert_eq!(span(3 * 3_600_000 + 12 * 60_000 + 9000), "3 h 12 min");
        assert_eq!(span(86_400_000 + 5000), "1 d");
        assert_eq!(between(WallTime(1000), WallTime(1412)), "412 ms");
        assert_eq!(between(WallTime(2000), WallTime(1000)), "0 ms");
    }
}
