//! Order statistics. No outlier is removed: a slow launch is a fact.

/// The value below which `percent` of the samples lie, between samples by linear
/// interpolation. `None` without samples.
pub fn percentile(samples: &[f64], percent: f64) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    let position = last as f64 * percent.clamp(0.0, 100.0) / 100.0;
    let below = sorted[position.floor() as usize];
    let above = sorted[position.ceil() as usize];
    Some(below + (above - below) * position.fract())
}

pub fn median(samples: &[f64]) -> Option<f64> {
    percentile(samples, 50.0)
}

/// `a / b` where both exist and `b` is not zero.
pub fn ratio(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    match (a, b) {
        (Some(a), Some(b)) if b > 0.0 => Some(a / b),
        _ => None,
    }
}

/// What a table or a note needs to know of a series.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub p10: f64,
    pub p90: f64,
}

pub fn spread(samples: &[f64]) -> Option<Spread> {
    Some(Spread {
        median: median(samples)?,
        p10: percentile(samples, 10.0)?,
        p90: percentile(samples, 90.0)?,
    })
}

impl Spread {
    /// True where the slow tenth takes more than twice as long as the fast tenth: other
    /// work on the machine then weighs as much as what is measured.
    pub fn is_noisy(&self) -> bool {
        self.p90 > 2.0 * self.p10
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_odd_and_even() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn percentiles_interpolate_and_stay_in_range() {
        let samples: Vec<f64> = (0..=10).map(f64::from).collect();
        assert_eq!(percentile(&samples, 10.0), Some(1.0));
        assert_eq!(percentile(&samples, 95.0), Some(9.5));
        assert_eq!(percentile(&samples, 0.0), Some(0.0));
        assert_eq!(percentile(&samples, 250.0), Some(10.0));
        assert_eq!(percentile(&[7.0], 90.0), Some(7.0));
    }

    #[test]
    fn ratio_needs_both_and_a_divisor() {
        assert_eq!(ratio(Some(3.0), Some(2.0)), Some(1.5));
        assert_eq!(ratio(Some(3.0), Some(0.0)), None);
        assert_eq!(ratio(None, Some(2.0)), None);
    }

    #[test]
    fn noise_is_a_wide_spread() {
        let steady: Vec<f64> = (100..200).map(f64::from).collect();
        assert!(!spread(&steady).unwrap().is_noisy());
        let mut noisy = steady.clone();
        noisy.extend([900.0; 20]);
        assert!(spread(&noisy).unwrap().is_noisy());
    }
}
