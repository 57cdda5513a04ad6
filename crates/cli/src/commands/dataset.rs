//! `fewstep dataset`: shards built from a teacher or from videos, and verified.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use fewstep_diffusion::Draw;
use fewstep_distill::digest::sha256;
use fewstep_media::{Wanted, image_pixels, read_image, read_video};
use fewstep_ops::Conditions;
use fewstep_pipeline::{Autoencoder, Prompts};
use fewstep_shards::{BuildOutcome, BuildPlan, Expected, Report, Sample, build, verify};
use fewstep_tensor::Tensor;
use fewstep_text::{Identity, read_prompts};
use serde_json::{Value, json};

use crate::args::{DatasetArgs, DatasetBuildArgs, DatasetCommand, DatasetEncodeArgs, DatasetVerifyArgs};
use crate::device;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::released::{Released, autoencoder, latent_shape, negative, parts, prompts};
use crate::status;
use crate::terminal::{Progress, print};

/// The size at which the published shards were sampled.
const SIZE: [usize; 2] = [832, 480];
/// Files taken as images, and as videos.
const IMAGES: [&str; 5] = ["png", "jpg", "jpeg", "webp", "gif"];
const VIDEOS: [&str; 5] = ["mp4", "m4v", "mov", "webm", "mkv"];

/// Runs the command; true if it was interrupted after saving.
///
/// # Errors
/// If the model, the inputs or the folder refuse, or a set that is verified is not sound.
pub fn run(command: &DatasetCommand) -> Result<bool> {
    match &command.command {
        DatasetArgs::Build(args) => build_from_teacher(args),
        DatasetArgs::Encode(args) => encode(args),
        DatasetArgs::Verify(args) => check(args).map(|()| false),
    }
}

/// Builds a set with progress, until it is whole or the user asks to stop.
fn run_build(verb: &str, folder: &Path, plan: &BuildPlan, source: impl FnMut(u64) -> Result<Sample>) -> Result<bool> {
    let interrupted = interrupt::install().map_err(Error::io(Path::new("the handler of Ctrl-C")))?;
    let mut bar: Option<Progress> = None;
    let progress = |at: fewstep_shards::BuildProgress| {
        let bar = bar.get_or_insert_with(|| Progress::resumed(verb, at.total, at.kept));
        bar.advance(at.finished.saturating_sub(bar.done()));
    };
    let outcome = build(folder, plan, source, || interrupted.requested(), progress)?;
    drop(bar);
    match outcome {
        BuildOutcome::Complete(at) => {
            status!("Built", "{}: {} samples, {} of them new", folder.display(), at.total, at.finished - at.kept);
            print(format_args!("{}\n", folder.display()))?;
            Ok(false)
        }
        BuildOutcome::Stopped(at) => {
            status!("Stopped", "{} of {} samples are safe; the same command goes on", at.finished, at.total);
            Ok(true)
        }
    }
}

fn settings<const N: usize>(entries: [(&str, Value); N]) -> BTreeMap<String, Value> {
    entries.into_iter().map(|(key, value)| (key.to_string(), value)).collect()
}

fn build_from_teacher(args: &DatasetBuildArgs) -> Result<bool> {
    let texts = read_prompts(&args.prompts)?;
    if texts.is_empty() {
        return Err(Error::Argument(format!("{}: no prompt in the file", args.prompts.display())));
    }
    let parts = parts(&args.model, &args.parts)?;
    let model = Released::load(&args.model, &parts, &args.parts, &args.sampling, device::open(args.device)?)?;
    if model.config().in_channels != model.config().out_channels {
        return Err(Error::Argument("shards are of text to video: give a text-to-video model".into()));
    }
    let encoder = prompts(&parts, &args.parts, model.compute())?;
    let (frames, size) = (args.sampling.frames, args.sampling.size.unwrap_or(SIZE));
    let [c, f, h, w] = latent_shape(model.config(), frames, size)?;
    let negative = negative(&args.sampling);
    let mut plan = BuildPlan::new(
        args.count.unwrap_or(texts.len() as u64),
        settings([
            ("seed", args.seed.into()),
            ("teacher", model.identity().into()),
            ("sampling", format!("{:?}", model.role).into()),
            ("prompts.sha256", sha256(texts.join("\n").as_bytes()).into()),
            ("negative.sha256", sha256(negative.as_bytes()).into()),
            ("frames", frames.into()),
            ("size", json!(size)),
        ]),
    );
    plan.shard_size = args.shard_size.max(1);
    let unconditional = Conditions::text(match model.needs_negative() {
        true => encoder.embed(&[negative])?,
        false => encoder.embed(&texts[..1])?,
    });
    run_build("Sampling", &args.output, &plan, |i| {
        let prompt = &texts[(i % texts.len() as u64) as usize];
        let text = encoder.embed(std::slice::from_ref(prompt))?;
        let embed = single(&text)?;
        let draw = Draw { seed: args.seed, first: i, shape: &[1, c, f, h, w] };
        let latent = model.draw(draw, (&Conditions::text(text), &unconditional), |_| ())?;
        Ok(Sample { latent: latent.reshape(&[c, f, h, w])?, embed, prompt: prompt.clone() })
    })
}

/// A batch of one without the axis of the batch.
fn single(batch: &Tensor) -> Result<Tensor> {
    Ok(batch.reshape(&batch.shape()[1..])?)
}

/// A file with its caption.
struct Captioned {
    path: PathBuf,
    caption: String,
}

/// The videos and images of a folder, by name, each with the text beside it.
fn captioned(folder: &Path) -> Result<Vec<Captioned>> {
    let entries = std::fs::read_dir(folder).map_err(Error::io(folder))?;
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.map_err(Error::io(folder))?.path());
    }
    paths.retain(|p| kind(p).is_some());
    paths.sort_unstable();
    if paths.is_empty() {
        return Err(Error::Argument(format!("{}: no video or image in the folder", folder.display())));
    }
    let with_caption = |path: PathBuf| {
        let text = path.with_extension("txt");
        let caption = std::fs::read_to_string(&text).map_err(|e| {
            Error::Argument(format!("{}: cannot read its caption {} ({e})", path.display(), text.display()))
        })?;
        Ok(Captioned { path, caption: caption.trim().to_string() })
    };
    paths.into_iter().map(with_caption).collect()
}

/// Whether a file is an image, if it is one or a video.
fn kind(path: &Path) -> Option<bool> {
    let end = path.extension()?.to_str()?.to_ascii_lowercase();
    match end.as_str() {
        end if IMAGES.contains(&end) => Some(true),
        end if VIDEOS.contains(&end) => Some(false),
        _ => None,
    }
}

fn encode(args: &DatasetEncodeArgs) -> Result<bool> {
    let files = captioned(&args.input)?;
    let images = files.iter().filter(|f| kind(&f.path) == Some(true)).count();
    if images != 0 && images != files.len() {
        return Err(Error::Argument(format!(
            "{}: {images} images and {} videos; one set holds samples of one shape: keep them in two folders",
            args.input.display(),
            files.len() - images
        )));
    }
    let parts = parts(&args.model, &args.parts)?;
    let compute = device::open(args.device)?;
    let (vae, encoder) = (autoencoder(&parts, &args.parts, compute)?, prompts(&parts, &args.parts, compute)?);
    let [width, height] = args.size;
    let frames = if images > 0 { 1 } else { args.frames };
    let wanted = Wanted { width, height, frames, fps: args.fps };
    wanted.validate()?;
    let captions: String = files.iter().map(|f| format!("{}\t{}\n", f.path.display(), f.caption)).collect();
    let identity = parts.vae.as_deref().map(Identity::of_weights).transpose()?;
    let mut plan = BuildPlan::new(
        files.len() as u64,
        settings([
            ("vae", identity.map(|i| i.to_string()).into()),
            ("captions.sha256", sha256(captions.as_bytes()).into()),
            ("frames", frames.into()),
            ("size", json!(args.size)),
            ("fps", args.fps.into()),
        ]),
    );
    plan.shard_size = args.shard_size.max(1);
    run_build("Encoding", &args.output, &plan, |i| sample_of(&files[i as usize], &wanted, &vae, &encoder))
}

fn sample_of(file: &Captioned, wanted: &Wanted, vae: &Autoencoder, encoder: &Prompts) -> Result<Sample> {
    let pixels = match kind(&file.path) {
        Some(true) => image_pixels(&read_image(&file.path)?, wanted.width, wanted.height)?,
        _ => read_video(&file.path, wanted)?,
    };
    let [c, f, h, w] = wanted.dims();
    let latent = vae.encode(&Tensor::from_vec(pixels, &[1, c, f, h, w])?, &mut |_| ControlFlow::Continue(()))?;
    let embed = single(&encoder.embed(std::slice::from_ref(&file.caption))?)?;
    Ok(Sample { latent: single(&latent)?, embed, prompt: file.caption.clone() })
}

fn check(args: &DatasetVerifyArgs) -> Result<()> {
    let expected = Expected {
        latent: (!args.latent.is_empty()).then(|| args.latent.clone()),
        samples: args.samples,
        ..Expected::default()
    };
    let bar = std::sync::Mutex::new(None::<Progress>);
    let report = verify(&args.path, &expected, &|at| {
        // A poisoned bar only means that a thread panicked; the verification itself goes on.
        if let Ok(mut bar) = bar.lock() {
            let bar = bar.get_or_insert_with(|| Progress::new("Verifying", at.total_bytes));
            bar.advance(at.bytes.saturating_sub(bar.done()));
        }
    })?;
    drop(bar);
    show(&report, args.json)?;
    match report.findings.len() {
        0 => Ok(()),
        findings => Err(Error::UnsoundShards { findings }),
    }
}

fn show(report: &Report, as_json: bool) -> Result<()> {
    if as_json {
        return print(format_args!("{}\n", json!(report)));
    }
    for finding in &report.findings {
        let place = [finding.shard.as_str(), finding.member.as_str()].into_iter().filter(|s| !s.is_empty());
        print(format_args!("{}: {}\n", place.collect::<Vec<_>>().join(": "), finding.reason))?;
    }
    let shape = |s: &Option<Vec<usize>>| s.as_ref().map_or("no".to_string(), |s| format!("{s:?}"));
    print(format_args!(
        "{} shards, {} sound samples, {:.1} MB; latents {}, embeddings {}; {} checksums compared, {} findings\n",
        report.shards,
        report.samples,
        report.bytes as f64 / 1e6,
        shape(&report.latent),
        shape(&report.embed),
        report.checksums,
        report.findings.len()
    ))
}
