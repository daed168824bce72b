//! Medians, and how far the rounds lie apart.

/// Several measurements of one thing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The one in the middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

impl Spread {
    /// `None` if there is none. What is no number (a ratio to nothing) does not count.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        let at = |place: usize| values.get(place).copied();
        let (min, max) = (at(0)?, values.last().copied()?);
        let middle = values.len() / 2;
        let upper = at(middle)?;
        let even = values.len().is_multiple_of(2);
        let median = if even { f64::midpoint(at(middle.checked_sub(1)?)?, upper) } else { upper };
        Some(Self { median, min, max })
    }
}

/// The value that `percent` of all values do not exceed. `None` if there is none.
pub fn percentile(values: &mut [u32], percent: usize) -> Option<f64> {
    values.sort_unstable();
    let place = (values.len() * percent).div_ceil(100).saturating_sub(1);
    values.get(place).copied().map(f64::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Spread::of([4.0, 1.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
        assert_eq!(Spread::of([f64::NAN, 5.0, f64::INFINITY]).unwrap().median, 5.0);
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let mut values: Vec<u32> = (1..=200).rev().collect();
        assert_eq!(percentile(&mut values, 50), Some(100.0));
        assert_eq!(percentile(&mut values, 99), Some(198.0));
        assert_eq!(percentile(&mut [7], 99), Some(7.0));
        assert_eq!(percentile(&mut [], 50), None);
    }
}
