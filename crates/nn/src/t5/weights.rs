//! Names of the encoders' weights in the published layouts. The canonical names are those of Wan's umT5.

use std::path::Path;

use fewstep_ops::{ParamSpec, Params};
use fewstep_tensor::DType;
use fewstep_tensor::file::TensorFile;

use super::T5Encoder;
use crate::weights::{self, Layout, Policy, strip_prefix};
use crate::{Error, Result};

/// A published layout of a text encoder's weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum T5Layout {
    /// Wan's own file, `models_t5_umt5-xxl-enc-bf16.pth`.
    Original,
    /// Hugging Face's `T5EncoderModel` and `UMT5EncoderModel`, or the encoder's part of a whole model.
    HuggingFace {
        /// Whether the feed-forward layer is gated, which decides what its matrices are called.
        gated: bool,
    },
}

/// The token embedding of Hugging Face's layout, and the name under which files may carry it again.
const SHARED: &str = "shared.weight";
const TIED: &str = "encoder.embed_tokens.weight";
/// Parts of a whole Hugging Face model that are not its encoder's.
const OTHER_PARTS: [&str; 2] = ["decoder.", "lm_head."];
/// Rows of the two copies of the token embedding that are compared: they are gigabytes that would all be read from disk.
const COMPARED_ROWS: usize = 64;

/// Canonical → Hugging Face, inside a block.
const BLOCK: [(&str, &str); 7] = [
    ("norm1.", "layer.0.layer_norm."),
    ("norm2.", "layer.1.layer_norm."),
    ("pos_embedding.embedding.", "layer.0.SelfAttention.relative_attention_bias."),
    ("attn.", "layer.0.SelfAttention."),
    ("ffn.gate.0.", "layer.1.DenseReluDense.wi_0."),
    ("ffn.fc1.", "layer.1.DenseReluDense.wi_1."),
    ("ffn.fc2.", "layer.1.DenseReluDense.wo."),
];

impl T5Layout {
    /// The layout of a file, from its names.
    ///
    /// # Errors
    /// If they are of none.
    pub fn recognise(file: &TensorFile) -> Result<Self> {
        let has = |part: &str| file.tensors.keys().any(|k| k.contains(part));
        if has("encoder.block.0.") {
            Ok(T5Layout::HuggingFace { gated: has("DenseReluDense.wi_0.") })
        } else if has("pos_embedding.embedding.") {
            Ok(T5Layout::Original)
        } else {
            let expected = "blocks.0.pos_embedding.embedding.weight or encoder.block.0.layer.0.SelfAttention.q.weight";
            Err(Error::Layout { network: "umT5 or T5", expected })
        }
    }

    /// The tensors of the encoder alone, without a common prefix, each once and under the layout's name.
    pub(super) fn encoder_of(self, file: &TensorFile) -> Result<TensorFile> {
        let named = strip_prefix(file, &self).into_iter().map(|(name, t)| (name.to_string(), t.clone())).collect();
        let mut own = TensorFile { tensors: named, ..file.clone() };
        if self == T5Layout::Original {
            return Ok(own);
        }
        own.tensors.retain(|name, _| !OTHER_PARTS.iter().any(|part| name.starts_with(part)));
        match (own.tensors.get(SHARED), own.tensors.get(TIED)) {
            (None, Some(_)) => {
                let tied = own.tensors.remove(TIED);
                own.tensors.extend(tied.map(|t| (SHARED.to_string(), t)));
            }
            (Some(shared), Some(tied)) if same(shared, tied)? => drop(own.tensors.remove(TIED)),
            _ => {}
        }
        Ok(own)
    }
}

/// Whether two matrices are one, by their extents and some of their rows.
fn same(a: &fewstep_tensor::Tensor, b: &fewstep_tensor::Tensor) -> Result<bool> {
    if a.shape() != b.shape() || a.shape().len() != 2 {
        return Ok(false);
    }
    let rows = a.shape()[0];
    for row in (0..rows).step_by((rows / COMPARED_ROWS).max(1)) {
        if a.narrow(row, 1)?.to_vec_f64() != b.narrow(row, 1)?.to_vec_f64() {
            return Ok(false);
        }
    }
    Ok(true)
}

impl Layout for T5Layout {
    fn name_of(&self, canonical: &str) -> String {
        let T5Layout::HuggingFace { gated } = *self else {
            return canonical.to_string();
        };
        match canonical {
            "token_embedding.weight" => return SHARED.to_string(),
            "norm.weight" => return "encoder.final_layer_norm.weight".to_string(),
            _ => {}
        }
        let Some((index, rest)) = canonical.strip_prefix("blocks.").and_then(|r| r.split_once('.')) else {
            return canonical.to_string();
        };
        let renamed = BLOCK.iter().find_map(|(from, to)| rest.strip_prefix(from).map(|leaf| format!("{to}{leaf}")));
        let renamed = renamed.unwrap_or_else(|| rest.to_string());
        let renamed = if gated { renamed } else { renamed.replacen(".wi_1.", ".wi.", 1) };
        format!("encoder.block.{index}.{renamed}")
    }

    fn shape_of(&self, spec: &ParamSpec) -> Vec<usize> {
        spec.shape.clone()
    }

    fn prefixes(&self) -> &[&str] {
        &["module.", "model.", "text_encoder."]
    }
}

impl T5Encoder {
    /// Loads weights of any published layout, recognised by the names; a dtype widens all of them to it.
    ///
    /// # Errors
    /// If the file cannot be read, is of no known layout, or does not hold exactly this encoder's weights.
    pub fn load(&self, path: &Path, policy: impl Into<Policy>) -> Result<Params> {
        self.load_from(&fewstep_formats::read_weights(path)?, path, policy)
    }

    /// As [`T5Encoder::load`], from a file already read.
    ///
    /// A decoder and its head are passed over, and so is a second copy of the token embedding.
    ///
    /// # Errors
    /// As [`T5Encoder::load`].
    pub fn load_from(&self, file: &TensorFile, path: &Path, policy: impl Into<Policy>) -> Result<Params> {
        let layout = T5Layout::recognise(file)?;
        weights::load(&layout.encoder_of(file)?, path, self.specs(), &layout, policy)
    }

    /// Weights as a file of a layout, in a storage dtype.
    ///
    /// # Errors
    /// If the weights are not this encoder's.
    pub fn store(&self, params: &Params, layout: T5Layout, dtype: DType) -> Result<TensorFile> {
        weights::store(params, &layout, dtype)
    }
}
