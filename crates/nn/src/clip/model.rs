use std::sync::Arc;

use fewstep_ops::{
    Add, Concat, Error, Init, Linear, Mode, ParamId, ParamSpec, Params, PatchOrder, Plain, Rearrange, Reshape, Result,
};
use fewstep_tensor::Tensor;

use super::block::{Block, NORM};
use super::{ClipConfig, preprocess};
use crate::build::{Affine, Builder};

/// A CLIP vision tower up to its last block but one.
///
/// Normalised pixels `[B, 3, S, S]` → hidden states `[B, L, D]`, L the class token and the patches by rows: after all
/// blocks but the last, without the final norm (Wan2.1's `use_31_block`; `hidden_states[-2]` of transformers).
#[derive(Debug)]
pub struct ClipVision {
    config: ClipConfig,
    specs: Arc<[ParamSpec]>,
    patch: ParamId,
    class: ParamId,
    positions: ParamId,
    norm: Affine,
    blocks: Vec<Block>,
}

impl ClipVision {
    /// The structure of a tower of this configuration.
    ///
    /// # Errors
    /// If the configuration is impossible.
    pub fn new(config: ClipConfig) -> crate::Result<Self> {
        config.validate()?;
        let (d, b) = (config.dim, &mut Builder::default());
        let features = 3 * config.patch * config.patch;
        let init = Init::Normal((d as f64).powf(-0.5));
        let patch = b.param("visual.patch_embedding.weight", &[d, features], init);
        let class = b.param("visual.cls_embedding", &[1, 1, d], init);
        let positions = b.param("visual.pos_embedding", &[1, config.tokens(), d], init);
        let norm = b.affine("visual.pre_norm", d);
        let blocks = (0..config.run_layers()).map(|i| Block::declare(b, &config, i)).collect();
        let specs = std::mem::take(b).finish().into();
        Ok(ClipVision { config, specs, patch, class, positions, norm, blocks })
    }

    /// The tower's extents.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// Its parameters' names, shapes and initial values.
    pub fn specs(&self) -> &Arc<[ParamSpec]> {
        &self.specs
    }

    /// Hidden states `[B, L, D]` of normalised pixels `[B, 3, S, S]`, in any mode.
    ///
    /// # Errors
    /// If the pixels have other extents.
    pub fn forward<M: Mode>(&self, m: &M, pixels: &M::Value) -> Result<M::Value> {
        let (s, p, d) = (self.config.image, self.config.patch, self.config.dim);
        let &[b, 3, h, w] = m.shape(pixels) else {
            return Err(Error::input("clip", format!("pixels [B, 3, {s}, {s}]"), m.shape(pixels)));
        };
        if [h, w] != [s, s] {
            return Err(Error::input("clip", format!("pixels [B, 3, {s}, {s}]"), m.shape(pixels)));
        }
        let video = vec![b, 3, 1, s, s];
        let patches = Rearrange::patchify(&video, [1, p, p], PatchOrder::ChannelsFirst)?;
        let x = m.apply(patches, &[&m.apply(Reshape { shape: video }, &[pixels])?])?;
        let x = m.apply(Linear { bias: false }, &[&x, &m.param(self.patch)?])?; // [B, L - 1, D]
        let nothing = m.constant(Tensor::zeros(&[b, 1, d], m.dtype(&x), m.device(&x)));
        let class = m.apply(Add, &[&nothing, &m.param(self.class)?])?;
        let x = m.apply(Concat { axis: 1 }, &[&class, &x])?;
        let x = m.apply(Add, &[&x, &m.param(self.positions)?])?;
        let mut x = self.norm.apply(m, NORM, &x)?;
        for &block in &self.blocks {
            x = m.segment(block, &[&x])?;
        }
        Ok(x)
    }

    /// Image tokens `[B, L, D]` for Wan2.1 image to video from images `[B, 3, H, W]` in [-1, 1], in the weights' dtype and on their device: Wan's
    /// [`preprocess`], then [`Self::forward`].
    ///
    /// # Errors
    /// If the image has other axes, or the weights are not this tower's.
    pub fn encode(&self, params: &Params, image: &Tensor) -> Result<Tensor> {
        let pixels = preprocess(image, self.config.image)?.to_dtype(params.get(self.patch).dtype());
        let pixels = pixels.to_device(params.device())?;
        self.forward(&Plain::new(params), &pixels)
    }
}
