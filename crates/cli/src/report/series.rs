//! Curves of many points: what is drawn of them.

use super::Series;

/// Points above which a curve is drawn faintly under its running mean.
const MANY: usize = 80;

/// The running mean is over this share of the points, at each point those around it.
const WINDOW_SHARE: usize = 25;

/// Points of a curve that are drawn at most: about one for each pixel of a chart.
const DRAWN: usize = 600;

/// Size from which a value is not drawn, so that sums of those that are stay finite.
const LARGEST: f64 = 1e300;

/// What is drawn of a series.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Curve {
    /// The points, if there are few, or the running mean.
    pub(super) line: Vec<(f64, f64)>,
    /// The points under the running mean, thinned so that every extreme stays.
    pub(super) faint: Vec<(f64, f64)>,
    /// How many points could not be drawn.
    pub(super) left_out: usize,
}

impl Curve {
    pub(super) fn of(series: &Series, log_y: bool) -> Self {
        let drawable = |&(x, y): &(f64, f64)| x.abs() < LARGEST && y.abs() < LARGEST && (!log_y || y > 0.0);
        let points: Vec<_> = series.points.iter().copied().filter(drawable).collect();
        let left_out = series.points.len() - points.len();
        if points.len() <= MANY {
            return Self { line: points, faint: Vec::new(), left_out };
        }
        let stride = points.len().div_ceil(DRAWN);
        let last = points.len() - 1;
        let drawn = (0..last).step_by(stride).chain([last]);
        let line = drawn.map(|i| (points[i].0, mean_around(&points, i))).collect();
        Self { line, faint: extremes(&points), left_out }
    }

    pub(super) fn points(&self) -> impl Iterator<Item = &(f64, f64)> {
        self.line.iter().chain(&self.faint)
    }
}

/// The mean of the points around one. Near an end there are fewer of them, on both sides, so that the mean stays centred
/// and does not lag; but never so few that it is as noisy as a point.
fn mean_around(points: &[(f64, f64)], i: usize) -> f64 {
    let (full, last) = (points.len() / WINDOW_SHARE / 2, points.len() - 1);
    let reach = i.min(last - i).clamp(full / 4, full);
    let around = &points[i.saturating_sub(reach)..=(i + reach).min(last)];
    around.iter().map(|&(_, y)| y).sum::<f64>() / around.len() as f64
}

/// The lowest and the highest of each stretch of points, in their order.
fn extremes(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let stretch = points.len().div_ceil(DRAWN / 2);
    let pick = |stretch: &[(f64, f64)]| {
        let index = |i: Option<(usize, &(f64, f64))>| i.map_or(0, |(i, _)| i);
        let by_y = |a: &(usize, &(f64, f64)), b: &(usize, &(f64, f64))| a.1.1.total_cmp(&b.1.1);
        let low = index(stretch.iter().enumerate().min_by(by_y));
        let high = index(stretch.iter().enumerate().max_by(by_y));
        let mut picked = vec![stretch[low.min(high)]];
        if low != high {
            picked.push(stretch[low.max(high)]);
        }
        picked
    };
    points.chunks(stretch).flat_map(pick).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(n: usize, y: impl Fn(usize) -> f64) -> Series {
        Series { name: "loss".to_owned(), points: (0..n).map(|i| (i as f64, y(i))).collect() }
    }

    #[test]
    fn a_short_series_is_drawn_as_it_is() {
        let short = series(MANY, |i| (i * i) as f64);
        let curve = Curve::of(&short, false);
        assert_eq!((curve.line, curve.faint, curve.left_out), (short.points, Vec::new(), 0));
    }

    #[test]
    fn a_long_series_is_thinned_and_keeps_every_spike() {
        let curve = Curve::of(&series(100_000, |i| if i == 54_321 { 1e3 } else { 1.0 }), false);
        assert!(curve.line.len() <= DRAWN + 1 && curve.faint.len() <= DRAWN);
        assert!(curve.faint.contains(&(54_321.0, 1e3)));
        assert_eq!(curve.line.last().unwrap().0, 99_999.0);
    }

    #[test]
    fn the_running_mean_of_a_straight_line_is_the_line_but_at_its_ends() {
        for (x, y) in Curve::of(&series(1001, |i| 2.0 * i as f64), false).line {
            // Full reach is 1001 / 25 / 2 = 20 points, a quarter of it 5: the mean at an end is half of that inside.
            let end = 5.0 - x.min(1000.0 - x).min(5.0);
            assert!((y - 2.0 * x).abs() <= end + 1e-9 * (1.0 + x), "at {x}: {y}");
        }
    }

    #[test]
    fn points_that_cannot_be_drawn_are_counted() {
        let odd = series(6, |i| [f64::NAN, f64::INFINITY, 0.0, -1.0, 2.0, f64::NEG_INFINITY][i]);
        assert_eq!(Curve::of(&odd, false).left_out, 3);
        assert_eq!(Curve::of(&odd, true).left_out, 5);
    }

    #[test]
    fn the_largest_values_do_not_overflow_the_mean() {
        assert!(Curve::of(&series(1000, |_| 0.99 * LARGEST), true).line.iter().all(|(_, y)| y.is_finite()));
    }
}
