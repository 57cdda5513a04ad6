use std::path::Path;

use fewstep_formats::read_weights;
use fewstep_nn::t5::{T5Config, T5Encoder};
use fewstep_nn::weights::Policy;
use fewstep_ops::{Compute, Params};
use fewstep_tensor::{DType, Device, Tensor};

use crate::{CacheKey, EmbeddingCache, Error, Identity, Result, Tokenizer, clean};

/// Tokens of a prompt, `</s>` included, of every published encoder.
pub const MAX_TOKENS: usize = 512;
/// A book is not a prompt; what is beyond 512 tokens does not count anyhow.
const MAX_PROMPT_BYTES: usize = 16 << 20;

/// What is done to a text before it is tokenized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cleaning {
    /// [`clean`]: Wan.
    Published,
    /// Nothing: Cosmos.
    Nothing,
}

/// Prompts to embeddings: a tokenizer, an encoder and its weights.
#[derive(Debug)]
pub struct TextEncoder {
    tokenizer: Tokenizer,
    encoder: T5Encoder,
    params: Params,
    identity: Identity,
    cleaning: Cleaning,
    compute: Compute,
}

impl TextEncoder {
    /// Reads weights of any published layout and a tokenizer, to compute on a device.
    ///
    /// Prompts for umT5 are cleaned as Wan does it; those for T5 are not, as in Cosmos.
    ///
    /// # Errors
    /// If a file cannot be read or is damaged, or the tokenizer has ids that the encoder does not embed.
    pub fn load(weights: &Path, tokenizer: &Path, compute: Compute) -> Result<Self> {
        let tokenizer = Tokenizer::read(tokenizer)?;
        let file = read_weights(weights)?;
        let encoder = T5Encoder::new(T5Config::of_weights(&file)?)?;
        tokenizer.refuse_beyond(encoder.config().vocab)?;
        let params = encoder.load_from(&file, weights, Policy::KeepMatrices(compute.dtype.wide()))?;
        let params = compute.weights(&params)?;
        let cleaning = if encoder.config().shared_bias { Cleaning::Nothing } else { Cleaning::Published };
        Ok(TextEncoder { tokenizer, encoder, params, identity: Identity::of_weights(weights)?, cleaning, compute })
    }

    /// The encoder.
    pub fn encoder(&self) -> &T5Encoder {
        &self.encoder
    }

    /// What is done to a prompt first.
    pub fn cleaning(&self) -> Cleaning {
        self.cleaning
    }

    /// Embeddings `[B, 512, D]` of prompts; the rows past the end of each are zero.
    ///
    /// # Errors
    /// If a prompt is larger than 16 MiB, or the weights are damaged.
    pub fn encode(&self, prompts: &[String]) -> Result<Tensor> {
        let texts = self.texts(prompts)?;
        let ids = texts.iter().map(|t| self.tokenizer.ids(t, MAX_TOKENS)).collect::<Result<Vec<_>>>()?;
        let sequences: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
        self.on_host(&sequences, MAX_TOKENS)
    }

    /// The dtype of embeddings, whatever they were computed in.
    fn dtype(&self) -> DType {
        self.compute.dtype.wide()
    }

    fn on_host(&self, sequences: &[&[u32]], len: usize) -> Result<Tensor> {
        let computed = self.encoder.encode(&self.params, sequences, len, self.compute.dtype)?;
        Ok(computed.to_device(Device::Cpu)?.to_dtype(self.dtype()))
    }

    /// As [`TextEncoder::encode`], taking from a cache what is there and keeping there what is not.
    ///
    /// # Errors
    /// As [`TextEncoder::encode`], and if the cache cannot be written.
    pub fn encode_cached(&self, prompts: &[String], cache: &EmbeddingCache) -> Result<Tensor> {
        let d = self.encoder.config().dim;
        let mut rows = Vec::with_capacity(2 * prompts.len());
        for text in self.texts(prompts)? {
            let key = CacheKey::new(&self.identity, self.tokenizer.digest(), &text, MAX_TOKENS, self.compute.dtype);
            let fits = |t: &Tensor| t.dtype() == self.dtype() && t.last_dim() == d && t.shape()[0] <= MAX_TOKENS;
            let tokens = match cache.get(&key).filter(fits) {
                Some(kept) => kept,
                None => {
                    let ids = self.tokenizer.ids(&text, MAX_TOKENS)?;
                    let computed = self.on_host(&[&ids], ids.len())?.reshape(&[ids.len(), d])?;
                    cache.put(&key, &computed)?;
                    computed
                }
            };
            rows.push(Tensor::zeros(&[MAX_TOKENS - tokens.shape()[0], d], self.dtype(), Device::Cpu));
            rows.insert(rows.len() - 1, tokens);
        }
        if rows.is_empty() {
            return Ok(Tensor::zeros(&[0, MAX_TOKENS, d], self.dtype(), Device::Cpu));
        }
        let all = Tensor::cat(&rows.iter().collect::<Vec<_>>())?;
        Ok(all.reshape(&[prompts.len(), MAX_TOKENS, d])?)
    }

    fn texts(&self, prompts: &[String]) -> Result<Vec<String>> {
        let too_long = |p: &String| p.len() > MAX_PROMPT_BYTES;
        if let Some(i) = prompts.iter().position(too_long) {
            let problem = format!("{} bytes are no prompt", prompts[i].len());
            return Err(Error::Prompt { index: i + 1, problem, remedy: "give a text of a few sentences" });
        }
        Ok(prompts.iter().map(|p| if self.cleaning == Cleaning::Published { clean(p) } else { p.clone() }).collect())
    }
}
