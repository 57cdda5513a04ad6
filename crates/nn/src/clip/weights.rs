//! Names of the tower's weights in the published layouts. The canonical names are the original ones.

use std::path::Path;

use fewstep_ops::{ParamSpec, Params};
use fewstep_tensor::file::TensorFile;
use fewstep_tensor::{DType, Tensor};

use super::{ClipConfig, ClipVision};
use crate::weights::{self, Layout};
use crate::{Error, Result};

/// Width of a head of ViT-H/14.
const HEAD_DIM: usize = 80;
const HF: &str = "vision_model.";
const BLOCK: &str = "visual.transformer.";

/// What the original file holds beside the part of the tower that is run; a name that begins like one of these.
const IGNORED: [&str; 5] =
    ["textual.", "log_scale", "visual.head", "visual.post_norm.", "vision_model.embeddings.position_ids"];

/// Hugging Face → original, outside the blocks.
const HF_OUTER: [(&str, &str); 5] = [
    ("embeddings.patch_embedding.", "visual.patch_embedding."),
    ("embeddings.class_embedding", "visual.cls_embedding"),
    ("embeddings.position_embedding.weight", "visual.pos_embedding"),
    ("pre_layrnorm.", "visual.pre_norm."),
    ("post_layernorm.", "visual.post_norm."),
];

/// Hugging Face → original, inside a block.
const HF_BLOCK: [(&str, &str); 5] = [
    ("layer_norm1.", "norm1."),
    ("layer_norm2.", "norm2."),
    ("self_attn.out_proj.", "attn.proj."),
    ("mlp.fc1.", "mlp.0."),
    ("mlp.fc2.", "mlp.2."),
];

/// The original names and shapes.
struct Original {
    patch: usize,
}

impl Layout for Original {
    fn name_of(&self, canonical: &str) -> String {
        canonical.to_string()
    }

    fn shape_of(&self, spec: &ParamSpec) -> Vec<usize> {
        match spec.name.as_str() {
            "visual.patch_embedding.weight" => vec![spec.shape[0], 3, self.patch, self.patch],
            _ => spec.shape.clone(),
        }
    }

    fn prefixes(&self) -> &[&str] {
        &["module.", "model."]
    }
}

/// A Hugging Face name as an original one; nothing for the queries, keys and values, which are one matrix there.
fn original_name(hf: &str) -> Option<String> {
    let outer = HF_OUTER.iter().find(|(from, _)| hf.starts_with(from));
    if let Some((from, to)) = outer {
        return Some(hf.replacen(from, to, 1));
    }
    let (index, rest) = hf.strip_prefix("encoder.layers.")?.split_once('.')?;
    let (from, to) = HF_BLOCK.iter().find(|(from, _)| rest.starts_with(from))?;
    Some(format!("{BLOCK}{index}.{}", rest.replacen(from, to, 1)))
}

/// The file under original names. What has none keeps its own, to be reported as unexpected.
fn original(file: &TensorFile) -> Result<TensorFile> {
    if !file.tensors.keys().any(|name| name.starts_with(HF)) {
        return Ok(file.clone());
    }
    let mut named = TensorFile::default();
    for (name, t) in &file.tensors {
        let bare = name.strip_prefix(HF).unwrap_or(name);
        if let Some((block, leaf)) = bare.split_once(".self_attn.q_proj.") {
            let part = |p: &str| file.tensors.get(&format!("{HF}{block}.self_attn.{p}_proj.{leaf}"));
            if let (Some(index), Some(k), Some(v)) = (block.strip_prefix("encoder.layers."), part("k"), part("v")) {
                named.tensors.insert(format!("{BLOCK}{index}.attn.to_qkv.{leaf}"), Tensor::cat(&[t, k, v])?);
                continue;
            }
        }
        let joined = [".self_attn.k_proj.", ".self_attn.v_proj."].iter().find_map(|part| {
            let (block, leaf) = bare.split_once(part)?;
            file.tensors.get(&format!("{HF}{block}.self_attn.q_proj.{leaf}"))
        });
        if joined.is_some() {
            continue;
        }
        let t = match bare {
            "embeddings.class_embedding" => t.reshape(&[1, 1, t.len()])?,
            "embeddings.position_embedding.weight" => t.reshape(&[&[1], t.shape()].concat())?,
            _ => t.clone(),
        };
        named.tensors.insert(original_name(bare).unwrap_or_else(|| name.clone()), t);
    }
    Ok(named)
}

impl ClipConfig {
    /// The extents that a file of weights in either layout shows. Weights do not show how the width is divided among heads;
    /// 80 wide, as in ViT-H/14, unless their number is given.
    ///
    /// # Errors
    /// If the tensors that show the extents are missing or have other axes.
    pub fn of_weights(file: &TensorFile, heads: Option<usize>) -> Result<Self> {
        let file = original(file)?;
        let need = |name: &str, axes: usize| {
            let shape = file.tensors.get(name).map(|t| t.shape()).filter(|s| s.len() == axes);
            shape
                .ok_or(Error::Layout {
                    network: "clip", expected: "visual.pos_embedding or vision_model.embeddings.…"
                })
        };
        let kernel = need("visual.patch_embedding.weight", 4)?;
        let (dim, patch) = (kernel[0], kernel[2]);
        let tokens = need("visual.pos_embedding", 3)?[1];
        let config = ClipConfig {
            image: tokens.saturating_sub(1).isqrt() * patch,
            patch,
            dim,
            mlp_dim: need("visual.transformer.0.mlp.0.weight", 2)?[0],
            heads: heads.unwrap_or(dim / HEAD_DIM),
            layers: (0..).take_while(|i| file.tensors.contains_key(&format!("{BLOCK}{i}.norm1.weight"))).count(),
        };
        config.validate()?;
        Ok(config)
    }
}

impl ClipVision {
    /// Loads weights of either published layout, recognised by the names, in a compute dtype.
    ///
    /// # Errors
    /// If the file cannot be read, or does not hold exactly this tower's weights beside what is ignored: the text tower, the
    /// scale of the scores, the head, the final norm and the last block.
    pub fn load(&self, path: &Path, dtype: DType) -> Result<Params> {
        self.load_from(&fewstep_formats::read_weights(path)?, path, dtype)
    }

    /// As [`ClipVision::load`], from a file already read.
    ///
    /// # Errors
    /// As [`ClipVision::load`].
    pub fn load_from(&self, file: &TensorFile, path: &Path, dtype: DType) -> Result<Params> {
        let last = format!("{BLOCK}{}.", self.config().run_layers());
        let mut file = original(file)?;
        file.tensors.retain(|name, _| !IGNORED.iter().any(|part| name.starts_with(part)) && !name.starts_with(&last));
        weights::load(&file, path, self.specs(), &Original { patch: self.config().patch }, dtype)
    }
}
