//! The demo data set.
//!
//! The demo is captioned colour video small enough to live in the repository: a handwritten digit ([`Digits`]) moves over
//! black, 6 frames of 16×16 pixels, and a caption says what it is ([`Caption`]): *a red seven moving up and left*. Clips are
//! drawn on demand, as pure functions of seed, split and index, so the set is infinite and there is nothing to download.
//!
//! - [`caption`]: digits, colours, directions and the captions they make.
//! - [`clip`](mod@clip): clips, and the infinite sets of them.
//! - [`order`]: which clips a training run sees at which position.
//! - [`words`]: the vocabulary, tokens and one-hot text embeddings.
//!
//! ```
//! use fewstep_data::{Digits, Split, text_embedding};
//!
//! let clip = Digits::load()?.clip(Split::Train, 7, 0);
//! let text = text_embedding(clip.caption)?;
//! # assert!(!text.is_empty() && clip.pixels.len() == 3 * 6 * 16 * 16);
//! # Ok::<(), fewstep_data::DataError>(())
//! ```

#![deny(missing_docs)]
#![forbid(unsafe_code)]

pub mod caption;
pub mod clip;
mod digits;
mod error;
pub mod order;
pub mod words;

pub use caption::{Caption, Colour, Digit, Direction, Split};
pub use clip::{CHANNELS, Clip, Digits, FRAMES, HEIGHT, WIDTH};
pub use digits::{DIGIT_SIZE, DigitImage};
pub use error::{DataError, Result};
pub use order::DataOrder;
pub use words::{TEXT_DIM, TEXT_LEN, Vocabulary, text_embedding};
