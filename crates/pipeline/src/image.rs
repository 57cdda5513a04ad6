//! What image to video is conditioned on.

use std::ops::ControlFlow;
use std::path::Path;

use fewstep_formats::read_weights;
use fewstep_nn::clip::{ClipConfig, ClipVision};
use fewstep_nn::vae::Step;
use fewstep_ops::{Compute, Params};
use fewstep_tensor::{DType, Device, Tensor};

use crate::{Autoencoder, Error, Result};

/// Channels of the mask: the four frames of a latent frame.
const MASK: usize = Autoencoder::FRAMES;

/// An image as conditions of Wan2.1-I2V and Wan2.2-I2V-A14B.
#[derive(Debug)]
pub struct ImageConditioner {
    tower: Option<(ClipVision, Params)>,
}

impl ImageConditioner {
    /// With the image encoder of Wan2.1, or without one, as Wan2.2 has none.
    ///
    /// # Errors
    /// If its weights cannot be read or are no such encoder's.
    pub fn load(image_encoder: Option<&Path>, compute: Compute) -> Result<Self> {
        let read = |path: &Path| -> Result<(ClipVision, Params)> {
            let file = read_weights(path)?;
            let tower = ClipVision::new(ClipConfig::of_weights(&file, None)?)?;
            let params = compute.weights(&tower.load_from(&file, path, compute.dtype.wide())?)?;
            Ok((tower, params))
        };
        Ok(ImageConditioner { tower: image_encoder.map(read).transpose()? })
    }

    /// Image tokens `[B, 257, 1280]` of images `[B, 3, H, W]` in [−1, 1], where there is an encoder.
    ///
    /// # Errors
    /// If the images have other axes.
    pub fn tokens(&self, image: &Tensor) -> Result<Option<Tensor>> {
        let encoded = self.tower.as_ref().map(|(tower, params)| -> Result<Tensor> {
            let tokens = tower.encode(params, image)?;
            Ok(tokens.to_device(Device::Cpu)?.to_dtype(tokens.dtype().wide()))
        });
        encoded.transpose()
    }

    /// The condition channels `[1, 20, 1 + k, H/8, W/8]`: the mask, 1 on the four channels of the first latent frame, and the
    /// latent of the image followed by grey frames.
    ///
    /// # Errors
    /// If `frames` is not 1 + 4k or the image has other axes; or if `observe` asks to stop.
    pub fn channels(
        &self,
        image: &Tensor,
        frames: usize,
        autoencoder: &Autoencoder,
        observe: &mut dyn FnMut(Step) -> ControlFlow<()>,
    ) -> Result<Tensor> {
        let &[1, 3, h, w] = image.shape() else {
            let got = format!("{:?}", image.shape());
            return Err(Error::Mismatch { what: "image", expected: "one image [1, 3, H, W]".into(), got });
        };
        let mut video = Tensor::zeros(&[1, 3, frames, h, w], DType::F32, Device::Cpu);
        let pixels = image.to_dtype(DType::F32);
        let (from, to) = (pixels.as_slice::<f32>()?, video.make_mut::<f32>()?);
        for (plane, channel) in from.chunks(h * w).zip(to.chunks_mut(frames * h * w)) {
            channel[..h * w].copy_from_slice(plane);
        }
        let latent = autoencoder.encode(&video, observe)?;
        let [_, c, f, h, w] = latent.dims()?;
        let (frame, row) = (h * w, f * h * w);
        let latent = latent.to_dtype(DType::F32);
        let latent = latent.as_slice::<f32>()?;
        Ok(Tensor::cpu_with(&[1, MASK + c, f, h, w], |out: &mut [f32]| {
            let (mask, condition) = out.split_at_mut(MASK * row);
            mask.fill(0.0);
            mask.chunks_mut(row).for_each(|channel| channel[..frame].fill(1.0));
            condition.copy_from_slice(latent);
        }))
    }
}
