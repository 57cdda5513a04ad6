use crate::Frames;
use crate::error::{MediaError, Result};
use crate::frames::CHANNELS;

/// Gap between the frames of a sheet and around them, in pixels.
const GAP: usize = 2;
/// Grey of the gaps, dark beside any ink and yet no black background.
const GAP_BYTE: u8 = 64;

/// Lays clips out as one image: a row for each clip, its frames from left to right.
///
/// # Errors
/// [`MediaError::Shape`] when there are no clips, when they differ in width, height or number of frames, or when the sheet
/// would exceed 65,535 pixels on a side.
pub fn contact_sheet(clips: &[Frames]) -> Result<Frames> {
    let extent = |clip: &Frames| [clip.frames().len(), clip.height(), clip.width()];
    let Some(first) = clips.first() else {
        return Err(MediaError::Shape {
            what: "clips of a contact sheet",
            expected: "at least 1".to_owned(),
            got: "0".to_owned(),
        });
    };
    if let Some(other) = clips.iter().find(|clip| extent(clip) != extent(first)) {
        return Err(MediaError::Shape {
            what: "[F, H, W] of the clips of a contact sheet",
            expected: format!("{:?} as the first", extent(first)),
            got: format!("{:?}", extent(other)),
        });
    }
    let [columns, h, w] = extent(first);
    let width = GAP + columns * (w + GAP);
    let height = GAP + clips.len() * (h + GAP);
    // [H, W, C]
    let mut sheet = vec![GAP_BYTE; height * width * CHANNELS];
    for (row, clip) in clips.iter().enumerate() {
        for (column, frame) in clip.frames().iter().enumerate() {
            let (top, left) = (GAP + row * (h + GAP), GAP + column * (w + GAP));
            for (y, line) in frame.chunks_exact(w * CHANNELS).enumerate() {
                let start = ((top + y) * width + left) * CHANNELS;
                sheet[start..start + line.len()].copy_from_slice(line);
            }
        }
    }
    Frames::new(width, height, vec![sheet])
}
