//! One thread a few neighbouring channels.

use fewstep_tensor::Tensor;
use fewstep_tensor::cuda::{Launch, Source};

use crate::Result;

const SOURCE: Source = Source::new("upsample", &[include_str!("upsample.cu")]);
const THREADS: usize = 256;
/// Bytes of the widest access.
const ACCESS: usize = 16;

fn run(kernel: &'static str, to: &Tensor, from: &Tensor, [b, h, w, c]: [usize; 4]) -> Result<()> {
    let neighbours = ACCESS / to.dtype().size();
    let vector = c.is_multiple_of(neighbours) && from.is_aligned(ACCESS as u64);
    let threads = b * h * w * c / if vector { neighbours } else { 1 };
    Ok(Launch::new(to.device(), &SOURCE, to.dtype(), kernel)?
        .grid([threads.div_ceil(THREADS), 1, 1])
        .threads(THREADS)
        .tensor(to)
        .tensor(from)
        .size(b * h)
        .size(w)
        .size(c)
        .flag(vector)
        .run()?)
}

pub(super) fn enlarge(x: &Tensor, [b, h, w, c]: [usize; 4]) -> Result<Tensor> {
    let y = Tensor::empty(&[b, 2 * h, 2 * w, c], x.dtype(), x.device())?;
    run("enlarge", &y, x, [b, h, w, c])?;
    Ok(y)
}

/// The sum over the four places of each position.
pub(super) fn gather(y_bar: &Tensor, shape: [usize; 4]) -> Result<Tensor> {
    let x_bar = Tensor::empty(&shape, y_bar.dtype(), y_bar.device())?;
    run("sum_places", &x_bar, y_bar, shape)?;
    Ok(x_bar)
}
