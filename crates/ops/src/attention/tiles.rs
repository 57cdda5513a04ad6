//! Tiles of the portable attention kernels.
//!
//! Chosen by time on an H100 (2026-11), among those that leave no register to memory; where a device has less shared memory,
//! the next that fits. The bits of the primal depend on the keys of a tile alone, and those on the widths alone.

use std::ops::RangeInclusive;

use super::Extents;

/// Widths K and V that the kernels are written for, where they are multiples of 8.
pub(super) const WIDTHS: RangeInclusive<usize> = 8..=256;

/// Rows of a tensor-core tile.
const TILE: usize = 16;

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
    pub defines: [(&'static str, usize); 5],
}

/// What a device has room for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// The most shared memory of a block, in bytes.
    pub shared: usize,
    /// Its multiprocessors.
    pub multiprocessors: usize,
}

/// Bytes of a row of so many columns in shared memory.
fn row(width: usize) -> usize {
    2 * (width.next_multiple_of(TILE) + 8)
}

/// The sums of a warp fit its registers up to 128 columns, twice up to 64.
fn by_width<T>(e: &Extents, narrow: T, middle: T, wide: T) -> T {
    match e.k.max(e.v) {
        ..=64 => narrow,
        65..=128 => middle,
        _ => wide,
    }
}

/// Warps, tiles of a warp, and stages.
type Choice = [usize; 3];

/// For blocks whose warps have one tile: of up to eight warps, or four.
const SINGLE: &[Choice] = &[[8, 1, 2], [8, 1, 1], [4, 1, 1], [2, 1, 1], [1, 1, 1]];
const FEW: &[Choice] = &[[4, 1, 2], [4, 1, 1], [2, 1, 1], [1, 1, 1]];

impl Tiles {
    /// Of the forward kernel, with tangents of q, k and v or without; a mask takes registers.
    pub fn forward(e: &Extents, [q, k, v]: [bool; 3], masked: bool, room: Room) -> Self {
        let double: &[Choice] = &[[4, 2, 1], [2, 2, 1]];
        let middle = if masked { SINGLE } else { double };
        let choices = if q || k || v { SINGLE } else { by_width(e, double, middle, SINGLE) };
        let unroll = if k || v { 2 } else { 8 };
        let keys = by_width(e, 64, 64, 32);
        let copies = |dot: bool| 1 + usize::from(dot);
        let of_a_key = row(e.k) * copies(k) + row(e.v) * copies(v);
        let bytes = |rows: usize, stages: usize| rows * row(e.k) * copies(q) + stages * keys * of_a_key;
        Self::first_that_fits(choices, room, bytes, ("KEYS", keys), unroll)
    }

    /// Of the backward kernel over queries.
    pub fn backward_queries(e: &Extents, masked: bool, room: Room) -> Self {
        let double: &[Choice] = &[[4, 2, 2], [4, 2, 1]];
        let choices = if masked { FEW } else { by_width(e, double, FEW, FEW) };
        let unroll = if masked { 4 } else { 8 };
        let keys = 32;
        let bytes = |rows: usize, stages: usize| (rows + stages * keys) * (row(e.k) + row(e.v));
        Self::first_that_fits(choices, room, bytes, ("KEYS", keys), unroll)
    }

    /// Of the backward kernel over keys: of fewer warps where the keys are few, so that more multiprocessors work.
    pub fn backward_keys(e: &Extents, room: Room) -> Self {
        let queries = by_width(e, 64, 64, 32);
        let few = e.b * e.n * e.s.div_ceil(8 * TILE) < room.multiprocessors;
        let choices = if few { FEW } else { SINGLE };
        // Two floats of statistics for a query.
        let bytes =
            |rows: usize, stages: usize| (rows + stages * queries) * (row(e.k) + row(e.v)) + stages * queries * 8;
        Self::first_that_fits(choices, room, bytes, ("QUERIES", queries), 4)
    }

    /// The first whose shared memory fits, or the last; `bytes` of it by rows and stages.
    fn first_that_fits(
        choices: &[Choice],
        room: Room,
        bytes: impl Fn(usize, usize) -> usize,
        columns: (&'static str, usize),
        unroll: usize,
    ) -> Self {
        let of = |&[warps, tiles, stages]: &Choice| bytes(warps * tiles * TILE, stages);
        let fits = choices.iter().find(|choice| of(choice) <= room.shared);
        let choice = fits.unwrap_or(&choices[choices.len() - 1]);
        let &[warps, tiles, stages] = choice;
        let defines = [("WARPS", warps), ("TILES", tiles), ("STAGES", stages), columns, ("UNROLL", unroll)];
        Tiles { rows: warps * tiles * TILE, threads: warps * 32, shared: of(choice), defines }
    }
}
