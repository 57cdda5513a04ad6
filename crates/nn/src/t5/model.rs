use std::sync::Arc;

use fewstep_ops::{Embedding, Error, Init, Mode, ParamId, ParamSpec, Params, Plain, Result, Span};
use fewstep_tensor::{DType, Tensor};

use super::T5Config;
use super::block::{Block, BlockSegment, Norm};
use super::position::buckets_of;
use crate::build::Builder;

/// Several sequences of tokens, one after another, each perhaps padded at its end.
#[derive(Clone, Debug)]
pub struct Tokens {
    ids: Arc<[u32]>,
    spans: Arc<[Span]>,
}

impl Tokens {
    /// Sequences without padding.
    pub fn packed(sequences: &[&[u32]]) -> Self {
        let spans = sequences.iter().map(|s| Span { rows: s.len(), keys: s.len() }).collect();
        Tokens { ids: sequences.concat().into(), spans }
    }

    /// A batch of sequences of `len` ids each, of which the first `lengths[b]` are tokens and the others padding.
    ///
    /// # Errors
    /// If there are not `lengths.len()`·`len` ids, or a sequence is longer than `len`.
    pub fn padded(ids: &[u32], len: usize, lengths: &[usize]) -> Result<Self> {
        if ids.len() != len * lengths.len() || lengths.iter().any(|&l| l > len) {
            let expected = format!("{} sequences of {len} ids, none with more tokens", lengths.len());
            return Err(Error::input("tokens", expected, (ids.len(), lengths)));
        }
        let spans = lengths.iter().map(|&keys| Span { rows: len, keys }).collect();
        Ok(Tokens { ids: ids.into(), spans })
    }

    fn longest(&self) -> usize {
        self.spans.iter().map(|s| s.rows).max().unwrap_or(0)
    }
}

/// The encoder of a T5: token ids → one embedding a token.
///
/// Sequences are packed: T tokens of all of them, `[T, D]`. Only attention mixes tokens, and it stays inside a sequence and
/// never reads padding, so padding can be left out without a change of what the tokens become.
#[derive(Debug)]
pub struct T5Encoder {
    config: T5Config,
    specs: Arc<[ParamSpec]>,
    embedding: ParamId,
    blocks: Vec<Block>,
    norm: Norm,
}

impl T5Encoder {
    /// The structure of an encoder of this configuration.
    ///
    /// # Errors
    /// If the configuration is impossible.
    pub fn new(config: T5Config) -> crate::Result<Self> {
        config.validate()?;
        let b = &mut Builder::default();
        let embedding = b.param("token_embedding.weight", &[config.vocab, config.dim], Init::Normal(1.0));
        let blocks = (0..config.layers).map(|i| Block::declare(b, &config, i)).collect();
        let norm = Norm::declare(b, "norm", &config);
        let specs = std::mem::take(b).finish().into();
        Ok(T5Encoder { config, specs, embedding, blocks, norm })
    }

    /// The encoder's extents.
    pub fn config(&self) -> &T5Config {
        &self.config
    }

    /// Names, shapes and initial values of the parameters, in order.
    pub fn specs(&self) -> &Arc<[ParamSpec]> {
        &self.specs
    }

    /// Embeddings `[T, D]` of all rows of the sequences, in a compute dtype.
    ///
    /// # Errors
    /// If an id is beyond the vocabulary, or the weights are not this network's.
    pub fn forward<M: Mode>(&self, m: &M, tokens: &Tokens, dtype: DType) -> Result<M::Value> {
        let embed = Embedding { ids: tokens.ids.clone(), dtype };
        let mut x = m.apply(embed, &[&m.param(self.embedding)?])?; // [T, D]
        m.tap("embedding", &x);
        let c = &self.config;
        let buckets: Arc<[u32]> = buckets_of(tokens.longest(), c.buckets, c.max_distance).into();
        let shared = match &self.blocks[0].bias {
            Some(bias) if c.shared_bias => Some(bias.apply(m, &x, &buckets)?),
            _ => None,
        };
        for &block in &self.blocks {
            let segment = BlockSegment { block, spans: tokens.spans.clone(), buckets: buckets.clone() };
            let inputs: Vec<&M::Value> = [Some(&x), shared.as_ref()].into_iter().flatten().collect();
            x = m.segment(segment, &inputs)?;
        }
        self.norm.apply(m, &x)
    }

    /// Embeddings `[B, len, D]` of sequences, rows past the end of each zero, in f32 or f64.
    ///
    /// Padding is not computed: `Σ lengths` rows are.
    ///
    /// # Errors
    /// If a sequence is longer than `len`, or as [`T5Encoder::forward`].
    pub fn encode(&self, params: &Params, sequences: &[&[u32]], len: usize, dtype: DType) -> Result<Tensor> {
        if let Some(long) = sequences.iter().find(|s| s.len() > len) {
            return Err(Error::input("t5", format!("sequences of at most {len} tokens"), long.len()));
        }
        let packed = self.forward(&Plain::new(params), &Tokens::packed(sequences), dtype)?;
        let pads: Vec<Tensor> = sequences
            .iter()
            .map(|s| Tensor::zeros(&[len - s.len(), self.config.dim], dtype, packed.device()))
            .collect();
        let (mut parts, mut first) = (Vec::with_capacity(2 * sequences.len()), 0);
        for s in sequences {
            parts.push(packed.narrow(first, s.len())?);
            first += s.len();
        }
        let rows: Vec<&Tensor> = parts.iter().zip(&pads).flat_map(|(tokens, pad)| [tokens, pad]).collect();
        if rows.is_empty() {
            return Ok(Tensor::zeros(&[0, len, self.config.dim], dtype, packed.device()));
        }
        Ok(Tensor::cat(&rows)?.reshape(&[sequences.len(), len, self.config.dim])?)
    }
}
