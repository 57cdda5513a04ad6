use std::sync::Arc;

use fewstep_tensor::Tensor;

use crate::{Mode, ParamSpec, Result};

/// What a network is conditioned on.
#[derive(Clone, Debug)]
pub struct Conditions<V = Tensor> {
    /// Text embeddings [B, S, text_dim].
    pub text: V,
    /// Image tokens [B, I, image_dim] (image to video).
    pub image: Option<V>,
    /// Condition channels [B, C', F, H, W] beside the noisy latent (image to video).
    pub latent: Option<V>,
}

impl Conditions {
    /// Text alone.
    pub fn text(text: Tensor) -> Self {
        Conditions { text, image: None, latent: None }
    }

    /// The conditions as values of a mode.
    pub fn in_mode<M: Mode>(&self, m: &M) -> Conditions<M::Value> {
        Conditions {
            text: m.constant(self.text.clone()),
            image: self.image.clone().map(|t| m.constant(t)),
            latent: self.latent.clone().map(|t| m.constant(t)),
        }
    }
}

/// A denoising network, written once for every mode.
pub trait Network: Send + Sync {
    /// Its parameters' names, shapes and initial values.
    fn specs(&self) -> &Arc<[ParamSpec]>;

    /// The raw prediction [B, C, F, H, W] from x [B, C, F, H, W], t [B] in the network's own time unit and conditions.
    ///
    /// # Errors
    /// If the shapes do not fit the network.
    fn forward<M: Mode>(
        &self,
        m: &M,
        x: &M::Value,
        t: &M::Value,
        conditions: &Conditions<M::Value>,
    ) -> Result<M::Value>;
}
