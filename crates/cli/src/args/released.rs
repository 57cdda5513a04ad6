//! What the commands on released models share.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use fewstep_diffusion::FewStepPreset;

/// A released model and where its parts are.
#[derive(Clone, Debug, Default, Args)]
pub struct ModelParts {
    /// Folder of a released model that has the parts which --model lacks, such as the text encoder and the autoencoder
    #[arg(long, value_name = "DIR")]
    pub base: Option<String>,
    /// Weights of the autoencoder
    #[arg(long, value_name = "FILE")]
    pub vae: Option<PathBuf>,
    /// Weights of the text encoder (umT5)
    #[arg(long, value_name = "FILE")]
    pub text_encoder: Option<PathBuf>,
    /// tokenizer.json or sentencepiece model of the text encoder
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// Weights of the image encoder (CLIP) of Wan2.1 image to video
    #[arg(long, value_name = "FILE")]
    pub image_encoder: Option<PathBuf>,
    /// Attention heads, if neither 128 wide nor told by a config.json
    #[arg(long)]
    pub heads: Option<usize>,
    /// Memory for the activations of the autoencoder, in MB: larger frames are cut into tiles
    #[arg(long, value_name = "MB")]
    pub vae_memory: Option<usize>,
    /// Compute every prompt's embedding anew instead of keeping it on disk
    #[arg(long)]
    pub no_cache: bool,
}

/// How a sample is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SamplerArg {
    /// A distilled model's few steps, without guidance
    FewStep,
    /// UniPC of order 2
    Unipc,
    /// Euler
    Euler,
}

/// Published times of the few-step sampler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GridArg {
    /// 1.5, 1.4, 1.0: the rCM code's
    Reference,
    /// 1.3, 1.0, 0.6: the rCM paper's
    Paper,
}

impl From<GridArg> for FewStepPreset {
    fn from(grid: GridArg) -> Self {
        match grid {
            GridArg::Reference => FewStepPreset::Reference,
            GridArg::Paper => FewStepPreset::Paper,
        }
    }
}

/// How a released model is sampled; what is not given follows from the model.
#[derive(Clone, Debug, Default, Args)]
pub struct SamplingArgs {
    /// Steps: 1 to 8 of a distilled model, 40 to 100 of a base model
    #[arg(long)]
    pub steps: Option<usize>,
    /// Sampler
    #[arg(long, value_enum)]
    pub sampler: Option<SamplerArg>,
    /// Times of the few-step sampler
    #[arg(long, value_enum)]
    pub grid: Option<GridArg>,
    /// Shift of the time grid of a base model
    #[arg(long)]
    pub shift: Option<f64>,
    /// Guidance scale w of a base model: uncond + w (cond - uncond)
    #[arg(long)]
    pub guidance: Option<f64>,
    /// Guidance scale of the second network of Wan2.2-A14B, if it has another one
    #[arg(long)]
    pub guidance_2: Option<f64>,
    /// Noise level at which sampling starts
    #[arg(long)]
    pub sigma_max: Option<f64>,
    /// tau at which the second network of Wan2.2-A14B takes over
    #[arg(long)]
    pub boundary: Option<f64>,
    /// Negative prompt, if not the released one
    #[arg(long)]
    pub negative: Option<String>,
    /// Frames of the video, 1 + 4k
    #[arg(long, default_value_t = 81)]
    pub frames: usize,
    /// Size of the video in pixels, multiples of 16
    #[arg(long, value_name = "WIDTHxHEIGHT", value_parser = size)]
    pub size: Option<[usize; 2]>,
}

/// WIDTHxHEIGHT.
pub(super) fn size(text: &str) -> Result<[usize; 2], String> {
    let parsed =
        text.split_once(['x', 'X', '*']).and_then(|(w, h)| Some([w.trim().parse().ok()?, h.trim().parse().ok()?]));
    match parsed {
        Some([w, h]) if w > 0 && h > 0 && w % 16 == 0 && h % 16 == 0 => Ok([w, h]),
        Some([w, h]) => {
            let near = |n: usize| (n / 16 * 16).max(16);
            Err(format!("sides are multiples of 16: {}x{} is near", near(w), near(h)))
        }
        None => Err("give two numbers of pixels, such as 832x480".into()),
    }
}
