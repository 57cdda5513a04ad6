//! Implicit products: in bf16 by the kernel for Hopper, by a library or by a kernel for every tensor core, else by single
//! multiplications. Cotangents are our own portable kernels' alone: the autoencoder is not trained.

use fewstep_tensor::cuda::{Convolution, Launch, Source, gpu};
use fewstep_tensor::{DType, Tensor};

use super::geometry::Extents;
use super::{NAME, hopper, library};
use crate::shape::cuda::padded;
use crate::{Error, Result, Saved};

pub(super) const SOURCE: Source = Source::new("causal_conv", &[include_str!("causal_conv.cu")]);
const THREADS: usize = 256;
/// Frames that one launch takes.
const FRAMES: usize = 8;
/// Rows and columns of a tile of a product by single multiplications.
const TILE: usize = 64;
/// Columns that a block sums over positions.
const COLUMNS: usize = 32;
/// Positions of a part, at least, and parts at most: fixed, so that sums are always formed in one order.
const PART: usize = 1024;
const PARTS: usize = 64;
/// Channels of a 16-byte access of bf16.
const CHUNK: usize = 8;
/// Frames of the kernel from `tap` on, one for each source.
struct Part<'a> {
    weights: &'a Tensor,
    tap: usize,
    sources: Vec<&'a Tensor>,
}

/// A tile of tensor cores, as the kernel has it: positions, outputs, threads, and bytes of shared memory.
struct Tile {
    positions: usize,
    outputs: usize,
    threads: usize,
    shared: usize,
}

/// Of few outputs: four stages of 32 bf16 for each position and output.
const NARROW: Tile = Tile { positions: 256, outputs: 32, threads: 128, shared: (256 + 32) * 4 * 64 };
/// Three stages of 64 bf16.
const WIDE: Tile = Tile { positions: 128, outputs: 96, threads: 128, shared: (128 + 96) * 3 * 128 };

/// The positions of the output's grid, and the extents of what is read.
struct Grid {
    positions: [usize; 2],
    source: [usize; 2],
    inputs: usize,
    outputs: usize,
    transposed: bool,
}

impl Grid {
    fn new(e: &Extents, transposed: bool) -> Self {
        let (frame, output) = ([e.h, e.w], [e.oh, e.ow]);
        match transposed {
            false => Grid { positions: output, source: frame, inputs: e.i, outputs: e.o, transposed },
            true => Grid { positions: frame, source: output, inputs: e.o, outputs: e.i, transposed },
        }
    }
}

/// The frames' parameters of a kernel.
fn frames<'a>(mut launch: Launch<'a>, e: &Extents, g: &Grid, frames: &[&Tensor], channels: usize) -> Launch<'a> {
    for j in 0..FRAMES {
        launch = launch.optional(frames.get(j).copied());
    }
    let [[oh, ow], [h, w]] = [g.positions, g.source];
    let sizes = [frames.len(), e.b, oh, ow, h, w, channels.max(1), e.kh, e.kw, e.stride, e.top, e.left];
    sizes.into_iter().fold(launch, Launch::size)
}

/// The order of a row of packed W.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    /// Frames, then the kernel's rows and columns.
    FramesFirst,
    /// The kernel's rows and columns, then frames: as if these were more channels.
    FramesLast,
}

/// W as a product reads it: [outputs, Σ frames·KH·KW·channels].
fn pack(e: &Extents, g: &Grid, parts: &[Part<'_>], channels: usize, order: Order, like: &Tensor) -> Result<Tensor> {
    let frame = e.kh * e.kw;
    let frames = parts.iter().map(|p| p.sources.len()).sum::<usize>();
    let depth = frames * frame * channels;
    let [tap, place] = match order {
        Order::FramesFirst => [frame * channels, channels],
        Order::FramesLast => [channels, frames * channels],
    };
    let packed = Tensor::empty(&[g.outputs, depth], like.dtype(), like.device())?;
    let mut start = 0;
    for part in parts {
        Launch::new(like.device(), &SOURCE, like.dtype(), "pack")?
            .grid([(g.outputs * channels).div_ceil(THREADS), 1, 1])
            .threads(THREADS)
            .tensor(&packed)
            .tensor(part.weights)
            .size(g.outputs)
            .size(g.inputs)
            .size(channels)
            .size(e.kt)
            .size(frame)
            .size(part.tap)
            .size(part.sources.len())
            .size(start)
            .size(tap)
            .size(place)
            .size(depth)
            .flag(g.transposed)
            .run()?;
        start += part.sources.len() * tap;
    }
    Ok(packed)
}

/// The kernels count positions and a frame's elements in 32 bits.
fn check(sources: &[&Tensor], positions: usize) -> Result<()> {
    let largest = sources.first().map_or(0, |x| x.len()).max(positions);
    if sources.len() <= FRAMES && i32::try_from(largest).is_ok() {
        return Ok(());
    }
    let expected = format!("at most {FRAMES} frames, all again where W has a tangent, of fewer than 2³¹ elements");
    Err(Error::input(NAME, expected, (sources.len(), largest)))
}

/// bias + Σ over the parts of sources∗W, or of its transpose.
fn product(e: &Extents, parts: &[Part<'_>], bias: Option<&Tensor>, like: &Tensor, transposed: bool) -> Result<Tensor> {
    let (g, dtype) = (Grid::new(e, transposed), like.dtype());
    let tensor_cores = dtype == DType::Bf16;
    let channels = if tensor_cores { g.inputs.next_multiple_of(CHUNK) } else { g.inputs };
    let ready = |x: &Tensor| match tensor_cores && !(channels == g.inputs && x.is_aligned(16)) {
        true => padded(x, channels),
        false => Ok(x.clone()),
    };
    let sources = parts.iter().flat_map(|p| &p.sources).filter(|_| channels > 0);
    let sources = sources.map(|x| ready(x)).collect::<Result<Vec<_>>>()?;
    let sources: Vec<&Tensor> = sources.iter().collect();
    let positions = e.b * g.positions[0] * g.positions[1];
    check(&sources, positions)?;
    let y = Tensor::empty(&[e.b, g.positions[0], g.positions[1], g.outputs], dtype, like.device())?;
    let path = if transposed { Path::Portable } else { path(e, (sources.len(), channels), bias, like)? };
    let order = if matches!(path, Path::Library(_)) { Order::FramesLast } else { Order::FramesFirst };
    let packed = pack(e, &g, parts, channels, order, like)?;
    match path {
        Path::Hopper(tiles) => hopper::run(e, tiles, &sources, &packed, bias, &y)?,
        Path::Library(shape) => library::run(&shape, &sources, &packed, bias, &y)?,
        Path::Portable => portable(e, &g, (&sources, channels), &packed, bias, &y)?,
    }
    Ok(y)
}

/// W as the library reads it, of frames that all are given.
#[cfg(test)]
pub(super) fn packed_for_library(e: &Extents, weights: &Tensor, sources: &[&Tensor]) -> Result<Tensor> {
    let part = Part { weights, tap: e.tap(0), sources: sources.to_vec() };
    pack(e, &Grid::new(e, false), &[part], e.i, Order::FramesLast, weights)
}

/// What computes a product.
enum Path {
    Hopper(hopper::Tiles),
    Library(Convolution),
    Portable,
}

/// By extents, dtype and what is there alone. The primal of a tangent is computed as the forward pass is.
fn path(e: &Extents, frames: (usize, usize), bias: Option<&Tensor>, like: &Tensor) -> Result<Path> {
    let gpu = gpu(like.device())?;
    let p = gpu.properties();
    if let Some(tiles) = hopper::Tiles::of(e, like.dtype(), frames, p.capability, p.multiprocessors) {
        return Ok(Path::Hopper(tiles));
    }
    match library::shape(e, like.dtype(), frames, bias.is_some()) {
        Some(shape) if gpu.convolves(&shape).map_err(fewstep_tensor::Error::from)? => Ok(Path::Library(shape)),
        _ => Ok(Path::Portable),
    }
}

/// By the kernels that serve every shape and GPU.
fn portable(
    e: &Extents,
    g: &Grid,
    (sources, channels): (&[&Tensor], usize),
    packed: &Tensor,
    bias: Option<&Tensor>,
    y: &Tensor,
) -> Result<()> {
    let (positions, dtype) = (e.b * g.positions[0] * g.positions[1], y.dtype());
    let launch = match dtype == DType::Bf16 {
        true => {
            let tile = if g.outputs <= NARROW.outputs { NARROW } else { WIDE };
            Launch::new(y.device(), &SOURCE, dtype, "convolve_tensor_cores")?
                .define("TILE_N", tile.outputs)
                .grid([positions.div_ceil(tile.positions) * g.outputs.div_ceil(tile.outputs), 1, 1])
                .threads(tile.threads)
                .shared(tile.shared)
        }
        false => Launch::new(y.device(), &SOURCE, dtype, "convolve")?
            .grid([positions.div_ceil(TILE) * g.outputs.div_ceil(TILE), 1, 1])
            .threads(THREADS),
    };
    let launch = launch.tensor(y).tensor(packed).optional(bias).size(g.outputs);
    Ok(frames(launch, e, g, sources, channels).flag(g.transposed).run()?)
}

pub(super) fn forward(e: &Extents, x: &[&Tensor]) -> Result<Tensor> {
    let part = Part { weights: x[0], tap: e.tap(0), sources: x[2..].to_vec() };
    product(e, &[part], Some(x[1]), x[0], false)
}

/// ẏ = biaṡ + W∗ẋ + Ẇ∗x
pub(super) fn tangent(e: &Extents, x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<Tensor> {
    let moving = x_dot[2..]
        .iter()
        .enumerate()
        .filter_map(|(j, d)| d.map(|source| Part { weights: x[0], tap: e.tap(j), sources: vec![source] }));
    let kernel = x_dot[0].map(|weights| Part { weights, tap: e.tap(0), sources: x[2..].to_vec() });
    product(e, &moving.chain(kernel).collect::<Vec<_>>(), x_dot[1], x[0], false)
}

/// Positions of a part, and the parts that cover all.
fn parts(positions: usize) -> [usize; 2] {
    let part = positions.div_ceil(PARTS).max(PART);
    [part, positions.div_ceil(part)]
}

/// W̄ = Σ ȳᵀ·x over the positions, in the wide dtype.
fn weight_bar(e: &Extents, shape: &[usize], sources: &[&Tensor], y_bar: &Tensor) -> Result<Tensor> {
    let (g, device, dtype) = (Grid::new(e, false), y_bar.device(), y_bar.dtype());
    let [part, parts] = parts(e.b * e.oh * e.ow);
    let depth = sources.len() * e.kh * e.kw * e.i;
    check(sources, e.b * e.oh * e.ow)?;
    let partial = Tensor::empty(&[parts, e.o, depth], dtype.wide(), device)?;
    let launch = Launch::new(device, &SOURCE, dtype, "weight_products")?
        .grid([e.o.div_ceil(TILE) * depth.div_ceil(TILE), parts, 1])
        .threads(THREADS)
        .tensor(&partial)
        .tensor(y_bar)
        .size(e.o)
        .size(part);
    frames(launch, e, &g, sources, e.i).run()?;
    let w_bar = Tensor::empty(shape, dtype.wide(), device)?;
    Launch::new(device, &SOURCE, dtype, "sum_weight_products")?
        .grid([w_bar.len().div_ceil(THREADS), 1, 1])
        .threads(THREADS)
        .tensor(&w_bar)
        .tensor(&partial)
        .size(parts)
        .size(e.o)
        .size(e.i)
        .size(e.kt)
        .size(e.kh * e.kw)
        .size(e.kt - sources.len())
        .run()?;
    Ok(w_bar)
}

/// Σ ȳ over the positions, in the wide dtype.
fn bias_bar(e: &Extents, y_bar: &Tensor) -> Result<Tensor> {
    let (device, dtype, positions) = (y_bar.device(), y_bar.dtype(), e.b * e.oh * e.ow);
    let [part, parts] = parts(positions);
    let partial = Tensor::empty(&[parts, e.o], dtype.wide(), device)?;
    Launch::new(device, &SOURCE, dtype, "sum_positions")?
        .grid([e.o.div_ceil(COLUMNS), parts, 1])
        .threads(THREADS)
        .tensor(&partial)
        .tensor(y_bar)
        .size(positions)
        .size(e.o)
        .size(part)
        .run()?;
    let bias_bar = Tensor::empty(&[e.o], dtype.wide(), device)?;
    Launch::new(device, &SOURCE, dtype, "sum_parts")?
        .grid([e.o.div_ceil(THREADS), 1, 1])
        .threads(THREADS)
        .tensor(&bias_bar)
        .tensor(&partial)
        .size(parts)
        .size(e.o)
        .run()?;
    Ok(bias_bar)
}

pub(super) fn vjp(e: &Extents, saved: &Saved, y_bar: &Tensor, wanted: &[bool]) -> Result<Vec<Option<Tensor>>> {
    let sources = (2..saved.arity()).map(|i| saved.input(i)).collect::<Result<Vec<_>>>()?;
    let mut bars = vec![None; saved.arity()];
    bars[0] = wanted[0].then(|| weight_bar(e, saved.shape(0), &sources, y_bar)).transpose()?;
    bars[1] = wanted[1].then(|| bias_bar(e, y_bar)).transpose()?;
    for (j, bar) in bars[2..].iter_mut().enumerate().filter(|(j, _)| wanted[2 + j]) {
        let part = Part { weights: saved.input(0)?, tap: e.tap(j), sources: vec![y_bar] };
        *bar = Some(product(e, &[part], None, y_bar, true)?);
    }
    Ok(bars)
}
