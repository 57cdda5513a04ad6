use std::path::Path;

use muxide::api::{Metadata as Tags, Muxer, MuxerBuilder, VideoCodec};
use openh264::OpenH264API;
use openh264::encoder::{
    BitRate, Encoder, EncoderConfig, FrameRate, FrameType, IntraFramePeriod, QpRange, RateControlMode, VuiConfig,
};

use super::SOFTWARE;
use crate::aside::write_file;
use crate::error::{MediaError, Result};
use crate::frames::CHANNELS;
use crate::yuv::Planes;
use crate::{Frames, Metadata};

/// Frames a second at which Wan2.1 was trained.
pub const DEFAULT_FPS: f64 = 16.0;
/// Quantisation at which natural video keeps about 45 dB; 0 is the best, 51 the smallest.
pub const DEFAULT_QP: u8 = 16;

/// Largest quantisation parameter of H.264.
const MOST_QP: u8 = 51;
/// The encoder's own bounds on the longer and the shorter side, in pixels (level 5.2), and the least side.
const SIDES: [usize; 2] = [3840, 2160];
const LEAST_SIDE: usize = 16;
/// Rate control must never be what bounds quality: the quantisation alone does. So it is given the rate of the raw planes,
/// 12 bits a pixel, in bits a second, up to what the highest level has.
const RAW_BITS: f64 = 12.0;
const MOST_BITS: f64 = 240e6;
const LEAST_BITS: f64 = 1e6;
/// Frames between those that a player can seek to.
const SEEK_FRAMES: u32 = 64;

/// How a video is encoded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VideoOptions {
    /// Frames a second, above 0 and up to 1000; a frame's time is exact to 1/90,000 s.
    pub fps: f64,
    /// Quantisation, 0 (best) to 51 (smallest).
    pub qp: u8,
}

impl Default for VideoOptions {
    fn default() -> Self {
        VideoOptions { fps: DEFAULT_FPS, qp: DEFAULT_QP }
    }
}

/// Writes an MP4 with H.264 frame by frame: 4:2:0 in BT.709 limited range, tagged as such, the header first so that a
/// page can play it while it loads.
///
/// Memory holds one frame and what was encoded so far, about a hundredth of the frames. H.264 has even sides: an odd
/// last column or row is doubled, so a file of 15×17 plays as 16×18.
pub struct Mp4Writer {
    encoder: Encoder,
    muxer: Muxer<Sink>,
    sink: Sink,
    planes: Planes,
    sides: [usize; 2],
    fps: f64,
    frames: u64,
    comment: String,
}

/// A buffer that the muxer and its owner share; the muxer drops its own end only when it is dropped itself.
#[derive(Clone, Default)]
struct Sink(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().map_err(|_| std::io::Error::other("poisoned"))?.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl std::fmt::Debug for Mp4Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mp4Writer").field("sides", &self.sides).field("fps", &self.fps).finish_non_exhaustive()
    }
}

fn refused(error: impl std::fmt::Display) -> MediaError {
    MediaError::Encode { reason: error.to_string() }
}

impl Mp4Writer {
    /// Starts a video of `width` × `height` pixels, 16 to 3840 × 2160 either way round.
    ///
    /// # Errors
    /// [`MediaError::Shape`] for sides, a rate or a quantisation out of bounds, [`MediaError::Metadata`] for an entry that no
    /// file can hold.
    pub fn new(width: usize, height: usize, options: &VideoOptions, metadata: &Metadata) -> Result<Self> {
        check(width, height, options)?;
        let bits = (RAW_BITS * (width * height) as f64 * options.fps).clamp(LEAST_BITS, MOST_BITS);
        let config = EncoderConfig::new()
            .rate_control_mode(RateControlMode::Quality)
            .bitrate(BitRate::from_bps(bits as u32))
            .qp(QpRange::new(options.qp, options.qp))
            .skip_frames(false)
            .adaptive_quantization(false)
            .background_detection(false)
            .scene_change_detect(false)
            .intra_frame_period(IntraFramePeriod::from_num_frames(SEEK_FRAMES))
            .max_frame_rate(FrameRate::from_hz(options.fps as f32))
            .num_threads(1)
            .vui(VuiConfig::bt709());
        let encoder = Encoder::with_api_config(OpenH264API::from_source(), config).map_err(refused)?;
        let planes = Planes::new(width, height);
        let even = [width, height].map(|n| n.next_multiple_of(2) as u32);
        let sink = Sink::default();
        let comment = comment(metadata)?;
        let muxer = MuxerBuilder::new(sink.clone())
            .video(VideoCodec::H264, even[0], even[1], options.fps)
            .with_fast_start(true)
            .with_metadata(Tags::new().with_title(comment.clone()))
            .build()
            .map_err(refused)?;
        Ok(Mp4Writer { encoder, muxer, sink, planes, sides: [width, height], fps: options.fps, frames: 0, comment })
    }

    /// Appends a frame: rows of RGB bytes.
    ///
    /// # Errors
    /// [`MediaError::Shape`] for a frame of another size, [`MediaError::Encode`] should the encoder refuse.
    pub fn push(&mut self, rgb: &[u8]) -> Result<()> {
        let [width, height] = self.sides;
        let size = width * height * CHANNELS;
        if rgb.len() != size {
            return Err(shape("bytes of a frame", size, rgb.len()));
        }
        self.planes.fill(rgb, width, height);
        let stream = self.encoder.encode(&self.planes).map_err(refused)?;
        let key = matches!(stream.frame_type(), FrameType::IDR | FrameType::I);
        let seconds = self.frames as f64 / self.fps;
        self.muxer.write_video(seconds, &stream.to_vec(), key).map_err(refused)?;
        self.frames += 1;
        Ok(())
    }

    /// The whole file.
    ///
    /// # Errors
    /// [`MediaError::Shape`] without any frame, [`MediaError::Encode`] should the muxer refuse.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        if self.frames == 0 {
            return Err(shape("frames", "at least 1", 0));
        }
        self.muxer.finish_in_place().map_err(refused)?;
        let mut bytes = std::mem::take(&mut *self.sink.0.lock().map_err(refused)?);
        title_to_comment(&mut bytes, &self.comment)?;
        Ok(bytes)
    }

    /// [`Self::finish`] into a file, aside and renamed.
    ///
    /// # Errors
    /// As [`Self::finish`], and [`MediaError::Write`].
    pub fn finish_to(self, path: impl AsRef<Path>) -> Result<()> {
        write_file(path.as_ref(), &self.finish()?)
    }
}

impl Frames {
    /// Encodes an MP4 with H.264; see [`Mp4Writer`]. The rate is the options', not [`Frames::frame_ms`].
    ///
    /// # Errors
    /// As [`Mp4Writer`].
    pub fn to_mp4(&self, options: &VideoOptions, metadata: &Metadata) -> Result<Vec<u8>> {
        let mut writer = Mp4Writer::new(self.width(), self.height(), options, metadata)?;
        self.frames().iter().try_for_each(|frame| writer.push(frame))?;
        writer.finish()
    }

    /// Writes [`Self::to_mp4`] to a file, aside and renamed.
    ///
    /// # Errors
    /// As [`Self::to_mp4`], and [`MediaError::Write`].
    pub fn write_mp4(&self, path: impl AsRef<Path>, options: &VideoOptions, metadata: &Metadata) -> Result<()> {
        write_file(path.as_ref(), &self.to_mp4(options, metadata)?)
    }
}

fn shape(what: &'static str, expected: impl ToString, got: impl ToString) -> MediaError {
    MediaError::Shape { what, expected: expected.to_string(), got: got.to_string() }
}

fn check(width: usize, height: usize, options: &VideoOptions) -> Result<()> {
    let (longer, shorter) = (width.max(height), width.min(height));
    if shorter < LEAST_SIDE || longer > SIDES[0] || shorter > SIDES[1] {
        let expected = format!("{LEAST_SIDE} to {} × {} pixels either way round", SIDES[0], SIDES[1]);
        return Err(shape("sides of an MP4", expected, format!("{width} × {height}")));
    }
    if !(options.fps > 0.0 && options.fps <= 1000.0) {
        return Err(shape("frames a second", "above 0, up to 1000", options.fps));
    }
    if options.qp > MOST_QP {
        return Err(shape("quantisation", "0 (best) to 51 (smallest)", options.qp));
    }
    Ok(())
}

/// The metadata as one JSON object, with the entry that tells whose file it is.
fn comment(metadata: &Metadata) -> Result<String> {
    let mut object = serde_json::Map::new();
    object.insert(SOFTWARE.0.into(), SOFTWARE.1.into());
    object.extend(metadata.checked()?.iter().map(|(key, value)| (key.clone(), value.as_str().into())));
    Ok(serde_json::Value::Object(object).to_string())
}

/// The muxer knows one tag, the title, and writes it twice. The text is a comment: the name of its boxes is replaced by one
/// of the same length, so no offset moves.
fn title_to_comment(bytes: &mut [u8], text: &str) -> Result<()> {
    const TITLE: &[u8] = b"\xa9nam";
    const COMMENT: &[u8] = b"\xa9cmt";
    // A box of data: its size, its name, eight bytes of type and locale, the text. The size has bytes of zero, which JSON
    // escapes, so the text itself never matches.
    let size = u32::try_from(16 + text.len()).map_err(refused)?.to_be_bytes();
    let title = [TITLE, &size, b"data"].concat();
    let places: Vec<_> =
        bytes.windows(title.len()).enumerate().filter(|(_, w)| *w == title).map(|(at, _)| at).collect();
    if places.is_empty() {
        return Err(refused("the muxer wrote no title to hold the metadata"));
    }
    places.iter().for_each(|&at| bytes[at..at + COMMENT.len()].copy_from_slice(COMMENT));
    Ok(())
}
