//! Event files that TensorBoard opens: scalars and PNG images.
//!
//! An event file is a TFRecord file of `Event` messages. A record is
//!   length u64 LE ‖ masked CRC-32C of those 8 bytes ‖ data ‖ masked CRC-32C of the data,
//! with mask(c) = (c rotated right by 15) + 0xa282ead8. Sources: TensorFlow's `lib/io/record_writer.h`, and
//! `event.proto` and `summary.proto` of TensorBoard's `compat/proto`, of which the few fields used are written by hand.

use std::fs::{File, OpenOptions, create_dir_all};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::{Error, Result};

const CRC_MASK: u32 = 0xa282_ead8;
/// The format that TensorBoard expects to be announced by a file's first event.
const FILE_VERSION: &[u8] = b"brain.Event:2";
/// `SessionLog.SessionStatus.START`.
const SESSION_START: u64 = 1;

/// Writes one event file; each event is handed to the system as it comes.
#[derive(Debug)]
pub struct TensorBoardWriter {
    path: PathBuf,
    file: File,
}

impl TensorBoardWriter {
    /// A new event file in a folder, which is created if need be. Give the iteration a run resumes from, if it does:
    /// TensorBoard then drops what earlier files of the folder hold beyond it.
    ///
    /// # Errors
    /// If the folder or the file cannot be written.
    pub fn create(folder: &Path, resumed_from: Option<u64>) -> Result<Self> {
        create_dir_all(folder).map_err(Error::io(folder))?;
        let now = now();
        // TensorBoard reads a folder's files in the order of their names; two resumptions may share a second.
        let name = format!("events.out.tfevents.{}.{:09}.fewstep", now.as_secs(), now.subsec_nanos());
        let path = folder.join(name);
        let file = OpenOptions::new().append(true).create_new(true).open(&path).map_err(Error::io(&path))?;
        let mut writer = TensorBoardWriter { path, file };
        writer.write(0, |event| bytes_field(event, 3, FILE_VERSION))?;
        if let Some(iteration) = resumed_from {
            let mut start = Vec::new();
            varint_field(&mut start, 1, SESSION_START);
            writer.write(iteration + 1, |event| bytes_field(event, 7, &start))?;
        }
        Ok(writer)
    }

    /// The event file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Values of one iteration, all in one event; rounded to f32, the type of the format.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn scalars<'a>(&mut self, iteration: u64, values: impl IntoIterator<Item = (&'a str, f64)>) -> Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in values {
            let mut field = Vec::new();
            bytes_field(&mut field, 1, tag.as_bytes());
            fixed_field(&mut field, 2, 5, &(value as f32).to_le_bytes());
            bytes_field(&mut summary, 1, &field);
        }
        self.write(iteration, |event| bytes_field(event, 5, &summary))
    }

    /// A PNG image, as its file's bytes.
    ///
    /// # Errors
    /// If the bytes do not begin as a PNG does, or the file cannot be written.
    pub fn image(&mut self, iteration: u64, tag: &str, png: &[u8]) -> Result<()> {
        let [width, height, channels] = png_header(png).map_err(|reason| Error::Png { tag: tag.into(), reason })?;
        let mut image = Vec::new();
        varint_field(&mut image, 1, height);
        varint_field(&mut image, 2, width);
        varint_field(&mut image, 3, channels);
        bytes_field(&mut image, 4, png);
        let mut value = Vec::new();
        bytes_field(&mut value, 1, tag.as_bytes());
        bytes_field(&mut value, 4, &image);
        let mut summary = Vec::new();
        bytes_field(&mut summary, 1, &value);
        self.write(iteration, |event| bytes_field(event, 5, &summary))
    }

    fn write(&mut self, iteration: u64, what: impl FnOnce(&mut Vec<u8>)) -> Result<()> {
        let record = record(&event(now().as_secs_f64(), iteration, what));
        self.file.write_all(&record).map_err(Error::io(&self.path))
    }
}

/// The time of day; a clock before 1970 counts as 1970.
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// An `Event`: wall_time = 1, step = 2, and one of what = 3 (file_version), 5 (summary), 7 (session_log).
fn event(wall_time: f64, iteration: u64, what: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut event = Vec::new();
    fixed_field(&mut event, 1, 1, &wall_time.to_le_bytes());
    varint_field(&mut event, 2, iteration);
    what(&mut event);
    event
}

fn record(data: &[u8]) -> Vec<u8> {
    let masked = |bytes: &[u8]| crc32c::crc32c(bytes).rotate_right(15).wrapping_add(CRC_MASK).to_le_bytes();
    let length = (data.len() as u64).to_le_bytes();
    [length.as_slice(), &masked(&length), data, &masked(data)].concat()
}

/// Protobuf's base-128 integers, least significant group first.
fn varint(out: &mut Vec<u8>, mut x: u64) {
    while x >= 0x80 {
        out.push(x as u8 | 0x80);
        x >>= 7;
    }
    out.push(x as u8);
}

/// Field keys are `number << 3 | wire type`: 0 varint, 1 eight bytes, 2 length-delimited, 5 four bytes.
fn varint_field(out: &mut Vec<u8>, number: u64, x: u64) {
    varint(out, number << 3);
    varint(out, x);
}

fn fixed_field(out: &mut Vec<u8>, number: u64, wire_type: u64, bytes: &[u8]) {
    varint(out, number << 3 | wire_type);
    out.extend_from_slice(bytes);
}

fn bytes_field(out: &mut Vec<u8>, number: u64, bytes: &[u8]) {
    varint(out, number << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Width, height and channels from a PNG's first chunk.
fn png_header(png: &[u8]) -> std::result::Result<[u64; 3], &'static str> {
    let header = png.strip_prefix(b"\x89PNG\r\n\x1a\n").ok_or("no PNG signature")?;
    let chunk = header.strip_prefix(b"\0\0\0\x0dIHDR").ok_or("no header chunk")?;
    let [w0, w1, w2, w3, h0, h1, h2, h3, _depth, color, ..] = *chunk else {
        return Err("a header cut short");
    };
    let channels = match color {
        0 => 1,
        4 => 2,
        2 | 3 => 3,
        6 => 4,
        _ => return Err("an unknown colour type"),
    };
    let extent = |bytes| u64::from(u32::from_be_bytes(bytes));
    Ok([extent([w0, w1, w2, w3]), extent([h0, h1, h2, h3]), channels])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A grey PNG of one white pixel.
    const PIXEL: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\0\0\0\0:~\x9bU\
        \0\0\0\nIDATx\x9cc\xf8\x0f\0\x01\x01\x01\0\xb18\xf6\x14\0\0\0\0IEND\xaeB`\x82";

    /// Splits a file into its records, checking every length and checksum.
    fn records(mut file: &[u8]) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        while !file.is_empty() {
            let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
            let data = &file[12..12 + length];
            assert_eq!(record(data), &file[..16 + length]);
            out.push(data.to_vec());
            file = &file[16 + length..];
        }
        out
    }

    #[test]
    fn a_record_has_the_bytes_that_tensorflow_writes() {
        // Written by tensorboard 2.21's RecordWriter from Event(wall_time=1.5, step=300, loss/scm = 2.5).
        let golden = "1f00000000000000514b441809000000000000f83f10ac022a110a0f0a086c6f73732f73636d150000204002c857a2";
        let scalar = b"\x0a\x0f\x0a\x08loss/scm\x15\0\0\x20\x40";
        let written = record(&event(1.5, 300, |e| bytes_field(e, 5, scalar)));
        assert_eq!(written.iter().map(|b| format!("{b:02x}")).collect::<String>(), golden);
    }

    #[test]
    fn an_event_file_holds_its_version_its_scalars_and_its_images() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = TensorBoardWriter::create(&dir.path().join("a/b"), None).unwrap();
        writer.scalars(300, [("loss/scm", 2.5), ("norm", f64::NAN)]).unwrap();
        writer.image(300, "samples", PIXEL).unwrap();
        let records = records(&std::fs::read(writer.path()).unwrap());
        let tail = |i: usize| &records[i][9..]; // after the wall time
        assert_eq!(tail(0), b"\x10\0\x1a\x0dbrain.Event:2");
        // step 300, summary { value { "loss/scm", 2.5 }, value { "norm", NaN } }
        let scalars =
            b"\x10\xac\x02\x2a\x1e\x0a\x0f\x0a\x08loss/scm\x15\0\0\x20\x40\x0a\x0b\x0a\x04norm\x15\0\0\xc0\x7f";
        assert_eq!(tail(1), scalars);
        // Height, width and channels of 1 stand before the image.
        let at = records[2].windows(6).position(|w| w == b"\x08\x01\x10\x01\x18\x01").unwrap();
        assert!(records[2][at + 8..].starts_with(PIXEL), "{:?}", &records[2]);
    }

    #[test]
    fn a_resumed_file_announces_where_it_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let writer = TensorBoardWriter::create(dir.path(), Some(40)).unwrap();
        let records = records(&std::fs::read(writer.path()).unwrap());
        assert_eq!(&records[1][9..], b"\x10\x29\x3a\x02\x08\x01");
        let second = TensorBoardWriter::create(dir.path(), Some(80)).unwrap();
        assert!(second.path() > writer.path());
    }

    #[test]
    fn bytes_that_are_no_png_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = TensorBoardWriter::create(dir.path(), None).unwrap();
        for n in 0..26 {
            assert!(writer.image(1, "x", &PIXEL[..n]).is_err(), "{n} bytes");
        }
        let mut unknown = PIXEL.to_vec();
        unknown[25] = 9;
        assert!(writer.image(1, "x", &unknown).unwrap_err().to_string().contains("'x'"));
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let e = TensorBoardWriter::create(&dir.path().join("file"), None).unwrap_err();
        assert!(e.to_string().contains("file"), "{e}");
    }
}
