use fewstep_tensor::file::TensorFile;
use serde::{Deserialize, Serialize};

use super::T5Layout;
use crate::weights::Layout;
use crate::{Error, Result};

/// More layers than this are a slip of the keyboard.
const MAX_LAYERS: usize = 1000;
/// The distance from which all relative positions share a bucket, in every published encoder.
const MAX_DISTANCE: usize = 128;

/// The extents of a text encoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct T5Config {
    /// Rows of the token embedding.
    pub vocab: usize,
    /// Width D of the tokens.
    pub dim: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width of one head; heads × head width need not be D.
    pub head_dim: usize,
    /// Width of the feed-forward layer.
    pub ffn_dim: usize,
    /// Transformer blocks.
    pub layers: usize,
    /// Buckets of relative positions.
    pub buckets: usize,
    /// The distance from which all relative positions share a bucket.
    pub max_distance: usize,
    /// Whether the feed-forward layer is gated: wo(gelu(wi_0·x)∘wi_1·x) instead of wo(relu(wi·x)).
    pub gated: bool,
    /// Whether the bias of the first block serves all.
    pub shared_bias: bool,
    /// ε of every norm.
    pub eps: f64,
}

impl T5Config {
    /// The encoder of umT5-xxl, which Wan reads prompts with.
    pub fn umt5_xxl() -> Self {
        T5Config {
            vocab: 256_384,
            dim: 4096,
            heads: 64,
            head_dim: 64,
            ffn_dim: 10_240,
            layers: 24,
            buckets: 32,
            max_distance: MAX_DISTANCE,
            gated: true,
            shared_bias: false,
            eps: 1e-6,
        }
    }

    /// The encoder of T5-11B, which Cosmos reads prompts with.
    pub fn t5_11b() -> Self {
        T5Config {
            vocab: 32_128,
            dim: 1024,
            heads: 128,
            head_dim: 128,
            ffn_dim: 65_536,
            gated: false,
            shared_bias: true,
            ..Self::umt5_xxl()
        }
    }

    /// Width of all heads together.
    pub fn inner_dim(&self) -> usize {
        self.heads * self.head_dim
    }

    /// The extents that a file of weights in any layout shows: all but the largest distance, which is 128 in every published
    /// encoder, and ε, which is 1e-6.
    ///
    /// # Errors
    /// If the tensors that show the extents are missing or have other axes.
    pub fn of_weights(file: &TensorFile) -> Result<Self> {
        let layout = T5Layout::recognise(file)?;
        let own = layout.encoder_of(file)?;
        let shape = |canonical: &str| own.tensors.get(&layout.name_of(canonical)).map(|t| t.shape().to_vec());
        let need = |canonical: &str| {
            let missing = || Error::Config {
                network: "t5",
                problem: format!("the weights hold no matrix '{}'", layout.name_of(canonical)),
                remedy: "pass a file of a whole umT5 or T5 encoder".into(),
            };
            shape(canonical).and_then(|s| <[usize; 2]>::try_from(s).ok()).ok_or_else(missing)
        };
        let bias = |i: usize| format!("blocks.{i}.pos_embedding.embedding.weight");
        let layers = (0..=MAX_LAYERS).take_while(|i| shape(&format!("blocks.{i}.norm1.weight")).is_some()).count();
        let ([vocab, dim], [buckets, heads]) = (need("token_embedding.weight")?, need(&bias(0))?);
        let inner = need("blocks.0.attn.q.weight")?[0];
        if heads == 0 || inner % heads != 0 {
            return Err(refusal(format!("{heads} heads do not divide a width of {inner}"), "the file is damaged"));
        }
        let config = T5Config {
            vocab,
            dim,
            heads,
            head_dim: inner / heads,
            ffn_dim: need("blocks.0.ffn.fc2.weight")?[1],
            layers,
            buckets,
            max_distance: MAX_DISTANCE,
            gated: shape("blocks.0.ffn.gate.0.weight").is_some(),
            shared_bias: layers > 1 && shape(&bias(1)).is_none(),
            eps: 1e-6,
        };
        config.validate()?;
        Ok(config)
    }

    /// Refuses what no encoder can be.
    ///
    /// # Errors
    /// If an extent is zero, there are too many layers, or the buckets and the largest distance do not fit together.
    pub fn validate(&self) -> Result<()> {
        let extents = [
            ("vocab", self.vocab),
            ("dim", self.dim),
            ("heads", self.heads),
            ("head_dim", self.head_dim),
            ("ffn_dim", self.ffn_dim),
            ("layers", self.layers),
        ];
        if let Some((name, _)) = extents.iter().find(|(_, n)| *n == 0) {
            return Err(refusal(format!("{name} is 0"), "every extent must be at least 1"));
        }
        if self.layers > MAX_LAYERS {
            return Err(refusal(format!("{} layers", self.layers), "no published encoder has more than 24"));
        }
        if self.buckets < 4 || !self.buckets.is_multiple_of(4) || self.max_distance <= self.buckets / 4 {
            let problem = format!("{} buckets up to a distance of {}", self.buckets, self.max_distance);
            return Err(refusal(problem, "use a multiple of 4, and a distance beyond a quarter of it"));
        }
        if !(self.eps > 0.0 && self.eps.is_finite()) {
            return Err(refusal(format!("eps is {}", self.eps), "use a small positive number such as 1e-6"));
        }
        Ok(())
    }
}

fn refusal(problem: String, remedy: &str) -> Error {
    Error::Config { network: "t5", problem, remedy: remedy.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_encoders_are_valid_and_impossible_ones_are_refused() {
        T5Config::umt5_xxl().validate().unwrap();
        T5Config::t5_11b().validate().unwrap();
        let base = T5Config::umt5_xxl;
        let cases = [
            T5Config { vocab: 0, ..base() },
            T5Config { layers: 1_000_000, ..base() },
            T5Config { buckets: 0, ..base() },
            T5Config { buckets: 30, ..base() },
            T5Config { max_distance: 8, ..base() },
            T5Config { eps: f64::NAN, ..base() },
        ];
        for config in cases {
            assert!(config.validate().unwrap_err().to_string().contains(';'), "{config:?}");
        }
    }
}
