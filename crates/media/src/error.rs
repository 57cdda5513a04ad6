use std::io;
use std::path::PathBuf;

/// What can go wrong with images and videos; what a user typed or fed comes with its remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MediaError {
    /// Pixels and their stated shape disagree, or the shape cannot be shown.
    #[error("{what}: expected {expected}, got {got}")]
    Shape {
        /// What was checked.
        what: &'static str,
        /// The shape or count that would have been right.
        expected: String,
        /// The shape or count that came.
        got: String,
    },

    /// Pixels to be shown are NaN or infinite; they are reported, never painted as black.
    #[error(
        "{count} of {total} pixels are not finite, the first at element {first}: the network diverged or its weights are damaged"
    )]
    NonFinite {
        /// How many pixels are NaN or infinite.
        count: usize,
        /// How many pixels there are.
        total: usize,
        /// The index of the first in [C, F, H, W] order.
        first: usize,
    },

    /// A metadata entry cannot be stored in an image.
    #[error("metadata `{key}`: {reason}")]
    Metadata {
        /// The entry's key.
        key: String,
        /// What is wrong with it and what would be right.
        reason: &'static str,
    },

    /// The PNG encoder refused.
    #[error("cannot encode PNG: {0}")]
    Png(#[from] png::EncodingError),

    /// The GIF encoder refused.
    #[error("cannot encode GIF: {0}")]
    Gif(#[from] gif::EncodingError),

    /// A file or folder cannot be written.
    #[error("cannot write `{}`: {source}; {remedy}", path.display())]
    Write {
        /// The file or folder asked for.
        path: PathBuf,
        /// What to do about it.
        remedy: &'static str,
        /// The cause, from the operating system.
        source: io::Error,
    },

    /// The H.264 encoder or the MP4 writer refused.
    #[error("cannot encode MP4: {reason}")]
    Encode {
        /// What was refused, and why.
        reason: String,
    },

    /// A file cannot be opened or read.
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// The file asked for.
        path: PathBuf,
        /// The cause, from the operating system.
        source: io::Error,
    },

    /// A file is damaged, or not of the kind that it seems to be.
    #[error("`{}` is no readable {kind}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What it was read as.
        kind: &'static str,
        /// What was found.
        reason: String,
    },

    /// A file asks for more than the limit, which was checked before any of it was allocated.
    #[error("`{}`: {what} {got} exceeds the limit of {limit}; make it smaller first", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// What is too large, with its unit.
        what: &'static str,
        /// What the file asks for.
        got: u64,
        /// The limit.
        limit: u64,
    },

    /// A file of a kind that cannot be read here.
    #[error("cannot read `{}`: {reason}; {remedy}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it is.
        reason: String,
        /// What to do about it.
        remedy: &'static str,
    },

    /// A video ends before the frames that were asked for.
    #[error(
        "`{}` has {got} frames at the rate asked for, {expected} are needed; ask for at most {longest} frames (1 + 4k) or leave the file out",
        path.display()
    )]
    TooShort {
        /// The file.
        path: PathBuf,
        /// The frames that it has at the rate asked for.
        got: usize,
        /// The frames asked for.
        expected: usize,
        /// The largest 1 + 4k frames that it could give.
        longest: usize,
    },
}

/// The result of this crate's fallible functions.
pub type Result<T, E = MediaError> = std::result::Result<T, E>;
