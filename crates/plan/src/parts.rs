//! The text encoder and the autoencoder on shapes.

use fewstep_nn::t5::{T5Config, T5Encoder, Tokens};
use fewstep_nn::vae::{Half, VaeConfig, VaeOptions, WanVae};
use fewstep_ops::{Call, Ledger, Meta, Pass, Trace};
use fewstep_tensor::DType;

use crate::request::{VAE_CHANNELS, VAE_EDGE, VAE_FRAMES};
use crate::{Request, Result};

/// A part of a model with what one run of it takes.
pub struct Part {
    pub name: &'static str,
    /// Bytes of its weights.
    pub weights: u64,
    /// How often it runs in a sampling.
    pub times: f64,
    pub calls: Vec<Call>,
    /// Most tensor memory beyond weights, in bytes.
    pub peak: u64,
}

/// umT5-xxl on prompts of all the text tokens, one at a time; its matrices stay in bf16. None for networks that read other
/// embeddings.
pub fn text_encoder(r: &Request, guided: bool) -> Result<Option<Part>> {
    let config = T5Config::umt5_xxl();
    if r.network.text_dim != config.dim {
        return Ok(None);
    }
    let encoder = T5Encoder::new(config)?;
    let size = |dims: usize| if dims == 2 { DType::Bf16.size() } else { DType::F32.size() };
    let weights = encoder.specs().iter().map(|s| (s.shape.iter().product::<usize>() * size(s.shape.len())) as u64);
    let ledger = Ledger::new(r.precision.is_of_cpu());
    let m = Trace::new(&ledger, encoder.specs(), DType::Bf16, Pass::Plain);
    let ids = vec![0; r.text_tokens];
    encoder.forward(&m, &Tokens::packed(&[&ids]), r.precision.dtype())?;
    let times = if guided { 2.0 } else { 1.0 };
    let (calls, peak) = (ledger.take_calls(), ledger.peak());
    Ok(Some(Part { name: "text encoder", weights: weights.sum(), times, calls, peak }))
}

/// The decoder of the Wan VAE, frame by frame, in the tiles that it chooses by itself. Latent and video are on the host. None for
/// networks of pixels.
pub fn decoder(r: &Request) -> Result<Option<Part>> {
    if r.network.out_channels != VAE_CHANNELS {
        return Ok(None);
    }
    let (vae, dtype) = (WanVae::new(VaeConfig::wan21())?, r.precision.dtype());
    let on_cpu = r.precision.is_of_cpu();
    let (b, l) = (r.batch, r.latent);
    let ([h, w], tiles) = vae.tiles(Half::Decoder, dtype, &VaeOptions::default(), [b, l.height, l.width])?;
    let weights = vae.specs().iter().map(|s| (s.shape.iter().product::<usize>() * dtype.size()) as u64).sum();
    let ledger = Ledger::new(on_cpu);
    let hosted = |shape: [usize; 5]| on_cpu.then(|| ledger.ghost(Meta::new(&shape, dtype)));
    let video = |frames: usize| hosted([b, 3, frames, l.height * VAE_EDGE, l.width * VAE_EDGE]);
    let _latent = hosted([b, VAE_CHANNELS, l.frames, l.height, l.width]);
    // One tile hands its frames on as they are done; several are blended in the whole video.
    let _whole = (tiles > 1).then(|| video(1 + (l.frames - 1) * VAE_FRAMES));
    let (m, mut stream) = (Trace::new(&ledger, vae.specs(), dtype, Pass::Plain), vae.stream(Half::Decoder));
    for chunk in 0..l.frames {
        let _frames = (tiles == 1).then(|| video(if chunk == 0 { 1 } else { VAE_FRAMES }));
        let x = m.input(ledger.ghost(Meta::new(&[b, h, w, VAE_CHANNELS], dtype)), None);
        let mut made = Vec::new();
        stream.push(&m, x, &mut |y| -> Result<()> {
            made.push(y);
            Ok(())
        })?;
    }
    let (calls, peak) = (ledger.take_calls(), ledger.peak());
    Ok(Some(Part { name: "VAE decode", weights, times: tiles as f64, calls, peak }))
}
