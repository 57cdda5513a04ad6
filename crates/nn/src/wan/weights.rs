//! Names of Wan's weights in the published layouts. The canonical names are the original ones.

use std::path::Path;

use fewstep_ops::{Network, ParamSpec, Params};
use fewstep_tensor::DType;
use fewstep_tensor::file::TensorFile;

use super::Wan;
use crate::weights::{self, Layout, Policy};
use crate::{Error, Result};

/// A published layout of Wan's weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WanLayout {
    /// The original files: the patch embedding as the kernel of a convolution.
    Original {
        /// Patch extents.
        patch: [usize; 3],
    },
    /// The rCM reference: the patch embedding as a matrix, names perhaps under `net.`.
    Rcm,
    /// diffusers' folders.
    Diffusers {
        /// Patch extents.
        patch: [usize; 3],
    },
}

/// Canonical → diffusers, for parts of names outside the blocks.
const DIFFUSERS_OUTER: [(&str, &str); 13] = [
    ("text_embedding.0.", "condition_embedder.text_embedder.linear_1."),
    ("text_embedding.2.", "condition_embedder.text_embedder.linear_2."),
    ("time_embedding.0.", "condition_embedder.time_embedder.linear_1."),
    ("time_embedding.2.", "condition_embedder.time_embedder.linear_2."),
    ("time_projection.1.", "condition_embedder.time_proj."),
    ("head.modulation", "scale_shift_table"),
    ("head.head.", "proj_out."),
    ("img_emb.proj.0.", "condition_embedder.image_embedder.norm1."),
    ("img_emb.proj.1.", "condition_embedder.image_embedder.ff.net.0.proj."),
    ("img_emb.proj.3.", "condition_embedder.image_embedder.ff.net.2."),
    ("img_emb.proj.4.", "condition_embedder.image_embedder.norm2."),
    ("img_emb.emb_pos", "condition_embedder.image_embedder.pos_embed"),
    ("patch_embedding.", "patch_embedding."),
];

/// Canonical → diffusers, inside a block; the first part that matches counts.
const DIFFUSERS_BLOCK: [(&str, &str); 13] = [
    ("modulation", "scale_shift_table"),
    ("norm3.", "norm2."),
    ("ffn.0.", "ffn.net.0.proj."),
    ("ffn.2.", "ffn.net.2."),
    ("cross_attn.k_img.", "attn2.add_k_proj."),
    ("cross_attn.v_img.", "attn2.add_v_proj."),
    ("cross_attn.norm_k_img.", "attn2.norm_added_k."),
    (".q.", ".to_q."),
    (".k.", ".to_k."),
    (".v.", ".to_v."),
    (".o.", ".to_out.0."),
    (".norm_q.", ".norm_q."),
    (".norm_k.", ".norm_k."),
];

impl WanLayout {
    /// The layout of a file, from its names.
    ///
    /// # Errors
    /// If they are of none.
    pub fn recognise(file: &TensorFile, patch: [usize; 3]) -> Result<Self> {
        let has = |part: &str| file.tensors.keys().any(|k| k.contains(part));
        if has("condition_embedder.") {
            Ok(WanLayout::Diffusers { patch })
        } else if has("text_embedding.") {
            Ok(WanLayout::Original { patch })
        } else {
            Err(Error::Layout { network: "wan", expected: "text_embedding.0.weight or condition_embedder.…" })
        }
    }
}

impl Layout for WanLayout {
    fn name_of(&self, canonical: &str) -> String {
        match self {
            WanLayout::Original { .. } | WanLayout::Rcm => canonical.to_string(),
            WanLayout::Diffusers { .. } => diffusers_name(canonical),
        }
    }

    fn shape_of(&self, spec: &ParamSpec) -> Vec<usize> {
        match (self, spec.name.as_str(), spec.shape.as_slice()) {
            (WanLayout::Original { patch } | WanLayout::Diffusers { patch }, "patch_embedding.weight", &[d, n]) => {
                vec![d, n / patch.iter().product::<usize>(), patch[0], patch[1], patch[2]]
            }
            _ => spec.shape.clone(),
        }
    }

    fn prefixes(&self) -> &[&str] {
        &["net.", "module.", "model.", "diffusion_model."]
    }
}

fn diffusers_name(canonical: &str) -> String {
    let Some(rest) = canonical.strip_prefix("blocks.") else {
        let renamed = DIFFUSERS_OUTER.iter().find(|(from, _)| canonical.starts_with(from));
        return renamed.map_or(canonical.to_string(), |(from, to)| canonical.replacen(from, to, 1));
    };
    let renamed = DIFFUSERS_BLOCK.iter().find(|(from, _)| rest.contains(from));
    let rest = renamed.map_or(rest.to_string(), |(from, to)| rest.replacen(from, to, 1));
    format!("blocks.{}", rest.replacen("self_attn", "attn1", 1).replacen("cross_attn", "attn2", 1))
}

impl Wan {
    /// Loads weights of any published layout, from a file or folder of any published kind,
    /// recognised by the names; by a policy, or in a compute dtype.
    ///
    /// # Errors
    /// If the file cannot be read, is of no known layout, or does not hold exactly this network's weights.
    pub fn load(&self, path: &Path, policy: impl Into<Policy>) -> Result<Params> {
        self.load_from(&fewstep_formats::read_weights(path)?, path, policy)
    }

    /// As [`Wan::load`], from a file already read.
    ///
    /// # Errors
    /// As [`Wan::load`].
    pub fn load_from(&self, file: &TensorFile, path: &Path, policy: impl Into<Policy>) -> Result<Params> {
        let layout = WanLayout::recognise(file, self.config().patch)?;
        weights::load(file, path, self.specs(), &layout, policy)
    }

    /// Weights as a file of a layout, in a storage dtype.
    ///
    /// # Errors
    /// If the weights are not this network's.
    pub fn store(&self, params: &Params, layout: WanLayout, dtype: DType) -> Result<TensorFile> {
        weights::store(params, &layout, dtype)
    }
}
