use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use mp4parse::unstable::create_sample_table;
use mp4parse::{CodecType, MediaContext, SampleEntry, Track, TrackType, VideoCodecSpecific};
use openh264::decoder::Decoder;
use openh264::formats::YUVSource;

use super::SOFTWARE;
use crate::error::{MediaError, Result};
use crate::limits;
use crate::yuv::{BT601, BT709, Matrix, to_rgb};
use crate::{Image, Metadata};

const KIND: &str = "MP4 with H.264";
/// Least height of untagged video that players take for BT.709, in pixels.
const HIGH_DEFINITION: usize = 720;
/// Start of a NAL unit in a byte stream (H.264 annex B).
const START: [u8; 4] = [0, 0, 0, 1];
/// Most macroblocks of a frame that the decoder takes (level 5.2).
const MACROBLOCKS: usize = 36_864;

/// A frame and when it is shown, in seconds.
pub(crate) struct Shown {
    pub image: Image,
    pub seconds: Range<f64>,
}

/// An MP4 with one H.264 track, its tables checked against each other, the file and the limits.
pub(crate) struct Mp4 {
    path: PathBuf,
    file: File,
    samples: Vec<Sample>,
    /// Start codes, sequence and picture parameters.
    parameters: Vec<u8>,
    length_bytes: usize,
    sides: [usize; 2],
    comment: Option<String>,
}

struct Sample {
    bytes: Range<u64>,
    seconds: Range<f64>,
}

/// The metadata of an MP4 that [`Mp4Writer`](crate::Mp4Writer) wrote, in alphabetical order; none of other files.
///
/// # Errors
/// [`MediaError`] for a file that is not an MP4 with H.264.
pub fn mp4_metadata(path: impl AsRef<Path>) -> Result<Metadata> {
    let mp4 = Mp4::open(path.as_ref())?;
    let entries = mp4.entries().unwrap_or_default();
    let texts = entries.iter().filter(|(key, _)| *key != SOFTWARE.0).filter_map(|(k, v)| Some((k, v.as_str()?)));
    Ok(texts.fold(Metadata::new(), |note, (key, value)| note.with(key, value)))
}

impl Mp4 {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let cannot = |source| MediaError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(cannot)?;
        let length = file.metadata().map_err(cannot)?.len();
        check_boxes(path, &file, length)?;
        let mut reader = BufReader::new(&file);
        reader.rewind().map_err(cannot)?;
        let context = mp4parse::read_mp4(&mut reader).map_err(|e| malformed(path, format!("{e:?}")))?;
        let track = context.tracks.iter().find(|t| t.track_type == TrackType::Video);
        let track = track.ok_or_else(|| malformed(path, "it has no video track"))?;
        let (parameters, length_bytes, sides) = avc(path, track)?;
        let samples = samples(path, track, length)?;
        let comment = comment(&context);
        Ok(Mp4 { path: path.to_owned(), file, samples, parameters, length_bytes, sides, comment })
    }

    /// Whether Fewstep wrote the file.
    pub(crate) fn ours(&self) -> bool {
        self.entries().is_some_and(|entries| entries.get(SOFTWARE.0).is_some_and(|v| v == SOFTWARE.1))
    }

    fn entries(&self) -> Option<serde_json::Map<String, serde_json::Value>> {
        serde_json::from_str(self.comment.as_deref()?).ok()
    }

    /// Ours are BT.709; of others players assume it from 720 lines.
    fn matrix(&self) -> Matrix {
        if self.ours() || self.sides[1] >= HIGH_DEFINITION { BT709 } else { BT601 }
    }

    /// Decodes frame after frame while `take` asks for more.
    pub(crate) fn decode(&mut self, mut take: impl FnMut(Shown) -> Result<bool>) -> Result<()> {
        let damaged = |path: &Path, e: openh264::Error| malformed(path, format!("the decoder says {e}"));
        let mut decoder = Decoder::new().map_err(|e| damaged(&self.path, e))?;
        let matrix = self.matrix();
        let mut packet = self.parameters.clone();
        for sample in &self.samples {
            read_sample(&self.path, &mut self.file, sample, self.length_bytes, &mut packet)?;
            let decoded = decoder.decode(&packet).map_err(|e| damaged(&self.path, e))?;
            let decoded = decoded.ok_or_else(|| malformed(&self.path, "a sample holds no frame"))?;
            let [width, height] = self.sides;
            if decoded.dimensions() != (width, height) {
                let got = decoded.dimensions();
                return Err(malformed(&self.path, format!("a frame of {got:?} pixels in a track of {:?}", self.sides)));
            }
            let rgb =
                to_rgb(&decoded, matrix).ok_or_else(|| malformed(&self.path, "a frame shorter than its sides"))?;
            let image = Image::of_rgb(width, height, rgb);
            if !take(Shown { image, seconds: sample.seconds.clone() })? {
                break;
            }
            packet.clear();
        }
        Ok(())
    }
}

fn malformed(path: &Path, reason: impl Into<String>) -> MediaError {
    MediaError::Malformed { path: path.to_owned(), kind: KIND, reason: reason.into() }
}

fn unsupported(path: &Path, reason: impl Into<String>) -> MediaError {
    let remedy = "put `ffmpeg` on the PATH, or convert the file with `ffmpeg -i IN -c:v libx264 -bf 0 OUT.mp4`";
    MediaError::Unsupported { path: path.to_owned(), reason: reason.into(), remedy }
}

fn too_large(path: &Path, what: &'static str, got: u64, limit: u64) -> MediaError {
    MediaError::TooLarge { path: path.to_owned(), what, got, limit }
}

/// The outermost boxes: the parser loads the header whole, so its size is bounded before.
fn check_boxes(path: &Path, mut file: &File, length: u64) -> Result<()> {
    let cannot = |source| MediaError::Read { path: path.to_owned(), source };
    let mut at = 0;
    while at + 8 <= length {
        let mut head = [0; 16];
        file.seek(SeekFrom::Start(at)).map_err(cannot)?;
        let wide = at + 16 <= length;
        file.read_exact(if wide { &mut head } else { &mut head[..8] }).map_err(cannot)?;
        let size = match u32::from_be_bytes([head[0], head[1], head[2], head[3]]) {
            0 => length - at,
            1 => u64::from_be_bytes([8, 9, 10, 11, 12, 13, 14, 15].map(|i| head[i])),
            n => n.into(),
        };
        if at == 0 && &head[4..8] != b"ftyp" {
            return Err(malformed(path, "it does not begin with a file type"));
        }
        if size < 8 || size > length - at {
            return Err(malformed(
                path,
                format!("a box at byte {at} of {size} bytes in a file of {length}: truncated?"),
            ));
        }
        if &head[4..8] != b"mdat" && size > limits::VIDEO_HEADER {
            return Err(too_large(path, "header bytes", size, limits::VIDEO_HEADER));
        }
        at += size;
    }
    Ok(())
}

/// Parameter sets in a byte stream, the bytes of a unit's length, and the sides, from the track's description.
fn avc(path: &Path, track: &Track) -> Result<(Vec<u8>, usize, [usize; 2])> {
    let descriptions = track.stsd.as_ref().map_or(&[][..], |stsd| &stsd.descriptions[..]);
    let [SampleEntry::Video(entry)] = descriptions else {
        return Err(unsupported(path, "its video track has not one description of its frames"));
    };
    let VideoCodecSpecific::AVCConfig(config) = &entry.codec_specific else {
        return Err(unsupported(path, format!("its video is {:?}, not H.264", entry.codec_type)));
    };
    if entry.codec_type != CodecType::H264 {
        return Err(unsupported(path, format!("its video is {:?}, not H.264", entry.codec_type)));
    }
    let sides = [usize::from(entry.width), usize::from(entry.height)];
    let blocks = sides.iter().map(|n| n.div_ceil(16)).product::<usize>();
    if blocks == 0 || blocks > MACROBLOCKS {
        return Err(unsupported(path, format!("its frames are {} × {} pixels", sides[0], sides[1])));
    }
    let (parameters, length_bytes) =
        parameter_sets(config).ok_or_else(|| malformed(path, "its decoder configuration ends early"))?;
    Ok((parameters, length_bytes, sides))
}

/// AVCDecoderConfigurationRecord (ISO/IEC 14496-15 §5.3.3.1).
fn parameter_sets(config: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (head, mut rest) = config.split_first_chunk::<5>()?;
    let mut stream = Vec::new();
    for mask in [0x1f, 0xff] {
        let (&count, after) = rest.split_first()?;
        rest = after;
        for _ in 0..count & mask {
            let (length, after) = rest.split_first_chunk::<2>()?;
            let (unit, after) = after.split_at_checked(u16::from_be_bytes(*length).into())?;
            stream.extend(START);
            stream.extend(unit);
            rest = after;
        }
    }
    Some((stream, usize::from(head[4] & 3) + 1))
}

fn samples(path: &Path, track: &Track, length: u64) -> Result<Vec<Sample>> {
    let (Some(stsz), Some(stsc), Some(stco)) = (&track.stsz, &track.stsc, &track.stco) else {
        return Err(unsupported(path, "it has no sample tables (a fragmented file?)"));
    };
    // A fixed sample size would let a few bytes ask for four thousand million samples; no video has one.
    let n = stsz.sample_sizes.len();
    let per_chunk = stsc.samples.iter().map(|s| s.samples_per_chunk as usize).max().unwrap_or(0);
    if n == 0 || per_chunk > n {
        return Err(unsupported(path, "it has no table of sample sizes (a fragmented file?)"));
    }
    let asked = per_chunk.saturating_mul(stco.offsets.len());
    if n > limits::SAMPLES || stco.offsets.len() > n || asked > n.saturating_add(limits::SAMPLES) {
        return Err(too_large(path, "samples", n.max(asked) as u64, limits::SAMPLES as u64));
    }
    let scale = track.timescale.as_ref().map_or(0, |t| t.0);
    let table = create_sample_table(track, 0_i64.into()).ok_or_else(|| malformed(path, "its tables disagree"))?;
    if table.len() != n || scale == 0 {
        return Err(malformed(path, "its tables disagree"));
    }
    if table.windows(2).any(|w| w[1].start_composition <= w[0].start_composition) {
        return Err(unsupported(path, "its frames are not stored in the order in which they are shown (B-frames)"));
    }
    let seconds = |ticks: i64| ticks as f64 / scale as f64;
    let sample = |i: &mp4parse::unstable::Indice| {
        let bytes = i.start_offset.0..i.end_offset.0;
        if bytes.end > length || bytes.start >= bytes.end {
            return Err(malformed(path, "a sample lies outside the file: truncated?"));
        }
        if bytes.end - bytes.start > limits::SAMPLE {
            return Err(too_large(path, "bytes of a frame", bytes.end - bytes.start, limits::SAMPLE));
        }
        Ok(Sample { bytes, seconds: seconds(i.start_composition.0)..seconds(i.end_composition.0) })
    };
    table.iter().map(sample).collect()
}

/// Appends a sample as a byte stream: start codes in the place of lengths.
fn read_sample(path: &Path, file: &mut File, sample: &Sample, length_bytes: usize, packet: &mut Vec<u8>) -> Result<()> {
    let cannot = |source| MediaError::Read { path: path.to_owned(), source };
    let mut bytes = vec![0; (sample.bytes.end - sample.bytes.start) as usize];
    file.seek(SeekFrom::Start(sample.bytes.start)).map_err(cannot)?;
    file.read_exact(&mut bytes).map_err(cannot)?;
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let unit = rest.split_at_checked(length_bytes).and_then(|(length, after)| {
            let length = length.iter().fold(0, |n, &byte| n << 8 | usize::from(byte));
            after.split_at_checked(length)
        });
        let (unit, after) = unit.ok_or_else(|| malformed(path, "a frame's unit is longer than the frame"))?;
        packet.extend(START);
        packet.extend(unit);
        rest = after;
    }
    Ok(())
}

fn comment(context: &MediaContext) -> Option<String> {
    let meta = context.userdata.as_ref()?.as_ref().ok()?.meta.as_ref()?;
    String::from_utf8(meta.comment.as_ref()?.to_vec()).ok()
}
