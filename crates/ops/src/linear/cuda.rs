//! Products by cuBLASLt, with the bias in its epilogue; sums over rows by kernels.

use fewstep_tensor::Tensor;
use fewstep_tensor::cuda::memory::{Kind, counted_as};
use fewstep_tensor::cuda::{Factor, Launch, Source, multiply};

use super::Extents;
use crate::Result;

const SOURCE: Source = Source::new("linear", &[include_str!("linear.cu")]);
const THREADS: usize = 256;
/// Rows that one block sums for the gradient of the bias; fixed, so that the sum is always formed in one order.
const BIAS_ROWS: usize = 256;

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
        return b.map_or(Ok(y.clone()), |b| add_rows(y, b));
    }
    multiply([e.rows, e.outputs, e.inputs], plain(x), transposed(w), b, &y, accumulate)?;
    Ok(y)
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

/// W̄ = ȳᵀ·x, in the wide dtype.
pub(super) fn weight_bar(e: &Extents, y_bar: &Tensor, x: &Tensor) -> Result<Tensor> {
    let (shape, dtype) = ([e.outputs, e.inputs], y_bar.dtype().wide());
    if e.rows == 0 {
        return Ok(Tensor::zeros(&shape, dtype, y_bar.device()));
    }
    let w_bar = counted_as(Kind::Gradients, || Tensor::empty(&shape, dtype, y_bar.device()))?;
    multiply([e.outputs, e.inputs, e.rows], transposed(y_bar), plain(x), None, &w_bar, false)?;
    Ok(w_bar)
}

/// y + b, b added to every row.
pub(super) fn add_rows(mut y: Tensor, b: &Tensor) -> Result<Tensor> {
    y.make_unique()?;
    let columns = b.len();
    Launch::new(y.device(), &SOURCE, y.dtype(), "add_rows")?
        .grid([y.len().div_ceil(THREADS), 1, 1])
        .threads(THREADS)
        .tensor(&y)
        .tensor(b)
        .size(y.len())
        .size(columns)
        .run()?;
    Ok(y)
}

/// b̄ = Σ rows of ȳ in the wide dtype, by fixed pieces of rows added in order.
pub(super) fn bias_bar(e: &Extents, y_bar: &Tensor) -> Result<Tensor> {
    let (device, wide) = (y_bar.device(), y_bar.dtype().wide());
    let pieces = e.rows.div_ceil(BIAS_ROWS);
    let partial = Tensor::empty(&[pieces, e.outputs], wide, device)?;
    let blocks = e.outputs.div_ceil(THREADS);
    Launch::new(device, &SOURCE, y_bar.dtype(), "sum_rows")?
        .grid([blocks, pieces, 1])
        .threads(THREADS)
        .tensor(y_bar)
        .tensor(&partial)
        .size(e.rows)
        .size(e.outputs)
        .size(BIAS_ROWS)
        .run()?;
    let sum = Tensor::empty(&[e.outputs], wide, device)?;
    Launch::new(device, &SOURCE, wide, "sum_rows")?
        .grid([blocks, 1, 1])
        .threads(THREADS)
        .tensor(&partial)
        .tensor(&sum)
        .size(pieces)
        .size(e.outputs)
        .size(pieces)
        .run()?;
    Ok(sum)
}

fn plain(tensor: &Tensor) -> Factor<'_> {
    Factor { tensor, transposed: false }
}

fn transposed(tensor: &Tensor) -> Factor<'_> {
    Factor { tensor, transposed: true }
}
