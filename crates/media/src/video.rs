use std::path::Path;

use crate::error::{MediaError, Result};
use crate::ffmpeg;
use crate::frames::CHANNELS;
use crate::limits;
use crate::mp4::{Mp4, Shown};
use crate::{Image, fit};

/// Sides are multiples of this many pixels: eight by the autoencoder, two by the patches.
const SIDE_STEP: usize = 16;
/// Frames after the first come in groups of this many, as the autoencoder takes them.
const FRAME_STEP: usize = 4;

/// What a network takes of a video.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Wanted {
    /// Width in pixels, a multiple of 16.
    pub width: usize,
    /// Height in pixels, a multiple of 16.
    pub height: usize,
    /// Frames, 1 + 4k.
    pub frames: usize,
    /// Frames a second.
    pub fps: f64,
}

impl Wanted {
    /// The shape [3, F, H, W] of the pixels.
    pub fn dims(&self) -> [usize; 4] {
        [CHANNELS, self.frames, self.height, self.width]
    }

    /// Refuses what no network takes.
    ///
    /// # Errors
    /// [`MediaError::Shape`] for sides that are no multiples of 16, frames that are not 1 + 4k, a rate that is not above 0
    /// and up to 1000, or more values than [`limits::VALUES`].
    pub fn validate(&self) -> Result<()> {
        let shape =
            |what, expected: &str, got: String| Err(MediaError::Shape { what, expected: expected.to_owned(), got });
        let side = |n: usize| (1..=limits::SIDE).contains(&n) && n.is_multiple_of(SIDE_STEP);
        if !side(self.width) || !side(self.height) {
            return shape("sides", "multiples of 16 pixels", format!("{} × {}", self.width, self.height));
        }
        if self.frames % FRAME_STEP != 1 {
            return shape("frames", "1 + 4k, such as 81", self.frames.to_string());
        }
        if !(self.fps > 0.0 && self.fps <= 1000.0) {
            return shape("frames a second", "above 0, up to 1000", self.fps.to_string());
        }
        let values = self.dims().iter().try_fold(1_usize, |n, &dim| n.checked_mul(dim));
        if values.is_none_or(|n| n > limits::VALUES) {
            return shape("values", &format!("at most {} (3·F·H·W)", limits::VALUES), format!("{:?}", self.dims()));
        }
        Ok(())
    }
}

/// Reads the beginning of a video as [3, F, H, W] in [-1, 1].
///
/// Frame i is what a player shows at i/fps seconds. Each frame is cut to the aspect and resized by [`fit`]. MP4s with H.264 and
/// without B-frames are decoded here where Fewstep wrote them or no `ffmpeg` is on the PATH; `ffmpeg` decodes all else.
///
/// # Errors
/// As [`Wanted::validate`]; [`MediaError::Read`], [`MediaError::Malformed`] and [`MediaError::TooLarge`] of a file;
/// [`MediaError::Unsupported`], with what to do, where neither can decode it; [`MediaError::TooShort`].
pub fn read_video(path: impl AsRef<Path>, wanted: &Wanted) -> Result<Vec<f32>> {
    wanted.validate()?;
    let path = path.as_ref();
    let ffmpeg = ffmpeg::present();
    match Mp4::open(path) {
        Ok(mp4) if mp4.ours() || !ffmpeg => here(path, mp4, wanted),
        Err(error @ MediaError::Read { .. }) => Err(error),
        Ok(_) | Err(_) if ffmpeg => {
            let mut taken = Taken::new(wanted);
            ffmpeg::decode(path, wanted, |image| taken.push(&image))?;
            taken.finish(path)
        }
        Ok(_) => Err(ffmpeg::missing(path, "it cannot be decoded here".into())),
        Err(error @ (MediaError::TooLarge { .. } | MediaError::Unsupported { .. })) => Err(error),
        Err(error) => Err(ffmpeg::missing(path, error.to_string())),
    }
}

/// An image as a video of one frame, [3, 1, H, W] in [-1, 1], by [`fit`].
///
/// # Errors
/// As [`fit`].
pub fn image_pixels(image: &Image, width: usize, height: usize) -> Result<Vec<f32>> {
    let mut taken = Taken::new(&Wanted { width, height, frames: 1, fps: 1.0 });
    taken.push(&fit(image, width, height)?)?;
    Ok(taken.pixels)
}

fn here(path: &Path, mut mp4: Mp4, wanted: &Wanted) -> Result<Vec<f32>> {
    let mut taken = Taken::new(wanted);
    mp4.decode(|Shown { image, seconds }| {
        // A tick of the clock is long beside the rounding of f64.
        const TICK: f64 = 1e-6;
        while taken.frames < wanted.frames && taken.frames as f64 / wanted.fps < seconds.end - TICK {
            taken.push(&image)?;
        }
        Ok(taken.frames < wanted.frames)
    })?;
    taken.finish(path)
}

/// Pixels as they come in. They are allocated a frame at a time, so that a short file cannot ask for a long video's memory.
struct Taken {
    wanted: Wanted,
    frames: usize,
    /// [F, C, H, W]
    pixels: Vec<f32>,
}

impl Taken {
    fn new(wanted: &Wanted) -> Self {
        Taken { wanted: *wanted, frames: 0, pixels: Vec::new() }
    }

    /// Whether more frames are wanted.
    fn push(&mut self, image: &Image) -> Result<bool> {
        if self.frames < self.wanted.frames {
            let fitted = fit(image, self.wanted.width, self.wanted.height)?;
            for channel in 0..CHANNELS {
                let bytes = fitted.rgb()[channel..].iter().step_by(CHANNELS);
                self.pixels.extend(bytes.map(|&byte| f32::from(byte) / 127.5 - 1.0));
            }
            self.frames += 1;
        }
        Ok(self.frames < self.wanted.frames)
    }

    /// [C, F, H, W]
    fn finish(self, path: &Path) -> Result<Vec<f32>> {
        let (got, expected) = (self.frames, self.wanted.frames);
        if got < expected {
            let longest = if got == 0 { 0 } else { (got - 1) / FRAME_STEP * FRAME_STEP + 1 };
            return Err(MediaError::TooShort { path: path.to_owned(), got, expected, longest });
        }
        let plane = self.wanted.width * self.wanted.height;
        let planes = (0..CHANNELS).flat_map(|c| (0..expected).map(move |f| (f * CHANNELS + c) * plane));
        Ok(planes.flat_map(|at| self.pixels[at..at + plane].iter().copied()).collect())
    }
}
