use nalgebra::{DMatrix, DVector, SymmetricEigen};

use super::Features;
use crate::{Error, Result};

const MEASURE: &str = "Fréchet distance";
/// A covariance is defined from two samples on.
const LEAST: usize = 2;
/// Relative size of an off-diagonal element that an eigenvalue iteration takes for zero.
const EIGEN_EPS: f64 = f64::EPSILON;
/// QR sweeps are two or three an eigenvalue; a matrix that needs more than these for one is not a number.
const SWEEPS_PER_EIGENVALUE: usize = 100;

/// The squared Fréchet distance of the Gaussians with the sets' means and (unbiased) covariances,
///
///   d² = ‖μ₁ − μ₂‖² + tr Σ₁ + tr Σ₂ − 2·tr √(Σ₁Σ₂),
///
/// as the Fréchet Inception Distance reports it. Zero for equal sets, symmetric in its arguments.
///
/// Numerics: Σ₁Σ₂ is not symmetric and a general matrix root of it may come out complex when a covariance is singular, as
/// it is for n ≤ d. But tr √(Σ₁Σ₂) = tr √(√Σ₁ Σ₂ √Σ₁), and that matrix is symmetric and positive semidefinite, so both
/// roots are roots of eigenvalues; eigenvalues that rounding left below zero count as zero. The traces cancel when the
/// sets are alike: values below about 1e-8·tr Σ are rounding, and a negative one is returned as zero.
///
/// Bias: the estimate is too large by an amount that falls as 1/n and grows with d; it depends on the sets compared
/// (Chong and Forsyth, arXiv 1911.07023), so only values of one n can be compared, and two samples of the same
/// distribution do not have distance zero.
///
/// Source: Heusel et al., arXiv 1706.08500, equation 6; Dowson and Landau 1982.
///
/// # Errors
/// If the widths differ, a set has fewer than two samples, or the covariances overflow.
pub fn frechet_distance(generated: &Features, reference: &Features) -> Result<f64> {
    Features::check_pair(generated, reference, MEASURE, LEAST)?;
    let (mean_1, cov_1) = moments(generated);
    let (mean_2, cov_2) = moments(reference);
    let between = (mean_1 - mean_2).norm_squared();
    let within = cov_1.trace() + cov_2.trace();
    if !(between + within).is_finite() {
        return Err(Error::Range { measure: MEASURE, what: "a mean or variance" });
    }
    let root = square_root(cov_1)?;
    let product = &root * cov_2 * &root;
    let cross: f64 = eigen(symmetric(product))?.eigenvalues.iter().map(|l| l.max(0.0).sqrt()).sum();
    Ok((between + within - 2.0 * cross).max(0.0))
}

/// Mean [d] and covariance [d, d] with the factor 1/(n − 1).
fn moments(features: &Features) -> (DVector<f64>, DMatrix<f64>) {
    let (n, d) = (features.samples(), features.width());
    // One sample a column: nalgebra stores columns.
    let mut x = DMatrix::from_iterator(d, n, features.rows().flatten().copied());
    let mean = x.column_mean();
    // The mean goes first: Σxxᵀ − n·μμᵀ would cancel.
    x.column_iter_mut().for_each(|mut column| column -= &mean);
    let cov = &x * x.transpose() / (n - 1) as f64;
    (mean, symmetric(cov))
}

/// The root of a symmetric positive semidefinite matrix.
fn square_root(m: DMatrix<f64>) -> Result<DMatrix<f64>> {
    let SymmetricEigen { eigenvectors, eigenvalues } = eigen(m)?;
    let roots = DMatrix::from_diagonal(&eigenvalues.map(|l| l.max(0.0).sqrt()));
    Ok(&eigenvectors * roots * eigenvectors.transpose())
}

fn eigen(m: DMatrix<f64>) -> Result<SymmetricEigen<f64, nalgebra::Dyn>> {
    let limit = SWEEPS_PER_EIGENVALUE * m.nrows();
    let failed = || Error::Range { measure: MEASURE, what: "an eigenvalue of a covariance" };
    if m.iter().any(|x| !x.is_finite()) {
        return Err(failed());
    }
    SymmetricEigen::try_new(m, EIGEN_EPS, limit).ok_or_else(failed)
}

/// The symmetric part, which products of rounded matrices miss by an ulp.
fn symmetric(m: DMatrix<f64>) -> DMatrix<f64> {
    (&m + m.transpose()) * 0.5
}
