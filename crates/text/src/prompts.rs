use std::path::Path;

use crate::{Error, Result};

/// The negative prompt that Wan's published code samples with.
pub const WAN_NEGATIVE_PROMPT: &str = "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，\
JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的手指，手指融合，静止不动的画面，\
杂乱的背景，三条腿，背景人很多，倒着走";

/// The prompts of a text file, one a line; blank lines are passed over.
///
/// # Errors
/// If the file cannot be read, or a line is not UTF-8.
pub fn read_prompts(path: &Path) -> Result<Vec<String>> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let mut prompts = Vec::new();
    for (i, line) in bytes.split(|&b| b == b'\n').enumerate() {
        let line = std::str::from_utf8(line).map_err(|_| Error::Prompt {
            index: i + 1,
            problem: format!("this line of {} is not UTF-8", path.display()),
            remedy: "save the file as UTF-8",
        })?;
        let line = line.trim_start_matches('\u{feff}').trim();
        if !line.is_empty() {
            prompts.push(line.to_string());
        }
    }
    Ok(prompts)
}
