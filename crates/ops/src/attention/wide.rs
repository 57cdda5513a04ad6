//! Attention of one head that is wider than the tensor-core kernels take, the autoencoder's: by matrix products, a part of the
//! scores at a time.

use fewstep_tensor::cuda::{Factor, Launch, Source, multiply};
use fewstep_tensor::{DType, Tensor};

use super::Extents;
use super::tiles::WIDTHS;
use crate::Result;

const SOURCE: Source = Source::new("attention_wide", &[include_str!("wide.cu")]);
/// Scores that are formed at a time: 256 MiB in f32.
const SCORES: usize = 1 << 26;
/// Threads of a row, as the kernel has them.
const THREADS: usize = 256;

/// Whether it computes an attention without a mask: by extents and dtype alone.
pub(super) fn serves(e: &Extents, dtype: DType) -> bool {
    let some = e.b * e.l * e.s * e.k * e.v > 0;
    dtype == DType::Bf16 && some && e.n == 1 && e.k.max(e.v) > *WIDTHS.end() && e.scale > 0.0
}

/// y and the log-sum-exp of q, k and v. Probabilities are rounded to bf16.
pub(super) fn forward(e: &Extents, x: &[Tensor], y: &Tensor, log_sum_exp: &Tensor) -> Result<()> {
    let device = y.device();
    let rows = |t: &Tensor, width: usize| t.reshape(&[t.len() / width, width]);
    let (q, k, v) = (rows(&x[0], e.k)?, rows(&x[1], e.k)?, rows(&x[2], e.v)?);
    let (y, log_sum_exp) = (rows(y, e.v)?, log_sum_exp.reshape(&[e.b * e.l])?);
    let most = (SCORES / e.s).clamp(1, e.l);
    let scores = Tensor::empty(&[most, e.s], DType::F32, device)?;
    let probabilities = Tensor::empty(&[most, e.s], DType::Bf16, device)?;
    for sample in 0..e.b {
        let (k, v) = (k.narrow(sample * e.s, e.s)?, v.narrow(sample * e.s, e.s)?);
        for first in (0..e.l).step_by(most) {
            let (at, count) = (sample * e.l + first, most.min(e.l - first));
            let (scores, probabilities) = (scores.narrow(0, count)?, probabilities.narrow(0, count)?);
            let q = q.narrow(at, count)?;
            multiply([count, e.s, e.k], plain(&q), Factor { transposed: true, ..plain(&k) }, None, &scores, false)?;
            Launch::new(device, &SOURCE, DType::Bf16, "softmax_rows")?
                .grid([count, 1, 1])
                .threads(THREADS)
                .tensor(&probabilities)
                .tensor(&log_sum_exp.narrow(at, count)?)
                .tensor(&scores)
                .size(e.s)
                .real(e.scale)
                .run()?;
            let y = y.narrow(at, count)?;
            multiply([count, e.v, e.s], plain(&probabilities), plain(&v), None, &y, false)?;
        }
    }
    Ok(())
}

fn plain(tensor: &Tensor) -> Factor<'_> {
    Factor { tensor, transposed: false }
}
