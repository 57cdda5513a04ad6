//! Axes: their range, where they are labelled, and how.

/// The range of an axis with its labels, as logarithms (base 10) on a logarithmic axis.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Scale {
    low: f64,
    high: f64,
    pub(super) ticks: Vec<f64>,
    log: bool,
}

/// Room above and below the curves, as a share of their range.
const MARGIN: f64 = 0.04;

/// Share of the highest value up to which the lowest is so near zero that the axis begins at zero.
const NEAR_ZERO: f64 = 0.3;

/// How far, in steps or decades, a tick may lie outside the axis by rounding.
const SLACK: f64 = 1e-6;

impl Scale {
    /// The scale of values below 1e300 in size, and above zero on a logarithmic axis, with about so many labels.
    pub(super) fn of(values: impl Iterator<Item = f64>, log: bool, margin: bool, about: usize) -> Option<Self> {
        let range = values.fold(None, |range: Option<(f64, f64)>, v| {
            let v = if log { v.log10() } else { v };
            Some(range.map_or((v, v), |(low, high)| (low.min(v), high.max(v))))
        });
        let (low, high) = range?;
        let span = high - low;
        let least = 1e-9 * low.abs().max(high.abs()).max(1e-290);
        // A constant is drawn in the middle.
        let room = match (span > least, margin, log) {
            (true, true, _) => MARGIN * span,
            (true, false, _) => 0.0,
            (false, _, true) => 0.5,
            (false, _, _) => (0.5 * high.abs()).max(1e-290),
        };
        // An axis that almost reaches zero begins there.
        let from_zero = margin && !log && low >= 0.0 && low <= NEAR_ZERO * high;
        let (low, high) = (if from_zero { 0.0 } else { low - room }, high + room);
        let ticks = if log { log_ticks(low, high, about) } else { linear_ticks(low, high, about) };
        Some(Self { low, high, ticks, log })
    }

    /// Where a value lies from the low end of the axis, 0, to the high end, 1.
    pub(super) fn share(&self, value: f64) -> f64 {
        self.tick_share(if self.log { value.log10() } else { value })
    }

    /// As [`Self::share`], of a tick.
    pub(super) fn tick_share(&self, tick: f64) -> f64 {
        ((tick - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }

    /// The label of a tick.
    pub(super) fn label(&self, tick: f64) -> String {
        if self.log {
            return short(10_f64.powf(tick));
        }
        let step = self.ticks.windows(2).map(|pair| pair[1] - pair[0]).next().unwrap_or(1.0);
        short((tick / step).round() * step)
    }
}

/// Multiples of 1, 2 or 5 times a power of ten, so many that the step is the largest with about so many of them.
fn linear_ticks(low: f64, high: f64, about: usize) -> Vec<f64> {
    let rough = (high - low) / about.max(1) as f64;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|&step| step >= rough).unwrap_or(rough);
    // A tick on an end of the axis stays, whichever way it was rounded.
    let first = (low / step - SLACK).ceil();
    let count = ((high / step + SLACK).floor() - first).clamp(-1.0, 100.0) as i64;
    (0..=count).map(|i| (first + i as f64) * step).collect()
}

/// Powers of ten, thinned where there are too many; within few decades also 2 and 5 times them; within less than one, as
/// on a linear axis.
fn log_ticks(low: f64, high: f64, about: usize) -> Vec<f64> {
    let (first, last) = (low.floor() as i64, high.ceil() as i64);
    let multiples = |factors: &[f64], every: usize| -> Vec<f64> {
        let powers = (first..=last).filter(|p| p.rem_euclid(every as i64) == 0);
        let ticks = powers.flat_map(|p| factors.iter().map(move |f| p as f64 + f.log10()));
        ticks.filter(|&tick| tick >= low - SLACK && tick <= high + SLACK).collect()
    };
    let decades = multiples(&[1.0], 1);
    if decades.len() > about {
        return multiples(&[1.0], decades.len().div_ceil(about.max(1)));
    }
    if decades.len() >= 3 {
        return decades;
    }
    let finer = multiples(&[1.0, 2.0, 5.0], 1);
    if finer.len() >= 3 {
        return finer;
    }
    linear_ticks(10_f64.powf(low), 10_f64.powf(high), about).into_iter().map(f64::log10).collect()
}

/// A number in few characters: 1200 as `1.2k`, 3400000 as `3.4M`, 0.00001 as `1e-5`.
fn short(value: f64) -> String {
    let size = value.abs();
    let trimmed = |value: f64| {
        let text = format!("{value:.4}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    match size {
        _ if size == 0.0 => "0".to_owned(),
        _ if !(1e-3..1e9).contains(&size) => {
            let text = format!("{value:.2e}");
            let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            let mantissa = mantissa.trim_end_matches('0').trim_end_matches('.');
            format!("{}e{exponent}", mantissa.replace('-', "−")).replace("e-", "e−")
        }
        _ if size >= 1e6 => trimmed(value / 1e6) + "M",
        _ if size >= 1e4 => trimmed(value / 1e3) + "k",
        _ => trimmed(value).replace('-', "−"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(values: [f64; 2], log: bool) -> Vec<String> {
        let scale = Scale::of(values.into_iter(), log, false, 5).unwrap();
        scale.ticks.iter().map(|&tick| scale.label(tick)).collect()
    }

    #[test]
    fn a_linear_axis_is_labelled_by_round_numbers() {
        assert_eq!(labels([0.0, 500.0], false), ["0", "100", "200", "300", "400", "500"]);
        assert_eq!(labels([0.0, 30_000.0], false), ["0", "10k", "20k", "30k"]);
        assert_eq!(labels([-0.2, 0.3], false), ["−0.2", "−0.1", "0", "0.1", "0.2", "0.3"]);
    }

    #[test]
    fn a_logarithmic_axis_is_labelled_by_decades_and_finer_where_there_are_few() {
        assert_eq!(labels([1e-4, 10.0], true), ["1e−4", "0.01", "1"]);
        assert_eq!(labels([0.01, 1.0], true), ["0.01", "0.1", "1"]);
        assert_eq!(labels([0.3, 6.0], true), ["0.5", "1", "2", "5"]);
        assert_eq!(labels([1.1, 1.4], true), ["1.1", "1.2", "1.3", "1.4"]);
    }

    #[test]
    fn any_finite_values_have_a_scale_with_labels() {
        let odd = [0.0, -1.0, 1.0, 1e-300, 5e-324, 9e299, -9e299, 1.0 + f64::EPSILON, 1e18 + 1e3];
        for a in odd {
            for b in odd {
                for log in [false, true] {
                    if log && (a <= 0.0 || b <= 0.0) {
                        continue;
                    }
                    let scale = Scale::of([a, b].into_iter(), log, true, 5).unwrap();
                    assert!(
                        scale.low < scale.high && scale.low.is_finite() && scale.high.is_finite(),
                        "{a} {b} {scale:?}"
                    );
                    assert!(scale.ticks.len() <= 20 && scale.ticks.iter().all(|t| t.is_finite()), "{a} {b} {scale:?}");
                }
            }
        }
        assert_eq!(Scale::of(std::iter::empty(), false, true, 5), None);
    }
}
