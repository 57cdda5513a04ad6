use fewstep_tensor::Tensor;
use fewstep_tensor::math::Real;
use rayon::prelude::*;

use crate::{Error, Result};

/// Rows that one task reduces; fixed, so that sums over rows do not depend on the number of threads.
const PIECE: usize = 64;
/// Independent accumulators of a sum over a row: two AVX-512 registers of f32.
const LANES: usize = 32;

/// Rows of width `d`, of which each run of `per_group` shares its modulation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows {
    pub rows: usize,
    pub d: usize,
    pub per_group: usize,
    pub groups: usize,
}

impl Rows {
    /// x [B, L, D] modulated by [B, G, D], token l by group l·G/L.
    pub fn modulated(op: &'static str, x: &[usize], modulation: &[usize]) -> Result<Self> {
        match (x, modulation) {
            (&[b, l, d], &[mb, g, md]) if b == mb && d == md && g > 0 && l % g == 0 => {
                Ok(Rows { rows: b * l, d, per_group: l / g, groups: b * g })
            }
            _ => Err(Error::input(op, "x [B, L, D] and a modulation [B, G, D], G dividing L", (x, modulation))),
        }
    }

    /// x [..., D] with one vector [D] for all rows.
    pub fn shared(op: &'static str, x: &[usize], vector: &[usize]) -> Result<Self> {
        match (x.split_last(), vector) {
            (Some((&d, leading)), &[vd]) if d == vd => {
                let rows = leading.iter().product();
                Ok(Rows { rows, d, per_group: rows, groups: 1 })
            }
            _ => Err(Error::input(op, "x [..., D] and a vector [D]", (x, vector))),
        }
    }

    /// Calls `f` with (first row, group, rows of `out`) for every piece, in parallel; results in the order of the rows.
    ///
    /// `out` has `stride` elements a row. No piece crosses a group.
    pub fn pieces<T: Real, R: Send>(
        &self,
        out: &mut [T],
        stride: usize,
        f: impl Fn(usize, usize, &mut [T]) -> R + Sync,
    ) -> Vec<R> {
        if self.rows == 0 || stride == 0 {
            return Vec::new();
        }
        let mut parts = Vec::new();
        for (group, run) in out.chunks_mut(self.per_group * stride).enumerate() {
            for (i, piece) in run.chunks_mut(PIECE * stride).enumerate() {
                parts.push((group * self.per_group + i * PIECE, group, piece));
            }
        }
        parts.into_par_iter().with_min_len(4).map(|(first, group, piece)| f(first, group, piece)).collect()
    }

    /// Adds up what the pieces summed, in order, into one vector a group.
    pub fn gather<T: Real>(&self, pieces: &[&[T]], shape: &[usize]) -> Tensor {
        let each = self.per_group.div_ceil(PIECE).max(1);
        Tensor::cpu_with(shape, |out: &mut [T]| {
            out.fill(T::ZERO);
            let width = out.len() / self.groups.max(1);
            for (out, pieces) in out.chunks_mut(width.max(1)).zip(pieces.chunks(each)) {
                for piece in pieces {
                    out.iter_mut().zip(*piece).for_each(|(o, &p)| *o += p);
                }
            }
        })
    }
}

/// Σ f(xᵢ, …) over slices of one length, in `LANES` running sums.
#[inline(always)]
pub(crate) fn sum<T: Real, const N: usize>(x: [&[T]; N], f: impl Fn([T; N]) -> T) -> T {
    let mut lanes = [T::ZERO; LANES];
    let parts = x.map(|x| x.as_chunks::<LANES>());
    for c in 0..parts[0].0.len() {
        let chunk = parts.map(|p| &p.0[c]);
        for j in 0..LANES {
            lanes[j] += f(chunk.map(|x| x[j]));
        }
    }
    let mut total = T::ZERO;
    for i in 0..parts[0].1.len() {
        total += f(parts.map(|p| p.1[i]));
    }
    // By halves: a chain of 32 additions would take as long as the row.
    let mut width = LANES / 2;
    while width > 0 {
        for j in 0..width {
            lanes[j] += lanes[j + width];
        }
        width /= 2;
    }
    total + lanes[0]
}
