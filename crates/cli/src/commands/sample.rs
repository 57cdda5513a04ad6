//! `fewstep sample`: clips from a model.

use std::path::{Path, PathBuf};
use std::time::Instant;

use fewstep_media::{Frames, MediaError, Metadata};
use fewstep_tensor::DType;

use crate::args::SampleArgs;
use crate::digits::CLIP;
use crate::drawing::draw;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::status;
use crate::terminal::{Progress, print};

/// Runs the command.
///
/// # Errors
/// If the model, a prompt or the output file refuses.
pub fn run(args: &SampleArgs) -> Result<()> {
    let prompts = prompts(args)?;
    let write = writer(&args.output)?;
    let model = Model::load(&args.model, DType::F32)?;
    let role = args.steps.map_or(model.role, |steps| model.role.with_steps(steps));
    role.validate()?;
    let mut progress = Progress::new("Sampling", prompts.len() as u64);
    let began = Instant::now();
    let clips = draw(model.predictor(), role, &prompts, args.seed, |n| progress.advance(n as u64))?;
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
        let path = numbered(&args.output, i, clips.len());
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

fn prompts(args: &SampleArgs) -> Result<Vec<String>> {
    let mut prompts = args.prompt.clone();
    if let Some(path) = &args.prompts {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        prompts.extend(text.lines().map(str::trim).filter(|l| !l.is_empty()).map(String::from));
    }
    match prompts.is_empty() {
        true => Err(Error::Argument("no prompts: give --prompt, or a file with one on each line".into())),
        false => Ok(prompts),
    }
}

/// out.gif, or out-00.gif, out-01.gif, … where there are several.
fn numbered(path: &Path, i: usize, of: usize) -> PathBuf {
    let (stem, extension) = (path.file_stem(), path.extension());
    match (stem, extension) {
        (Some(stem), Some(extension)) if of > 1 => {
            let name = format!("{}-{i:02}.{}", stem.to_string_lossy(), extension.to_string_lossy());
            path.with_file_name(name)
        }
        _ => path.to_path_buf(),
    }
}
