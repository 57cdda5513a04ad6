//! One transformer block: self-attention with a bias by relative position, then a feed-forward layer.

use std::sync::Arc;

use fewstep_ops::{
    Activation, Add, Embedding, Init, Mode, Multiply, NormScope, ParamId, RelativeAttention, Result, RmsNormRope,
    Segment, Span,
};

use super::T5Config;
use crate::build::{Builder, Projection};

/// RMS norm over the width, with a gain.
#[derive(Clone, Copy, Debug)]
pub(super) struct Norm {
    weight: ParamId,
    eps: f64,
}

impl Norm {
    pub(super) fn declare(b: &mut Builder, name: &str, config: &T5Config) -> Self {
        Norm { weight: b.wide_param(format!("{name}.weight"), &[config.dim], Init::Ones), eps: config.eps }
    }

    pub(super) fn apply<M: Mode>(&self, m: &M, x: &M::Value) -> Result<M::Value> {
        let norm = RmsNormRope { heads: 1, scope: NormScope::Width, eps: self.eps, rope: None };
        m.apply(norm, &[x, &m.param(self.weight)?])
    }
}

/// The learned bias of each bucket of relative positions, [buckets, N].
#[derive(Clone, Copy, Debug)]
pub(super) struct Bias(ParamId);

impl Bias {
    /// The bias of every relative position of these tokens, [2·L − 1, N].
    pub(super) fn apply<M: Mode>(&self, m: &M, like: &M::Value, buckets: &Arc<[u32]>) -> Result<M::Value> {
        m.apply(Embedding { ids: buckets.clone(), dtype: m.dtype(like) }, &[&m.param(self.0)?])
    }
}

/// The parameters of one block. Without a bias of its own it is given one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    index: usize,
    heads: usize,
    norms: [Norm; 2],
    qkvo: [Projection; 4],
    pub(super) bias: Option<Bias>,
    gate: Option<Projection>,
    ffn: [Projection; 2],
}

impl Block {
    pub(super) fn declare(b: &mut Builder, c: &T5Config, index: usize) -> Self {
        let (p, inner) = (format!("blocks.{index}"), c.inner_dim());
        let norm1 = Norm::declare(b, &format!("{p}.norm1"), c);
        let inward = |b: &mut Builder, name: &str| b.matrix(&format!("{p}.attn.{name}"), c.dim, inner);
        let [q, k, v] = ["q", "k", "v"].map(|name| inward(b, name));
        let o = b.matrix(&format!("{p}.attn.o"), inner, c.dim);
        let own = (index == 0 || !c.shared_bias).then(|| {
            let name = format!("{p}.pos_embedding.embedding.weight");
            Bias(b.wide_param(name, &[c.buckets, c.heads], Init::Normal((c.buckets as f64).powf(-0.5))))
        });
        Block {
            index,
            heads: c.heads,
            norms: [norm1, Norm::declare(b, &format!("{p}.norm2"), c)],
            qkvo: [q, k, v, o],
            bias: own,
            gate: c.gated.then(|| b.matrix(&format!("{p}.ffn.gate.0"), c.dim, c.ffn_dim)),
            ffn: [
                b.matrix(&format!("{p}.ffn.fc1"), c.dim, c.ffn_dim),
                b.matrix(&format!("{p}.ffn.fc2"), c.ffn_dim, c.dim),
            ],
        }
    }

    /// wo(gelu(wi_0·x)∘wi_1·x), or wo(relu(wi·x)) where there is no gate.
    fn feed_forward<M: Mode>(&self, m: &M, x: &M::Value) -> Result<M::Value> {
        let Some(gate) = &self.gate else {
            return self.ffn[0].then(m, x, Activation::Relu, &self.ffn[1]);
        };
        let gate = m.apply(Activation::GeluTanh, &[&gate.apply(m, x)?])?;
        self.ffn[1].apply(m, &m.apply(Multiply, &[&gate, &self.ffn[0].apply(m, x)?])?)
    }
}

/// One run of a block on given sequences. Inputs: x [T, D] and, for a block without a bias of its own, the bias.
pub(super) struct BlockSegment {
    pub block: Block,
    pub spans: Arc<[Span]>,
    pub buckets: Arc<[u32]>,
}

impl Segment for BlockSegment {
    fn run<M: Mode>(&self, m: &M, inputs: &[M::Value]) -> Result<M::Value> {
        let (b, x) = (&self.block, &inputs[0]);
        let bias = match (inputs.get(1), &b.bias) {
            (Some(given), _) => given.clone(),
            (None, Some(own)) => own.apply(m, x, &self.buckets)?,
            (None, None) => return Err(fewstep_ops::Error::input("t5 block", "a bias, its own or given", "none")),
        };
        let h = b.norms[0].apply(m, x)?;
        let [q, k, v, o] = &b.qkvo;
        let attention = RelativeAttention { heads: b.heads, spans: self.spans.clone() };
        let h = m.apply(attention, &[&q.apply(m, &h)?, &k.apply(m, &h)?, &v.apply(m, &h)?, &bias])?;
        let x = m.apply(Add, &[x, &o.apply(m, &h)?])?;
        let x = m.apply(Add, &[&x, &b.feed_forward(m, &b.norms[1].apply(m, &x)?)?])?;
        m.tap(&format!("block{}", b.index), &x);
        Ok(x)
    }
}
