//! Copies of rows between pitches.

use fewstep_tensor::Tensor;
use fewstep_tensor::cuda::{Launch, Source};

use super::Around;
use crate::Result;
use crate::units::unit;

const SOURCE: Source = Source::new("shape", &[include_str!("shape.cu")]);
const THREADS: usize = 256;
/// Units that a block writes.
const BLOCK: usize = 4 * THREADS;

/// Rows of a tensor: the first begins at element `start`, each next one `pitch` elements later.
#[derive(Clone, Copy)]
struct Rows<'a> {
    tensor: &'a Tensor,
    pitch: usize,
    start: usize,
}

/// Copies rows of `width` elements, or clears them where there is nothing to copy.
fn copy_rows(to: Rows<'_>, from: Option<Rows<'_>>, rows: usize, width: usize) -> Result<()> {
    let other = from.unwrap_or(to);
    let unit = unit(&[to.tensor, other.tensor], &[to.pitch, to.start, other.pitch, other.start, width]);
    let t = to.tensor;
    Ok(Launch::new(t.device(), &SOURCE, t.dtype(), "copy_rows")?
        .define("UNIT", unit * t.dtype().size())
        .grid([(rows * width / unit).div_ceil(BLOCK), 1, 1])
        .threads(THREADS)
        .tensor(t)
        .size(to.pitch / unit)
        .size(to.start / unit)
        .optional(from.map(|f| f.tensor))
        .size(other.pitch / unit)
        .size(other.start / unit)
        .size(rows)
        .size(width / unit)
        .run()?)
}

/// Puts y, rows of `width` elements, at `start` in the rows of x, `pitch` wide, and zeros around.
fn put_rows(x: &Tensor, pitch: usize, start: usize, y: &Tensor, width: usize) -> Result<()> {
    let unit = unit(&[x, y], &[pitch, start, width]);
    Ok(Launch::new(x.device(), &SOURCE, x.dtype(), "put_rows")?
        .define("UNIT", unit * x.dtype().size())
        .grid([(x.len() / unit).div_ceil(BLOCK), 1, 1])
        .threads(THREADS)
        .tensor(x)
        .size(pitch / unit)
        .size(start / unit)
        .tensor(y)
        .size(x.len() / pitch.max(1))
        .size(width / unit)
        .run()?)
}

pub(super) fn take(x: &Tensor, a: Around, start: usize, shape: &[usize]) -> Result<Tensor> {
    let y = Tensor::empty(shape, x.dtype(), x.device())?;
    let width = y.len() / a.outer.max(1);
    let from = Rows { tensor: x, pitch: a.axis * a.inner, start: start * a.inner };
    copy_rows(Rows { tensor: &y, pitch: width, start: 0 }, Some(from), a.outer, width)?;
    Ok(y)
}

pub(super) fn put(y_bar: &Tensor, a: Around, start: usize, shape: &[usize]) -> Result<Tensor> {
    let x = Tensor::empty(shape, y_bar.dtype(), y_bar.device())?;
    put_rows(&x, a.axis * a.inner, start * a.inner, y_bar, y_bar.len() / a.outer.max(1))?;
    Ok(x)
}

/// The parts side by side; zeros where one is missing. `like` gives dtype and device.
pub(super) fn join(like: &Tensor, parts: &[Option<&Tensor>], around: &[Around], shape: &[usize]) -> Result<Tensor> {
    let y = Tensor::empty(shape, like.dtype(), like.device())?;
    let (outer, mut start) = (around[0].outer, 0);
    let pitch = y.len() / outer.max(1);
    for (part, a) in parts.iter().zip(around) {
        let width = a.axis * a.inner;
        let from = part.map(|tensor| Rows { tensor, pitch: width, start: 0 });
        copy_rows(Rows { tensor: &y, pitch, start }, from, outer, width)?;
        start += width;
    }
    Ok(y)
}

/// x with rows of `width` elements in place of its own along the last axis, zeros after them; 16-byte aligned.
pub(crate) fn padded(x: &Tensor, width: usize) -> Result<Tensor> {
    let mut shape = x.shape().to_vec();
    let own = x.last_dim();
    if let Some(last) = shape.last_mut() {
        *last = width;
    }
    let y = Tensor::empty(&shape, x.dtype(), x.device())?;
    put_rows(&y, width, 0, x, own)?;
    Ok(y)
}
