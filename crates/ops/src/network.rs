use std::sync::Arc;

use fewstep_tensor::{DType, Device, Tensor};

use crate::{Mode, ParamSpec, Result};

/// What a network is conditioned on.
#[derive(Clone, Debug)]
pub struct Conditions<V = Tensor> {
    /// Text embeddings `[B, S, text_dim]`.
    pub text: V,
    /// Image tokens `[B, I, image_dim]` (image to video).
    pub image: Option<V>,
    /// Condition channels `[B, C', F, H, W]` beside the noisy latent (image to video).
    pub latent: Option<V>,
}

impl Conditions {
    /// The conditions on a device, in a dtype.
    ///
    /// # Errors
    /// If a GPU has no memory for them, or a copy fails.
    pub fn to(&self, device: Device, dtype: DType) -> Result<Self> {
        let moved = |t: &Tensor| t.to_dtype(dtype).to_device(device);
        Ok(Conditions {
            text: moved(&self.text)?,
            image: self.image.as_ref().map(moved).transpose()?,
            latent: self.latent.as_ref().map(moved).transpose()?,
        })
    }

    /// The text of `other` for the marked samples, one's own for the rest.
    ///
    /// # Errors
    /// If the texts differ in shape, or there is not one mark a sample.
    pub fn replaced(&self, other: &Conditions, marked: &[bool]) -> Result<Self> {
        let rows = marked.iter().enumerate().map(|(i, &m)| (if m { other } else { self }).text.narrow(i, 1));
        let rows = rows.collect::<fewstep_tensor::Result<Vec<_>>>()?;
        Ok(Conditions { text: Tensor::cat(&rows.iter().collect::<Vec<_>>())?, ..self.clone() })
    }

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

    /// The raw prediction `[B, C, F, H, W]` from x `[B, C, F, H, W]`, t `[B]` in the network's own time unit and conditions.
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
