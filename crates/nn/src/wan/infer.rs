//! A network's extents from its weights.

use fewstep_tensor::file::TensorFile;

use super::{WanConfig, WanLayout};
use crate::weights::{Layout, strip_prefix};
use crate::{Error, Result};

/// Width of a head in every published Wan.
const HEAD_DIM: usize = 128;

impl WanConfig {
    /// The extents that a file of weights in any layout shows, with what it does not show given.
    ///
    /// Weights do not show how the width is divided among heads (128 wide in every published Wan), nor, in a layout that
    /// stores the patch embedding as a matrix, the patch.
    ///
    /// # Errors
    /// If the tensors that show the extents are missing or have other axes, or heads are not given and 128 does not divide
    /// the width.
    pub fn of_weights(file: &TensorFile, heads: Option<usize>, patch: [usize; 3]) -> Result<Self> {
        let layout = WanLayout::recognise(file, patch)?;
        let tensors = strip_prefix(file, &layout);
        let shape = |name: &str| tensors.get(layout.name_of(name).as_str()).map(|t| t.shape().to_vec());
        let need = |name: &str, axes: usize| {
            let missing = || Error::Config {
                network: "wan",
                problem: format!("the weights hold no '{}' of {axes} axes", layout.name_of(name)),
                remedy: "pass a file of a whole Wan network".into(),
            };
            shape(name).filter(|s| s.len() == axes).ok_or_else(missing)
        };
        let text = need("text_embedding.0.weight", 2)?;
        let (dim, features) = (text[0], patch.iter().product::<usize>());
        let in_features: usize = shape("patch_embedding.weight").unwrap_or_default().iter().skip(1).product();
        let layers = (0..).take_while(|i| shape(&format!("blocks.{i}.modulation")).is_some()).count();
        let config = WanConfig {
            dim,
            ffn_dim: need("blocks.0.ffn.0.weight", 2)?[0],
            heads: heads.map_or_else(|| published_heads(dim), Ok)?,
            layers,
            in_channels: in_features / features.max(1),
            out_channels: need("head.head.weight", 2)?[0] / features.max(1),
            patch,
            text_dim: text[1],
            freq_dim: need("time_embedding.0.weight", 2)?[1],
            image_dim: shape("img_emb.proj.1.weight").map(|s| s[0]),
            image_positions: shape("img_emb.emb_pos").and_then(|s| s.get(1).copied()),
            eps: 1e-6,
        };
        config.validate()?;
        Ok(config)
    }
}

impl WanConfig {
    /// The extents that weights show, with heads, patch and ε as told by what describes them.
    ///
    /// # Errors
    /// As [`WanConfig::of_weights`], or if the weights show another network than is told; of an image branch only they know.
    pub fn of_weights_with(file: &TensorFile, told: Self) -> Result<Self> {
        let shown = Self::of_weights(file, Some(told.heads), told.patch)?;
        let shown = WanConfig { eps: told.eps, ..shown };
        let same_branch =
            WanConfig { image_dim: shown.image_dim, image_positions: shown.image_positions, ..told.clone() };
        if same_branch == shown {
            return Ok(shown);
        }
        Err(Error::Config {
            network: "wan",
            problem: format!("the weights are of another network than what describes them: {shown:?}, not {told:?}"),
            remedy: "fetch weights and description from the same place".into(),
        })
    }
}

fn published_heads(dim: usize) -> Result<usize> {
    if dim.is_multiple_of(HEAD_DIM) {
        return Ok(dim / HEAD_DIM);
    }
    Err(Error::Config {
        network: "wan",
        problem: format!("a width of {dim} is no multiple of {HEAD_DIM}, and weights do not show their heads"),
        remedy: "say how many heads there are (--heads, or the setting heads of a distillation)".into(),
    })
}
