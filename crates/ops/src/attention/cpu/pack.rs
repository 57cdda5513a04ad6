use std::ops::{Deref, DerefMut};

use fewstep_tensor::Buffer;
use fewstep_tensor::math::Real;
use rayon::prelude::*;

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
        for lane in 0..count {
            let x = self.row(i, first + lane);
            rows.iter_mut().zip(x).for_each(|(r, &x)| r[lane] = x * scale);
        }
    }

    /// Columns in panels of P: [panel][token][column in panel], times `scale`, zeros beyond the last column.
    pub fn by_column<const P: usize>(self, scale: T) -> Panels<T, P> {
        let panels = self.width.div_ceil(P);
        Panels::fill(panels * self.tokens, self.count(), |i, rows| {
            for token in 0..self.tokens {
                for (panel, x) in self.row(i, token).chunks(P).enumerate() {
                    let row = &mut rows[panel * self.tokens + token];
                    row[x.len()..].fill(T::ZERO);
                    row.iter_mut().zip(x).for_each(|(r, &x)| *r = x * scale);
                }
            }
        })
    }
}
