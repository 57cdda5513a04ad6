//! Where a video goes: a file of a kind that its name tells, or a folder of frames.

use std::ops::ControlFlow;
use std::path::Path;

use fewstep_media::{Frames, Metadata, Mp4Writer, VideoOptions};
use fewstep_pipeline::Autoencoder;
use fewstep_tensor::Tensor;
use fewstep_tensor::file::TensorFile;

use crate::error::{Error, Result};
use crate::terminal::Progress;

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// H.264.
    Mp4,
    /// An animated GIF.
    Gif,
    /// An animated PNG, or a still one.
    Png,
    /// A folder of PNG frames.
    Folder,
    /// The latent, in safetensors.
    Latent,
}

impl Output {
    /// What the name of the output asks for.
    ///
    /// # Errors
    /// If it ends in something that is not written here.
    pub fn of(path: &Path) -> Result<Self> {
        match path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase).as_deref() {
            Some("mp4") => Ok(Output::Mp4),
            Some("gif") => Ok(Output::Gif),
            Some("png" | "apng") => Ok(Output::Png),
            Some("safetensors") => Ok(Output::Latent),
            None => Ok(Output::Folder),
            Some(_) => Err(Error::Argument(format!(
                "{}: write to a .mp4, .gif, .png or .safetensors file, or to a folder",
                path.display()
            ))),
        }
    }

    /// Writes a latent [1, C, F, H, W], decoded unless it is the latent that is wanted.
    ///
    /// # Errors
    /// If decoding fails or the file cannot be written.
    pub fn write(
        self,
        latent: &Tensor,
        autoencoder: Option<&Autoencoder>,
        path: &Path,
        fps: f64,
        metadata: &Metadata,
    ) -> Result<()> {
        let Some(autoencoder) = autoencoder else {
            let mut file = TensorFile::default();
            file.metadata.extend(metadata.entries().iter().cloned());
            file.tensors.insert("latent".into(), latent.clone());
            return Ok(file.write(path)?);
        };
        let options = VideoOptions { fps, ..VideoOptions::default() };
        let mut video: Option<Mp4Writer> = None;
        let mut all: Vec<Vec<u8>> = Vec::new();
        let mut sides = [0; 2];
        let mut progress: Option<Progress> = None;
        let mut observe = |step: fewstep_nn::vae::Step| {
            let bar = progress.get_or_insert_with(|| Progress::new("Decoding", (step.chunks * step.tiles) as u64));
            bar.advance(1);
            ControlFlow::Continue(())
        };
        autoencoder.decode_frames(latent, &mut observe, |chunk| -> Result<()> {
            let [_, c, f, h, w] = chunk.dims()?;
            sides = [w, h];
            let frames = Frames::from_pixels(chunk.as_slice::<f32>()?, [c, f, h, w])?;
            if self != Output::Mp4 {
                all.extend(frames.frames().iter().cloned());
                return Ok(());
            }
            let writer = match &mut video {
                Some(writer) => writer,
                None => video.insert(Mp4Writer::new(w, h, &options, metadata)?),
            };
            frames.frames().iter().try_for_each(|frame| Ok(writer.push(frame)?))
        })?;
        if let Some(video) = video {
            return Ok(video.finish_to(path)?);
        }
        let frame_ms = (1000.0 / fps).round().clamp(1.0, f64::from(u16::MAX)) as u16;
        let frames = Frames::new(sides[0], sides[1], all)?.with_frame_ms(frame_ms);
        match self {
            Output::Gif => frames.write_gif(path, metadata)?,
            Output::Folder => drop(frames.write_png_folder(path, metadata)?),
            Output::Png | Output::Mp4 | Output::Latent => frames.write_apng(path, metadata)?,
        }
        Ok(())
    }
}
