//! Foreign video through the `ffmpeg` program: another process, and frames that say their own sides (PPM).

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use crate::error::{MediaError, Result};
use crate::frames::CHANNELS;
use crate::{Image, Wanted, limits};

const KIND: &str = "video";
/// Most that is kept of what `ffmpeg` says, in bytes.
const MESSAGE: u64 = 2000;

/// Whether `ffmpeg` can be run.
pub(crate) fn present() -> bool {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    *PRESENT.get_or_init(|| {
        let quiet = || Stdio::null();
        let run = Command::new("ffmpeg").arg("-version").stdin(quiet()).stdout(quiet()).stderr(quiet()).status();
        run.is_ok_and(|status| status.success())
    })
}

pub(crate) fn missing(path: &Path, reason: String) -> MediaError {
    let remedy = "put `ffmpeg` on the PATH, or convert it to an MP4 with H.264 without B-frames";
    MediaError::Unsupported { path: path.to_owned(), reason, remedy }
}

/// Ends the program when reading ends, however it ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself, which is no fault.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Decodes to frames at the wanted rate while `take` asks for more.
pub(crate) fn decode(path: &Path, wanted: &Wanted, mut take: impl FnMut(Image) -> Result<bool>) -> Result<()> {
    let cannot = |source| MediaError::Read { path: path.to_owned(), source };
    // An absolute path is neither an option nor a protocol; playlists may open files alone, nothing on the network.
    let absolute = path.canonicalize().map_err(cannot)?;
    let mut said = tempfile::tempfile().map_err(cannot)?;
    let child = Command::new("ffmpeg")
        .args([
            "-nostdin",
            "-v",
            "error",
            "-protocol_whitelist",
            "file",
            "-max_pixels",
            &limits::PIXELS.to_string(),
            "-i",
        ])
        .arg(&absolute)
        .args(["-an", "-sn", "-dn", "-map", "0:v:0", "-vf", &format!("fps={}", wanted.fps)])
        .args(["-frames:v", &wanted.frames.to_string(), "-f", "image2pipe", "-c:v", "ppm", "-"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(said.try_clone().map_err(cannot)?)
        .spawn()
        .map_err(cannot)?;
    let mut running = Running(child);
    let out = running.0.stdout.take().ok_or_else(|| missing(path, "its output cannot be read".into()))?;
    let mut out = BufReader::new(out);
    let mut any = false;
    while let Some(image) = frame(path, &mut out)? {
        any = true;
        if !take(image)? {
            return Ok(());
        }
    }
    let status = running.0.wait().map_err(cannot)?;
    if status.success() && any {
        return Ok(());
    }
    let mut message = Vec::new();
    std::io::Seek::rewind(&mut said).map_err(cannot)?;
    said.take(MESSAGE).read_to_end(&mut message).map_err(cannot)?;
    let message = String::from_utf8_lossy(&message);
    let reason = format!("ffmpeg says: {}", message.trim().lines().next().unwrap_or("it has no frames"));
    Err(MediaError::Malformed { path: path.to_owned(), kind: KIND, reason })
}

/// The next frame, or nothing at the end.
fn frame(path: &Path, out: &mut impl BufRead) -> Result<Option<Image>> {
    let broken = |reason: &str| MediaError::Malformed { path: path.to_owned(), kind: KIND, reason: reason.to_owned() };
    let cannot = |source| MediaError::Read { path: path.to_owned(), source };
    let mut head = [0; 3];
    let n = out.by_ref().take(1).read(&mut head).map_err(cannot)?;
    if n == 0 {
        return Ok(None);
    }
    out.read_exact(&mut head[1..]).map_err(cannot)?;
    let mut number = || -> Result<usize> {
        let mut digits = String::new();
        for byte in out.by_ref().bytes().take(8) {
            match byte.map_err(cannot)? {
                b if b.is_ascii_digit() => digits.push(b.into()),
                _ => break,
            }
        }
        digits.parse().map_err(|_| broken("a frame's header is damaged"))
    };
    let [width, height, most] = [number()?, number()?, number()?];
    if &head != b"P6\n" || most != 255 || width == 0 || height == 0 {
        return Err(broken("a frame's header is damaged"));
    }
    let pixels = width.saturating_mul(height);
    if pixels > limits::PIXELS {
        let (got, limit) = (pixels as u64, limits::PIXELS as u64);
        return Err(MediaError::TooLarge { path: path.to_owned(), what: "pixels of a frame", got, limit });
    }
    let mut rgb = vec![0; pixels * CHANNELS];
    out.read_exact(&mut rgb).map_err(cannot)?;
    Ok(Some(Image::of_rgb(width, height, rgb)))
}
