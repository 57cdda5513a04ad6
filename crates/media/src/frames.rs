use crate::error::{MediaError, Result};

/// Colour channels of a frame: red, green, blue.
pub(crate) const CHANNELS: usize = 3;

/// How long a frame is shown unless [`Frames::with_frame_ms`] says otherwise, in milliseconds: a clip of six
/// frames takes about a second.
pub const FRAME_MS: u16 = 160;

/// Largest height or width of a frame, in pixels: GIF's.
const LARGEST_SIDE: usize = u16::MAX as usize;

/// A video, or with one frame an image, in 8-bit RGB; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frames {
    width: u16,
    height: u16,
    frame_ms: u16,
    frames: Vec<Vec<u8>>,
}

impl Frames {
    /// Takes frames of `height` rows of `width` pixels of three bytes.
    ///
    /// # Errors
    /// [`MediaError::Shape`] when there is no frame, a side is zero or above 65,535, or a frame's size is not that of the sides.
    pub fn new(width: usize, height: usize, frames: Vec<Vec<u8>>) -> Result<Self> {
        let shape = |what, expected: String, got: String| MediaError::Shape { what, expected, got };
        let side = |what, value: usize| {
            u16::try_from(value)
                .ok()
                .filter(|&side| side > 0)
                .ok_or_else(|| shape(what, format!("1 to {LARGEST_SIDE} pixels"), value.to_string()))
        };
        let (width, height) = (side("frame width", width)?, side("frame height", height)?);
        if frames.is_empty() {
            return Err(shape("frames", "at least 1".to_owned(), "0".to_owned()));
        }
        let size = usize::from(width) * usize::from(height) * CHANNELS;
        if let Some(frame) = frames.iter().find(|frame| frame.len() != size) {
            return Err(shape("bytes of a frame", size.to_string(), frame.len().to_string()));
        }
        Ok(Self { width, height, frame_ms: FRAME_MS, frames })
    }

    /// Converts [C = 3, F, H, W] in [-1, 1] to bytes: round(127.5·(x + 1)), clamped to [0, 255].
    ///
    /// # Errors
    /// [`MediaError::Shape`] when `dims` are not those of `pixels` or not three channels; [`MediaError::NonFinite`] for a
    /// NaN or an infinity among the pixels.
    pub fn from_pixels(pixels: &[f32], dims: [usize; 4]) -> Result<Self> {
        let [c, f, h, w] = dims;
        let expected = dims.iter().try_fold(1_usize, |n, &dim| n.checked_mul(dim));
        if c != CHANNELS || expected != Some(pixels.len()) {
            return Err(MediaError::Shape {
                what: "pixels",
                expected: format!("[C = {CHANNELS}, F, H, W] and as many pixels"),
                got: format!("{dims:?} and {} pixels", pixels.len()),
            });
        }
        all_finite(pixels)?;
        let frames = (0..f)
            .map(|frame| {
                // [C, F, H, W] -> [H, W, C]
                (0..h * w)
                    .flat_map(|i| (0..c).map(move |channel| (channel * f + frame) * h * w + i))
                    .map(|i| byte(pixels[i]))
                    .collect()
            })
            .collect();
        Self::new(w, h, frames)
    }

    /// The same frames, each shown for `frame_ms` milliseconds.
    pub fn with_frame_ms(self, frame_ms: u16) -> Self {
        Self { frame_ms, ..self }
    }

    /// Width of each frame, in pixels.
    pub fn width(&self) -> usize {
        self.width.into()
    }

    /// Height of each frame, in pixels.
    pub fn height(&self) -> usize {
        self.height.into()
    }

    /// How long each frame is shown, in milliseconds.
    pub fn frame_ms(&self) -> u16 {
        self.frame_ms
    }

    /// The frames: rows from the top, pixels from the left, bytes red, green, blue.
    pub fn frames(&self) -> &[Vec<u8>] {
        &self.frames
    }

    /// Both sides as the file formats hold them.
    pub(crate) fn sides(&self) -> [u16; 2] {
        [self.width, self.height]
    }

    /// The same frames with each pixel as a square of `k` by `k`.
    ///
    /// # Errors
    /// [`MediaError::Shape`] when `k` is zero or a side would be above 65,535 pixels.
    pub fn upscale(&self, k: usize) -> Result<Self> {
        let largest = LARGEST_SIDE / self.width().max(self.height());
        if k == 0 || k > largest {
            return Err(MediaError::Shape {
                what: "upscale factor",
                expected: format!("1 to {largest}"),
                got: k.to_string(),
            });
        }
        let wide = |row: &[u8]| -> Vec<u8> { row.chunks_exact(CHANNELS).flat_map(|pixel| pixel.repeat(k)).collect() };
        let frames = self
            .frames
            .iter()
            .map(|frame| frame.chunks_exact(self.width() * CHANNELS).flat_map(|row| wide(row).repeat(k)).collect())
            .collect();
        Self::new(self.width() * k, self.height() * k, frames).map(|up| up.with_frame_ms(self.frame_ms))
    }
}

fn byte(x: f32) -> u8 {
    // The cast saturates, which is the clamp.
    (127.5 * (x + 1.0)).round() as u8
}

fn all_finite(pixels: &[f32]) -> Result<()> {
    match pixels.iter().position(|x| !x.is_finite()) {
        None => Ok(()),
        Some(first) => Err(MediaError::NonFinite {
            count: pixels.iter().filter(|x| !x.is_finite()).count(),
            total: pixels.len(),
            first,
        }),
    }
}
