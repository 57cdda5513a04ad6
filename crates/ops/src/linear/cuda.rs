//! Products by cuBLASLt, with bias and GELU in its epilogue; sums over rows by kernels.

use fewstep_tensor::cuda::memory::{Kind, counted_as};
use fewstep_tensor::cuda::{Factor, GELU_COLUMNS, multiply, multiply_gelu};
use fewstep_tensor::{DType, Tensor};

use super::Extents;
use crate::Result;
use crate::layer_norm::rows::Rows;
use crate::row_kernels::{self, column_sum};

/// x·Wᵀ + b, added to `onto` where given.
pub(super) fn forward(e: &Extents, x: &Tensor, w: &Tensor, b: Option<&Tensor>, onto: Option<Tensor>) -> Result<Tensor> {
    let accumulate = onto.is_some();
    let y = match onto {
        Some(mut y) => {
            y.make_unique()?;
            y
        }
        None if e.inputs == 0 => Tensor::zeros(&e.shape, x.dtype(), x.device()),
        None => Tensor::empty(&e.shape, x.dtype(), x.device())?,
    };
    if e.inputs == 0 {
        return b.map_or(Ok(y.clone()), |b| add_rows(e, y, b));
    }
    multiply([e.rows, e.outputs, e.inputs], plain(x), transposed(w), b, &y, accumulate)?;
    Ok(y)
}

/// Whether a product's GELU is part of it: by extents and dtype alone, as are then the bits.
pub(super) fn has_gelu(e: &Extents, dtype: DType) -> bool {
    dtype == DType::Bf16 && e.inputs > 0 && e.outputs.is_multiple_of(GELU_COLUMNS)
}

/// gelu(x·Wᵀ + b), and what it is of where that is wanted.
pub(super) fn gelu(
    e: &Extents,
    x: &Tensor,
    w: &Tensor,
    b: Option<&Tensor>,
    keep: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let empty = || Tensor::empty(&e.shape, x.dtype(), x.device());
    let (y, hidden) = (empty()?, keep.then(empty).transpose()?);
    multiply_gelu([e.rows, e.outputs, e.inputs], plain(x), transposed(w), b, hidden.as_ref(), &y)?;
    Ok((y, hidden))
}

/// x̄ = ȳ·W
pub(super) fn input_bar(e: &Extents, shape: &[usize], y_bar: &Tensor, w: &Tensor) -> Result<Tensor> {
    if e.outputs == 0 {
        return Ok(Tensor::zeros(shape, y_bar.dtype(), y_bar.device()));
    }
    let x_bar = Tensor::empty(shape, y_bar.dtype(), y_bar.device())?;
    multiply([e.rows, e.inputs, e.outputs], plain(y_bar), plain(w), None, &x_bar, false)?;
    Ok(x_bar)
}

/// W̄ = ȳᵀ·x, in the wide dtype, added to `onto` where given.
pub(super) fn weight_bar(e: &Extents, y_bar: &Tensor, x: &Tensor, onto: Option<Tensor>) -> Result<Tensor> {
    let (shape, dtype) = ([e.outputs, e.inputs], y_bar.dtype().wide());
    let accumulate = onto.is_some();
    let w_bar = match onto {
        Some(mut sum) => {
            sum.make_unique()?;
            sum
        }
        None if e.rows == 0 => Tensor::zeros(&shape, dtype, y_bar.device()),
        None => counted_as(Kind::Gradients, || Tensor::empty(&shape, dtype, y_bar.device()))?,
    };
    if e.rows > 0 {
        multiply([e.outputs, e.inputs, e.rows], transposed(y_bar), plain(x), None, &w_bar, accumulate)?;
    }
    Ok(w_bar)
}

fn rows(e: &Extents) -> Rows {
    Rows { rows: e.rows, d: e.outputs, per_group: e.rows, groups: 1 }
}

/// y + b, b added to every row.
pub(super) fn add_rows(e: &Extents, mut y: Tensor, b: &Tensor) -> Result<Tensor> {
    y.make_unique()?;
    row_kernels::add_rows(rows(e), Some(&y), b, &y)?;
    Ok(y)
}

/// b̄ = Σ rows of ȳ in the wide dtype.
pub(super) fn bias_bar(e: &Extents, y_bar: &Tensor) -> Result<Tensor> {
    column_sum(rows(e), y_bar, &[e.outputs])
}

fn plain(tensor: &Tensor) -> Factor<'_> {
    Factor { tensor, transposed: false }
}

fn transposed(tensor: &Tensor) -> Factor<'_> {
    Factor { tensor, transposed: true }
}
