//! Videos of released models.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use fewstep_diffusion::Draw;
use fewstep_media::{Image, Metadata, image_pixels, read_image};
use fewstep_nn::wan::WanConfig;
use fewstep_ops::Conditions;
use fewstep_pipeline::{Autoencoder, ImageConditioner, Parts};
use fewstep_tensor::{DType, Tensor};

use super::output::Output;
use super::{numbered, prompts};
use crate::args::SampleArgs;
use crate::device;
use crate::error::{Error, Result};
use crate::model::Role;
use crate::released::{COMPUTE, Released, autoencoder, latent_shape, negative, parts};
use crate::status;
use crate::terminal::{Progress, print};

/// Where a video goes if nothing else is said.
const OUTPUT: &str = "sample.mp4";
/// The released 480p: width, height.
const SIZE: [usize; 2] = [832, 480];
/// Sides are multiples of this: eight by the autoencoder, two by the patches.
const SIDE_STEP: f64 = 16.0;

/// Draws a video for each prompt.
///
/// # Errors
/// If the model or a part of it is missing or refused, or an input, an argument or the output is.
pub fn run(args: &SampleArgs) -> Result<()> {
    let path = args.output.clone().unwrap_or_else(|| PathBuf::from(OUTPUT));
    let output = Output::of(&path)?;
    let parts = parts(&args.model, &args.parts)?;
    let compute = device::open(args.device)?;
    let model = Released::load(&args.model, &parts, &args.parts, &args.sampling, compute)?;
    let image = args.image.as_ref().map(read_image).transpose()?;
    refuse_unsuited(model.config(), image.as_ref())?;
    let size = args.sampling.size.unwrap_or_else(|| image.as_ref().map_or(SIZE, size_like));
    let shape = latent_shape(model.config(), args.sampling.frames, size)?;
    let (texts, text, negative) = texts(args, &parts, &model)?;
    let needs_vae = output != Output::Latent || image.is_some();
    let vae = needs_vae.then(|| autoencoder(&parts, &args.parts, compute)).transpose()?;
    let condition = condition(args, image.as_ref(), size, &parts, &model, vae.as_ref())?;
    status!(
        "Sampling",
        "{} of {}×{}, {} frames: {}",
        args.model,
        size[0],
        size[1],
        args.sampling.frames,
        describe(model.role)
    );

    let some = Conditions { text: text.narrow(0, 1)?, ..condition.clone() };
    model.prepare(&[1, shape[0], shape[1], shape[2], shape[3]], &some)?;
    for (i, prompt) in texts.iter().enumerate() {
        let with = |text: Tensor| Conditions { text, ..condition.clone() };
        let conditions = (&with(text.narrow(i, 1)?), &with(negative.clone()));
        let began = Instant::now();
        let mut bar = Progress::new("Sampling", steps(model.role) as u64);
        let draw = Draw { seed: args.seed, first: i as u64, shape: &[1, shape[0], shape[1], shape[2], shape[3]] };
        let latent = model.draw(draw, conditions, |step| {
            bar.advance(1);
            bar.note(format_args!("{:.1} s a step", began.elapsed().as_secs_f64() / (step + 1) as f64));
        })?;
        drop(bar);
        let seconds = began.elapsed().as_secs_f64();
        status!("Sampled", "in {seconds:.1} s, {:.2} s a step", seconds / steps(model.role) as f64);
        let path = numbered(&path, i, texts.len());
        let vae = if output == Output::Latent { None } else { vae.as_ref() };
        output.write(&latent, vae, &path, args.fps, &metadata(args, &model, i, prompt, size))?;
        print(format_args!("{}\n", path.display()))?;
    }
    Ok(())
}

fn steps(role: Role) -> usize {
    match role {
        Role::Teacher(t) => t.steps,
        Role::Student(s) => s.steps,
    }
}

/// How it is sampled, in a line.
fn describe(role: Role) -> String {
    match role {
        Role::Student(s) => format!("{} steps of a distilled model, σ from {}", s.steps, s.sigma_max.get()),
        Role::Teacher(t) => format!(
            "{} steps of {:?}, shift {}, guidance {}, σ from {}",
            t.steps,
            t.sampler,
            f64::from(t.shift),
            t.guidance.scale(),
            t.sigma_max.get()
        ),
    }
}

fn metadata(args: &SampleArgs, model: &Released, index: usize, prompt: &str, size: [usize; 2]) -> Metadata {
    let mut metadata = Metadata::new()
        .with("prompt", prompt)
        .with("seed", args.seed)
        .with("sample", index)
        .with("model", model.identity())
        .with("sampling", describe(model.role))
        .with("size", format!("{}x{}", size[0], size[1]))
        .with("frames", args.sampling.frames);
    if model.needs_negative() {
        metadata = metadata.with("negative prompt", negative(&args.sampling));
    }
    metadata
}

/// A model conditioned on an image needs one, and no other takes one.
fn refuse_unsuited(config: &WanConfig, image: Option<&Image>) -> Result<()> {
    let conditioned = config.in_channels != config.out_channels;
    match (conditioned, image, config.image_positions) {
        (true, None, _) => {
            Err(Error::Argument("an image-to-video model needs its first frame: give --image FILE".into()))
        }
        (false, Some(_), _) => {
            Err(Error::Argument("this model takes no image: leave --image out, or use an image-to-video model".into()))
        }
        (true, Some(_), Some(_)) => Err(Error::Argument(
            "this model takes a first and a last frame, which `sample` does not do: use an image-to-video model".into(),
        )),
        _ => Ok(()),
    }
}

/// The size of about 480p that has the image's proportions, as the released scripts choose it.
fn size_like(image: &Image) -> [usize; 2] {
    let (area, proportion) = ((SIZE[0] * SIZE[1]) as f64, image.height() as f64 / image.width() as f64);
    let side = |length: f64| ((length / SIDE_STEP).floor().max(1.0) * SIDE_STEP) as usize;
    [side((area / proportion).sqrt()), side((area * proportion).sqrt())]
}

/// Prompts, their embeddings [B, 512, D], and that of the negative prompt [1, 512, D].
fn texts(args: &SampleArgs, parts: &Parts, model: &Released) -> Result<(Vec<String>, Tensor, Tensor)> {
    let (texts, text, negative) = match &args.embeddings {
        Some(path) => embeddings(path, model)?,
        None => {
            let texts = prompts(args)?;
            let began = Instant::now();
            let encoder = crate::released::prompts(parts, &args.parts, model.compute())?;
            let text = encoder.embed(&texts)?;
            let negative = match model.needs_negative() {
                true => encoder.embed(&[negative(&args.sampling)])?,
                false => text.narrow(0, 1)?,
            };
            status!("Encoded", "{} prompts in {:.1} s", texts.len(), began.elapsed().as_secs_f64());
            (texts, text, negative)
        }
    };
    let width = model.config().text_dim;
    match text.last_dim() == width && negative.last_dim() == width {
        true => Ok((texts, text, negative)),
        false => Err(Error::Argument(format!(
            "the text embeddings are {} wide and the model takes {width}: use the text encoder that belongs to it",
            text.last_dim()
        ))),
    }
}

/// Embeddings from a file: the tensor `embeddings`, or the only one beside `negative`.
fn embeddings(path: &Path, model: &Released) -> Result<(Vec<String>, Tensor, Tensor)> {
    let refused = |problem: &str| Error::Argument(format!("{}: {problem}", path.display()));
    let file = fewstep_formats::read_weights(path)?;
    let negative = file.tensors.get("negative");
    let others: Vec<&Tensor> = file.tensors.iter().filter(|(name, _)| *name != "negative").map(|(_, t)| t).collect();
    let [text] = others.as_slice() else {
        return Err(refused("expected one tensor of embeddings [B, 512, D], and perhaps `negative` [512, D]"));
    };
    let batched = |t: &Tensor| match *t.shape() {
        [s, d] => Ok(t.to_dtype(COMPUTE).reshape(&[1, s, d])?),
        [_, _, _] => Ok(t.to_dtype(COMPUTE)),
        _ => Err(refused("embeddings have the axes [B, 512, D] or [512, D]")),
    };
    let text = batched(text)?;
    let negative = match negative {
        Some(negative) => batched(negative)?,
        None if model.needs_negative() => {
            return Err(refused("a guided model needs the embedding of the negative prompt: add a tensor `negative`"));
        }
        None => text.narrow(0, 1)?,
    };
    let n = text.shape()[0];
    Ok(((0..n).map(|i| format!("embedding {i} of {}", path.display())).collect(), text, negative))
}

/// What the image contributes; the text is filled in for each prompt.
fn condition(
    args: &SampleArgs,
    image: Option<&Image>,
    [width, height]: [usize; 2],
    parts: &Parts,
    model: &Released,
    vae: Option<&Autoencoder>,
) -> Result<Conditions> {
    let nothing = Conditions::text(Tensor::zeros(&[1, 0, 0], DType::F32, Default::default()));
    let (Some(image), Some(vae)) = (image, vae) else { return Ok(nothing) };
    let wants_tokens = model.config().image_dim.is_some();
    if wants_tokens && parts.image_encoder.is_none() {
        return Err(Error::Argument("the model's folder holds no image encoder: give --image-encoder FILE".into()));
    }
    let conditioner = ImageConditioner::load(parts.image_encoder.as_deref().filter(|_| wants_tokens), model.compute())?;
    let pixels = Tensor::from_vec(image_pixels(image, width, height)?, &[1, 3, height, width])?;
    let latent = conditioner.channels(&pixels, args.sampling.frames, vae, &mut |_| ControlFlow::Continue(()))?;
    Ok(Conditions { image: conditioner.tokens(&pixels)?, latent: Some(latent), ..nothing })
}
