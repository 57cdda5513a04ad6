//! Tiles of the portable attention kernels.
//!
//! Chosen by time on an H100 among those whose shared memory a device has; the same for every tangent and mask where bits
//! depend on it: keys of a tile of the forward kernel.

use std::ops::RangeInclusive;

use super::Extents;

/// Widths K and V that the kernels are written for, where they are multiples of 8.
pub(super) const WIDTHS: RangeInclusive<usize> = 8..=256;

/// Rows of a tensor-core tile, and the most columns whose sums a warp can hold for two such tiles.
const TILE: usize = 16;
const NARROW: usize = 128;

/// The tiles of one kernel.
#[derive(Clone, Debug)]
pub(super) struct Tiles {
    /// Rows of a block.
    pub rows: usize,
    /// Threads of a block.
    pub threads: usize,
    /// Bytes of shared memory of a block.
    pub shared: usize,
    /// What the source is compiled with.
    pub defines: Vec<(&'static str, usize)>,
}

/// Bytes of a row of so many columns in shared memory.
fn row(width: usize) -> usize {
    2 * (width.next_multiple_of(TILE) + 8)
}

/// Warps, tiles of a warp, and stages: the first whose shared memory fits, or the last.
fn first_that_fits(choices: &[[usize; 3]], limit: usize, bytes: impl Fn([usize; 3]) -> usize) -> ([usize; 3], usize) {
    let fits = choices.iter().find(|&&c| bytes(c) <= limit);
    let choice = *fits.unwrap_or(&choices[choices.len() - 1]);
    (choice, bytes(choice))
}

impl Tiles {
    /// Of the forward kernel, with tangents of q, k and v or without.
    pub fn forward(e: &Extents, [q, k, v]: [bool; 3], limit: usize) -> Self {
        let narrow = e.k.max(e.v) <= NARROW;
        let keys = if narrow { 64 } else { 32 };
        let choices: &[[usize; 3]] = match (narrow, q || k || v) {
            (true, false) => &[[4, 2, 1], [2, 2, 1]],
            _ => &[[8, 1, 2], [8, 1, 1], [4, 1, 1], [2, 1, 1], [1, 1, 1]],
        };
        let copies = |dot: bool| 1 + usize::from(dot);
        let bytes = |[warps, tiles, stages]: [usize; 3]| {
            let of_a_key = row(e.k) * copies(k) + row(e.v) * copies(v);
            warps * tiles * TILE * row(e.k) * copies(q) + stages * keys * of_a_key
        };
        let (choice, shared) = first_that_fits(choices, limit, bytes);
        Self::new(choice, shared, "KEYS", keys)
    }

    /// Of the backward kernel over queries.
    pub fn backward_queries(e: &Extents, limit: usize) -> Self {
        let keys = if e.k.max(e.v) <= NARROW { 64 } else { 32 };
        let choices = [[8, 1, 2], [8, 1, 1], [4, 1, 1], [2, 1, 1], [1, 1, 1]];
        let bytes = |[warps, _, stages]: [usize; 3]| (warps * TILE + stages * keys) * (row(e.k) + row(e.v));
        let (choice, shared) = first_that_fits(&choices, limit, bytes);
        Self::new(choice, shared, "KEYS", keys)
    }

    /// Of the backward kernel over keys.
    pub fn backward_keys(e: &Extents, limit: usize) -> Self {
        let queries = if e.k.max(e.v) <= NARROW { 64 } else { 32 };
        let choices = [[8, 1, 2], [8, 1, 1], [4, 1, 1], [2, 1, 1], [1, 1, 1]];
        // With two floats of statistics for a query.
        let bytes = |[warps, _, stages]: [usize; 3]| {
            (warps * TILE + stages * queries) * (row(e.k) + row(e.v)) + stages * queries * 8
        };
        let (choice, shared) = first_that_fits(&choices, limit, bytes);
        Self::new(choice, shared, "QUERIES", queries)
    }

    fn new([warps, tiles, stages]: [usize; 3], shared: usize, name: &'static str, columns: usize) -> Self {
        let defines = vec![("WARPS", warps), ("TILES", tiles), ("STAGES", stages), (name, columns)];
        Tiles { rows: warps * tiles * TILE, threads: warps * 32, shared, defines }
    }
}
