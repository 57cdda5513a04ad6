//! Queries lie across the lanes of a register.
//!
//! A panel of `NR` queries is multiplied with a block of keys into scores [key][query]. In this layout the maximum,
//! the exponential and the sums of the softmax are plain vertical arithmetic, and the probabilities are already the
//! right operand of the product with the values; nothing is transposed between the two products.

mod backward;
mod forward;
mod pack;
mod tile;

use fewstep_tensor::math::Real;

use super::{Extents, Mask};
use crate::Rule;
use tile::Lanes;

pub(super) use backward::vjp;
pub(super) use forward::{forward, jvp};

/// Elements of packed operands and of what threads compute in, that a rule takes and gives back.
pub(super) fn scratch(e: &Extents, rule: Rule<'_>) -> usize {
    let heads = e.b * e.n;
    let keys = heads * e.s.next_multiple_of(MR) * e.k;
    let columns = |width: usize| heads * e.s * width.next_multiple_of(MR);
    match rule {
        Rule::Forward => keys + columns(e.v),
        Rule::Jvp(m) => keys * (1 + usize::from(m[1])) + columns(e.v) * (1 + usize::from(m[2])),
        Rule::Vjp(wanted) => {
            let values = heads * e.s.next_multiple_of(MR) * e.v;
            keys + columns(e.k) + values + backward::parts(e, wanted)
        }
    }
}

/// Rows of a register tile; keys and value columns are packed in panels of this many.
const MR: usize = 8;
/// Columns of a register tile: two AVX-512 registers of f32.
const NR: usize = 32;
/// Keys of one block: its scores, 16 KiB of f32 a panel, stay in the first-level cache.
const KEYS: usize = 128;
/// Panels of queries that share one pass over keys and values, which come from beyond the second-level cache.
const PANELS: usize = 8;

/// What a mask says of the samples from `sample` on.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub mask: &'a Mask,
    pub sample: usize,
}

impl View<'_> {
    /// Adds to the scores of a block of keys and a panel of queries of one head; heads count over samples.
    fn add<T: Real>(&self, e: &Extents, head: usize, [query, key]: [usize; 2], scores: &mut [Lanes<T>]) {
        for lane in 0..NR.min(e.l - query) {
            let at = [self.sample + head / e.n, head % e.n, query + lane];
            let added = self.mask.added(at, key..key + scores.len());
            scores.iter_mut().zip(added).for_each(|(row, added)| row[lane] += T::lit(added));
        }
    }
}
