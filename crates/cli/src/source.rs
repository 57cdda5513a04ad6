//! What a distillation reads its examples from.

use std::sync::{Arc, Mutex, PoisonError};

use fewstep_data::Split;
use fewstep_distill::examples::{ExampleSource, Examples};
use fewstep_nn::vae::VaeOptions;
use fewstep_nn::wan::WanConfig;
use fewstep_ops::{Compute, Conditions, Op, Slice};
use fewstep_pipeline::Autoencoder;
use fewstep_shards::{Example, Prefetcher, ReadOptions, ShardReader};
use fewstep_tensor::{DType, Tensor};
use fewstep_text::WAN_NEGATIVE_PROMPT;

use crate::args::ModelParts;
use crate::digits::{DigitsSource, suits_clips};
use crate::error::{Error, Result};
use crate::released::{COMPUTE, parts, prompts};
use crate::settings::{DataSettings, Negative, ShardsData};

/// Samples read ahead.
const READ_AHEAD: usize = 16;

/// The source of examples that the settings name, for a teacher's network of these extents.
///
/// # Errors
/// If the examples do not suit the network or cannot be read.
pub fn example_source(
    data: &DataSettings,
    teacher: &str,
    network: &WanConfig,
    compute: Compute,
) -> Result<Box<dyn ExampleSource>> {
    match data {
        DataSettings::Digits(digits) => {
            suits_clips(network).map_err(|(key, problem)| {
                Error::Argument(format!(
                    "the teacher's network does not suit the clips of data.digits: {key}: {problem}"
                ))
            })?;
            Ok(Box::new(DigitsSource::new(Split::Train, digits.seed)?))
        }
        DataSettings::Shards(shards) => Ok(Box::new(ShardsSource::open(shards, teacher, network, compute)?)),
    }
}

/// Latents with text embeddings from shards, in an order that is a function of (seed, position).
struct ShardsSource {
    ahead: Mutex<Prefetcher>,
    latent_frames: usize,
    channels: usize,
    text_dim: usize,
    autoencoder: Option<Autoencoder>,
    /// [S, D]
    negative: Tensor,
}

impl ShardsSource {
    fn open(data: &ShardsData, teacher: &str, network: &WanConfig, compute: Compute) -> Result<Self> {
        let reader = ShardReader::open(&data.path, ReadOptions { seed: data.seed, ..ReadOptions::default() })?;
        let load = |path: &std::path::PathBuf| Autoencoder::load(path, VaeOptions::default(), compute);
        let source = ShardsSource {
            ahead: Mutex::new(Prefetcher::new(Arc::new(reader), 0, READ_AHEAD)?),
            latent_frames: data.latent_frames,
            channels: network.in_channels,
            text_dim: network.text_dim,
            autoencoder: data.reencode.as_ref().map(load).transpose()?,
            negative: negative(data, teacher, compute)?,
        };
        source.example(0)?;
        match source.negative.last_dim() == network.text_dim {
            true => Ok(source),
            false => Err(Error::Argument(format!(
                "data.shards.negative: its embedding is {} wide and the teacher takes {}: use its own text encoder",
                source.negative.last_dim(),
                network.text_dim
            ))),
        }
    }

    /// The example at a position: latent [1, C, F, H, W], truncated and perhaps encoded again, and embedding [1, S, D], f32.
    fn example(&self, position: u64) -> Result<(Tensor, Tensor)> {
        let Example { key, latent, embed, .. } =
            self.ahead.lock().unwrap_or_else(PoisonError::into_inner).get(position)?;
        let refuse = |what: &str, got: &[usize]| {
            Error::Argument(format!("data.shards: sample {key}: expected {what}, got {got:?}"))
        };
        let &[c, f, h, w] = latent.shape() else { return Err(refuse("a latent [C, F, H, W]", latent.shape())) };
        if c != self.channels || f < self.latent_frames {
            let expected = format!("a latent of {} channels and at least {} frames", self.channels, self.latent_frames);
            return Err(refuse(&expected, latent.shape()));
        }
        let &[s, d] = embed.shape() else { return Err(refuse("an embedding [S, D]", embed.shape())) };
        if d != self.text_dim {
            return Err(refuse(&format!("an embedding {} wide", self.text_dim), embed.shape()));
        }
        let whole = latent.to_dtype(COMPUTE).reshape(&[1, c, f, h, w])?;
        let truncated = Slice { axis: 2, start: 0, len: self.latent_frames }.forward(&[&whole])?.y;
        let latent = match &self.autoencoder {
            Some(autoencoder) => autoencoder.reencode(&truncated)?,
            None => truncated,
        };
        Ok((latent, embed.to_dtype(COMPUTE).reshape(&[1, s, d])?))
    }
}

/// The embedding [S, D] of the negative prompt.
fn negative(data: &ShardsData, teacher: &str, compute: Compute) -> Result<Tensor> {
    let prompt = match &data.negative {
        Negative::Stock => WAN_NEGATIVE_PROMPT,
        Negative::Prompt(prompt) => prompt,
        Negative::Embedding(path) => {
            let file = fewstep_formats::read_weights(path)?;
            let expected = "expected a file of one tensor [S, D]";
            return match file.tensors.values().collect::<Vec<_>>().as_slice() {
                [one] if one.shape().len() == 2 => Ok(one.to_dtype(DType::F32)),
                [one] => Err(Error::Argument(format!("{}: {expected}, got {:?}", path.display(), one.shape()))),
                several => Err(Error::Argument(format!("{}: {expected}, got {}", path.display(), several.len()))),
            };
        }
    };
    let given = ModelParts { base: data.base.clone(), ..ModelParts::default() };
    let missing = |e: Error| {
        Error::Argument(format!(
            "data.shards.negative: a negative prompt is encoded by the text encoder of data.shards.base, or of the teacher's \
             folder ({e}); or give its embedding: negative = {{ embedding = \"FILE\" }}"
        ))
    };
    let parts = parts(teacher, &given).map_err(missing)?;
    let encoded = prompts(&parts, &given, compute).map_err(missing)?.embed(&[prompt.to_string()])?;
    Ok(encoded.reshape(&encoded.shape()[1..])?)
}

impl ExampleSource for ShardsSource {
    fn examples(&self, position: u64, n: usize) -> fewstep_distill::Result<Examples> {
        let all = (position..position + n as u64).map(|p| self.example(p)).collect::<Result<Vec<_>>>();
        let (latents, texts): (Vec<Tensor>, Vec<Tensor>) =
            all.map_err(|e| fewstep_distill::Error::Examples(e.into()))?.into_iter().unzip();
        Ok(Examples {
            x_0: Tensor::cat(&latents.iter().collect::<Vec<_>>())?,
            conditions: Conditions::text(Tensor::cat(&texts.iter().collect::<Vec<_>>())?),
        })
    }

    fn unconditional(&self, n: usize) -> fewstep_distill::Result<Conditions> {
        let [s, d] = self.negative.dims()?;
        let one = self.negative.reshape(&[1, s, d])?;
        Ok(Conditions::text(Tensor::cat(&vec![&one; n])?))
    }
}
