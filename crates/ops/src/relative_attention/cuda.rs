//! Products with the scores of all sequences and heads in memory.

use fewstep_tensor::cuda::{Launch, Source, Table};
use fewstep_tensor::{DType, Device, Tensor};

use super::{Extents, Span};
use crate::{Dual, Result};

const SOURCE: Source = Source::new("relative_attention", &[include_str!("relative_attention.cu")]);
const THREADS: usize = 256;
/// Rows and columns of a tile of a product.
const TILE: usize = 32;
const WARP: usize = 32;

/// The sequences on the device, and the extents that all of them fit in.
struct Tasks<'a> {
    e: &'a Extents,
    table: Table,
    sequences: usize,
    rows: usize,
    keys: usize,
    scores: usize,
    dtype: DType,
    device: Device,
}

impl<'a> Tasks<'a> {
    fn new(e: &'a Extents, spans: &[Span], like: &Tensor) -> Result<Self> {
        let (mut numbers, mut first, mut scores) = (Vec::with_capacity(4 * spans.len()), 0, 0);
        for s in spans {
            numbers.extend([first, s.rows, s.keys, scores].map(|n| n as u64));
            first += s.rows;
            scores += s.rows * s.keys * e.n;
        }
        Ok(Tasks {
            e,
            table: Table::new(like.device(), &numbers)?,
            sequences: spans.len(),
            rows: spans.iter().map(|s| s.rows).max().unwrap_or(0),
            keys: spans.iter().map(|s| s.keys).max().unwrap_or(0),
            scores,
            dtype: like.dtype(),
            device: like.device(),
        })
    }

    /// A kernel on tiles of so many columns and of all rows, of every sequence and head.
    fn launch(&self, kernel: &'static str, columns: usize, rows: usize) -> Result<Launch<'static>> {
        let launch = Launch::new(self.device, &SOURCE, self.dtype, kernel)?.threads(THREADS);
        Ok(launch.grid([columns.div_ceil(TILE), self.rows.div_ceil(rows), self.sequences * self.e.n]))
    }

    /// bias(j − i) + Σ x·yᵀ over the pairs, of rows `width` wide.
    fn scores(&self, bias: Option<&Tensor>, pairs: [Option<[&Tensor; 2]>; 2], width: usize) -> Result<Tensor> {
        let s = Tensor::empty(&[self.scores], self.dtype.wide(), self.device)?;
        let mut launch = self.launch("scores", self.keys, TILE)?.tensor(&s).table(&self.table).size(self.e.n);
        launch = launch.optional(bias).size(self.e.r);
        for pair in pairs {
            launch = launch.optional(pair.map(|p| p[0])).optional(pair.map(|p| p[1]));
        }
        launch.size(width).run()?;
        Ok(s)
    }

    /// softmax(q·kᵀ + bias).
    fn probabilities(&self, q: &Tensor, k: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let p = self.scores(Some(bias), [Some([q, k]), None], self.e.k)?;
        self.launch("softmax", 1, THREADS / WARP)?.tensor(&p).table(&self.table).size(self.e.n).run()?;
        Ok(p)
    }

    /// d ← p∘(d − ⟨p, d⟩)
    fn derivative(&self, d: &Tensor, p: &Tensor) -> Result<()> {
        let launch = self.launch("softmax_derivative", 1, THREADS / WARP)?;
        Ok(launch.tensor(d).tensor(p).table(&self.table).size(self.e.n).run()?)
    }

    /// Σ p·x over the pairs, or of the first alone with p transposed.
    fn weigh(&self, pairs: [Option<[&Tensor; 2]>; 2], width: usize, transposed: bool) -> Result<Tensor> {
        let out = Tensor::empty(&[self.e.t, self.e.n * width], self.dtype, self.device)?;
        let mut launch = self.launch("weigh", width, TILE)?.tensor(&out).table(&self.table).size(self.e.n);
        for pair in pairs {
            launch = launch.optional(pair.map(|p| p[0])).optional(pair.map(|p| p[1]));
        }
        launch.size(width).flag(transposed).run()?;
        Ok(out)
    }
}

/// o = P·V and, where there is a tangent, ȯ = Ṗ·V + P·V̇ with Ṗ from Ṡ = q̇·kᵀ + q·k̇ᵀ + biaṡ.
pub(super) fn jvp(e: &Extents, spans: &[Span], x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<Dual> {
    let (&[q, k, v, bias], &[q_dot, k_dot, v_dot, bias_dot]) = (x, x_dot) else {
        return Err(crate::Error::input(super::NAME, "q, k, v and bias", x.len()));
    };
    let tasks = Tasks::new(e, spans, q)?;
    let p = tasks.probabilities(q, k, bias)?;
    let primal = tasks.weigh([Some([&p, v]), None], e.v, false)?;
    let mut p_dot = None;
    if q_dot.is_some() || k_dot.is_some() || bias_dot.is_some() {
        let s_dot = tasks.scores(bias_dot, [q_dot.map(|d| [d, k]), k_dot.map(|d| [q, d])], e.k)?;
        tasks.derivative(&s_dot, &p)?;
        p_dot = Some(s_dot);
    }
    let pairs = [p_dot.as_ref().map(|d| [d, v]), v_dot.map(|d| [&p, d])];
    let moves = pairs.iter().any(Option::is_some);
    Ok(Dual { primal, tangent: moves.then(|| tasks.weigh(pairs, e.v, false)).transpose()? })
}

/// With S̄ from P̄ = ō·Vᵀ: q̄ = S̄·K, k̄ = S̄ᵀ·Q, v̄ = Pᵀ·ō, and bias̄ sums S̄ along its diagonals.
pub(super) fn vjp(
    e: &Extents,
    spans: &[Span],
    [q, k, v, bias]: [&Tensor; 4],
    o_bar: &Tensor,
    wanted: &[bool],
) -> Result<Vec<Option<Tensor>>> {
    let tasks = Tasks::new(e, spans, q)?;
    let p = tasks.probabilities(q, k, bias)?;
    let s_bar = tasks.scores(None, [Some([o_bar, v]), None], e.v)?;
    tasks.derivative(&s_bar, &p)?;
    let weigh =
        |p: &Tensor, x: &Tensor, width: usize, transposed: bool| tasks.weigh([Some([p, x]), None], width, transposed);
    let diagonals = || -> Result<Tensor> {
        let bias_bar = Tensor::empty(&[e.r, e.n], tasks.dtype, tasks.device)?;
        Launch::new(tasks.device, &SOURCE, tasks.dtype, "sum_diagonals")?
            .grid([e.r, e.n, 1])
            .threads(WARP)
            .tensor(&bias_bar)
            .tensor(&s_bar)
            .table(&tasks.table)
            .size(tasks.sequences)
            .size(e.n)
            .size(e.r)
            .run()?;
        Ok(bias_bar)
    };
    Ok(vec![
        wanted[0].then(|| weigh(&s_bar, k, e.k, false)).transpose()?,
        wanted[1].then(|| weigh(&s_bar, q, e.k, true)).transpose()?,
        wanted[2].then(|| weigh(&p, o_bar, e.v, true)).transpose()?,
        wanted[3].then(diagonals).transpose()?,
    ])
}
