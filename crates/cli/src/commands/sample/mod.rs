//! `fewstep sample`: clips of digits, or videos of released models.

mod digits;
mod output;
mod released;

use std::path::{Path, PathBuf};

use fewstep_text::read_prompts;

use crate::args::SampleArgs;
use crate::error::{Error, Result};
use crate::model::is_of_digits;

/// Runs the command.
///
/// # Errors
/// If the model, a prompt or the output file refuses.
pub fn run(args: &SampleArgs) -> Result<()> {
    match is_of_digits(&args.model)? {
        true => digits::run(args),
        false => released::run(args),
    }
}

fn prompts(args: &SampleArgs) -> Result<Vec<String>> {
    let mut prompts = args.prompt.clone();
    if let Some(path) = &args.prompts {
        prompts.extend(read_prompts(path)?);
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
        (Some(stem), None) if of > 1 => path.with_file_name(format!("{}-{i:02}", stem.to_string_lossy())),
        _ => path.to_path_buf(),
    }
}
