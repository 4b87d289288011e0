// SPDX-License-Identifier: GPL-2.0

//! Counts of durations, from which percentiles are read.
//!
//! Up to 255 each value has its own counter; above, each power of two is divided into 128 equal parts, so that a value
//! is known to better than one percent.

const PARTS: u64 = 128;
const PARTS_LOG: u32 = PARTS.ilog2();
const COUNTERS: usize = ((64 - PARTS_LOG as usize) + 1) * PARTS as usize;

/// The counts.
#[derive(Clone)]
pub struct Histogram {
    counters: Vec<u64>,
    count: u64,
    sum: u128,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram {
            counters: vec![0; COUNTERS],
            count: 0,
            sum: 0,
            max: 0,
        }
    }
}

/// The counter of a value.
fn index(value: u64) -> usize {
    let shift = (u64::BITS - value.leading_zeros()).saturating_sub(PARTS_LOG + 1);
    (u64::from(shift) * PARTS + (value >> shift)) as usize
}

/// The largest value of a counter.
fn largest(index: usize) -> u64 {
    let index = index as u64;
    if index < 2 * PARTS {
        return index;
    }
    let shift = index / PARTS - 1;
    let first = (index - shift * PARTS) << shift;
    first + ((1 << shift) - 1)
}

impl Histogram {
    /// Counts a value.
    pub fn add(&mut self, value: u64) {
        self.counters[index(value)] += 1;
        self.count += 1;
        self.sum += u128::from(value);
        self.max = self.max.max(value);
    }

    /// Counts all that another one has counted.
    pub fn merge(&mut self, other: &Histogram) {
        for (counter, more) in self.counters.iter_mut().zip(&other.counters) {
            *counter += more;
        }
        self.count += other.count;
        self.sum += other.sum;
        self.max = self.max.max(other.max);
    }

    /// How many values there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Their mean.
    pub fn mean(&self) -> f64 {
        if self.count == 0 {
            0.0
        } else {
            self.sum as f64 / self.count as f64
        }
    }

    /// The largest of them.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// A value that `percent` of 100 values do not exceed.
    pub fn percentile(&self, percent: f64) -> u64 {
        let wanted = (self.count as f64 * percent / 100.0).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (index, count) in self.counters.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return largest(index).min(self.max);
            }
        }
        self.max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_has_a_counter_that_is_close() {
        let mut last = 0;
        for value in (0..100_000).chain((20..64).flat_map(|bit| [(1 << bit) - 1, 1 << bit])) {
            let at = index(value);
            assert!(at >= last || value < 1 << 20, "{value}");
            last = at;
            let bound = largest(at);
            assert!(
                bound >= value && bound - value <= value / PARTS,
                "{value} {bound}"
            );
        }
        assert!(index(u64::MAX) < COUNTERS);
    }

    #[test]
    fn percentiles_of_known_values() {
        let mut histogram = Histogram::default();
        (1..=100).for_each(|value| histogram.add(value));
        assert_eq!(histogram.percentile(50.0), 50);
        assert_eq!(histogram.percentile(99.0), 99);
        assert_eq!(histogram.percentile(100.0), 100);
        assert_eq!(histogram.mean(), 50.5);
        let mut both = Histogram::default();
        both.merge(&histogram);
        both.add(1 << 40);
        assert_eq!(
            (both.count(), both.max(), both.percentile(100.0)),
            (101, 1 << 40, 1 << 40)
        );
    }
}
