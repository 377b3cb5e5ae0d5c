//! Samples and how they are shown.

use std::time::Duration;

/// The times of one contender.
#[derive(Debug, Clone, Default)]
pub struct Samples(Vec<Duration>);

impl Samples {
    /// Adds one.
    pub fn push(&mut self, sample: Duration) {
        self.0.push(sample);
    }

    /// The smallest, the median and the largest in milliseconds; zeros when there are none.
    pub fn spread(&self) -> [f64; 3] {
        let mut sorted = self.0.clone();
        sorted.sort();
        let Some(last) = sorted.len().checked_sub(1) else {
            return [0.0; 3];
        };
        // The upper of two middles: never kinder than the true median.
        [sorted[0], sorted[sorted.len() / 2], sorted[last]].map(|time| time.as_secs_f64() * 1000.0)
    }

    /// The median in milliseconds.
    pub fn median(&self) -> f64 {
        self.spread()[1]
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

/// Numbers in an order that cannot be guessed by what is measured.
pub struct Shuffler(fastrand::Rng);

impl Shuffler {
    /// Begins at `seed`; the same seed gives the same orders.
    pub fn new(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed))
    }

    /// 0 to `n` - 1 in another order at each call.
    pub fn order(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        self.0.shuffle(&mut order);
        order
    }
}

/// The smallest value that so many of a hundred do not exceed.
pub fn percentile(times: &[f64], part: usize) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    let idx = (sorted.len() * part).div_ceil(100).saturating_sub(1);
    sorted.get(idx).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let mut samples = Samples::default();
        assert_eq!(samples.spread(), [0.0; 3]);
        for millis in [30, 10, 20, 50] {
            samples.push(Duration::from_millis(millis));
        }
        assert_eq!(samples.spread(), [10.0, 30.0, 50.0]);
    }

    #[test]
    fn an_order_has_every_number_once() {
        let mut shuffler = Shuffler::new(1);
        let orders: Vec<_> = (0..20).map(|_| shuffler.order(4)).collect();
        for order in &orders {
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3]);
        }
        assert!(orders.iter().any(|order| *order != orders[0]));
    }
}
