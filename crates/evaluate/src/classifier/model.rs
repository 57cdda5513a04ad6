use std::ops::Range;
use std::sync::Arc;

use fewstep_data::{CHANNELS, Caption, Colour, Digit, Direction, FRAMES, HEIGHT, WIDTH};
use fewstep_nn::{Builder, Projection};
use fewstep_ops::{Activation, Concat, Error, Mode, ParamSpec, PatchOrder, Rearrange, Reshape, Result, Slice};

/// Features d of a clip.
pub const FEATURES: usize = 64;
/// Logits of a clip: those of the digit, the colour and the direction, in this order.
pub const LOGITS: usize = Digit::ALL.len() + Colour::ALL.len() + Direction::ALL.len();

/// Edge of the patches that the first layer reads, in pixels.
const PATCH: usize = 2;
/// Edges of the windows of the two convolutions, in positions of the layer before.
const WINDOWS: [usize; 2] = [2, 3];
/// Channels after each convolution.
const CHANNELS_OUT: [usize; 2] = [32, 64];
/// Width of what is kept of a frame.
const FRAME_WIDTH: usize = 128;
const ACTIVATION: Activation = Activation::GeluTanh;

/// A small network over clips [B, C = 3, F = 6, H = 16, W = 16], 275,768 parameters.
///
/// Each frame passes two convolutions and a dense layer (LeNet's plan, which sees a digit alike wherever it is); the six
/// frames together give the features and these, after a non-linearity, the logits. Convolutions are slices, joined
/// to windows, and a linear layer, so that the ops that exist suffice.
#[derive(Debug)]
pub struct Classifier {
    specs: Arc<[ParamSpec]>,
    convolutions: [Projection; 2],
    frame: Projection,
    feature: Projection,
    heads: Projection,
}

/// What the network makes of clips.
#[derive(Clone, Debug)]
pub struct Reading<V> {
    /// [B, d = [`FEATURES`]]: the penultimate layer before its non-linearity.
    pub features: V,
    /// [B, [`LOGITS`]].
    pub logits: V,
}

impl Default for Classifier {
    fn default() -> Self {
        Self::new()
    }
}

impl Classifier {
    /// The structure; weights come apart.
    pub fn new() -> Self {
        let mut b = Builder::default();
        let windows = [WINDOWS[0].pow(2) * CHANNELS * PATCH.pow(2), WINDOWS[1].pow(2) * CHANNELS_OUT[0]];
        let convolutions = [
            b.projection("convolution.0", windows[0], CHANNELS_OUT[0]),
            b.projection("convolution.1", windows[1], CHANNELS_OUT[1]),
        ];
        let left = |edge: usize| edge / PATCH + WINDOWS.len() - WINDOWS.iter().sum::<usize>();
        let frame = b.projection("frame", left(HEIGHT) * left(WIDTH) * CHANNELS_OUT[1], FRAME_WIDTH);
        let feature = b.projection("feature", FRAMES * FRAME_WIDTH, FEATURES);
        let heads = b.projection("heads", FEATURES, LOGITS);
        Classifier { specs: b.finish().into(), convolutions, frame, feature, heads }
    }

    /// Names, shapes and initial values of the parameters.
    pub fn specs(&self) -> &Arc<[ParamSpec]> {
        &self.specs
    }

    /// Reads clips [B, C, F, H, W] with pixels in [-1, 1].
    ///
    /// # Errors
    /// If the clips have another shape.
    pub fn forward<M: Mode>(&self, m: &M, clips: &M::Value) -> Result<Reading<M::Value>> {
        let shape = m.shape(clips).to_vec();
        if shape.get(1..) != Some(&[CHANNELS, FRAMES, HEIGHT, WIDTH]) {
            let expected = format!("clips [B, {CHANNELS}, {FRAMES}, {HEIGHT}, {WIDTH}]");
            return Err(Error::input("classifier", expected, shape));
        }
        let patches = Rearrange::patchify(&shape, [1, PATCH, PATCH], PatchOrder::ChannelsFirst)?;
        let x = m.apply(patches, &[clips])?; // [B, F·H/2·W/2, 12]
        let frames = vec![shape[0] * FRAMES, HEIGHT / PATCH, WIDTH / PATCH, CHANNELS * PATCH * PATCH];
        let mut x = m.apply(Reshape { shape: frames }, &[&x])?; // [B·F, H/2, W/2, 12]
        for (edge, convolution) in WINDOWS.into_iter().zip(&self.convolutions) {
            x = convolution.apply(m, &windows(m, &x, edge)?)?;
            x = m.apply(ACTIVATION, &[&x])?;
        }
        let flat = m.shape(&x).iter().product::<usize>() / (shape[0] * FRAMES).max(1);
        let x = m.apply(Reshape { shape: vec![shape[0] * FRAMES, flat] }, &[&x])?;
        let x = m.apply(ACTIVATION, &[&self.frame.apply(m, &x)?])?; // [B·F, 128]
        let x = m.apply(Reshape { shape: vec![shape[0], FRAMES * FRAME_WIDTH] }, &[&x])?;
        let features = self.feature.apply(m, &x)?; // [B, 64]
        let logits = self.heads.apply(m, &m.apply(ACTIVATION, &[&features])?)?;
        Ok(Reading { features, logits })
    }
}

/// Every window of edge² positions: [N, H, W, C] → [N, H − edge + 1, W − edge + 1, edge²·C].
fn windows<M: Mode>(m: &M, x: &M::Value, edge: usize) -> Result<M::Value> {
    let &[_, h, w, _] = m.shape(x) else {
        return Err(Error::input("classifier", "[N, H, W, C]", m.shape(x)));
    };
    let mut parts = Vec::with_capacity(edge * edge);
    for row in 0..edge {
        let rows = m.apply(Slice { axis: 1, start: row, len: h + 1 - edge }, &[x])?;
        for column in 0..edge {
            parts.push(m.apply(Slice { axis: 2, start: column, len: w + 1 - edge }, &[&rows])?);
        }
    }
    m.apply(Concat { axis: 3 }, &parts.iter().collect::<Vec<_>>())
}

/// The logits of each head.
pub(super) fn heads() -> [Range<usize>; 3] {
    let (digit, colour) = (Digit::ALL.len(), Digit::ALL.len() + Colour::ALL.len());
    [0..digit, digit..colour, colour..LOGITS]
}

/// The class of a caption in each head.
pub(super) fn targets(caption: Caption) -> [usize; 3] {
    [caption.digit.index(), caption.colour.index(), caption.direction.index()]
}

/// Which of the three heads have their largest logit at the caption's class.
pub(crate) fn answers(logits: &[f64], caption: Caption) -> [bool; 3] {
    let (heads, targets) = (heads(), targets(caption));
    std::array::from_fn(|i| {
        let head = &logits[heads[i].clone()];
        head.iter().enumerate().all(|(class, &l)| class == targets[i] || l < head[targets[i]])
    })
}
