use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// More of anything than this is a damaged file.
const MOST: usize = 1 << 16;

/// The extents of a CLIP vision tower.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipConfig {
    /// Side S of the square image, in pixels.
    pub image: usize,
    /// Side of a patch, in pixels.
    pub patch: usize,
    /// Width D of the tokens.
    pub dim: usize,
    /// Width of the feed-forward layer.
    pub mlp_dim: usize,
    /// Attention heads.
    pub heads: usize,
    /// Transformer blocks as published; the last one is not run.
    pub layers: usize,
}

impl ClipConfig {
    /// ViT-H/14: 257 tokens of width 1280.
    pub fn vit_h_14() -> Self {
        ClipConfig { image: 224, patch: 14, dim: 1280, mlp_dim: 5120, heads: 16, layers: 32 }
    }

    /// Tokens: the patches and the class token.
    pub fn tokens(&self) -> usize {
        (self.image / self.patch).pow(2) + 1
    }

    /// Blocks that are run: Wan reads the hidden states before the last one.
    pub fn run_layers(&self) -> usize {
        self.layers - 1
    }

    /// Refuses what no tower can be.
    ///
    /// # Errors
    /// If an extent is zero or absurd, the patch does not divide the image or the heads the width, or there are fewer than
    /// two blocks.
    pub fn validate(&self) -> Result<()> {
        let bad =
            |problem: String, remedy: &str| Err(Error::Config { network: "clip", problem, remedy: remedy.into() });
        let extents = [self.image, self.patch, self.dim, self.mlp_dim, self.heads, self.layers];
        if extents.iter().any(|n| !(1..=MOST).contains(n)) {
            return bad(format!("an extent of {extents:?}"), "each is 1 to 65536");
        }
        if !self.image.is_multiple_of(self.patch) || !self.dim.is_multiple_of(self.heads) {
            return bad(
                format!("patch {} of image {}, {} heads of width {}", self.patch, self.image, self.heads, self.dim),
                "the patch divides the image, the heads the width",
            );
        }
        if self.layers < 2 {
            return bad(format!("{} layers", self.layers), "the last block is not run, so there are at least two");
        }
        Ok(())
    }
}
