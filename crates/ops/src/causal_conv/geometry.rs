//! Extents of a convolution, and the panels that it is computed in.

use std::ops::Range;

use super::{CausalConv, NAME};
use crate::{Error, Result};

/// Output positions of a panel, about: the product's left operand then is a few MiB, and the packing of the weights, once
/// a product, is a small part of it. Fixed, so that sums do not depend on the number of threads.
const PANEL: usize = 1536;

/// Extents: b samples of h × w positions with i channels, o outputs, a kernel [kt, kh, kw], `frames` frames given.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extents {
    pub b: usize,
    pub h: usize,
    pub w: usize,
    pub i: usize,
    pub o: usize,
    pub kt: usize,
    pub kh: usize,
    pub kw: usize,
    pub frames: usize,
    pub stride: usize,
    pub top: usize,
    pub left: usize,
    /// Output height and width.
    pub oh: usize,
    pub ow: usize,
}

impl Extents {
    pub fn new(op: &CausalConv, shapes: &[&[usize]]) -> Result<Self> {
        let refuse = || {
            let expected = "W [O, I, KT, KH, KW], bias [O] and 1 to KT frames [B, H, W, I] of one shape, a kernel within \
                            the padded frame, a stride of at least 1";
            Error::input(NAME, expected, (op, shapes))
        };
        let [weight, bias, first, more @ ..] = shapes else { return Err(refuse()) };
        let (o, i, [kt, kh, kw]) = match **weight {
            [o, i, kt, kh, kw] => (o, i, [kt, kh, kw]),
            [o, i, kh, kw] => (o, i, [1, kh, kw]),
            _ => return Err(refuse()),
        };
        let (&[b, h, w, ci], p, stride) = (*first, op.padding, op.stride) else { return Err(refuse()) };
        let frames = 1 + more.len();
        let extent = |n: usize, before: usize, after: usize, k: usize| {
            let padded = n.checked_add(before)?.checked_add(after)?;
            Some(padded.checked_sub(k)?.checked_div(stride)? + 1)
        };
        let (oh, ow) = (extent(h, p.top, p.bottom, kh), extent(w, p.left, p.right, kw));
        match (oh, ow) {
            (Some(oh), Some(ow))
                if ci == i && **bias == [o] && frames <= kt && kt * kh * kw > 0 && more.iter().all(|m| m == first) =>
            {
                let (top, left) = (p.top, p.left);
                Ok(Extents { b, h, w, i, o, kt, kh, kw, frames, stride, top, left, oh, ow })
            }
            _ => Err(refuse()),
        }
    }

    pub fn output(&self) -> [usize; 4] {
        [self.b, self.oh, self.ow, self.o]
    }

    /// The place in the kernel of the given frame `j`.
    pub fn tap(&self, j: usize) -> usize {
        self.kt - self.frames + j
    }

    /// Weights of one row of the kernel, [KW·I, O] when packed.
    pub fn kernel_row(&self) -> usize {
        self.kw * self.i * self.o
    }

    /// Output rows of a panel.
    pub fn panel_rows(&self) -> usize {
        (PANEL / self.row()).clamp(1, self.oh.max(1))
    }

    /// Output positions that a padded row stands for; those past `ow` are computed and not used.
    pub fn row(&self) -> usize {
        ((self.ow.max(1) - 1) * self.stride + self.kw).div_ceil(self.stride)
    }

    /// The panel of output rows `first..first + rows`.
    pub fn panel(&self, first: usize, rows: usize) -> Panel {
        Panel { first, rows, slots: rows + (self.kh - 1) / self.stride, width: self.row() * self.stride }
    }
}

/// Zero-padded input rows that some output rows read.
///
/// Row y of the padded input lies at slot y/stride of phase y mod stride: so the rows that one row of the kernel reads for
/// successive output rows are contiguous, and a single matrix with overlapping rows covers them all.
#[derive(Clone, Copy, Debug)]
pub(super) struct Panel {
    pub first: usize,
    pub rows: usize,
    slots: usize,
    width: usize,
}

impl Panel {
    /// Elements of the panel's input.
    pub fn len(&self, e: &Extents) -> usize {
        e.stride * self.slots * self.width * e.i
    }

    /// Output positions computed, from the first to the last that is used.
    pub fn positions(&self, e: &Extents) -> usize {
        (self.rows - 1) * e.row() + e.ow
    }

    /// The input's offset at row u and column v of the kernel.
    pub fn start(&self, e: &Extents, u: usize, v: usize) -> usize {
        (((u % e.stride) * self.slots + u / e.stride) * self.width + v) * e.i
    }

    /// Calls `f` for every padded row with its place in the panel and its row of the frame, if it has one.
    pub fn each_row(&self, e: &Extents, mut f: impl FnMut(Range<usize>, Option<usize>)) {
        let len = self.width * e.i;
        for phase in 0..e.stride {
            for slot in 0..self.slots {
                let at = (phase * self.slots + slot) * len;
                let y = ((self.first + slot) * e.stride + phase).checked_sub(e.top).filter(|y| *y < e.h);
                f(at..at + len, y);
            }
        }
    }

    /// Elements of a frame's row that a padded row holds, after `left` zeros.
    pub fn inside(&self, e: &Extents) -> Range<usize> {
        let left = e.left.min(self.width);
        left * e.i..(left + e.w.min(self.width - left)) * e.i
    }
}
