use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// More layers than this are a slip of the keyboard.
const MAX_LAYERS: usize = 1000;

/// A named configuration.
pub type Preset = (&'static str, fn() -> WanConfig);

/// The extents of a Wan network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WanConfig {
    /// Width D of the tokens.
    pub dim: usize,
    /// Width of the feed-forward layer.
    pub ffn_dim: usize,
    /// Attention heads; D/heads is even.
    pub heads: usize,
    /// Transformer blocks.
    pub layers: usize,
    /// Channels that come in: the latent's, and the condition's beside it.
    pub in_channels: usize,
    /// Channels that go out.
    pub out_channels: usize,
    /// Patch extents (frames, height, width).
    pub patch: [usize; 3],
    /// Width of the text embeddings.
    pub text_dim: usize,
    /// Width of the sinusoidal time embedding.
    pub freq_dim: usize,
    /// Width of the image tokens, for networks with an image branch.
    #[serde(default)]
    pub image_dim: Option<usize>,
    /// Learned positions of the image tokens (first and last frame to video).
    #[serde(default)]
    pub image_positions: Option<usize>,
    /// ε of every norm of the blocks.
    pub eps: f64,
}

impl WanConfig {
    fn t2v(dim: usize, ffn_dim: usize, heads: usize, layers: usize) -> Self {
        WanConfig {
            dim,
            ffn_dim,
            heads,
            layers,
            in_channels: 16,
            out_channels: 16,
            patch: [1, 2, 2],
            text_dim: 4096,
            freq_dim: 256,
            image_dim: None,
            image_positions: None,
            eps: 1e-6,
        }
    }

    /// Wan2.1-T2V-1.3B.
    pub fn t2v_1_3b() -> Self {
        Self::t2v(1536, 8960, 12, 30)
    }

    /// Wan2.1-T2V-14B; also each expert of Wan2.2-T2V-A14B.
    pub fn t2v_14b() -> Self {
        Self::t2v(5120, 13824, 40, 40)
    }

    /// Wan2.1-I2V-14B: 16 latent, 4 mask and 16 condition channels, CLIP tokens.
    pub fn i2v_14b() -> Self {
        WanConfig { in_channels: 36, image_dim: Some(1280), ..Self::t2v_14b() }
    }

    /// Wan2.1-FLF2V-14B: as I2V, with positions for the tokens of two images.
    pub fn flf2v_14b() -> Self {
        WanConfig { image_positions: Some(2 * 257), ..Self::i2v_14b() }
    }

    /// Each expert of Wan2.2-I2V-A14B: condition channels, but no image branch.
    pub fn i2v_a14b() -> Self {
        WanConfig { in_channels: 36, ..Self::t2v_14b() }
    }

    /// The benchmark network: large enough that time goes where it goes at full size.
    pub fn mid() -> Self {
        WanConfig { text_dim: 384, ..Self::t2v(384, 1536, 6, 6) }
    }

    /// The network of the moving-digits demo.
    pub fn digits() -> Self {
        WanConfig {
            in_channels: 3,
            out_channels: 3,
            patch: [1, 4, 4],
            text_dim: 32,
            freq_dim: 96,
            ..Self::t2v(96, 384, 4, 6)
        }
    }

    /// The preset of a name, as the command line spells it.
    pub fn preset(name: &str) -> Option<Self> {
        Self::PRESETS.iter().find(|(n, _)| *n == name).map(|(_, f)| f())
    }

    /// Every preset by name.
    pub const PRESETS: [Preset; 8] = [
        ("digits", Self::digits),
        ("mid", Self::mid),
        ("wan2.1-t2v-1.3b", Self::t2v_1_3b),
        ("wan2.1-t2v-14b", Self::t2v_14b),
        ("wan2.1-i2v-14b", Self::i2v_14b),
        ("wan2.1-flf2v-14b", Self::flf2v_14b),
        ("wan2.2-t2v-a14b", Self::t2v_14b),
        ("wan2.2-i2v-a14b", Self::i2v_a14b),
    ];

    /// Width of one head.
    pub fn head_dim(&self) -> usize {
        self.dim / self.heads
    }

    /// Features of one patch with so many channels.
    pub fn patch_features(&self, channels: usize) -> usize {
        channels * self.patch.iter().product::<usize>()
    }

    /// Refuses what no network can be.
    ///
    /// # Errors
    /// If an extent is zero, the heads do not divide the width, or a head or the time embedding has an odd width.
    pub fn validate(&self) -> Result<()> {
        let bad =
            |problem: String, remedy: &str| Err(Error::Config { network: "wan", problem, remedy: remedy.to_string() });
        let extents = [
            ("dim", self.dim),
            ("ffn_dim", self.ffn_dim),
            ("heads", self.heads),
            ("layers", self.layers),
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("patch", self.patch.iter().product()),
            ("text_dim", self.text_dim),
            ("freq_dim", self.freq_dim),
        ];
        if let Some((name, _)) = extents.iter().find(|(_, n)| *n == 0) {
            return bad(format!("{name} is 0"), "every extent must be at least 1");
        }
        if self.layers > MAX_LAYERS {
            return bad(format!("{} layers", self.layers), "no published network has more than 40");
        }
        if !self.dim.is_multiple_of(self.heads) {
            return bad(
                format!("{} heads do not divide dim {}", self.heads, self.dim),
                "choose dim = heads × head width",
            );
        }
        if !self.head_dim().is_multiple_of(2) {
            let problem = format!("heads of width {} cannot be rotated", self.head_dim());
            return bad(problem, "choose dim and heads so that dim/heads is even");
        }
        if !self.freq_dim.is_multiple_of(2) {
            return bad(format!("freq_dim {} is odd", self.freq_dim), "cosines and sines need an even width");
        }
        if self.in_channels < self.out_channels {
            let problem = format!("{} channels in, {} out", self.in_channels, self.out_channels);
            return bad(problem, "the latent comes in with all channels that go out");
        }
        if !(self.eps > 0.0 && self.eps.is_finite()) {
            return bad(format!("eps is {}", self.eps), "use a small positive number such as 1e-6");
        }
        if self.image_positions.is_some() && self.image_dim.is_none() {
            return bad("image_positions without image_dim".into(), "give image_dim, or remove image_positions");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_valid() {
        for (name, preset) in WanConfig::PRESETS {
            preset().validate().unwrap_or_else(|e| panic!("{name}: {e}"));
        }
    }

    #[test]
    fn impossible_extents_are_refused_with_a_remedy() {
        let base = WanConfig::digits;
        let cases = [
            WanConfig { heads: 5, ..base() },
            WanConfig { heads: 0, ..base() },
            WanConfig { dim: 12, heads: 4, ..base() },
            WanConfig { freq_dim: 7, ..base() },
            WanConfig { layers: 0, ..base() },
            WanConfig { layers: 1_000_000_000, ..base() },
            WanConfig { in_channels: 1, ..base() },
            WanConfig { eps: f64::NAN, ..base() },
            WanConfig { image_positions: Some(3), ..base() },
        ];
        for config in cases {
            let message = config.validate().unwrap_err().to_string();
            assert!(message.contains(';'), "{message}");
        }
    }
}
