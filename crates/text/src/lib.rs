//! Prompts to embeddings: text cleaning as published, tokenizers of sentencepiece's unigram kind, the text encoders of
//! [`fewstep_nn::t5`], and a cache of what they give.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod cache;
mod charsmap;
mod clean;
mod encoder;
mod error;
mod identity;
mod prompts;
mod sentencepiece;
mod tokenizer;

pub use cache::{CacheKey, EmbeddingCache};
pub use clean::clean;
pub use encoder::{Cleaning, MAX_TOKENS, TextEncoder};
pub use error::{Error, Result};
pub use identity::Identity;
pub use prompts::{WAN_NEGATIVE_PROMPT, read_prompts};
pub use tokenizer::{END, PAD, Tokenizer};
