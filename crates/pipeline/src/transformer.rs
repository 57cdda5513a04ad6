//! A diffusion transformer with its weights.

use std::path::Path;

use fewstep_diffusion::{Denoiser, Predictor, Wrapper};
use fewstep_nn::wan::{Wan, WanConfig};
use fewstep_nn::weights::Policy;
use fewstep_ops::{Compute, Params};
use fewstep_tensor::DType;
use fewstep_tensor::file::TensorFile;
use fewstep_text::Identity;

use crate::Result;
use crate::parts::read_json;

/// Patch extents of every published Wan.
const PATCH: [usize; 3] = [1, 2, 2];
/// Keys under which a `config.json` says how many heads there are: the original's and diffusers'.
const HEADS: [&str; 2] = ["num_heads", "num_attention_heads"];

/// A network with weights.
#[derive(Debug)]
pub struct Transformer {
    /// The network and its preconditioning.
    pub denoiser: Denoiser<Wan>,
    /// The weights: matrices as they are stored, mapped from the file, all else in the compute dtype.
    pub params: Params,
    /// Whether the patch embedding is stored as a matrix, as distilled models in the rCM layout store it.
    pub distilled_layout: bool,
    /// What weights these are.
    pub identity: Identity,
}

impl Transformer {
    /// A network of any published layout, from what was read at a path: a file, a folder, or an index of shards. Heads are
    /// those given, or those of the `config.json` beside the weights, or 128 wide.
    ///
    /// # Errors
    /// If the weights are no Wan network's.
    pub fn of_file(file: TensorFile, path: &Path, heads: Option<usize>, dtype: DType) -> Result<Self> {
        let heads = match heads {
            Some(heads) => Some(heads),
            None => configured_heads(path)?,
        };
        let wan = Wan::new(WanConfig::of_weights(&file, heads, PATCH)?)?;
        let params = wan.load_from(&file, path, Policy::KeepMatrices(dtype))?;
        let is_matrix = |(name, t): (&String, &fewstep_tensor::Tensor)| {
            name.ends_with("patch_embedding.weight") && t.shape().len() == 2
        };
        Ok(Transformer {
            denoiser: Denoiser::new(wan, Wrapper::Rf1000),
            params,
            distilled_layout: file.tensors.iter().any(is_matrix),
            identity: Identity::of_weights(path)?,
        })
    }

    /// The network on a device. A CPU computes with the weights as they were read.
    ///
    /// # Errors
    /// If a GPU has no memory for them.
    pub fn on(self, compute: Compute) -> Result<Self> {
        Ok(Transformer { params: compute.weights(&self.params)?, ..self })
    }

    /// The network as what answers for predictions.
    pub fn predictor(&self) -> Predictor<'_, Wan> {
        Predictor { denoiser: &self.denoiser, params: &self.params }
    }

    /// The network's extents.
    pub fn config(&self) -> &WanConfig {
        self.denoiser.network().config()
    }
}

/// Heads by the `config.json` in a folder, or beside a file.
fn configured_heads(path: &Path) -> Result<Option<usize>> {
    let folder = if path.is_dir() { Some(path) } else { path.parent() };
    let Some(config) = folder.map(|f| f.join("config.json")).filter(|p| p.is_file()) else { return Ok(None) };
    let json = read_json(&config)?;
    Ok(HEADS.iter().find_map(|key| json[*key].as_u64()).map(|n| n as usize))
}
