//! Frames to look at: from a network's pixels to GIF, PNG, animated PNG, folders of PNGs and contact sheets.

mod aside;
mod frames;
mod gif;
mod metadata;
mod png;
mod sheet;

pub use frames::{FRAME_MS, Frames};
pub use metadata::Metadata;
pub use sheet::contact_sheet;
