//! One pre-norm transformer block.

use fewstep_ops::{Activation, Add, Attention, LayerNormAffine, Mode, Result, Segment, Slice};

use super::ClipConfig;
use crate::build::{Affine, Builder, Projection};

/// ε of every norm (PyTorch's default).
pub(super) const NORM: LayerNormAffine = LayerNormAffine { eps: 1e-5 };

/// The parameters of one block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    heads: usize,
    dim: usize,
    norm1: Affine,
    qkv: Projection,
    out: Projection,
    norm2: Affine,
    mlp: [Projection; 2],
}

impl Block {
    pub(super) fn declare(b: &mut Builder, config: &ClipConfig, index: usize) -> Self {
        let (d, p) = (config.dim, format!("visual.transformer.{index}"));
        Block {
            heads: config.heads,
            dim: d,
            norm1: b.affine(&format!("{p}.norm1"), d),
            qkv: b.projection(&format!("{p}.attn.to_qkv"), d, 3 * d),
            out: b.projection(&format!("{p}.attn.proj"), d, d),
            norm2: b.affine(&format!("{p}.norm2"), d),
            mlp: [
                b.projection(&format!("{p}.mlp.0"), d, config.mlp_dim),
                b.projection(&format!("{p}.mlp.2"), config.mlp_dim, d),
            ],
        }
    }
}

impl Segment for Block {
    /// Input: x `[B, L, D]`.
    fn run<M: Mode>(&self, m: &M, inputs: &[M::Value]) -> Result<M::Value> {
        let x = &inputs[0];
        let qkv = self.qkv.apply(m, &self.norm1.apply(m, NORM, x)?)?; // [B, L, 3·D]
        let part = |i: usize| m.apply(Slice { axis: 2, start: i * self.dim, len: self.dim }, &[&qkv]);
        let attention = Attention { heads: self.heads, scale: None };
        let h = m.apply(attention, &[&part(0)?, &part(1)?, &part(2)?])?;
        let x = m.apply(Add, &[x, &self.out.apply(m, &h)?])?;
        let h = self.norm2.apply(m, NORM, &x)?;
        let h = self.mlp[0].then(m, &h, Activation::GeluExact, &self.mlp[1])?;
        m.apply(Add, &[&x, &h])
    }
}
