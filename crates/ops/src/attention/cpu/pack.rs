use std::ops::{Deref, DerefMut, Range};

use fewstep_tensor::Buffer;
use fewstep_tensor::math::Real;
use rayon::prelude::*;

use super::tile::Lanes;

/// A tensor [batch, tokens, heads·width] to be read head by head.
#[derive(Clone, Copy)]
pub(super) struct Heads<'a, T> {
    pub x: &'a [T],
    pub tokens: usize,
    pub heads: usize,
    pub width: usize,
}

/// Bytes of a cache line: a row that straddles two costs two loads.
const LINE: usize = 64;

/// Tokens that are transposed together: their values of one column fill a small register.
const AT_ONCE: usize = 4;

/// Rows [T; P] that start at a cache line; stale contents.
pub(super) struct Rows<T: Real, const P: usize> {
    buffer: Buffer<T>,
    offset: usize,
    len: usize,
}

impl<T: Real, const P: usize> Rows<T, P> {
    pub fn new(len: usize) -> Self {
        let slack = LINE / size_of::<T>();
        let buffer: Buffer<T> = Buffer::scratch(len * P + slack);
        let offset = buffer.as_slice().as_ptr().align_offset(LINE).min(slack);
        Rows { buffer, offset, len }
    }
}

impl<T: Real, const P: usize> Deref for Rows<T, P> {
    type Target = [[T; P]];
    fn deref(&self) -> &[[T; P]] {
        self.buffer.as_slice()[self.offset..][..self.len * P].as_chunks().0
    }
}

impl<T: Real, const P: usize> DerefMut for Rows<T, P> {
    fn deref_mut(&mut self) -> &mut [[T; P]] {
        self.buffer.as_mut_slice()[self.offset..][..self.len * P].as_chunks_mut().0
    }
}

/// Panels of `P` columns for every (sample, head), each a run of rows [T; P].
pub(super) struct Panels<T: Real, const P: usize> {
    rows: Rows<T, P>,
    per_head: usize,
}

impl<T: Real, const P: usize> Panels<T, P> {
    /// The panels of one (sample, head).
    pub fn head(&self, i: usize) -> &[[T; P]] {
        &self.rows[i * self.per_head..][..self.per_head]
    }

    fn fill(per_head: usize, count: usize, f: impl Fn(usize, &mut [[T; P]]) + Sync) -> Self {
        let mut rows = Rows::new(per_head * count);
        if per_head > 0 {
            rows.par_chunks_mut(per_head).enumerate().for_each(|(i, rows)| f(i, rows));
        }
        Panels { rows, per_head }
    }
}

impl<'a, T: Real> Heads<'a, T> {
    fn count(&self) -> usize {
        self.x.len().checked_div(self.tokens * self.width).unwrap_or(0)
    }

    /// The row of one token of head `i` (counting over samples and heads).
    pub fn row(&self, i: usize, token: usize) -> &'a [T] {
        let (sample, head) = (i / self.heads, i % self.heads);
        &self.x[((sample * self.tokens + token) * self.heads + head) * self.width..][..self.width]
    }

    /// Tokens in panels of P: [panel][column][token in panel], times `scale`, zeros beyond the last token.
    pub fn by_token<const P: usize>(self, scale: T) -> Panels<T, P> {
        let panels = self.tokens.div_ceil(P);
        Panels::fill(panels * self.width, self.count(), |i, rows| {
            for (panel, rows) in rows.chunks_mut(self.width).enumerate() {
                self.panel_by_token(i, panel * P, scale, rows);
            }
        })
    }

    /// One panel of [`by_token`](Self::by_token), from token `first` on.
    pub fn panel_by_token<const P: usize>(&self, i: usize, first: usize, scale: T, rows: &mut [[T; P]]) {
        let count = P.min(self.tokens - first);
        if count < P {
            rows.fill([T::ZERO; P]);
        }
        for lane in (0..count).step_by(AT_ONCE) {
            if lane + AT_ONCE <= count {
                let x: [&[T]; AT_ONCE] = std::array::from_fn(|j| self.row(i, first + lane + j));
                for (k, row) in rows.iter_mut().enumerate().take(self.width) {
                    for (r, x) in row[lane..lane + AT_ONCE].iter_mut().zip(x) {
                        *r = x[k] * scale;
                    }
                }
            } else {
                for lane in lane..count {
                    rows.iter_mut().zip(self.row(i, first + lane)).for_each(|(r, &x)| r[lane] = x * scale);
                }
            }
        }
    }

    /// Columns in panels of P: [panel][token][column in panel], times `scale`, zeros beyond the last column.
    pub fn by_column<const P: usize>(self, scale: T) -> Panels<T, P> {
        let panels = self.width.div_ceil(P);
        Panels::fill(panels * self.tokens, self.count(), |i, rows| {
            self.run_by_column(i, 0..self.tokens, self.tokens, scale, rows);
        })
    }

    /// A run of tokens of [`by_column`](Self::by_column), its panels `stride` rows apart.
    pub fn run_by_column<const P: usize>(
        &self,
        i: usize,
        tokens: Range<usize>,
        stride: usize,
        scale: T,
        rows: &mut [[T; P]],
    ) {
        for (at, token) in tokens.enumerate() {
            for (panel, x) in self.row(i, token).chunks(P).enumerate() {
                let row = &mut rows[panel * stride + at];
                row[x.len()..].fill(T::ZERO);
                row.iter_mut().zip(x).for_each(|(r, &x)| *r = x * scale);
            }
        }
    }
}

/// out[query][column] ← rows[column][query]·factor[query], for as many queries as there are outputs.
pub(super) fn unpack<T: Real>(rows: &[Lanes<T>], factor: &Lanes<T>, out: &mut [&mut [T]]) {
    for (group, out) in out.chunks_mut(AT_ONCE).enumerate() {
        let lane = group * AT_ONCE;
        if let [a, b, c, d] = out {
            let columns = a.iter_mut().zip(b.iter_mut()).zip(c.iter_mut()).zip(d.iter_mut());
            for ((((a, b), c), d), row) in columns.zip(rows) {
                *a = row[lane] * factor[lane];
                *b = row[lane + 1] * factor[lane + 1];
                *c = row[lane + 2] * factor[lane + 2];
                *d = row[lane + 3] * factor[lane + 3];
            }
        } else {
            for (query, out) in out.iter_mut().enumerate() {
                let lane = lane + query;
                out.iter_mut().zip(rows).for_each(|(o, row)| *o = row[lane] * factor[lane]);
            }
        }
    }
}
