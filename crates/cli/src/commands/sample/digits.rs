//! Clips of moving digits.

use std::path::{Path, PathBuf};
use std::time::Instant;

use fewstep_media::{Frames, MediaError, Metadata};

use super::{numbered, prompts};
use crate::args::SampleArgs;
use crate::device;
use crate::digits::CLIP;
use crate::drawing::draw;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::status;
use crate::terminal::{Progress, print};

/// Where clips go if nothing else is said.
const OUTPUT: &str = "sample.gif";

/// Draws a clip for each prompt.
///
/// # Errors
/// If the model, a prompt or the output file refuses.
pub fn run(args: &SampleArgs) -> Result<()> {
    let prompts = prompts(args)?;
    let output = args.output.clone().unwrap_or_else(|| PathBuf::from(OUTPUT));
    let write = writer(&output)?;
    let model = Model::load(&args.model, device::open(args.device)?)?;
    let role = args.sampling.steps.map_or(model.role, |steps| model.role.with_steps(steps));
    role.validate()?;
    let mut progress = Progress::new("Sampling", prompts.len() as u64);
    let began = Instant::now();
    let clips = draw((model.predictor(), model.compute), role, &prompts, args.seed, |n| progress.advance(n as u64))?;
    drop(progress);
    status!("Sampled", "{} clips in {:.2} s", clips.len(), began.elapsed().as_secs_f64());
    for (i, (clip, prompt)) in clips.iter().zip(&prompts).enumerate() {
        let frames = Frames::from_pixels(clip, CLIP)?.upscale(args.scale)?;
        let metadata = Metadata::new()
            .with("prompt", prompt)
            .with("seed", args.seed)
            .with("sample", i)
            .with("model", &model.reference.sha256)
            .with("sampling", format!("{role:?}"));
        let path = numbered(&output, i, clips.len());
        write(&frames, &path, &metadata)?;
        print(format_args!("{}\n", path.display()))?;
    }
    Ok(())
}

type Write = fn(&Frames, &Path, &Metadata) -> std::result::Result<(), MediaError>;

/// What writes files of this name's kind.
fn writer(path: &Path) -> Result<Write> {
    let (gif, png): (Write, Write) = (|f, path, m| f.write_gif(path, m), |f, path, m| f.write_apng(path, m));
    match path.extension().and_then(|e| e.to_str()) {
        Some("gif") => Ok(gif),
        Some("png" | "apng") => Ok(png),
        _ => Err(Error::Argument(format!("{}: write to a .gif or .png file", path.display()))),
    }
}
