//! The video autoencoder with its weights.

use std::ops::ControlFlow;
use std::path::Path;

use fewstep_formats::read_weights;
use fewstep_nn::vae::{Step, VaeConfig, VaeOptions, WanVae};
use fewstep_ops::{Compute, Params};
use fewstep_tensor::{DType, Tensor};

use crate::Result;

/// Frames to latents and back.
#[derive(Debug)]
pub struct Autoencoder {
    network: WanVae,
    params: Params,
    options: VaeOptions,
}

impl Autoencoder {
    /// Pixels along a side for a latent position.
    pub const SCALE: usize = 8;
    /// Frames for a latent frame after the first.
    pub const FRAMES: usize = 4;

    /// Reads the weights of any published layout, to compute on a device.
    ///
    /// # Errors
    /// If they cannot be read or are no Wan autoencoder's.
    pub fn load(path: &Path, options: VaeOptions, compute: Compute) -> Result<Self> {
        let file = read_weights(path)?;
        let network = WanVae::new(VaeConfig::of_weights(&file)?)?;
        let params = compute.weights(&network.load_from(&file, path, compute.dtype.wide())?)?;
        Ok(Autoencoder { network, params, options })
    }

    /// Channels of a latent.
    pub fn channels(&self) -> usize {
        self.network.config().latent
    }

    /// The latent `[B, 16, 1 + k, H/8, W/8]` of a video `[B, 3, 1 + 4k, H, W]` in [−1, 1].
    ///
    /// # Errors
    /// As [`WanVae::encode`].
    pub fn encode(&self, video: &Tensor, observe: &mut dyn FnMut(Step) -> ControlFlow<()>) -> Result<Tensor> {
        Ok(self.network.encode(&self.params, video, &self.options, observe)?)
    }

    /// The video `[B, 3, 1 + 4k, 8h, 8w]` of a latent, not clamped.
    ///
    /// # Errors
    /// As [`WanVae::decode`].
    pub fn decode(&self, latent: &Tensor, observe: &mut dyn FnMut(Step) -> ControlFlow<()>) -> Result<Tensor> {
        Ok(self.network.decode(&self.params, latent, &self.options, observe)?)
    }

    /// As [`Autoencoder::decode`], handing on frames `[B, 3, 1 or 4, 8h, 8w]` as they are done.
    ///
    /// # Errors
    /// As [`WanVae::decode_frames`], or what `each` returns.
    pub fn decode_frames<E: From<fewstep_nn::Error>>(
        &self,
        latent: &Tensor,
        observe: &mut dyn FnMut(Step) -> ControlFlow<()>,
        each: impl FnMut(Tensor) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        self.network.decode_frames(&self.params, latent, &self.options, observe, each)
    }

    /// A latent as the published training takes it from its shards: decoded, clamped to ±1 and encoded again.
    ///
    /// # Errors
    /// As [`Autoencoder::decode`] and [`Autoencoder::encode`].
    pub fn reencode(&self, latent: &Tensor) -> Result<Tensor> {
        let go_on = &mut |_| ControlFlow::Continue(());
        let video = clamp(&self.decode(latent, go_on)?)?;
        self.encode(&video, go_on)
    }
}

/// Every value in [−1, 1]; f32 or f64.
fn clamp(video: &Tensor) -> Result<Tensor> {
    let mut clamped = video.clone();
    match video.dtype() {
        DType::F64 => clamped.make_mut::<f64>()?.iter_mut().for_each(|x| *x = x.clamp(-1.0, 1.0)),
        _ => clamped.make_mut::<f32>()?.iter_mut().for_each(|x| *x = x.clamp(-1.0, 1.0)),
    }
    Ok(clamped)
}
