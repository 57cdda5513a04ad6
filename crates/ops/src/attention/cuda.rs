//! Chooses the kernels for a GPU, a dtype and the widths of a head, and starts them.

use std::sync::Arc;

use fewstep_tensor::cuda::{Launch, Source, Table, gpu};
use fewstep_tensor::{DType, Device, Tensor};

use super::tiles::{self, Room, Tiles};
use super::{Extents, Mask, hopper, wide};
use crate::{Dual, Output, Result, Saved};

const SAMPLES: &str = include_str!("samples.cuh");
const PORTABLE: &str = include_str!("portable.cuh");
const SIMPLE: Source = Source::new("attention_simple", &[SAMPLES, include_str!("simple.cu")]);
const FORWARD: Source = Source::new("attention_forward", &[SAMPLES, PORTABLE, include_str!("portable_forward.cu")]);
const QUERIES: Source =
    Source::new("attention_queries", &[SAMPLES, PORTABLE, include_str!("portable_backward_queries.cu")]);
const KEYS: Source = Source::new("attention_keys", &[SAMPLES, PORTABLE, include_str!("portable_backward_keys.cu")]);

/// What `simple.cu` is written for: threads and rows of a block, and columns of a part.
const SIMPLE_THREADS: usize = 128;
const SIMPLE_ROWS: usize = 16;
const SIMPLE_COLUMNS: usize = 128;
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
    /// `hopper_*.cu`: bf16, heads 64 and 128 wide, no mask, sm_90a.
    Hopper,
    /// `portable_*.cu`: bf16 on tensor cores, from sm_80 on.
    Portable(Room),
    /// Matrix products: bf16, one head wider than those, no mask. Tangents and cotangents are those of `simple.cu`.
    Wide,
}

fn choose(e: &Extents, masks: &Masks, dtype: DType, device: Device) -> Result<Kernels> {
    let gpu = gpu(device)?;
    let properties = gpu.properties();
    let unmasked = !masks.any() && masks.starts.is_none();
    if unmasked && hopper::serves(e, dtype, properties.capability) {
        return Ok(Kernels::Hopper);
    }
    let fits = [e.k, e.v].iter().all(|width| tiles::WIDTHS.contains(width) && width.is_multiple_of(8));
    let portable = dtype == DType::Bf16 && fits && e.scale > 0.0 && properties.capability >= (8, 0);
    let room = Room { shared: properties.shared, multiprocessors: properties.multiprocessors };
    Ok(match portable {
        true => Kernels::Portable(room),
        false if unmasked && wide::serves(e, dtype) => Kernels::Wide,
        false => Kernels::Simple,
    })
}

/// The tensor, or a copy where it does not begin at a multiple of 16 bytes, as a window may not.
fn aligned(t: &Tensor) -> Result<Tensor> {
    let mut t = t.clone();
    if !t.is_aligned(16) {
        t.make_unique()?;
    }
    Ok(t)
}

/// A mask as kernels take it, with the extents of what they cover: samples, and the most queries and keys of one.
struct Masks {
    samples: usize,
    queries: usize,
    keys: usize,
    bias: Option<(Arc<Table>, [usize; 3])>,
    allowed: Option<(Arc<Table>, [usize; 3])>,
    /// Where the queries and the keys of packed samples begin, and end.
    starts: Option<[Table; 2]>,
}

impl Masks {
    fn new(e: &Extents, mask: &Mask, dtype: DType, device: Device) -> Result<Self> {
        let [samples, queries, keys] = mask.extents([e.b, e.l, e.s]);
        let bias = mask.bias.as_ref().map(|pairs| -> Result<_> {
            let table = pairs.on(device, dtype, |bias| match dtype {
                DType::F64 => Table::new(device, &bias.iter().map(|&x| f64::from(x)).collect::<Vec<_>>()),
                _ => Table::new(device, bias),
            });
            Ok((table?, pairs.strides()))
        });
        let allowed = mask.allowed.as_ref().map(|pairs| -> Result<_> {
            Ok((pairs.on(device, dtype, |allowed| Table::new(device, allowed))?, pairs.strides()))
        });
        let starts = mask.packed.as_ref().map(|packed| -> Result<_> {
            let ends = |side: usize| {
                packed.iter().scan(0, move |end, lengths| {
                    *end += lengths[side] as i32;
                    Some(*end)
                })
            };
            let starts = |side| Table::new(device, &[0].into_iter().chain(ends(side)).collect::<Vec<i32>>());
            Ok([starts(0)?, starts(1)?])
        });
        let (bias, allowed) = (bias.transpose()?, allowed.transpose()?);
        Ok(Masks { samples, queries, keys, bias, allowed, starts: starts.transpose()? })
    }

    fn any(&self) -> bool {
        self.bias.is_some() || self.allowed.is_some()
    }

    /// Rows of the statistics of one head with every sample padded.
    fn padded(&self, e: &Extents) -> usize {
        match self.starts {
            Some(_) => (e.l / PADDED + self.samples) * PADDED,
            None => self.samples * e.l.next_multiple_of(PADDED),
        }
    }

    /// The additive mask, the boolean mask and packed samples, null where there are none.
    fn pass<'a>(&self, launch: Launch<'a>) -> Launch<'a> {
        let launch = [&self.bias, &self.allowed].into_iter().fold(launch, |launch, mask| match mask {
            Some((table, strides)) => strides.iter().fold(launch.table(table), |launch, &stride| launch.size(stride)),
            None => launch.optional(None).size(0).size(0).size(0),
        });
        match &self.starts {
            Some([queries, keys]) => launch.table(queries).table(keys),
            None => launch.optional(None).optional(None),
        }
    }

    fn pass_starts<'a>(&self, launch: Launch<'a>) -> Launch<'a> {
        match &self.starts {
            Some([queries, _]) => launch.table(queries),
            None => launch.optional(None),
        }
    }
}

/// An attention about to be computed on a GPU.
struct Call<'a> {
    e: &'a Extents,
    masks: Masks,
    dtype: DType,
    device: Device,
    kernels: Kernels,
}

impl<'a> Call<'a> {
    fn new(e: &'a Extents, mask: &Mask, x: &Tensor) -> Result<Self> {
        let (dtype, device) = (x.dtype(), x.device());
        let masks = Masks::new(e, mask, dtype, device)?;
        let kernels = choose(e, &masks, dtype, device)?;
        Ok(Call { e, masks, dtype, device, kernels })
    }

    /// The same by `simple.cu`, of what has no mask.
    fn simply(&self) -> Result<Self> {
        let (e, dtype, device) = (self.e, self.dtype, self.device);
        let masks = Masks::new(e, &Mask::default(), dtype, device)?;
        Ok(Call { e, masks, dtype, device, kernels: Kernels::Simple })
    }

    fn empty(&self, shape: &[usize]) -> Result<Tensor> {
        Ok(Tensor::empty(shape, self.dtype, self.device)?)
    }

    fn statistics(&self, shape: &[usize]) -> Result<Tensor> {
        Ok(Tensor::empty(shape, self.dtype.wide(), self.device)?)
    }

    /// A launch over blocks of rows, heads and samples.
    fn launch(&self, source: &'static Source, kernel: &'static str, blocks: usize) -> Result<Launch<'static>> {
        let grid = [blocks, self.e.n, self.masks.samples];
        Ok(Launch::new(self.device, source, self.dtype, kernel)?.grid(grid))
    }

    /// A launch of `simple.cu` over rows and parts of columns.
    fn simple(&self, kernel: &'static str, [rows, columns]: [usize; 2]) -> Result<Launch<'static>> {
        let blocks = rows.div_ceil(SIMPLE_ROWS) * columns.div_ceil(SIMPLE_COLUMNS).max(1);
        Ok(self.launch(&SIMPLE, kernel, blocks)?.threads(SIMPLE_THREADS))
    }

    /// A launch of a portable kernel over rows.
    fn portable(
        &self,
        (source, kernel): (&'static Source, &'static str),
        rows: usize,
        tiles: &Tiles,
    ) -> Result<Launch<'static>> {
        let launch =
            self.launch(source, kernel, rows.div_ceil(tiles.rows))?.threads(tiles.threads).shared(tiles.shared);
        let launch = launch.define("HEAD", self.e.k).define("VALUE", self.e.v);
        let launch = launch.define("MASK", u8::from(self.masks.any()));
        Ok(tiles.defines.iter().fold(launch, |launch, (name, value)| launch.define(name, value)))
    }

    /// L and S, the widths where they are not compiled in, and the strides of tokens of q, k and v.
    fn lengths<'l>(&self, launch: Launch<'l>) -> Launch<'l> {
        let Extents { l, s, n, k, v, .. } = *self.e;
        let launch = launch.size(l).size(s);
        let launch = match self.kernels {
            Kernels::Simple => launch.size(k).size(v),
            Kernels::Hopper | Kernels::Portable(_) | Kernels::Wide => launch,
        };
        launch.size(n * k).size(n * k).size(n * v)
    }

    /// y, ẏ if there is any tangent, and the log-sum-exp.
    fn evaluate(&self, x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<(Tensor, Option<Tensor>, Tensor)> {
        let e = self.e;
        let y = self.empty(&[e.b, e.l, e.n * e.v])?;
        let moves = x_dot.iter().any(Option::is_some);
        let apart = matches!(self.kernels, Kernels::Wide);
        let y_dot = (moves && !apart).then(|| self.empty(y.shape())).transpose()?;
        let log_sum_exp = self.statistics(&[e.b, e.n, e.l])?;
        let x = x.iter().map(|t| aligned(t)).collect::<Result<Vec<_>>>()?;
        let x_dot = x_dot.iter().map(|t| t.map(aligned).transpose()).collect::<Result<Vec<_>>>()?;
        let launch = match self.kernels {
            Kernels::Hopper => {
                hopper::forward(e, &x, &x_dot, (&y, y_dot.as_ref(), &log_sum_exp))?;
                return Ok((y, y_dot, log_sum_exp));
            }
            Kernels::Wide => {
                wide::forward(e, &x, &y, &log_sum_exp)?;
                let dots: Vec<Option<&Tensor>> = x_dot.iter().map(Option::as_ref).collect();
                let moved = moves.then(|| self.simply()?.evaluate(&x.iter().collect::<Vec<_>>(), &dots));
                return Ok((y, moved.transpose()?.and_then(|(_, y_dot, _)| y_dot), log_sum_exp));
            }
            Kernels::Simple => self.simple("attention_forward", [self.masks.queries, e.v])?,
            Kernels::Portable(room) => {
                let dots = [0, 1, 2].map(|i| x_dot[i].is_some());
                let tiles = Tiles::forward(e, dots, self.masks.any(), room);
                let launch = self.portable((&FORWARD, "attention_forward"), self.masks.queries, &tiles)?;
                let names = ["Q_DOT", "K_DOT", "V_DOT"].into_iter().zip(dots);
                names.fold(launch, |launch, (name, dot)| launch.define(name, u8::from(dot)))
            }
        };
        let launch = x.iter().fold(launch, Launch::tensor);
        let launch = x_dot.iter().fold(launch, |launch, t| launch.optional(t.as_ref()));
        let launch = self.masks.pass(launch.tensor(&y).optional(y_dot.as_ref()).tensor(&log_sum_exp));
        self.lengths(launch).size(e.n * e.v).real(e.scale).run()?;
        Ok((y, y_dot, log_sum_exp))
    }
}

pub(super) fn forward(e: &Extents, x: &[&Tensor], mask: &Mask) -> Result<Output> {
    let (y, _, log_sum_exp) = Call::new(e, mask, x[0])?.evaluate(x, &[None; 3])?;
    Ok(Output { y, kept: vec![log_sum_exp] })
}

pub(super) fn jvp(e: &Extents, x: &[&Tensor], x_dot: &[Option<&Tensor>], mask: &Mask) -> Result<Dual> {
    let (primal, tangent, _) = Call::new(e, mask, x[0])?.evaluate(x, x_dot)?;
    Ok(Dual { primal, tangent })
}

pub(super) fn vjp(
    e: &Extents,
    saved: &Saved,
    y_bar: &Tensor,
    wanted: &[bool],
    mask: &Mask,
) -> Result<Vec<Option<Tensor>>> {
    let call = Call::new(e, mask, y_bar)?;
    if e.s == 0 || e.l == 0 {
        let zeros = |i: usize| Tensor::zeros(saved.shape(i), call.dtype, call.device);
        return Ok((0..3).map(|i| wanted[i].then(|| zeros(i))).collect());
    }
    let x = [saved.input(0)?, saved.input(1)?, saved.input(2)?, y_bar];
    let backward = Backward {
        x: x.into_iter().map(aligned).collect::<Result<Vec<_>>>()?,
        y: aligned(saved.output()?)?,
        log_sum_exp: saved.kept(0)?.clone(),
        call,
    };
    match backward.call.kernels {
        Kernels::Hopper => {
            let Backward { x, y, log_sum_exp, .. } = &backward;
            hopper::backward(e, [&x[0], &x[1], &x[2], &x[3]], (y, log_sum_exp), wanted)
        }
        Kernels::Simple => backward.simple(wanted),
        Kernels::Wide => Backward { call: backward.call.simply()?, ..backward }.simple(wanted),
        Kernels::Portable(room) => backward.portable(wanted, room),
    }
}

/// What the backward kernels read: q, k, v, ȳ; y; the log-sum-exp.
struct Backward<'a> {
    call: Call<'a>,
    x: Vec<Tensor>,
    y: Tensor,
    log_sum_exp: Tensor,
}

impl Backward<'_> {
    fn inputs<'l>(&self, launch: Launch<'l>, log_sum_exp: &Tensor, delta: &Tensor) -> Launch<'l> {
        self.x.iter().chain([log_sum_exp, delta]).fold(launch, Launch::tensor)
    }

    /// Masks, lengths, strides and scale.
    fn rest<'l>(&self, launch: Launch<'l>, strides: &[usize]) -> Launch<'l> {
        let e = self.call.e;
        let launch = self.call.lengths(self.call.masks.pass(launch)).size(e.n * e.v);
        strides.iter().fold(launch, |launch, &stride| launch.size(stride)).real(e.scale)
    }

    fn simple(&self, wanted: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let (call, e) = (&self.call, self.call.e);
        let delta = call.statistics(self.log_sum_exp.shape())?;
        let launch = call.simple("attention_delta", [call.masks.queries, 1])?;
        self.rest(self.inputs(launch, &self.log_sum_exp, &delta), &[]).run()?;
        let bar = |i: usize| -> Result<Tensor> {
            let x_bar = call.empty(self.x[i].shape())?;
            let rows = [call.masks.queries, call.masks.keys, call.masks.keys][i];
            let width = [e.k, e.k, e.v][i];
            let launch = call.simple("attention_backward", [rows, width])?;
            let launch = self.inputs(launch, &self.log_sum_exp, &delta).tensor(&x_bar);
            self.rest(launch, &[e.n * width]).word(i as u32).run()?;
            Ok(x_bar)
        };
        (0..3).map(|i| wanted[i].then(|| bar(i)).transpose()).collect()
    }

    fn portable(&self, wanted: &[bool], room: Room) -> Result<Vec<Option<Tensor>>> {
        let (call, e) = (&self.call, self.call.e);
        let padded = [e.n, call.masks.padded(e)];
        let (exponents, delta) = (call.statistics(&padded)?, call.statistics(&padded)?);
        let tiles = Tiles::backward_queries(e, call.masks.any(), room);
        let queries = |kernel| call.portable((&QUERIES, kernel), call.masks.queries, &tiles);
        let launch = queries("attention_delta")?
            .grid([call.masks.queries.next_multiple_of(PADDED) / DELTA_ROWS, e.n, call.masks.samples])
            .threads(DELTA_THREADS)
            .shared(0);
        let launch =
            [&self.y, &self.x[3], &self.log_sum_exp, &exponents, &delta].into_iter().fold(launch, Launch::tensor);
        call.masks.pass_starts(launch).size(e.l).size(e.n * e.v).size(e.n * e.v).run()?;
        let mut bars = vec![None, None, None];
        // k̄ takes the δ that q̄ corrects.
        if wanted[0] || wanted[1] {
            let q_bar = call.empty(self.x[0].shape())?;
            let launch = self.inputs(queries("attention_backward_queries")?, &exponents, &delta).tensor(&q_bar);
            self.rest(launch, &[e.n * e.k]).run()?;
            bars[0] = wanted[0].then_some(q_bar);
        }
        if wanted[1] || wanted[2] {
            let (k_bar, v_bar) = (call.empty(self.x[1].shape())?, call.empty(self.x[2].shape())?);
            let tiles = Tiles::backward_keys(e, room);
            let launch = call.portable((&KEYS, "attention_backward_keys"), call.masks.keys, &tiles)?;
            let launch = self.inputs(launch, &exponents, &delta).tensor(&k_bar).tensor(&v_bar);
            self.rest(launch, &[e.n * e.k, e.n * e.v]).run()?;
            bars[1] = wanted[1].then_some(k_bar);
            bars[2] = wanted[2].then_some(v_bar);
        }
        Ok(bars)
    }
}
