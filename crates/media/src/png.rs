use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use png::{BitDepth, ColorType, Encoder};

use crate::aside::{write_file, write_folder};
use crate::error::Result;
use crate::{Frames, Metadata};

/// Milliseconds in a second, the denominator of a frame's delay.
const MS: u16 = 1000;

impl Frames {
    /// Encodes an endlessly looping animated PNG, exactly; a single frame becomes an ordinary PNG. Viewers without animation
    /// show the first frame.
    ///
    /// # Errors
    /// [`MediaError::Metadata`](crate::MediaError::Metadata) for an entry that an image cannot hold.
    pub fn to_apng(&self, metadata: &Metadata) -> Result<Vec<u8>> {
        encode(self, self.frames(), metadata)
    }

    /// Writes [`Self::to_apng`] to a file, aside and renamed.
    ///
    /// # Errors
    /// As [`Self::to_apng`], and [`MediaError::Write`](crate::MediaError::Write).
    pub fn write_apng(&self, path: impl AsRef<Path>, metadata: &Metadata) -> Result<()> {
        write_file(path.as_ref(), &self.to_apng(metadata)?)
    }

    /// [`Self::to_apng`] without metadata as a `data:` address, for the `src` of an image in a self-contained page.
    ///
    /// # Errors
    /// [`MediaError::Png`](crate::MediaError::Png) should the encoder refuse.
    pub fn to_data_uri_apng(&self) -> Result<String> {
        let bytes = self.to_apng(&Metadata::new())?;
        Ok(format!("data:image/png;base64,{}", STANDARD.encode(bytes)))
    }

    /// Writes each frame as `frame_00000.png` and so on, each with the metadata, into a folder that is new or empty; the
    /// folder appears complete or not at all. Returns the files' paths.
    ///
    /// # Errors
    /// As [`Self::to_apng`], and [`MediaError::Write`](crate::MediaError::Write), also for a folder that holds anything.
    pub fn write_png_folder(&self, folder: impl AsRef<Path>, metadata: &Metadata) -> Result<Vec<PathBuf>> {
        let folder = folder.as_ref();
        let files = self
            .frames()
            .iter()
            .enumerate()
            .map(|(i, frame)| {
                let bytes = encode(self, std::slice::from_ref(frame), metadata)?;
                Ok((format!("frame_{i:05}.png"), bytes))
            })
            .collect::<Result<Vec<_>>>()?;
        write_folder(folder, &files)?;
        Ok(files.iter().map(|(name, _)| folder.join(name)).collect())
    }
}

/// Encodes some of a video's frames; more than one are animated.
fn encode(video: &Frames, frames: &[Vec<u8>], metadata: &Metadata) -> Result<Vec<u8>> {
    let [width, height] = video.sides();
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes, width.into(), height.into());
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    if frames.len() > 1 {
        // A count past u32 would fail the encoder's own check of the sequence.
        encoder.set_animated(u32::try_from(frames.len()).unwrap_or(u32::MAX), 0)?;
        encoder.set_frame_delay(video.frame_ms(), MS)?;
        encoder.validate_sequence(true);
    }
    for (key, value) in metadata.checked()? {
        if value.chars().all(|c| u32::from(c) <= u32::from(u8::MAX)) {
            encoder.add_text_chunk(key.clone(), value.clone())?;
        } else {
            encoder.add_itxt_chunk(key.clone(), value.clone())?;
        }
    }
    let mut writer = encoder.write_header()?;
    for frame in frames {
        writer.write_image_data(frame)?;
    }
    writer.finish()?;
    Ok(bytes)
}
