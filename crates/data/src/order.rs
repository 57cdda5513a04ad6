//! The order in which clips are seen.

use crate::caption::Split;
use crate::clip::{Clip, Digits};

/// An infinite stream of clips, a pure function of (split, seed, position).
///
/// The set is procedurally infinite and its clips are independent draws, so the order is the identity: position p shows
/// clip p of the seed. No clip is seen twice, there is no epoch, and a shuffle would change nothing in distribution. What a
/// run resumes from is the position alone, below 2³².
#[derive(Clone, Copy, Debug)]
pub struct DataOrder {
    digits: Digits,
    split: Split,
    seed: u64,
}

impl DataOrder {
    /// The stream of `split` for a seed.
    pub fn new(digits: Digits, split: Split, seed: u64) -> Self {
        Self { digits, split, seed }
    }

    /// The index of the clip seen at a position.
    pub fn index(&self, position: u64) -> u64 {
        position
    }

    /// The clip seen at a position.
    pub fn clip(&self, position: u64) -> Clip {
        self.digits.clip(self.split, self.seed, self.index(position))
    }

    /// The `n` clips from a position on; the next batch begins at `position + n`. A rank that takes a share of a global
    /// batch asks for its share's positions and gets what one rank would have seen there.
    pub fn batch(&self, position: u64, n: usize) -> Vec<Clip> {
        (position..).take(n).map(|p| self.clip(p)).collect()
    }
}
