//! The layers of both halves, one frame at a time. Frames are [B, H, W, C].

use fewstep_ops::{
    Activation, Add, Attention, CausalConv, ChannelNorm, Error, Init, Linear, Mode, Padding, ParamId, Reshape, Result,
    Slice, Upsample,
};

use crate::build::Builder;

/// The frames that a layer still needs: at most two of each convolution. They are shared, not copied.
#[derive(Clone, Debug)]
pub(super) struct Memory<V> {
    pub first: Vec<V>,
    pub second: Vec<V>,
    pub begun: bool,
}

impl<V> Memory<V> {
    pub fn empty() -> Self {
        Memory { first: Vec::new(), second: Vec::new(), begun: false }
    }
}

/// Values a position of a layer's input, for the plan of tiles.
#[derive(Clone, Copy, Debug)]
pub(super) struct Footprint {
    /// Remembered between frames.
    pub kept: usize,
    /// Alive at once while a frame goes through.
    pub passing: usize,
    /// Output positions an input position, as a ratio.
    pub area: (usize, usize),
}

/// A convolution with its padding and stride.
#[derive(Clone, Copy, Debug)]
pub(super) struct Conv {
    weight: ParamId,
    bias: ParamId,
    op: CausalConv,
    frames: usize,
}

const DOWN: CausalConv = CausalConv { stride: 2, padding: Padding { top: 0, bottom: 1, left: 0, right: 1 } };

impl Conv {
    /// Declares `name` with a kernel of these extents: 5-D with a kernel in time, or 4-D.
    pub fn declare(b: &mut Builder, name: &str, inputs: usize, outputs: usize, kernel: &[usize]) -> Self {
        let fan_in = inputs * kernel.iter().product::<usize>();
        let shape = [&[outputs, inputs], kernel].concat();
        let weight = b.param(format!("{name}.weight"), &shape, Init::Normal((fan_in as f64).powf(-0.5)));
        let bias = b.param(format!("{name}.bias"), &[outputs], Init::Zeros);
        let spatial = kernel[kernel.len() - 1];
        let op = CausalConv { stride: 1, padding: Padding::around(spatial / 2) };
        Conv { weight, bias, op, frames: if kernel.len() == 3 { kernel[0] } else { 1 } }
    }

    fn run<M: Mode>(&self, m: &M, frames: &[M::Value]) -> Result<M::Value> {
        let (w, b) = (m.param(self.weight)?, m.param(self.bias)?);
        let inputs: Vec<&M::Value> = [&w, &b].into_iter().chain(frames).collect();
        m.apply(self.op, &inputs)
    }

    /// The next frame; `past` keeps what the one after it needs.
    pub fn apply<M: Mode>(&self, m: &M, past: &mut Vec<M::Value>, x: M::Value) -> Result<M::Value> {
        past.push(x);
        let y = self.run(m, past)?;
        if past.len() == self.frames {
            past.remove(0);
        }
        Ok(y)
    }
}

/// The norm over channels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Norm(ParamId);

impl Norm {
    fn declare(b: &mut Builder, name: &str, channels: usize) -> Self {
        Norm(b.wide_param(format!("{name}.gamma"), &[channels], Init::Ones))
    }

    fn apply<M: Mode>(&self, m: &M, x: &M::Value) -> Result<M::Value> {
        m.apply(ChannelNorm, &[x, &m.param(self.0)?])
    }

    fn silu<M: Mode>(&self, m: &M, x: &M::Value) -> Result<M::Value> {
        let h = self.apply(m, x)?;
        m.apply(Activation::Silu, &[&h])
    }
}

/// x + conv(silu(norm(conv(silu(norm(x)))))), with a 1×1×1 convolution of x where the channels change.
#[derive(Clone, Copy, Debug)]
pub(super) struct Residual {
    norms: [Norm; 2],
    convs: [Conv; 2],
    shortcut: Option<Conv>,
    widths: [usize; 2],
}

impl Residual {
    fn declare(b: &mut Builder, name: &str, inputs: usize, outputs: usize) -> Self {
        let part = |n: usize| format!("{name}.residual.{n}");
        let norm1 = Norm::declare(b, &part(0), inputs);
        let conv1 = Conv::declare(b, &part(2), inputs, outputs, &[3; 3]);
        let norm2 = Norm::declare(b, &part(3), outputs);
        let conv2 = Conv::declare(b, &part(6), outputs, outputs, &[3; 3]);
        let differ = inputs != outputs;
        let shortcut = differ.then(|| Conv::declare(b, &format!("{name}.shortcut"), inputs, outputs, &[1; 3]));
        Residual { norms: [norm1, norm2], convs: [conv1, conv2], shortcut, widths: [inputs, outputs] }
    }

    fn step<M: Mode>(&self, m: &M, past: &mut Memory<M::Value>, x: M::Value) -> Result<M::Value> {
        let h = self.norms[0].silu(m, &x)?;
        let h = self.convs[0].apply(m, &mut past.first, h)?;
        let h = self.norms[1].silu(m, &h)?;
        let h = self.convs[1].apply(m, &mut past.second, h)?;
        let x = match &self.shortcut {
            Some(shortcut) => shortcut.run(m, &[x])?,
            None => x,
        };
        m.apply(Add, &[&h, &x])
    }
}

/// Attention of one head among the positions of a frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Middle {
    norm: Norm,
    qkv: [ParamId; 2],
    out: [ParamId; 2],
    width: usize,
}

impl Middle {
    fn declare(b: &mut Builder, name: &str, width: usize) -> Self {
        let norm = Norm::declare(b, &format!("{name}.norm"), width);
        let mut pair = |part: &str, outputs: usize| {
            let c = Conv::declare(b, &format!("{name}.{part}"), width, outputs, &[1, 1]);
            [c.weight, c.bias]
        };
        Middle { norm, qkv: pair("to_qkv", 3 * width), out: pair("proj", width), width }
    }

    fn linear<M: Mode>(&self, m: &M, [weight, bias]: [ParamId; 2], x: &M::Value) -> Result<M::Value> {
        let weight = m.param(weight)?;
        let shape = m.shape(&weight)[..2].to_vec();
        let weight = m.apply(Reshape { shape }, &[&weight])?;
        m.apply(Linear { bias: true }, &[x, &weight, &m.param(bias)?])
    }

    fn step<M: Mode>(&self, m: &M, x: M::Value) -> Result<M::Value> {
        let &[b, h, w, c] = m.shape(&x) else {
            return Err(Error::input("wan vae", "a frame [B, H, W, C]", m.shape(&x)));
        };
        let tokens = self.norm.apply(m, &x)?;
        let tokens = m.apply(Reshape { shape: vec![b, h * w, c] }, &[&tokens])?;
        let qkv = self.linear(m, self.qkv, &tokens)?;
        let part = |i: usize| m.apply(Slice { axis: 2, start: i * c, len: c }, &[&qkv]);
        let read = m.apply(Attention { heads: 1, scale: None }, &[&part(0)?, &part(1)?, &part(2)?])?;
        let read = self.linear(m, self.out, &read)?;
        let read = m.apply(Reshape { shape: vec![b, h, w, c] }, &[&read])?;
        m.apply(Add, &[&read, &x])
    }
}

/// A part of a half that takes frames and gives frames.
#[derive(Clone, Copy, Debug)]
pub(super) enum Layer {
    /// A convolution alone: input channels.
    Conv(Conv, usize, usize),
    Residual(Residual),
    Middle(Middle),
    /// Half the height and width, and with a convolution in time half the frames after the first.
    Down {
        conv: Conv,
        time: Option<Conv>,
        width: usize,
    },
    /// Twice the height and width, half the channels; with a convolution in time, two frames for each after the first.
    Up {
        conv: Conv,
        time: Option<Conv>,
        width: usize,
    },
    /// conv(silu(norm(x)))
    Head {
        norm: Norm,
        conv: Conv,
        width: usize,
    },
}

impl Layer {
    pub fn conv(b: &mut Builder, name: &str, inputs: usize, outputs: usize, k: usize) -> Self {
        Layer::Conv(Conv::declare(b, name, inputs, outputs, &[k; 3]), inputs, outputs)
    }

    pub fn residual(b: &mut Builder, name: &str, inputs: usize, outputs: usize) -> Self {
        Layer::Residual(Residual::declare(b, name, inputs, outputs))
    }

    pub fn middle(b: &mut Builder, name: &str, width: usize) -> Self {
        Layer::Middle(Middle::declare(b, name, width))
    }

    pub fn down(b: &mut Builder, name: &str, width: usize, in_time: bool) -> Self {
        let conv = Conv { op: DOWN, ..Conv::declare(b, &format!("{name}.resample.1"), width, width, &[3, 3]) };
        let time = in_time.then(|| Conv::declare(b, &format!("{name}.time_conv"), width, width, &[3, 1, 1]));
        Layer::Down { conv, time, width }
    }

    pub fn up(b: &mut Builder, name: &str, width: usize, in_time: bool) -> Self {
        let conv = Conv::declare(b, &format!("{name}.resample.1"), width, width / 2, &[3, 3]);
        let time = in_time.then(|| Conv::declare(b, &format!("{name}.time_conv"), width, 2 * width, &[3, 1, 1]));
        Layer::Up { conv, time, width }
    }

    pub fn head(b: &mut Builder, name: &str, width: usize, outputs: usize) -> Self {
        let norm = Norm::declare(b, &format!("{name}.0"), width);
        Layer::Head { norm, conv: Conv::declare(b, &format!("{name}.2"), width, outputs, &[3; 3]), width }
    }

    /// Takes the next frame; gives none, one or two.
    pub fn step<M: Mode>(&self, m: &M, past: &mut Memory<M::Value>, x: M::Value) -> Result<Vec<M::Value>> {
        match self {
            Layer::Conv(conv, ..) => Ok(vec![conv.apply(m, &mut past.first, x)?]),
            Layer::Residual(block) => Ok(vec![block.step(m, past, x)?]),
            Layer::Middle(middle) => Ok(vec![middle.step(m, x)?]),
            Layer::Head { norm, conv, .. } => {
                let h = norm.silu(m, &x)?;
                drop(x);
                Ok(vec![conv.apply(m, &mut past.first, h)?])
            }
            Layer::Down { conv, time, .. } => down(m, past, conv.run(m, &[x])?, time.as_ref()),
            Layer::Up { conv, time, width } => {
                let frames = expand(m, past, x, time.as_ref(), *width)?;
                frames.into_iter().map(|x| conv.run(m, &[m.apply(Upsample, &[&x])?])).collect()
            }
        }
    }

    pub fn footprint(&self) -> Footprint {
        let same = |kept: usize, passing: usize| Footprint { kept, passing, area: (1, 1) };
        match *self {
            Layer::Conv(conv, i, o) => same((conv.frames - 1) * i, i + o),
            Layer::Residual(Residual { widths: [i, o], .. }) => same(2 * (i + o), 3 * i.max(o) + i),
            Layer::Middle(Middle { width, .. }) => same(0, 10 * width),
            Layer::Head { width, .. } => same(2 * width, 3 * width),
            Layer::Down { width, time, .. } => {
                let kept = if time.is_some() { width / 2 } else { 0 };
                Footprint { kept, passing: 2 * width, area: (1, 4) }
            }
            Layer::Up { width, time, .. } => {
                // The second of two frames waits while the first goes all the way.
                let (kept, frames) = if time.is_some() { (4 * width, 5 * width) } else { (0, width) };
                Footprint { kept, passing: frames + 4 * width + 2 * 2 * width, area: (4, 1) }
            }
        }
    }
}

/// The first frame stands alone; then each two, with the one before them, give one.
fn down<M: Mode>(m: &M, past: &mut Memory<M::Value>, x: M::Value, time: Option<&Conv>) -> Result<Vec<M::Value>> {
    let Some(time) = time else { return Ok(vec![x]) };
    past.first.push(x.clone());
    match past.first.len() {
        1 => Ok(vec![x]),
        2 => Ok(Vec::new()),
        _ => {
            let y = time.run(m, &past.first)?;
            past.first.drain(..2);
            Ok(vec![y])
        }
    }
}

/// The first frame stands alone and is not remembered; each later one becomes two: the halves of its 2C channels.
fn expand<M: Mode>(
    m: &M,
    past: &mut Memory<M::Value>,
    x: M::Value,
    time: Option<&Conv>,
    width: usize,
) -> Result<Vec<M::Value>> {
    let Some(time) = time else { return Ok(vec![x]) };
    if !std::mem::replace(&mut past.begun, true) {
        return Ok(vec![x]);
    }
    let y = time.apply(m, &mut past.first, x)?;
    let half = |i: usize| m.apply(Slice { axis: 3, start: i * width, len: width }, &[&y]);
    Ok(vec![half(0)?, half(1)?])
}
