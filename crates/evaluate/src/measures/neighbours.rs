use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::Features;
use crate::{Error, Result};

const MEASURE: &str = "precision and recall";

/// The neighbour k whose distance is a ball's radius, as published.
pub const NEIGHBOURS: usize = 3;

/// Partial sums of a squared distance side by side, so that additions need not wait for one another.
const LANES: usize = 8;

/// How much of what is generated is plausible, and how much of what is plausible is generated.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PrecisionRecall {
    /// The share of generated samples inside the reference's manifold, in [0, 1].
    pub precision: f64,
    /// The share of reference samples inside the generated set's manifold, in [0, 1].
    pub recall: f64,
}

/// Improved precision and recall. A set Φ stands for the manifold ⋃ B(φ, r(φ)) of the balls around its samples, with r(φ)
/// the distance to the `k`-th nearest other sample of Φ:
///
///   precision = |{g : ∃ φ ∈ reference, ‖g − φ‖ ≤ r(φ)}| / n_generated, and recall with the roles exchanged.
///
/// A set with modes missing keeps its precision and loses recall; samples off the data lose precision. Balls shrink as n
/// grows and there are more of them: two samples of one distribution give less than one, by an amount that depends on
/// n. Pairwise distances, O(n²·d) time and O(n) memory; exact differences in f64, so that a sample on a ball's surface, as
/// in equal sets, lies inside.
///
/// Source: Kynkäänniemi et al., arXiv 1904.06991, equations 1 and 2 ([`NEIGHBOURS`] = 3).
///
/// # Errors
/// If the widths differ, `k` is zero, a set does not have more than `k` samples, or distances overflow.
pub fn precision_recall(generated: &Features, reference: &Features, k: usize) -> Result<PrecisionRecall> {
    if k == 0 {
        return Err(Error::Features { expected: "k ≥ 1 neighbours".to_owned(), got: "0".to_owned() });
    }
    Features::check_pair(generated, reference, MEASURE, k + 1)?;
    let precision = share_inside(generated, reference, &squared_radii(reference, k)?);
    let recall = share_inside(reference, generated, &squared_radii(generated, k)?);
    Ok(PrecisionRecall { precision, recall })
}

/// The squared distance from each sample to its k-th nearest other sample.
fn squared_radii(features: &Features, k: usize) -> Result<Vec<f64>> {
    let radius = |sample: usize| {
        let own = features.row(sample);
        let others = features.rows().enumerate().filter(|&(other, _)| other != sample);
        let mut distances: Vec<f64> = others.map(|(_, row)| squared_distance(own, row)).collect();
        *distances.select_nth_unstable_by(k - 1, f64::total_cmp).1
    };
    let radii: Vec<f64> = (0..features.samples()).into_par_iter().map(radius).collect();
    if radii.iter().any(|r| !r.is_finite()) {
        return Err(Error::Range { measure: MEASURE, what: "a distance" });
    }
    Ok(radii)
}

/// The share of `samples` inside some ball around `centres`.
fn share_inside(samples: &Features, centres: &Features, squared_radii: &[f64]) -> f64 {
    let inside = |sample: &usize| {
        let own = samples.row(*sample);
        centres.rows().zip(squared_radii).any(|(centre, &radius)| squared_distance(own, centre) <= radius)
    };
    let count = (0..samples.samples()).into_par_iter().filter(inside).count();
    count as f64 / samples.samples() as f64
}

fn squared_distance(a: &[f64], b: &[f64]) -> f64 {
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += (a - b) * (a - b);
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| (a - b) * (a - b)).sum();
    sums.iter().sum::<f64>() + rest
}
