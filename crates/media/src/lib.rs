//! Videos and images, out of a network and into it.
//!
//! - Out: [`Frames`] become GIF, (animated) PNG, folders of PNGs and MP4; [`Mp4Writer`] takes frames one by one.
//! - In: [`read_image`] for PNG, JPEG, WebP and GIF, [`read_video`] for MP4 and what `ffmpeg` reads besides.
//!
//! Every file may be hostile: what it asks for is held against the limits in [`limits`] before it is allocated.
//!
//! ```
//! use fewstep_media::{Frames, Metadata, VideoOptions};
//!
//! let grey = vec![vec![128; 64 * 48 * 3]; 5];
//! let note = Metadata::new().with("prompt", "fog").with("seed", 7);
//! let mp4 = Frames::new(64, 48, grey)?.to_mp4(&VideoOptions::default(), &note)?;
//! assert_eq!(&mp4[4..8], b"ftyp");
//! # Ok::<(), fewstep_media::MediaError>(())
//! ```

#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod aside;
mod error;
mod ffmpeg;
mod fit;
mod frames;
mod gif;
mod image;
pub mod limits;
mod metadata;
mod mp4;
mod png;
mod sheet;
mod video;
mod yuv;

pub use error::{MediaError, Result};
pub use fit::fit;
pub use frames::{FRAME_MS, Frames};
pub use image::{Image, read_image};
pub use metadata::Metadata;
pub use mp4::{DEFAULT_FPS, DEFAULT_QP, Mp4Writer, VideoOptions, mp4_metadata};
pub use sheet::contact_sheet;
pub use video::{Wanted, image_pixels, read_video};
