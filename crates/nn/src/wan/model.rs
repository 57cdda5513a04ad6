use std::sync::Arc;

use fewstep_ops::{
    Activation, Add, Concat, Conditions, Error, Init, LayerNormAffine, LayerNormModulate, Mode, Network, ParamId,
    ParamSpec, PatchOrder, Rearrange, Reshape, Result, RopeTable, Segment, Slice, TimeEmbedding,
};

use super::WanConfig;
use super::block::{Block, BlockSegment};
use crate::build::{Affine, Builder, Projection};

/// ε of the layer norms around the image tokens' projection (PyTorch's default, not the blocks').
const IMAGE_NORM_EPS: f64 = 1e-5;
/// Base of the rotary frequencies.
const ROPE_THETA: f64 = 10_000.0;

/// A Wan diffusion transformer.
///
/// x `[B, C, F, H, W]`, t `[B]` in `[0, 1000]`, text `[B, S, text_dim]` → `[B, C_out, F, H, W]`. All text tokens attend,
/// padding included, as published.
#[derive(Debug)]
pub struct Wan {
    config: WanConfig,
    specs: Arc<[ParamSpec]>,
    patch: Projection,
    text: [Projection; 2],
    time: [Projection; 2],
    time_projection: Projection,
    image: Option<ImageEmbedding>,
    blocks: Vec<Block>,
    head: Head,
}

#[derive(Clone, Copy, Debug)]
struct ImageEmbedding {
    norm_in: Affine,
    hidden: Projection,
    out: Projection,
    norm_out: Affine,
    positions: Option<ParamId>,
}

#[derive(Clone, Copy, Debug)]
struct Head {
    modulation: ParamId,
    projection: Projection,
    eps: f64,
}

impl Wan {
    /// The structure of a network of this configuration.
    ///
    /// # Errors
    /// If the configuration is impossible.
    pub fn new(config: WanConfig) -> crate::Result<Self> {
        config.validate()?;
        let (d, b) = (config.dim, &mut Builder::default());
        let patch = b.projection("patch_embedding", config.patch_features(config.in_channels), d);
        let text = [b.projection("text_embedding.0", config.text_dim, d), b.projection("text_embedding.2", d, d)];
        let time = b.wide(|b| {
            [("0", config.freq_dim), ("2", d)].map(|(n, i)| b.projection(&format!("time_embedding.{n}"), i, d))
        });
        let time_projection = b.wide(|b| b.projection("time_projection.1", d, 6 * d));
        let image = config.image_dim.map(|i| ImageEmbedding {
            norm_in: b.affine("img_emb.proj.0", i),
            hidden: b.projection("img_emb.proj.1", i, i),
            out: b.projection("img_emb.proj.3", i, d),
            norm_out: b.affine("img_emb.proj.4", d),
            positions: config.image_positions.map(|n| b.param("img_emb.emb_pos", &[1, n, i], Init::Zeros)),
        });
        let blocks = (0..config.layers).map(|i| Block::declare(b, &config, i)).collect();
        let head = Head {
            modulation: b.wide_param("head.modulation", &[1, 2, d], Init::Normal((d as f64).powf(-0.5))),
            projection: b.projection_with("head.head", d, config.patch_features(config.out_channels), Init::Zeros),
            eps: config.eps,
        };
        let specs = std::mem::take(b).finish().into();
        Ok(Wan { config, specs, patch, text, time, time_projection, image, blocks, head })
    }

    /// The network's extents.
    pub fn config(&self) -> &WanConfig {
        &self.config
    }

    /// Tokens along frames, height and width of a latent.
    fn grid(&self, x: &[usize]) -> Result<[usize; 3]> {
        let &[_, c, f, h, w] = x else {
            return Err(Error::input("wan", "x [B, C, F, H, W]", x));
        };
        if c != self.config.in_channels {
            let expected = format!("{} channels, condition channels included", self.config.in_channels);
            return Err(Error::input("wan", expected, x));
        }
        let [pt, ph, pw] = self.config.patch;
        Ok([f / pt, h / ph, w / pw])
    }

    /// e `[B, D]` and e0 `[B, 6, D]`.
    fn embed_time<M: Mode>(&self, m: &M, t: &M::Value, like: &M::Value) -> Result<(M::Value, M::Value)> {
        let sinusoid = TimeEmbedding { dim: self.config.freq_dim, dtype: m.dtype(like).wide(), device: m.device(like) };
        let s = m.apply(sinusoid, &[t])?;
        let e = self.time[0].then(m, &s, Activation::Silu, &self.time[1])?;
        m.tap("e", &e);
        let e0 = self.time_projection.apply(m, &m.apply(Activation::Silu, &[&e])?)?;
        m.tap("e0_flat", &e0);
        let shape = vec![m.shape(&e)[0], 6, self.config.dim];
        Ok((e, m.apply(Reshape { shape }, &[&e0])?))
    }

    /// Image tokens `[B, I, image_dim]` → `[B, I, D]`.
    fn embed_image<M: Mode>(&self, m: &M, image: &ImageEmbedding, tokens: &M::Value) -> Result<M::Value> {
        let tokens = match image.positions {
            Some(p) => m.apply(Add, &[tokens, &m.param(p)?])?,
            None => tokens.clone(),
        };
        let norm = LayerNormAffine { eps: IMAGE_NORM_EPS };
        let h = image.norm_in.apply(m, norm, &tokens)?;
        let h = image.hidden.then(m, &h, Activation::GeluExact, &image.out)?;
        let h = image.norm_out.apply(m, norm, &h)?;
        m.tap("img_emb", &h);
        Ok(h)
    }

    /// Rotary angles [L, d/2], interleaved pairs: first those of the frame, then of the row, then of the column.
    pub fn rope_angles(&self, grid: [usize; 3]) -> Vec<f64> {
        rope_angles(self.config.head_dim(), grid)
    }
}

fn rope_angles(d: usize, grid: [usize; 3]) -> Vec<f64> {
    let side = 2 * (d / 6);
    let axes = [d - 2 * side, side, side];
    let [f, h, w] = grid;
    let frequencies =
        axes.map(|dim| -> Vec<f64> { (0..dim / 2).map(|j| ROPE_THETA.powf(-2.0 * j as f64 / dim as f64)).collect() });
    let mut angles = Vec::with_capacity(f * h * w * d / 2);
    for i in 0..f * h * w {
        let position = [i / (h * w), i / w % h, i % w];
        for (p, frequencies) in position.into_iter().zip(&frequencies) {
            angles.extend(frequencies.iter().map(|f| p as f64 * f));
        }
    }
    angles
}

impl Network for Wan {
    fn specs(&self) -> &Arc<[ParamSpec]> {
        &self.specs
    }

    fn forward<M: Mode>(
        &self,
        m: &M,
        x: &M::Value,
        t: &M::Value,
        conditions: &Conditions<M::Value>,
    ) -> Result<M::Value> {
        let mut video = m.shape(x).to_vec();
        let x = match &conditions.latent {
            Some(latent) => m.apply(Concat { axis: 1 }, &[x, latent])?,
            None => x.clone(),
        };
        let grid = self.grid(m.shape(&x))?;
        let d = self.config.head_dim();
        let rope = Arc::new(RopeTable::lazy(grid.iter().product(), d / 2, move || rope_angles(d, grid)));

        let patches = Rearrange::patchify(m.shape(&x), self.config.patch, PatchOrder::ChannelsFirst)?;
        let mut h = self.patch.apply(m, &m.apply(patches, &[&x])?)?; // [B, L, D]
        m.tap("patch", &h);
        let (e, e0) = self.embed_time(m, t, &h)?;
        let text = self.text[0].then(m, &conditions.text, Activation::GeluTanh, &self.text[1])?;
        m.tap("text", &text);
        let image = match (&self.image, &conditions.image) {
            (Some(embedding), Some(tokens)) => Some(self.embed_image(m, embedding, tokens)?),
            (None, None) => None,
            (Some(_), None) => return Err(Error::input("wan", "image tokens for the image branch", "none")),
            (None, Some(_)) => return Err(Error::input("wan", "no image tokens: there is no image branch", "some")),
        };
        for &block in &self.blocks {
            let mut inputs = vec![&h, &e0, &text];
            inputs.extend(&image);
            h = m.segment(BlockSegment { block, rope: rope.clone() }, &inputs)?;
        }
        let y = m.segment(self.head, &[&h, &e])?;
        m.tap("head", &y);
        video[1] = self.config.out_channels;
        let back = Rearrange::unpatchify(&video, self.config.patch, PatchOrder::ChannelsLast)?;
        m.apply(back, &[&y])
    }
}

impl Segment for Head {
    /// Inputs: h `[B, L, D]` and e `[B, D]`, which modulates here without the projection of the blocks.
    fn run<M: Mode>(&self, m: &M, inputs: &[M::Value]) -> Result<M::Value> {
        let &[b, d] = m.shape(&inputs[1]) else {
            return Err(Error::input("wan", "e [B, D]", m.shape(&inputs[1])));
        };
        let e = m.apply(Reshape { shape: vec![b, 1, d] }, &[&inputs[1]])?;
        let modulation = m.apply(Add, &[&m.param(self.modulation)?, &e])?; // [B, 2, D]
        let part = |i: usize| m.apply(Slice { axis: 1, start: i, len: 1 }, &[&modulation]);
        let h = m.apply(LayerNormModulate { eps: self.eps }, &[&inputs[0], &part(0)?, &part(1)?])?;
        self.projection.apply(m, &h)
    }
}
