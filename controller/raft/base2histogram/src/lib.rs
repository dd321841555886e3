//! The histograms in which openraft counts the sizes of its batches.
//!
//! openraft 0.10.0-alpha.37 takes them from the crate `base2histogram` 0.2.3, which fills lookup tables for
//! sixteen resolutions on first use, 27 MB of them, to use one. A controller as a whole should stay below 40 MiB.
//! Nothing of Stor reads these figures. So this crate has the interface that openraft compiles against and one
//! counter per power of two. It goes when upstream builds only the tables it uses.

use std::fmt;
use std::marker::PhantomData;

/// One bucket for zero and one per bit length.
const BUCKETS: usize = 65;

/// Counts values by their bit length. `T` is upstream's and unused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    counts: [u64; BUCKETS],
    unused: PhantomData<T>,
}

impl<T> Histogram<T> {
    /// An empty histogram.
    pub fn new() -> Self {
        Self {
            counts: [0; BUCKETS],
            unused: PhantomData,
        }
    }

    /// Counts one value.
    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Counts a value `n` times.
    pub fn record_n(&mut self, value: u64, n: u64) {
        // At most 64, whatever the value.
        let bits = (u64::BITS - value.leading_zeros()) as usize;
        if let Some(count) = self.counts.get_mut(bits) {
            *count = count.saturating_add(n);
        }
    }

    /// How many values were counted.
    pub fn total(&self) -> u64 {
        self.counts
            .iter()
            .fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// The least value of the bucket that holds the given share of the values, in thousandths.
    fn permille(&self, share: u128) -> u64 {
        let wanted = u128::from(self.total()) * share;
        let mut seen = 0;
        for (bits, count) in self.counts.iter().enumerate() {
            seen += u128::from(*count) * 1_000;
            if *count > 0 && seen >= wanted {
                return if bits == 0 { 0 } else { 1 << (bits - 1) };
            }
        }
        0
    }

    /// The usual percentiles, each rounded down to a power of two.
    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats {
            samples: self.total(),
            p0_1: self.permille(1),
            p1: self.permille(10),
            p5: self.permille(50),
            p10: self.permille(100),
            p50: self.permille(500),
            p90: self.permille(900),
            p99: self.permille(990),
            p99_9: self.permille(999),
        }
    }
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// Percentiles of a histogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PercentileStats {
    /// How many values.
    pub samples: u64,
    /// 0.1 % are not greater.
    pub p0_1: u64,
    /// 1 % are not greater.
    pub p1: u64,
    /// 5 % are not greater.
    pub p5: u64,
    /// 10 % are not greater.
    pub p10: u64,
    /// The median.
    pub p50: u64,
    /// 90 % are not greater.
    pub p90: u64,
    /// 99 % are not greater.
    pub p99: u64,
    /// 99.9 % are not greater.
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            samples,
            p10,
            p50,
            p90,
            p99,
            p99_9,
            ..
        } = self;
        write!(
            f,
            "[samples: {samples}, P10: {p10}, P50: {p50}, P90: {p90}, P99: {p99}, P99.9: {p99_9}]"
        )
    }
}

/// Several histograms, one line each.
#[derive(Debug, Clone, Default)]
pub struct AsciiChart {
    lines: Vec<(String, PercentileStats)>,
}

impl AsciiChart {
    /// An empty chart.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a histogram.
    #[must_use]
    #[expect(clippy::needless_pass_by_value, reason = "upstream's signature")]
    pub fn add(mut self, name: impl Into<String>, histogram: Histogram) -> Self {
        self.lines.push((name.into(), histogram.percentile_stats()));
        self
    }
}

impl fmt::Display for AsciiChart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, stats) in &self.lines {
            writeln!(f, "{name}: {stats}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Histogram;

    #[test]
    fn percentiles_are_the_power_of_two_below() {
        let mut histogram: Histogram = Histogram::new();
        assert_eq!(histogram.percentile_stats().p50, 0);
        for value in 1..=1_000 {
            histogram.record(value);
        }
        let stats = histogram.percentile_stats();
        assert_eq!(
            (stats.samples, stats.p10, stats.p50, stats.p99),
            (1_000, 64, 256, 512)
        );
    }

    #[test]
    fn the_extremes_are_counted() {
        let mut histogram: Histogram = Histogram::new();
        histogram.record(0);
        histogram.record_n(u64::MAX, u64::MAX);
        assert_eq!(histogram.total(), u64::MAX);
        assert_eq!(histogram.percentile_stats().p99, 1 << 63);
    }
}
