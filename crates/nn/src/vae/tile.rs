//! Tiles of a frame, their weights where they overlap, and their number for a budget of memory.

use fewstep_ops::{Error, Result};
use serde::{Deserialize, Serialize};

use super::layers::Layer;

/// Pixels of a latent position along an axis.
pub(super) const SCALE: usize = 8;
/// Overlap of automatic tiles in latent positions: 64 pixels, as published (tiles of 256 every 192).
const OVERLAP: usize = 8;
/// Narrower tiles than this in latent positions would be overlap for the most part.
const NARROWEST: usize = 2 * OVERLAP;
/// Memory beside what grows with the tile: packed weights and each thread's panels, at the published size.
const FIXED_BYTES: usize = 96 << 20;

/// How a frame is cut into tiles, which overlap and are blended by linear ramps.
///
/// Tiles bound the memory by their own size. They are not quite the whole: attention in the middle sees one tile, and
/// positions near a cut lack their neighbours; the ramps hide the difference. One tile is bitwise the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Tile {
    /// The whole frame at once.
    Off,
    /// The fewest tiles whose activations fit so many bytes, weights and the result not counted.
    Auto {
        /// Bytes for activations.
        budget_bytes: usize,
    },
    /// Tiles of at most this size, in pixels.
    Size {
        /// Height, a multiple of 8.
        height: usize,
        /// Width, a multiple of 8.
        width: usize,
        /// Pixels shared by neighbours, a multiple of 8, at most half the size.
        overlap: usize,
    },
}

impl Default for Tile {
    /// 3 GB: with the published network's half a gigabyte of weights, 480 × 832 pixels stay within 4 GB.
    fn default() -> Self {
        Tile::Auto { budget_bytes: 3_000_000_000 }
    }
}

/// The tiles along one axis, in latent positions: all of one size, evenly spread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Axis {
    pub size: usize,
    pub starts: Vec<usize>,
}

impl Axis {
    /// `n` tiles over `len` positions with this overlap, or the fewer that already cover it.
    fn of(len: usize, n: usize, overlap: usize) -> Self {
        let size = (len + (n - 1) * overlap).div_ceil(n).min(len);
        let starts = (0..n).map(|k| if n == 1 { 0 } else { k * (len - size) / (n - 1) }).collect();
        Axis { size, starts }
    }

    /// The fewest tiles of at most `most` positions.
    fn at_most(len: usize, most: usize, overlap: usize) -> Self {
        let step = most - overlap;
        Axis::of(len, len.saturating_sub(overlap).div_ceil(step).max(1), overlap)
    }

    /// What each tile counts at each of its positions, `unit` of them a latent position: ramps over what neighbours
    /// share, divided by their sum, so that the weights of all tiles at a position add up to one.
    pub fn weights(&self, unit: usize) -> Vec<Vec<f64>> {
        let size = self.size * unit;
        let start = |k: usize| self.starts[k] * unit;
        let ramp = |k: usize, i: usize| {
            let from_edge = |i: usize, shared: usize| ((i as f64 + 0.5) / shared as f64).min(1.0);
            let before = k.checked_sub(1).map_or(1.0, |p| from_edge(i, (start(p) + size - start(k)).max(1)));
            let more = k + 1 < self.starts.len();
            let after = if more { from_edge(size - 1 - i, (start(k) + size - start(k + 1)).max(1)) } else { 1.0 };
            before.min(after)
        };
        let mut weights: Vec<Vec<f64>> =
            (0..self.starts.len()).map(|k| (0..size).map(|i| ramp(k, i)).collect()).collect();
        let mut sums = vec![0.0; self.starts.last().map_or(0, |s| s * unit + size)];
        for (k, weights) in weights.iter().enumerate() {
            weights.iter().zip(&mut sums[start(k)..]).for_each(|(w, s)| *s += w);
        }
        for (k, weights) in weights.iter_mut().enumerate() {
            weights.iter_mut().zip(&sums[start(k)..]).for_each(|(w, s)| *w /= s);
        }
        weights
    }
}

/// The tiles of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub rows: Axis,
    pub columns: Axis,
}

impl Plan {
    /// Whether the only tile is the frame.
    pub fn is_whole(&self) -> bool {
        self.len() == 1
    }

    pub fn len(&self) -> usize {
        self.rows.starts.len() * self.columns.starts.len()
    }

    /// Tiles for a frame of h × w latent positions, of which one takes `bytes` in the network.
    pub fn new(tile: Tile, [h, w]: [usize; 2], bytes: usize) -> Result<Self> {
        match tile {
            Tile::Off => Ok(Plan { rows: Axis::of(h, 1, 0), columns: Axis::of(w, 1, 0) }),
            Tile::Auto { budget_bytes } => Plan::within(budget_bytes, [h, w], bytes),
            Tile::Size { height, width, overlap } => {
                let fits = |n: usize| n.is_multiple_of(SCALE) && n > 0 && overlap <= n / 2;
                if !(fits(height) && fits(width) && overlap.is_multiple_of(SCALE)) {
                    let expected =
                        format!("a tile size and overlap in multiples of {SCALE}, an overlap of at most half");
                    return Err(Error::input("vae tile", expected, (height, width, overlap)));
                }
                let axis = |len: usize, most: usize| Axis::at_most(len, most / SCALE, overlap / SCALE);
                Ok(Plan { rows: axis(h, height), columns: axis(w, width) })
            }
        }
    }

    /// Cuts the longer side of the tile once more until a tile fits.
    fn within(budget: usize, [h, w]: [usize; 2], bytes: usize) -> Result<Self> {
        let (mut rows, mut columns) = (Axis::of(h, 1, 0), Axis::of(w, 1, 0));
        let needs = |rows: &Axis, columns: &Axis| {
            rows.size.saturating_mul(columns.size).saturating_mul(bytes).saturating_add(FIXED_BYTES)
        };
        let least = NARROWEST.min(h).saturating_mul(NARROWEST.min(w)).saturating_mul(bytes).saturating_add(FIXED_BYTES);
        let refuse = || {
            let expected = format!("a budget of at least {} MB, for the smallest tile", least.div_ceil(1_000_000));
            Err(Error::input("vae tile", expected, format!("{} MB", budget / 1_000_000)))
        };
        if least > budget {
            return refuse();
        }
        while needs(&rows, &columns) > budget {
            let (axis, len) = if rows.size > columns.size { (&mut rows, h) } else { (&mut columns, w) };
            let more = Axis::of(len, axis.starts.len() + 1, OVERLAP);
            if more.size < NARROWEST.min(len) || more.size >= axis.size {
                return refuse();
            }
            *axis = more;
        }
        Ok(Plan { rows, columns })
    }
}

/// Values that the layers of a half hold at once for each latent position, when their input has `area` positions for it.
pub(super) fn values_per_position(layers: &[Layer], area: usize) -> usize {
    let (mut area, mut kept, mut passing) = (area, 0, 0);
    for layer in layers {
        let f = layer.footprint();
        kept += f.kept * area;
        passing = passing.max(f.passing * area);
        area = area * f.area.0 / f.area.1;
    }
    kept + passing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_the_axis_and_their_weights_add_up_to_one() {
        for (len, most, overlap) in [(1, 4, 1), (9, 4, 1), (9, 4, 2), (60, 32, 8), (104, 32, 8), (7, 2, 1), (33, 32, 0)]
        {
            let axis = Axis::at_most(len, most, overlap);
            assert!(axis.size <= most, "{axis:?}");
            let mut sums = vec![0.0; len * 3];
            for (weights, start) in axis.weights(3).iter().zip(&axis.starts) {
                weights.iter().zip(&mut sums[start * 3..]).for_each(|(w, s)| *s += w);
            }
            assert!(sums.iter().all(|s| (s - 1.0).abs() < 1e-12), "{len} by {most} over {overlap}: {sums:?}");
        }
    }

    #[test]
    fn neighbours_are_blended_by_straight_ramps() {
        let axis = Axis::at_most(6, 4, 2);
        assert_eq!(axis, Axis { size: 4, starts: vec![0, 2] });
        assert_eq!(axis.weights(1), [vec![1.0, 1.0, 0.75, 0.25], vec![0.25, 0.75, 1.0, 1.0]]);
    }

    #[test]
    fn one_tile_has_the_weight_one() {
        assert_eq!(Axis::at_most(5, 8, 2).weights(2), [vec![1.0; 10]]);
    }

    #[test]
    fn a_budget_gives_the_fewest_tiles_or_is_refused_with_the_least() {
        let auto = |bytes: usize| Plan::new(Tile::Auto { budget_bytes: FIXED_BYTES + bytes }, [60, 104], 1000);
        assert!(auto(60 * 104 * 1000).unwrap().is_whole());
        assert_eq!(auto(60 * 104 * 1000 - 1).unwrap().len(), 2);
        assert!(auto(20 * 20 * 1000).unwrap().len() > 10);
        let message = auto(1000).unwrap_err().to_string();
        assert!(message.contains("at least 101 MB"), "{message}");
        assert!(Plan::new(Tile::Auto { budget_bytes: 0 }, [usize::MAX / 2, usize::MAX / 2], 1000).is_err());
    }

    #[test]
    fn tiles_of_odd_sizes_are_refused() {
        for (height, width, overlap) in [(0, 64, 0), (60, 64, 8), (64, 64, 40), (64, 64, 4), (16, 64, usize::MAX)] {
            assert!(Plan::new(Tile::Size { height, width, overlap }, [8, 8], 1).is_err(), "{height} {width} {overlap}");
        }
    }
}
