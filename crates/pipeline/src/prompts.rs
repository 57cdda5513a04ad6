//! Prompts to text embeddings.

use std::path::{Path, PathBuf};

use fewstep_ops::Compute;
use fewstep_tensor::Tensor;
use fewstep_text::{EmbeddingCache, TextEncoder};

use crate::{Error, Parts, Result};

/// Makes text embeddings, and keeps them on disk.
#[derive(Debug)]
pub struct Prompts {
    encoder: TextEncoder,
    cache: Option<EmbeddingCache>,
}

impl Prompts {
    /// Reads a model's text encoder and tokenizer. Embeddings are kept in `cache` where one is given.
    ///
    /// # Errors
    /// If a part is missing or refused, or the cache cannot be written.
    pub fn load(parts: &Parts, cache: Option<&Path>, compute: Compute) -> Result<Self> {
        let need = |part: &Option<PathBuf>, what: &str, remedy: &str| {
            let place = parts.transformers.first().cloned().unwrap_or_default();
            let missing = || Error::Missing { place, what: what.into(), remedy: remedy.into() };
            part.clone().ok_or_else(missing)
        };
        let weights = need(
            &parts.text_encoder,
            "the model's folder holds no text encoder",
            "give --base FOLDER of the released model, or --text-encoder FILE, or --embeddings FILE",
        )?;
        let tokenizer = need(
            &parts.tokenizer,
            "the model's folder holds no tokenizer",
            "give --tokenizer FILE: tokenizer.json or spiece.model of umt5-xxl",
        )?;
        let encoder = TextEncoder::load(&weights, &tokenizer, compute)?;
        Ok(Prompts { encoder, cache: cache.map(EmbeddingCache::open).transpose()? })
    }

    /// Embeddings `[B, 512, D]`, rows past the end of each zero.
    ///
    /// # Errors
    /// If a prompt is refused, or the cache cannot be written.
    pub fn embed(&self, prompts: &[String]) -> Result<Tensor> {
        Ok(match &self.cache {
            Some(cache) => self.encoder.encode_cached(prompts, cache)?,
            None => self.encoder.encode(prompts)?,
        })
    }
}
