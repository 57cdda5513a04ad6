//! Names of the autoencoder's weights in the published layouts. The canonical names are the original ones.

use std::path::Path;

use fewstep_ops::{ParamSpec, Params};
use fewstep_tensor::DType;
use fewstep_tensor::file::TensorFile;

use super::WanVae;
use crate::weights::{self, Layout};
use crate::{Error, Result};

/// A published layout of the autoencoder's weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VaeLayout {
    /// `Wan2.1_VAE.pth`.
    Original,
    /// The folder `vae` of diffusers.
    Diffusers,
}

/// Canonical → diffusers, for beginnings of names.
const OUTER: [(&str, &str); 12] = [
    ("conv1.", "quant_conv."),
    ("conv2.", "post_quant_conv."),
    ("encoder.conv1.", "encoder.conv_in."),
    ("decoder.conv1.", "decoder.conv_in."),
    ("encoder.head.0.", "encoder.norm_out."),
    ("decoder.head.0.", "decoder.norm_out."),
    ("encoder.head.2.", "encoder.conv_out."),
    ("decoder.head.2.", "decoder.conv_out."),
    ("encoder.downsamples.", "encoder.down_blocks."),
    ("encoder.middle.", "encoder.mid_block."),
    ("decoder.middle.", "decoder.mid_block."),
    ("decoder.upsamples.", "decoder.up_blocks."),
];

/// Canonical → diffusers, inside a block.
const INNER: [(&str, &str); 8] = [
    ("mid_block.0.", "mid_block.resnets.0."),
    ("mid_block.1.", "mid_block.attentions.0."),
    ("mid_block.2.", "mid_block.resnets.1."),
    (".residual.0.", ".norm1."),
    (".residual.2.", ".conv1."),
    (".residual.3.", ".norm2."),
    (".residual.6.", ".conv2."),
    (".shortcut.", ".conv_shortcut."),
];

/// Blocks of a level of the published decoder, its enlargement included.
const DECODER_LEVEL: usize = 4;

impl VaeLayout {
    /// The layout of a file, from its names.
    ///
    /// # Errors
    /// If they are of none.
    pub fn recognise(file: &TensorFile) -> Result<Self> {
        let has = |part: &str| file.tensors.keys().any(|k| k.contains(part));
        if has("post_quant_conv.") {
            Ok(VaeLayout::Diffusers)
        } else if has("decoder.upsamples.") {
            Ok(VaeLayout::Original)
        } else {
            Err(Error::Layout { network: "wan vae", expected: "decoder.upsamples.… or post_quant_conv.weight" })
        }
    }
}

impl Layout for VaeLayout {
    fn name_of(&self, canonical: &str) -> String {
        match self {
            VaeLayout::Original => canonical.to_string(),
            VaeLayout::Diffusers => diffusers_name(canonical),
        }
    }

    fn shape_of(&self, spec: &ParamSpec) -> Vec<usize> {
        match spec.shape.as_slice() {
            // Norms are stored ready to broadcast over frames, [C, 1, 1, 1], and over images in the attention.
            &[c] if spec.name.ends_with("middle.1.norm.gamma") => vec![c, 1, 1],
            &[c] if spec.name.ends_with(".gamma") => vec![c, 1, 1, 1],
            other => other.to_vec(),
        }
    }

    fn prefixes(&self) -> &[&str] {
        &["module.", "model.", "vae.", "first_stage_model."]
    }
}

fn diffusers_name(canonical: &str) -> String {
    let outer = OUTER.iter().find(|(from, _)| canonical.starts_with(from));
    let mut name = outer.map_or(canonical.to_string(), |(from, to)| canonical.replacen(from, to, 1));
    for (from, to) in INNER {
        name = name.replacen(from, to, 1);
    }
    let Some(rest) = name.strip_prefix("decoder.up_blocks.") else { return name };
    let Some((index, leaf)) = rest.split_once('.') else { return name };
    let Ok(index) = index.parse::<usize>() else { return name };
    let (level, block) = (index / DECODER_LEVEL, index % DECODER_LEVEL);
    let enlarges = block == DECODER_LEVEL - 1;
    let part = if enlarges { "upsamplers.0".to_string() } else { format!("resnets.{block}") };
    format!("decoder.up_blocks.{level}.{part}.{leaf}")
}

impl WanVae {
    /// Loads weights of any published layout, recognised by the names, in a compute dtype.
    ///
    /// # Errors
    /// If the file cannot be read, is of no known layout, or does not hold exactly this network's weights.
    pub fn load(&self, path: &Path, dtype: DType) -> Result<Params> {
        self.load_from(&fewstep_formats::read_weights(path)?, path, dtype)
    }

    /// As [`WanVae::load`], from a file already read.
    ///
    /// # Errors
    /// As [`WanVae::load`].
    pub fn load_from(&self, file: &TensorFile, path: &Path, dtype: DType) -> Result<Params> {
        weights::load(file, path, self.specs(), &VaeLayout::recognise(file)?, dtype)
    }

    /// Weights as a file of a layout, in a storage dtype.
    ///
    /// # Errors
    /// If the weights are not this network's.
    pub fn store(&self, params: &Params, layout: VaeLayout, dtype: DType) -> Result<TensorFile> {
        weights::store(params, &layout, dtype)
    }
}
