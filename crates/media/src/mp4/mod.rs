//! MP4 with H.264: written with `openh264` and `muxide`, read with `mp4parse` and `openh264`.

mod read;
mod write;

pub use read::mp4_metadata;
pub(crate) use read::{Mp4, Shown};
pub use write::{DEFAULT_FPS, DEFAULT_QP, Mp4Writer, VideoOptions};

/// The `software` entry by which a file of ours is known.
pub(crate) const SOFTWARE: (&str, &str) = ("software", "fewstep");
