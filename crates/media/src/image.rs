use std::fs::File;
use std::io::{BufRead, Cursor, Read, Seek};
use std::path::Path;

use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use crate::error::{MediaError, Result};
use crate::frames::CHANNELS;
use crate::limits;

/// An image in 8-bit RGB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

impl Image {
    /// Takes rows of `width` pixels of three bytes.
    ///
    /// # Errors
    /// [`MediaError::Shape`] when a side is zero or the bytes are not as many as the sides say.
    pub fn new(width: usize, height: usize, rgb: Vec<u8>) -> Result<Self> {
        let size = width.checked_mul(height).and_then(|n| n.checked_mul(CHANNELS));
        if size == Some(rgb.len()) && !rgb.is_empty() {
            return Ok(Self { width, height, rgb });
        }
        let expected = format!("3 bytes for each of {width} × {height} pixels, at least one");
        Err(MediaError::Shape { what: "bytes of an image", expected, got: rgb.len().to_string() })
    }

    pub(crate) fn of_rgb(width: usize, height: usize, rgb: Vec<u8>) -> Self {
        Self { width, height, rgb }
    }

    /// Width in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The pixels: rows from the top, bytes red, green, blue.
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }

    /// The image as one says that it was taken: EXIF orientation 1 to 8 (TIFF 6.0, tag 274).
    fn turned(self, orientation: u32) -> Self {
        let (w, h) = (self.width, self.height);
        let (width, height) = if orientation >= 5 { (h, w) } else { (w, h) };
        // Where the pixel (x, y) of the turned image comes from.
        let source = |x: usize, y: usize| match orientation {
            2 => (w - 1 - x, y),
            3 => (w - 1 - x, h - 1 - y),
            4 => (x, h - 1 - y),
            5 => (y, x),
            6 => (y, h - 1 - x),
            7 => (w - 1 - y, h - 1 - x),
            8 => (w - 1 - y, x),
            _ => (x, y),
        };
        if !(2..=8).contains(&orientation) {
            return self;
        }
        let mut rgb = Vec::with_capacity(self.rgb.len());
        for y in 0..height {
            for x in 0..width {
                let (sx, sy) = source(x, y);
                let at = (sy * w + sx) * CHANNELS;
                rgb.extend_from_slice(&self.rgb[at..at + CHANNELS]);
            }
        }
        Self { width, height, rgb }
    }
}

/// What decoders and this module say about a file, before it has a name.
enum Fault {
    Reason(String),
    Large { what: &'static str, got: u64, limit: u64 },
}

impl<E: std::fmt::Display> From<E> for Fault {
    fn from(error: E) -> Self {
        Fault::Reason(error.to_string())
    }
}

type Decoded = std::result::Result<Image, Fault>;

/// Reads a PNG, JPEG, WebP or the first frame of a GIF, known by its first bytes. Transparent pixels are put over black;
/// 16-bit samples keep their upper half; EXIF orientation is applied to JPEG and WebP.
///
/// # Errors
/// [`MediaError::Read`]; [`MediaError::TooLarge`] for what the file asks beyond [`limits`]; [`MediaError::Malformed`] for a
/// damaged file; [`MediaError::Unsupported`] for another kind.
pub fn read_image(path: impl AsRef<Path>) -> Result<Image> {
    let path = path.as_ref();
    let cannot = |source| MediaError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(cannot)?;
    file.take(limits::IMAGE_FILE + 1).read_to_end(&mut bytes).map_err(cannot)?;
    let fault = |kind, fault| match fault {
        Fault::Reason(reason) => MediaError::Malformed { path: path.to_owned(), kind, reason },
        Fault::Large { what, got, limit } => MediaError::TooLarge { path: path.to_owned(), what, got, limit },
    };
    if bytes.len() as u64 > limits::IMAGE_FILE {
        let (got, limit) = (bytes.len() as u64, limits::IMAGE_FILE);
        return Err(fault("image", Fault::Large { what: "bytes of the file", got, limit }));
    }
    match &bytes[..] {
        [0x89, b'P', b'N', b'G', ..] => png(&bytes).map_err(|f| fault("PNG", f)),
        [0xff, 0xd8, ..] => jpeg(&bytes).map_err(|f| fault("JPEG", f)),
        [b'G', b'I', b'F', b'8', ..] => gif(&bytes).map_err(|f| fault("GIF", f)),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => webp(&bytes).map_err(|f| fault("WebP", f)),
        _ => Err(MediaError::Unsupported {
            path: path.to_owned(),
            reason: "it begins as no PNG, JPEG, WebP or GIF does".into(),
            remedy: "convert it to PNG",
        }),
    }
}

/// The sides, if they are within the limits.
fn sides(width: impl TryInto<usize>, height: impl TryInto<usize>) -> std::result::Result<[usize; 2], Fault> {
    let [width, height] = [width.try_into().unwrap_or(usize::MAX), height.try_into().unwrap_or(usize::MAX)];
    let large = |what, got: usize, limit: usize| Err(Fault::Large { what, got: got as u64, limit: limit as u64 });
    let pixels = width.saturating_mul(height);
    match (width.max(height), pixels) {
        (_, 0) => Err(Fault::Reason(format!("{width} × {height} pixels"))),
        (side, _) if side > limits::SIDE => large("side in pixels", side, limits::SIDE),
        _ if pixels > limits::PIXELS => large("pixels", pixels, limits::PIXELS),
        _ => Ok([width, height]),
    }
}

/// RGB from samples of so many channels: grey, grey and opacity, RGB, RGB and opacity.
fn rgb_of(samples: &[u8], channels: usize) -> Vec<u8> {
    let over_black = |c: u8, a: u8| ((u16::from(c) * u16::from(a) + 127) / 255) as u8;
    let pixels = samples.chunks_exact(channels);
    match channels {
        1 => pixels.flat_map(|p| [p[0]; 3]).collect(),
        2 => pixels.flat_map(|p| [over_black(p[0], p[1]); 3]).collect(),
        3 => samples.to_vec(),
        _ => pixels.flat_map(|p| [over_black(p[0], p[3]), over_black(p[1], p[3]), over_black(p[2], p[3])]).collect(),
    }
}

fn png(bytes: &[u8]) -> Decoded {
    let limits = png::Limits { bytes: limits::PIXELS * 4 };
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), limits);
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let (width, height) = {
        let info = decoder.read_header_info()?;
        (info.width, info.height)
    };
    let [width, height] = sides(width, height)?;
    let mut reader = decoder.read_info()?;
    let size = reader.output_buffer_size().ok_or("more bytes than memory")?;
    let mut samples = vec![0; size];
    let info = reader.next_frame(&mut samples)?;
    if (info.width as usize, info.height as usize) != (width, height) {
        return Err("the first frame has other sides than the image".into());
    }
    samples.truncate(info.buffer_size());
    Ok(Image::of_rgb(width, height, rgb_of(&samples, info.color_type.samples())))
}

fn jpeg(bytes: &[u8]) -> Decoded {
    let options = DecoderOptions::default()
        .set_max_width(limits::SIDE)
        .set_max_height(limits::SIDE)
        .set_strict_mode(true)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(|e| format!("{e:?}"))?;
    let info = decoder.info().ok_or("it has no header")?;
    let [width, height] = sides(info.width, info.height)?;
    let rgb = decoder.decode().map_err(|e| format!("{e:?}"))?;
    let orientation = decoder.exif().map_or(1, |exif| orientation(exif));
    if rgb.len() != width * height * CHANNELS {
        return Err("the decoder returned other than RGB".into());
    }
    Ok(Image::of_rgb(width, height, rgb).turned(orientation))
}

fn gif(bytes: &[u8]) -> Decoded {
    let mut options = gif::DecodeOptions::new();
    options.set_color_output(gif::ColorOutput::RGBA);
    options.set_memory_limit(gif::MemoryLimit::Bytes((limits::PIXELS as u64 * 4).try_into()?));
    let mut decoder = options.read_info(bytes)?;
    let [width, height] = sides(decoder.width(), decoder.height())?;
    let frame = decoder.read_next_frame()?.ok_or("it has no frame")?;
    let [left, top, w, h] = [frame.left, frame.top, frame.width, frame.height].map(usize::from);
    if left + w > width || top + h > height || frame.buffer.len() != w * h * 4 {
        return Err("the first frame lies outside the image".into());
    }
    let mut rgb = vec![0; width * height * CHANNELS];
    for (y, row) in rgb_of(&frame.buffer, 4).chunks_exact(w * CHANNELS).enumerate() {
        let at = ((top + y) * width + left) * CHANNELS;
        rgb[at..at + row.len()].copy_from_slice(row);
    }
    Ok(Image::of_rgb(width, height, rgb))
}

fn webp(bytes: &[u8]) -> Decoded {
    webp_of(Cursor::new(bytes))
}

fn webp_of(bytes: impl BufRead + Seek) -> Decoded {
    let mut decoder = image_webp::WebPDecoder::new(bytes)?;
    decoder.set_memory_limit(limits::PIXELS * 4);
    let (width, height) = decoder.dimensions();
    let [width, height] = sides(width, height)?;
    let channels = if decoder.has_alpha() { 4 } else { 3 };
    let size = decoder.output_buffer_size().ok_or("more bytes than memory")?;
    if size != width * height * channels {
        return Err("the decoder returns other than RGB".into());
    }
    let mut samples = vec![0; size];
    decoder.read_image(&mut samples)?;
    let orientation = decoder.exif_metadata().ok().flatten().map_or(1, |exif| orientation(&exif));
    Ok(Image::of_rgb(width, height, rgb_of(&samples, channels)).turned(orientation))
}

/// The orientation of an EXIF block; 1, as it is, where there is none or it cannot be read.
fn orientation(exif: &[u8]) -> u32 {
    let block = exif.strip_prefix(b"Exif\0\0").unwrap_or(exif);
    let Ok(fields) = exif::Reader::new().read_raw(block.to_vec()) else { return 1 };
    let field = fields.get_field(exif::Tag::Orientation, exif::In::PRIMARY);
    field.and_then(|f| f.value.get_uint(0)).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_orientation_puts_the_first_pixel_where_exif_says() {
        // Pixels 0..6 in 3 × 2; the corner where the stored first pixel is seen (EXIF 2.32, table 6).
        let image = Image::new(3, 2, (0..6).flat_map(|i| [i; 3]).collect()).unwrap();
        let seen = [(1, 0, 0), (2, 2, 0), (3, 2, 1), (4, 0, 1), (5, 0, 0), (6, 1, 0), (7, 1, 2), (8, 0, 2)];
        for (orientation, x, y) in seen {
            let turned = image.clone().turned(orientation);
            let at = (y * turned.width() + x) * CHANNELS;
            assert_eq!(turned.rgb()[at], 0, "orientation {orientation}");
        }
    }
}
