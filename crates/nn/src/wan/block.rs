//! One transformer block: modulated self-attention, cross-attention, modulated feed-forward.

use std::sync::Arc;

use fewstep_ops::{
    Activation, Add, Attention, GatedResidual, Init, LayerNormAffine, LayerNormModulate, Mode, NormScope, ParamId,
    Result, RmsNormRope, Rope, RopeStyle, RopeTable, Segment, Slice,
};

use super::WanConfig;
use crate::build::{Affine, Builder, Projection};

/// Queries, keys and values with their norms, and the output projection.
#[derive(Clone, Copy, Debug)]
struct AttentionLayer {
    q: Projection,
    k: Projection,
    v: Projection,
    o: Projection,
    norm_q: ParamId,
    norm_k: ParamId,
}

/// Keys and values of the image tokens.
#[derive(Clone, Copy, Debug)]
struct ImageBranch {
    k: Projection,
    v: Projection,
    norm_k: ParamId,
}

/// The parameters of one block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    index: usize,
    heads: usize,
    eps: f64,
    modulation: ParamId,
    self_attn: AttentionLayer,
    norm3: Affine,
    cross_attn: AttentionLayer,
    image: Option<ImageBranch>,
    ffn: [Projection; 2],
}

impl Block {
    pub(super) fn declare(b: &mut Builder, config: &WanConfig, index: usize) -> Self {
        let (d, p) = (config.dim, format!("blocks.{index}"));
        let attention = |b: &mut Builder, name: &str| AttentionLayer {
            q: b.projection(&format!("{p}.{name}.q"), d, d),
            k: b.projection(&format!("{p}.{name}.k"), d, d),
            v: b.projection(&format!("{p}.{name}.v"), d, d),
            o: b.projection(&format!("{p}.{name}.o"), d, d),
            norm_q: b.wide_param(format!("{p}.{name}.norm_q.weight"), &[d], Init::Ones),
            norm_k: b.wide_param(format!("{p}.{name}.norm_k.weight"), &[d], Init::Ones),
        };
        Block {
            index,
            heads: config.heads,
            eps: config.eps,
            modulation: b.wide_param(format!("{p}.modulation"), &[1, 6, d], Init::Normal((d as f64).powf(-0.5))),
            self_attn: attention(b, "self_attn"),
            norm3: b.affine(&format!("{p}.norm3"), d),
            cross_attn: attention(b, "cross_attn"),
            image: config.image_dim.map(|_| ImageBranch {
                k: b.projection(&format!("{p}.cross_attn.k_img"), d, d),
                v: b.projection(&format!("{p}.cross_attn.v_img"), d, d),
                norm_k: b.wide_param(format!("{p}.cross_attn.norm_k_img.weight"), &[d], Init::Ones),
            }),
            ffn: [
                b.projection(&format!("{p}.ffn.0"), d, config.ffn_dim),
                b.projection(&format!("{p}.ffn.2"), config.ffn_dim, d),
            ],
        }
    }

    fn self_attention<M: Mode>(&self, m: &M, x: &M::Value, rope: &Arc<RopeTable>) -> Result<M::Value> {
        let a = &self.self_attn;
        let rope = Some(Rope { style: RopeStyle::Interleaved, table: rope.clone() });
        let q = self.normed(m, &a.q.apply(m, x)?, a.norm_q, rope.clone())?;
        let k = self.normed(m, &a.k.apply(m, x)?, a.norm_k, rope)?;
        let v = a.v.apply(m, x)?;
        a.o.apply(m, &m.apply(self.attention(), &[&q, &k, &v])?)
    }

    fn cross_attention<M: Mode>(
        &self,
        m: &M,
        x: &M::Value,
        text: &M::Value,
        image: Option<&M::Value>,
    ) -> Result<M::Value> {
        let a = &self.cross_attn;
        let q = self.normed(m, &a.q.apply(m, x)?, a.norm_q, None)?;
        let k = self.normed(m, &a.k.apply(m, text)?, a.norm_k, None)?;
        let mut read = m.apply(self.attention(), &[&q, &k, &a.v.apply(m, text)?])?;
        if let (Some(branch), Some(image)) = (&self.image, image) {
            let k = self.normed(m, &branch.k.apply(m, image)?, branch.norm_k, None)?;
            let seen = m.apply(self.attention(), &[&q, &k, &branch.v.apply(m, image)?])?;
            read = m.apply(Add, &[&read, &seen])?;
        }
        a.o.apply(m, &read)
    }

    fn attention(&self) -> Attention {
        Attention { heads: self.heads, scale: None }
    }

    /// RMS norm over the whole width, before the heads are split, then the rotation.
    fn normed<M: Mode>(&self, m: &M, x: &M::Value, weight: ParamId, rope: Option<Rope>) -> Result<M::Value> {
        let norm = RmsNormRope { heads: self.heads, scope: NormScope::Width, eps: self.eps, rope };
        m.apply(norm, &[x, &m.param(weight)?])
    }
}

/// One run of a block on the tokens of one grid. Inputs: x, e0 [B, 6, D], text, and image tokens where there are any.
pub(super) struct BlockSegment {
    pub block: Block,
    pub rope: Arc<RopeTable>,
}

impl Segment for BlockSegment {
    fn run<M: Mode>(&self, m: &M, inputs: &[M::Value]) -> Result<M::Value> {
        let b = &self.block;
        let (x, e0, text, image) = (&inputs[0], &inputs[1], &inputs[2], inputs.get(3));
        let tap = |part: &str, v: &M::Value| m.tap(&format!("block{}{part}", b.index), v);
        let modulation = m.apply(Add, &[&m.param(b.modulation)?, e0])?; // [B, 6, D]
        let part = |i: usize| m.apply(Slice { axis: 1, start: i, len: 1 }, &[&modulation]);
        let norm = LayerNormModulate { eps: b.eps };

        let h = m.apply(norm, &[x, &part(0)?, &part(1)?])?;
        let h = b.self_attention(m, &h, &self.rope)?;
        tap(".self_attn", &h);
        let x = m.apply(GatedResidual, &[x, &h, &part(2)?])?;

        let h = b.norm3.apply(m, LayerNormAffine { eps: b.eps }, &x)?;
        let h = b.cross_attention(m, &h, text, image)?;
        tap(".cross_attn", &h);
        let x = m.apply(Add, &[&x, &h])?;

        let h = m.apply(norm, &[&x, &part(3)?, &part(4)?])?;
        let h = b.ffn[0].then(m, &h, Activation::GeluTanh, &b.ffn[1])?;
        let x = m.apply(GatedResidual, &[&x, &h, &part(5)?])?;
        tap("", &x);
        Ok(x)
    }
}
