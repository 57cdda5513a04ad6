//! Linear combinations with scalar coefficients, and the check of what a closure returned.

use fewstep_tensor::{DType, Tensor, arith};

use crate::{Error, Result};

/// Σ cᵢ·xᵢ with one coefficient per term; all of one shape and dtype.
pub(crate) fn linear(terms: &[(f64, &Tensor)]) -> Result<Tensor> {
    let samples = terms.first().and_then(|(_, x)| x.shape().first().copied()).unwrap_or(1);
    let coefficients: Vec<Vec<f64>> = terms.iter().map(|&(c, _)| vec![c; samples]).collect();
    let terms: Vec<_> = coefficients.iter().zip(terms).map(|(c, &(_, x))| (c.as_slice(), x)).collect();
    Ok(arith::combine(&terms)?)
}

/// What a closure returned, in f64, if it has the state's shape and is finite.
pub(crate) fn checked(what: &'static str, step: usize, state: &Tensor, got: Tensor) -> Result<Tensor> {
    if got.shape() != state.shape() {
        let (expected, got) = (state.shape().to_vec(), got.shape().to_vec());
        return Err(Error::OutputShape { what, step, expected, got });
    }
    let wide = got.to_dtype(DType::F64);
    match arith::count_non_finite(&wide)? {
        0 => Ok(wide),
        count => Err(Error::NonFinite { what, step, count, of: wide.len() }),
    }
}
