//! Chooses the kernels for a GPU, a dtype and the widths of a head, and starts them.

use fewstep_tensor::cuda::{Launch, Source, gpu};
use fewstep_tensor::{DType, Device, Tensor};

use super::Extents;
use super::hopper;
use super::tiles::{self, Tiles};
use crate::{Dual, Output, Result, Saved};

const SAMPLES: &str = include_str!("samples.cuh");
const PORTABLE: &str = include_str!("portable.cuh");
const SIMPLE: Source = Source::new("attention_simple", &[SAMPLES, include_str!("simple.cu")]);
const FORWARD: Source = Source::new("attention_forward", &[SAMPLES, PORTABLE, include_str!("portable_forward.cu")]);
const QUERIES: Source =
    Source::new("attention_queries", &[SAMPLES, PORTABLE, include_str!("portable_backward_queries.cu")]);
const KEYS: Source = Source::new("attention_keys", &[SAMPLES, PORTABLE, include_str!("portable_backward_keys.cu")]);

/// What `simple.cu` is written for: threads and rows of a block, columns of a part, rows of a block of δ.
const SIMPLE_THREADS: usize = 128;
const SIMPLE_ROWS: usize = 16;
const SIMPLE_COLUMNS: usize = 128;
const SIMPLE_DELTAS: usize = 4;
/// The same of the kernel of δ in `portable_backward_queries.cu`, and to how many rows a sample's statistics are padded.
const DELTA_THREADS: usize = 256;
const DELTA_ROWS: usize = 8;
const PADDED: usize = 64;

/// Which kernels compute an attention: a function of the extents, the dtype and the GPU alone, so that the rules agree on
/// the primal bit for bit.
#[derive(Clone, Copy, Debug)]
enum Kernels {
    /// `simple.cu`: any dtype and width.
    Simple,
    /// `hopper_*.cu`: bf16, heads 64 and 128 wide, sm_90a.
    Hopper,
    /// `portable_*.cu`: bf16 on tensor cores, from sm_80 on.
    Portable {
        /// The most shared memory of a block, in bytes.
        shared: usize,
    },
}

fn choose(e: &Extents, dtype: DType, device: Device) -> Result<Kernels> {
    let gpu = gpu(device)?;
    let properties = gpu.properties();
    if hopper::serves(e, dtype, properties.capability) {
        return Ok(Kernels::Hopper);
    }
    let fits = [e.k, e.v].iter().all(|width| tiles::WIDTHS.contains(width) && width.is_multiple_of(8));
    let portable = dtype == DType::Bf16 && fits && e.scale > 0.0 && properties.capability >= (8, 0);
    Ok(if portable { Kernels::Portable { shared: properties.shared } } else { Kernels::Simple })
}

/// The tensor, or a copy where it does not begin at a multiple of 16 bytes, as a window may not.
fn aligned(t: &Tensor) -> Result<Tensor> {
    let mut t = t.clone();
    if !t.is_aligned(16) {
        t.make_unique()?;
    }
    Ok(t)
}

/// A launch over blocks of rows, heads and samples.
fn launch<'a>(e: &Extents, source: &'a Source, kernel: &'static str, x: &Tensor, blocks: usize) -> Result<Launch<'a>> {
    Ok(Launch::new(x.device(), source, x.dtype(), kernel)?.grid([blocks, e.n, e.b]))
}

/// A launch of `simple.cu` over rows and parts of columns.
fn simple(e: &Extents, kernel: &'static str, x: &Tensor, [rows, columns]: [usize; 2]) -> Result<Launch<'static>> {
    let blocks = rows.div_ceil(SIMPLE_ROWS) * columns.div_ceil(SIMPLE_COLUMNS).max(1);
    Ok(launch(e, &SIMPLE, kernel, x, blocks)?.threads(SIMPLE_THREADS))
}

/// A launch of a portable kernel over rows.
fn portable<'a>(
    e: &Extents,
    (source, kernel): (&'a Source, &'static str),
    x: &Tensor,
    rows: usize,
    tiles: &Tiles,
) -> Result<Launch<'a>> {
    let launch = launch(e, source, kernel, x, rows.div_ceil(tiles.rows))?.threads(tiles.threads).shared(tiles.shared);
    let launch = launch.define("HEAD", e.k).define("VALUE", e.v).define("MASK", 0).define("UNROLL", 2);
    Ok(tiles.defines.iter().fold(launch, |launch, (name, value)| launch.define(name, value)))
}

/// No additive mask, no boolean mask, no packed samples.
fn unmasked(launch: Launch<'_>) -> Launch<'_> {
    let launch = (0..2).fold(launch, |launch, _| launch.optional(None).size(0).size(0).size(0));
    launch.optional(None).optional(None)
}

/// y, ẏ if there is any tangent, and the log-sum-exp.
fn evaluate(e: &Extents, x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<(Tensor, Option<Tensor>, Tensor)> {
    let (dtype, device) = (x[0].dtype(), x[0].device());
    let y = Tensor::empty(&[e.b, e.l, e.n * e.v], dtype, device)?;
    let moves = x_dot.iter().any(Option::is_some);
    let y_dot = moves.then(|| Tensor::empty(y.shape(), dtype, device)).transpose()?;
    let log_sum_exp = Tensor::empty(&[e.b, e.n, e.l], dtype.wide(), device)?;
    let x = x.iter().map(|t| aligned(t)).collect::<Result<Vec<_>>>()?;
    let x_dot = x_dot.iter().map(|t| t.map(aligned).transpose()).collect::<Result<Vec<_>>>()?;
    let (kernels, name) = (choose(e, dtype, device)?, "attention_forward");
    let launch = match kernels {
        Kernels::Hopper => {
            hopper::forward(e, &x, &x_dot, (&y, y_dot.as_ref(), &log_sum_exp))?;
            return Ok((y, y_dot, log_sum_exp));
        }
        Kernels::Simple => simple(e, name, &y, [e.l, e.v])?,
        Kernels::Portable { shared } => {
            let dots = [0, 1, 2].map(|i| x_dot[i].is_some());
            let launch = portable(e, (&FORWARD, name), &y, e.l, &Tiles::forward(e, dots, shared))?;
            let names = ["Q_DOT", "K_DOT", "V_DOT"].into_iter().zip(dots);
            names.fold(launch, |launch, (name, dot)| launch.define(name, u8::from(dot)))
        }
    };
    let launch = x.iter().fold(launch, Launch::tensor);
    let launch = x_dot.iter().fold(launch, |launch, t| launch.optional(t.as_ref()));
    let launch = unmasked(launch.tensor(&y).optional(y_dot.as_ref()).tensor(&log_sum_exp));
    lengths(launch, e, kernels).size(e.n * e.v).real(e.scale).run()?;
    Ok((y, y_dot, log_sum_exp))
}

/// L and S, the widths where they are not compiled in, and the strides of tokens of q, k and v.
fn lengths<'a>(launch: Launch<'a>, e: &Extents, kernels: Kernels) -> Launch<'a> {
    let launch = launch.size(e.l).size(e.s);
    let launch = match kernels {
        Kernels::Simple => launch.size(e.k).size(e.v),
        Kernels::Portable { .. } | Kernels::Hopper => launch,
    };
    launch.size(e.n * e.k).size(e.n * e.k).size(e.n * e.v)
}

pub(super) fn forward(e: &Extents, x: &[&Tensor]) -> Result<Output> {
    let (y, _, log_sum_exp) = evaluate(e, x, &[None; 3])?;
    Ok(Output { y, kept: vec![log_sum_exp] })
}

pub(super) fn jvp(e: &Extents, x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<Dual> {
    let (primal, tangent, _) = evaluate(e, x, x_dot)?;
    Ok(Dual { primal, tangent })
}

/// What the backward kernels read: q, k, v, ȳ, the log-sum-exp as they take it, and δ.
struct Inputs {
    x: Vec<Tensor>,
    log_sum_exp: Tensor,
    delta: Tensor,
}

impl Inputs {
    fn pass<'a>(&self, launch: Launch<'a>) -> Launch<'a> {
        self.x.iter().chain([&self.log_sum_exp, &self.delta]).fold(launch, Launch::tensor)
    }
}

pub(super) fn vjp(e: &Extents, saved: &Saved, y_bar: &Tensor, wanted: &[bool]) -> Result<Vec<Option<Tensor>>> {
    let (dtype, device) = (y_bar.dtype(), y_bar.device());
    if e.s == 0 || e.l == 0 {
        return Ok((0..3).map(|i| wanted[i].then(|| Tensor::zeros(saved.shape(i), dtype, device))).collect());
    }
    let x = [saved.input(0)?, saved.input(1)?, saved.input(2)?, y_bar];
    let x = x.into_iter().map(aligned).collect::<Result<Vec<_>>>()?;
    let y = aligned(saved.output()?)?;
    match choose(e, dtype, device)? {
        Kernels::Hopper => hopper::backward(e, [&x[0], &x[1], &x[2], &x[3]], (&y, saved.kept(0)?), wanted),
        Kernels::Simple => simple_vjp(e, saved, x, &y, wanted),
        Kernels::Portable { shared } => portable_vjp(e, saved, x, &y, wanted, shared),
    }
}

fn simple_vjp(e: &Extents, saved: &Saved, x: Vec<Tensor>, y: &Tensor, wanted: &[bool]) -> Result<Vec<Option<Tensor>>> {
    let log_sum_exp = saved.kept(0)?.clone();
    let delta = Tensor::empty(log_sum_exp.shape(), log_sum_exp.dtype(), y.device())?;
    launch(e, &SIMPLE, "attention_delta", y, e.l.div_ceil(SIMPLE_DELTAS))?
        .threads(SIMPLE_THREADS)
        .tensor(y)
        .tensor(&x[3])
        .tensor(&delta)
        .optional(None)
        .size(e.l)
        .size(e.v)
        .size(e.n * e.v)
        .size(e.n * e.v)
        .run()?;
    let inputs = Inputs { x, log_sum_exp, delta };
    let bar = |i: usize| -> Result<Tensor> {
        let x_bar = Tensor::empty(saved.shape(i), y.dtype(), y.device())?;
        let extents = [[e.l, e.k], [e.s, e.k], [e.s, e.v]][i];
        let launch = inputs.pass(simple(e, "attention_backward", y, extents)?).tensor(&x_bar);
        let launch = lengths(unmasked(launch), e, Kernels::Simple).size(e.n * e.v);
        launch.size(e.n * extents[1]).real(e.scale).word(i as u32).run()?;
        Ok(x_bar)
    };
    (0..3).map(|i| wanted[i].then(|| bar(i)).transpose()).collect()
}

fn portable_vjp(
    e: &Extents,
    saved: &Saved,
    x: Vec<Tensor>,
    y: &Tensor,
    wanted: &[bool],
    shared: usize,
) -> Result<Vec<Option<Tensor>>> {
    let (dtype, device) = (y.dtype(), y.device());
    let statistics = || Tensor::empty(&[e.n, e.b, e.l.next_multiple_of(PADDED)], dtype.wide(), device);
    let inputs = Inputs { x, log_sum_exp: statistics()?, delta: statistics()? };
    let tiles = Tiles::backward_queries(e, shared);
    let queries = |kernel| portable(e, (&QUERIES, kernel), y, e.l, &tiles);
    queries("attention_delta")?
        .grid([e.l.next_multiple_of(PADDED) / DELTA_ROWS, e.n, e.b])
        .threads(DELTA_THREADS)
        .shared(0)
        .tensor(y)
        .tensor(&inputs.x[3])
        .tensor(saved.kept(0)?)
        .tensor(&inputs.log_sum_exp)
        .tensor(&inputs.delta)
        .optional(None)
        .size(e.l)
        .size(e.n * e.v)
        .size(e.n * e.v)
        .run()?;
    let bar = |i: usize| Tensor::empty(saved.shape(i), dtype, device);
    let finish = |launch, strides: &[usize]| {
        let launch = lengths(unmasked(launch), e, Kernels::Portable { shared }).size(e.n * e.v);
        strides.iter().fold(launch, |launch, &stride| launch.size(stride)).real(e.scale).run()
    };
    let mut bars = vec![None, None, None];
    // k̄ takes the δ that q̄ corrects.
    if wanted[0] || wanted[1] {
        let q_bar = bar(0)?;
        finish(inputs.pass(queries("attention_backward_queries")?).tensor(&q_bar), &[e.n * e.k])?;
        bars[0] = wanted[0].then_some(q_bar);
    }
    if wanted[1] || wanted[2] {
        let (k_bar, v_bar) = (bar(1)?, bar(2)?);
        let launch = portable(e, (&KEYS, "attention_backward_keys"), y, e.s, &Tiles::backward_keys(e, shared))?;
        finish(inputs.pass(launch).tensor(&k_bar).tensor(&v_bar), &[e.n * e.k, e.n * e.v])?;
        bars[1] = wanted[1].then_some(k_bar);
        bars[2] = wanted[2].then_some(v_bar);
    }
    Ok(bars)
}
