use fewstep_tensor::random::{Purpose, Stream};

use super::*;
use crate::Error;

/// Normal features [n, d] with a mean and standard deviation for each feature.
fn gaussian(seed: u64, n: usize, mean: &[f64], std: &[f64]) -> Features {
    let stream = Stream::new(seed, Purpose::Check, 0);
    let row = |i: usize| {
        let z = stream.normal(i as u64, mean.len());
        z.into_iter().zip(mean.iter().zip(std)).map(|(z, (m, s))| m + s * f64::from(z)).collect::<Vec<_>>()
    };
    Features::new((0..n).flat_map(row).collect(), mean.len()).unwrap()
}

/// The same features with mean and covariance made exactly those of `N(mean, diag std²)`: two points ± along each axis
/// have covariance 2a²/(2d − 1) with the unbiased factor, so a = std·√((2d − 1)/2).
fn exact(mean: &[f64], std: &[f64]) -> Features {
    let d = mean.len();
    let reach = ((2 * d - 1) as f64 / 2.0).sqrt();
    let mut data = Vec::new();
    for axis in 0..d {
        for sign in [-1.0, 1.0] {
            let mut row = mean.to_vec();
            row[axis] += sign * reach * std[axis];
            data.extend(row);
        }
    }
    Features::new(data, d).unwrap()
}

/// Samples around two centres, the second used by every other sample.
fn two_modes(seed: u64, n: usize) -> Features {
    let mut both = Vec::new();
    for (i, row) in gaussian(seed, n, &[0.0; 4], &[1.0; 4]).rows().enumerate() {
        both.extend(row.iter().map(|x| x + if i % 2 == 0 { 0.0 } else { 100.0 }));
    }
    Features::new(both, 4).unwrap()
}

fn reversed(features: &Features) -> Features {
    let rows = (0..features.samples()).rev().flat_map(|i| features.row(i).to_vec());
    Features::new(rows.collect(), features.width()).unwrap()
}

#[test]
fn equal_sets_have_distance_zero_and_full_precision_and_recall() {
    let a = gaussian(1, 300, &[1.0, -2.0, 0.5], &[3.0, 1.0, 0.1]);
    // Rounding of the cancelling traces, which add up to 2·10.
    assert!(frechet_distance(&a, &a).unwrap() < 20.0 * 1e-8);
    assert_eq!(precision_recall(&a, &a, NEIGHBOURS).unwrap(), PrecisionRecall { precision: 1.0, recall: 1.0 });
}

#[test]
fn diagonal_gaussians_have_the_distance_of_the_closed_form() {
    let (mean_1, std_1) = ([0.0, 1.0, -3.0, 2.0], [1.0, 2.0, 0.5, 0.0]);
    let (mean_2, std_2) = ([0.5, 1.0, -1.0, 2.0], [2.0, 2.0, 0.25, 0.75]);
    let squares = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
    let want = squares(&mean_1, &mean_2) + squares(&std_1, &std_2);
    let got = frechet_distance(&exact(&mean_1, &std_1), &exact(&mean_2, &std_2)).unwrap();
    assert!((got - want).abs() < 1e-9, "{got}, not {want}");
}

#[test]
fn correlated_gaussians_have_the_distance_of_the_closed_form() {
    // Σ₁ = I and Σ₂ = Q·diag(λ)·Qᵀ commute: d² = Σ (1 − √λ)², whatever the rotation Q.
    let (cos, sin) = (0.8, 0.6);
    let axes = exact(&[0.0; 2], &[3.0, 0.5]);
    let turned = axes.rows().flat_map(|r| [cos * r[0] - sin * r[1], sin * r[0] + cos * r[1]]).collect();
    let got = frechet_distance(&exact(&[0.0; 2], &[1.0; 2]), &Features::new(turned, 2).unwrap()).unwrap();
    assert!((got - (4.0 + 0.25)).abs() < 1e-12, "{got}");
}

#[test]
fn the_distance_of_two_samples_of_one_gaussian_falls_as_one_over_n() {
    let distance = |n| {
        let sample = |seed| gaussian(seed, n, &[0.0; 8], &[1.0; 8]);
        frechet_distance(&sample(1), &sample(2)).unwrap()
    };
    let (small, large) = (distance(200), distance(3200));
    // 16 times the samples: a sixteenth, within a factor of two for the draw.
    assert!(small / large > 8.0 && small / large < 32.0, "{small} and {large}");
}

#[test]
fn singular_covariances_give_a_finite_symmetric_distance() {
    let (few, other) = (gaussian(1, 5, &[0.0; 20], &[1.0; 20]), gaussian(2, 7, &[0.0; 20], &[1.0; 20]));
    let (a, b) = (frechet_distance(&few, &other).unwrap(), frechet_distance(&other, &few).unwrap());
    assert!(a > 0.0 && (a - b).abs() < 1e-6, "{a} and {b}");
}

#[test]
fn a_dropped_mode_costs_recall_and_not_precision() {
    let (real, generated) = (two_modes(1, 1000), gaussian(2, 1000, &[0.0; 4], &[1.0; 4]));
    let got = precision_recall(&generated, &real, NEIGHBOURS).unwrap();
    assert!(got.precision > 0.85, "{got:?}");
    assert!(got.recall > 0.35 && got.recall <= 0.5, "{got:?}");
}

#[test]
fn collapse_onto_single_points_costs_nearly_all_recall() {
    let real = two_modes(1, 400);
    let one = (0..400).flat_map(|i| real.row(i % 2).to_vec()).collect();
    let got = precision_recall(&Features::new(one, 4).unwrap(), &real, NEIGHBOURS).unwrap();
    assert_eq!(got, PrecisionRecall { precision: 1.0, recall: 2.0 / 400.0 });
}

#[test]
fn a_shifted_set_costs_precision() {
    let real = gaussian(1, 1000, &[0.0; 4], &[1.0; 4]);
    let precision =
        |by: f64| precision_recall(&gaussian(2, 1000, &[by; 4], &[1.0; 4]), &real, NEIGHBOURS).unwrap().precision;
    let (none, some, far) = (precision(0.0), precision(2.0), precision(20.0));
    assert!(none > 0.85 && some < 0.6 * none && far == 0.0, "{none}, {some}, {far}");
}

#[test]
fn the_order_of_the_samples_does_not_matter() {
    let (a, b) = (gaussian(1, 200, &[0.0; 5], &[1.0; 5]), gaussian(2, 300, &[0.3; 5], &[1.2; 5]));
    let there = precision_recall(&a, &b, NEIGHBOURS).unwrap();
    assert_eq!(precision_recall(&reversed(&a), &reversed(&b), NEIGHBOURS).unwrap(), there);
    // Sums in another order round differently.
    let moved = frechet_distance(&reversed(&a), &reversed(&b)).unwrap() - frechet_distance(&a, &b).unwrap();
    assert!(moved.abs() < 1e-10, "{moved}");
}

#[test]
fn too_few_samples_are_refused_with_the_least() {
    let (few, many) = (gaussian(1, 3, &[0.0; 2], &[1.0; 2]), gaussian(2, 10, &[0.0; 2], &[1.0; 2]));
    let e = precision_recall(&many, &few, NEIGHBOURS).unwrap_err();
    assert!(matches!(e, Error::TooFewSamples { least: 4, got: 3, .. }), "{e}");
    let one = gaussian(1, 1, &[0.0; 2], &[1.0; 2]);
    let e = frechet_distance(&one, &many).unwrap_err();
    assert!(matches!(e, Error::TooFewSamples { least: 2, got: 1, .. }), "{e}");
    assert!(precision_recall(&many, &many, 0).is_err());
}

#[test]
fn sets_of_different_widths_are_refused() {
    let (a, b) = (gaussian(1, 9, &[0.0; 2], &[1.0; 2]), gaussian(2, 9, &[0.0; 3], &[1.0; 3]));
    assert!(matches!(frechet_distance(&a, &b), Err(Error::Widths { generated: 2, reference: 3 })));
    assert!(matches!(precision_recall(&a, &b, 3), Err(Error::Widths { generated: 2, reference: 3 })));
}

#[test]
fn features_that_are_not_finite_or_not_whole_rows_are_refused() {
    let e = Features::new(vec![0.0, 1.0, 2.0, f64::NAN], 2).unwrap_err();
    assert!(e.to_string().contains("feature 1 of sample 1"), "{e}");
    assert!(Features::new(vec![0.0; 5], 2).is_err());
    assert!(Features::new(Vec::new(), 0).is_err());
}

#[test]
fn features_beyond_the_range_of_their_squares_are_an_error() {
    let huge = Features::new((0..20).map(|i| f64::from(i) * 1e200).collect(), 2).unwrap();
    assert!(matches!(frechet_distance(&huge, &huge), Err(Error::Range { .. })));
    assert!(matches!(precision_recall(&huge, &huge, 3), Err(Error::Range { .. })));
}
