//! Convolutions by cuDNN, where it is present: of one frame, and of several as of one with as many times the channels.

use fewstep_tensor::cuda::{Convolution, Launch, convolve};
use fewstep_tensor::{DType, Tensor};

use super::cuda::SOURCE;
use super::geometry::Extents;
use crate::{Concat, Op, Result};

const THREADS: usize = 256;
/// Elements of a 16-byte access, of which channels and outputs are multiples.
const CHUNK: usize = 8;
/// Channels of a frame and outputs from which on the library is faster than our own kernel, and outputs by places of the kernel
/// from which on it is so by more than the copy of the frames side by side takes. H200, 2026-11, ms of the library and ours:
/// 384→384 channels, 27 taps, 60 × 104: 0.22, 0.21; 120 × 208: 0.40, 0.58; 192→192, 240 × 416: 0.45, 0.63; 96→96, 480 × 832:
/// 0.57, 0.73; steps of two, 96 of 480 × 832: 0.062, 0.081. Slower: 16→384, 27 taps, 0.057, 0.026; 192→192, 3 taps in time,
/// 0.055, 0.041.
const CHANNELS: usize = 64;
const OUTPUTS: usize = 32;
const OUTPUTS_BY_PLACES: usize = 512;

/// The convolution that the library is to be asked for: by extents alone.
pub(super) fn shape(e: &Extents, dtype: DType, (frames, channels): (usize, usize), bias: bool) -> Option<Convolution> {
    let some = e.b * e.oh * e.ow * frames > 0;
    let wide = channels >= CHANNELS && e.o >= OUTPUTS && (frames == 1 || e.o * e.kh * e.kw >= OUTPUTS_BY_PLACES);
    let whole = channels.is_multiple_of(CHUNK) && e.o.is_multiple_of(CHUNK);
    (dtype == DType::Bf16 && some && wide && whole).then(|| Convolution {
        input: [e.b, e.h, e.w, frames * channels],
        output: [e.oh, e.ow, e.o],
        kernel: [e.kh, e.kw],
        stride: e.stride,
        before: [e.top, e.left],
        accumulate: bias,
    })
}

/// y = bias + W∗x, W packed with the frames last. The bias is in y before, so that the sum is rounded once.
pub(super) fn run(c: &Convolution, frames: &[&Tensor], w: &Tensor, bias: Option<&Tensor>, y: &Tensor) -> Result<()> {
    let x = match frames {
        [frame] => (*frame).clone(),
        _ => Concat { axis: 3 }.forward(frames)?.y,
    };
    if let Some(bias) = bias {
        repeat(bias, y)?;
    }
    Ok(convolve(c, &x, w, y)?)
}

/// y = bias at every position.
pub(super) fn repeat(bias: &Tensor, y: &Tensor) -> Result<()> {
    Ok(Launch::new(y.device(), &SOURCE, y.dtype(), "repeat_bias")?
        .grid([(y.len() / CHUNK).div_ceil(THREADS), 1, 1])
        .threads(THREADS)
        .tensor(y)
        .tensor(bias)
        .size(y.len() / bias.len())
        .size(bias.len())
        .run()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CausalConv, Padding};

    fn asked(weight: &[usize], frames: usize, stride: usize) -> Option<Convolution> {
        let padding = if stride == 2 {
            Padding { bottom: 1, right: 1, ..Padding::default() }
        } else {
            Padding::around(weight[3] / 2)
        };
        let frame: &[usize] = &[2, 60, 104, weight[1]];
        let shapes = [&[weight, &weight[..1]][..], &vec![frame; frames]].concat();
        let e = Extents::new(&CausalConv { stride, padding }, &shapes).unwrap();
        shape(&e, DType::Bf16, (frames, weight[1]), true)
    }

    #[test]
    fn frames_side_by_side_are_one_with_more_channels() {
        let c = asked(&[192, 64, 3, 3, 3], 3, 1).unwrap();
        assert_eq!((c.input, c.output, c.kernel), ([2, 60, 104, 192], [60, 104, 192], [3, 3]));
        assert_eq!((c.stride, c.before, c.accumulate), (1, [1, 1], true));
    }

    #[test]
    fn frames_are_halved_without_zeros_before() {
        let c = asked(&[96, 96, 1, 3, 3], 1, 2).unwrap();
        assert_eq!((c.output, c.stride, c.before), ([30, 52, 96], 2, [0, 0]));
    }

    #[test]
    fn what_our_own_kernel_does_as_fast_is_not_asked_for() {
        assert!(asked(&[384, 16, 3, 3, 3], 3, 1).is_none());
        assert!(asked(&[3, 96, 3, 3, 3], 3, 1).is_none());
        assert!(asked(&[192, 192, 3, 1, 1], 3, 1).is_none());
        assert!(asked(&[768, 384, 3, 1, 1], 3, 1).is_some());
        assert!(asked(&[100, 64, 3, 3, 3], 3, 1).is_none());
    }
}
