use std::path::Path;

use gif::{Encoder, Extension, Frame, Repeat};

use crate::aside::write_file;
use crate::error::Result;
use crate::{Frames, Metadata};

/// NeuQuant's sampling where a frame has more than 256 colours, 1 (best) to 30; the crate's compromise.
const NEUQUANT_SPEED: i32 = 10;

/// Shortest frame, in hundredths of a second: browsers show anything less ten times as long.
const SHORTEST_DELAY: u16 = 2;

impl Frames {
    /// Encodes an endlessly looping GIF. A frame of up to 256 colours is exact; one of more is quantised (NeuQuant). The time
    /// of a frame is rounded to hundredths of a second, at least two.
    ///
    /// # Errors
    /// [`MediaError::Metadata`](crate::MediaError::Metadata) for an entry that an image cannot hold.
    pub fn to_gif(&self, metadata: &Metadata) -> Result<Vec<u8>> {
        let [width, height] = self.sides();
        let mut bytes = Vec::new();
        let mut encoder = Encoder::new(&mut bytes, width, height, &[])?;
        encoder.set_repeat(Repeat::Infinite)?;
        let lines = metadata.checked()?.iter();
        let comment: Vec<_> = lines.map(|(key, value)| format!("{key}: {value}")).collect();
        if !comment.is_empty() {
            let comment = comment.join("\n");
            encoder.write_raw_extension(Extension::Comment.into(), &[comment.as_bytes()])?;
        }
        for pixels in self.frames() {
            let mut frame = Frame::from_rgb_speed(width, height, pixels, NEUQUANT_SPEED);
            frame.delay = (self.frame_ms().saturating_add(5) / 10).max(SHORTEST_DELAY);
            encoder.write_frame(&frame)?;
        }
        encoder.into_inner()?;
        Ok(bytes)
    }

    /// Writes [`Self::to_gif`] to a file, aside and renamed.
    ///
    /// # Errors
    /// As [`Self::to_gif`], and [`MediaError::Write`](crate::MediaError::Write).
    pub fn write_gif(&self, path: impl AsRef<Path>, metadata: &Metadata) -> Result<()> {
        write_file(path.as_ref(), &self.to_gif(metadata)?)
    }
}
