//! Every fused op, the matrix products and attention on a GPU, at the sizes of Wan 1.3B's 480p, beside the device's own rates.

use std::sync::Arc;

use fewstep_distill::optimizer::{AdamW, AdamWConfig};
use fewstep_ops::{
    Activation, Add, Attention, GatedResidual, LayerNormAffine, LayerNormModulate, Linear, LinearGelu, NormScope, Op,
    RmsNormRope, Rope, RopeStyle, RopeTable, Saved,
};
use fewstep_tensor::cuda::{Factor, Gpu, gpu, multiply};
use fewstep_tensor::random::{Purpose, Stream};
use fewstep_tensor::{DType, Device, Tensor, arith};

use super::{Row, median, print_json};
use crate::args::BenchArgs;
use crate::commands::{is_wanted, none_wanted};
use crate::device;
use crate::error::Result;
use crate::terminal::{Progress, print};

/// Tokens of 480 by 832 pixels and 81 frames, the width, its heads, and the width of the feed-forward.
const TOKENS: usize = 32_760;
const DIM: usize = 1536;
const HEADS: usize = 12;
const FFN: usize = 8960;
const TEXT: usize = 512;
/// Calls of one timing, so that the host is ahead of the device.
const CALLS: usize = 10;
/// Edge of the product and elements of the copy whose rates are the ceilings.
const EDGE: usize = 8192;
const COPIED: usize = 1 << 31;
const PARAMETERS: usize = 1 << 28;

/// The product and the copy that come first: what all else is held against.
const CEILINGS: usize = 2;

type Call<'a> = Box<dyn FnMut() -> Result<()> + 'a>;

pub(super) struct Bench {
    pub(super) device: Device,
    pub(super) gpu: Gpu,
    pub(super) repeat: usize,
    /// What names must contain, but for the ceilings.
    only: Vec<String>,
    pub(super) rows: Vec<Row>,
    pub(super) progress: Progress,
}

/// Runs the benchmark.
///
/// # Errors
/// If the device has no memory for it, or fails.
pub fn run(args: &BenchArgs) -> Result<()> {
    device::open(args.device)?;
    device::say_software(args.device.0)?;
    let (device, gpu) = (args.device.0, gpu(args.device.0)?);
    let (repeat, only, progress) = (args.repeat, args.only.clone(), Progress::new("Measuring", 0));
    let mut bench = Bench { device, gpu, repeat, only, rows: Vec::new(), progress };
    bench.ceilings()?;
    bench.products()?;
    bench.elementwise()?;
    bench.norms()?;
    bench.attention()?;
    bench.optimizer()?;
    bench.convolutions()?;
    let Bench { rows, progress, .. } = bench;
    drop(progress);
    if rows.len() == CEILINGS {
        return Err(none_wanted("measurement", &args.only));
    }
    if args.json { print_json(&rows) } else { table(&rows) }
}

fn table(rows: &[Row]) -> Result<()> {
    let rate = |r: &Row| if r.flops > 0.0 { r.flops / r.seconds } else { r.bytes / r.seconds };
    let (product, copy) = (rate(&rows[0]), rate(&rows[1]));
    print(format_args!("{:52} {:>9} {:>9} {:>8} {:>8} {:>8}\n", "", "ms", "TFLOP/s", "GB/s", "of peak", "in GB"))?;
    for r in rows {
        let [flops, bytes, of] = match (r.flops > 0.0, r.bytes > 0.0) {
            (true, _) => {
                [format!("{:.0}", rate(r) * 1e-12), String::new(), format!("{:.0} %", 100.0 * rate(r) / product)]
            }
            (_, true) => [String::new(), format!("{:.0}", rate(r) * 1e-9), format!("{:.0} %", 100.0 * rate(r) / copy)],
            _ => [const { String::new() }; 3],
        };
        let peak = if r.peak_gb > 0.0 { format!("{:.2}", r.peak_gb) } else { String::new() };
        print(format_args!("{:52} {:>9.3} {flops:>9} {bytes:>8} {of:>8} {peak:>8}\n", r.name, r.seconds * 1e3))?;
    }
    Ok(())
}

impl Bench {
    pub(super) fn draw(&self, seed: u64, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let stream = Stream::new(seed, Purpose::Check, 0);
        let flat = [1, shape.iter().product()];
        Ok(arith::normal(&stream, 0, &flat, DType::F32, self.device)?.reshape(shape)?.to_dtype(dtype))
    }

    pub(super) fn half(&self, seed: u64, shape: &[usize]) -> Result<Tensor> {
        self.draw(seed, shape, DType::Bf16)
    }

    pub(super) fn is_wanted(&self, name: &str) -> bool {
        self.rows.len() < CEILINGS || is_wanted(&self.only, &[name])
    }

    /// The median time of a call.
    pub(super) fn measure(&mut self, name: String, (flops, bytes): (f64, f64), mut call: Call<'_>) -> Result<()> {
        if !self.is_wanted(&name) {
            return Ok(());
        }
        self.progress.note(&name);
        call()?;
        self.gpu.synchronize()?;
        let seconds = (0..self.repeat)
            .map(|_| -> Result<f64> {
                // Keeps the device busy until the host has asked for the first that counts.
                call()?;
                let all: Result<f64> = self.gpu.time(|| (0..CALLS).try_for_each(|_| call()));
                Ok(all? / CALLS as f64)
            })
            .collect::<Result<Vec<f64>>>()?;
        self.progress.advance(1);
        self.rows.push(Row { name, seconds: median(seconds), flops, bytes, peak_gb: 0.0 });
        Ok(())
    }

    fn ceilings(&mut self) -> Result<()> {
        let (a, b) = (self.half(0, &[EDGE, EDGE])?, self.half(1, &[EDGE, EDGE])?);
        let c = Tensor::empty(&[EDGE, EDGE], DType::Bf16, self.device)?;
        let flops = 2.0 * (EDGE as f64).powi(3);
        let factor = |tensor| Factor { tensor, transposed: false };
        let product = || Ok(multiply([EDGE; 3], factor(&a), factor(&b), None, &c, false)?);
        self.measure(format!("matmul {EDGE}x{EDGE}x{EDGE}"), (flops, 0.0), Box::new(product))?;
        let from = Tensor::empty(&[COPIED], DType::Bf16, self.device)?;
        let bytes = 4.0 * COPIED as f64;
        self.measure("copy 4GiB".into(), (0.0, bytes), Box::new(|| Ok(Tensor::cat(&[&from]).map(drop)?)))
    }

    fn products(&mut self) -> Result<()> {
        for (o, i) in [(DIM, DIM), (FFN, DIM), (DIM, FFN)] {
            let (x, w, b) = (self.half(0, &[TOKENS, i])?, self.half(1, &[o, i])?, self.half(2, &[o])?);
            let (y_bar, at) = (self.half(3, &[TOKENS, o])?, format!("{TOKENS}x{o}x{i}"));
            let work = (2.0 * TOKENS as f64 * o as f64 * i as f64, 0.0);
            let (plain, biased) = (Linear { bias: false }, Linear { bias: true });
            self.measure(format!("linear forward {at}"), work, forward(&plain, vec![&x, &w]))?;
            self.measure(format!("linear forward bias {at}"), work, forward(&biased, vec![&x, &w, &b]))?;
            let gelu = LinearGelu { bias: true };
            let alone = || Ok(gelu.value(&[&x, &w, &b]).map(drop)?);
            self.measure(format!("linear forward bias gelu {at}"), work, Box::new(alone))?;
            self.measure(format!("linear forward bias gelu kept {at}"), work, forward(&gelu, vec![&x, &w, &b]))?;
            let saved = saved(&plain, &[&x, &w])?;
            self.measure(format!("linear vjp x {at}"), work, vjp(&plain, &saved, &y_bar, vec![true, false]))?;
            self.measure(format!("linear vjp w {at}"), work, vjp(&plain, &saved, &y_bar, vec![false, true]))?;
            let mut sum = Some(self.draw(4, &[o, i], DType::F32)?);
            let added = || {
                let bars = plain.vjp_onto(&saved, y_bar.clone(), &[false, true], vec![None, sum.take()])?;
                sum = bars.into_iter().nth(1).flatten();
                Ok(())
            };
            self.measure(format!("linear vjp w added {at}"), work, Box::new(added))?;
        }
        Ok(())
    }

    /// Forward, tangent and cotangents of an op that memory bounds: as much as `streams` whole activations each is read or written
    /// once.
    fn op(&mut self, name: &str, op: &dyn Op, x: &[&Tensor], moved: &[bool], streams: [f64; 3]) -> Result<()> {
        let size = (x[0].len() * x[0].dtype().size()) as f64;
        let at = x[0].shape().iter().filter(|n| **n != 1).map(usize::to_string).collect::<Vec<_>>().join("x");
        self.measure(format!("{name} {at}"), (0.0, streams[0] * size), forward(op, x.to_vec()))?;
        let tangents: Vec<Option<Tensor>> = x
            .iter()
            .zip(moved)
            .enumerate()
            .map(|(i, (t, moved))| moved.then(|| self.draw(10 + i as u64, t.shape(), t.dtype())).transpose())
            .collect::<Result<_>>()?;
        let jvp = || {
            let dots: Vec<Option<&Tensor>> = tangents.iter().map(Option::as_ref).collect();
            Ok(op.jvp(x, &dots).map(drop)?)
        };
        self.measure(format!("{name} jvp {at}"), (0.0, streams[1] * size), Box::new(jvp))?;
        let (saved, y_bar) = (saved(op, x)?, self.half(20, x[0].shape())?);
        self.measure(format!("{name} vjp {at}"), (0.0, streams[2] * size), vjp(op, &saved, &y_bar, vec![true; x.len()]))
    }

    fn elementwise(&mut self) -> Result<()> {
        let wide = self.half(0, &[1, TOKENS, FFN])?;
        self.op("gelu", &Activation::GeluTanh, &[&wide], &[true], [2.0, 4.0, 3.0])?;
        drop(wide);
        let (x, h) = (self.half(0, &[1, TOKENS, DIM])?, self.half(1, &[1, TOKENS, DIM])?);
        let gate = self.draw(2, &[1, 1, DIM], DType::F32)?;
        self.op("gated_residual", &GatedResidual, &[&x, &h, &gate], &[true, true, false], [3.0, 6.0, 3.0])?;
        let size = (x.len() * 2) as f64;
        self.measure(format!("add {TOKENS}x{DIM}"), (0.0, 3.0 * size), forward(&Add, vec![&x, &h]))
    }

    fn norms(&mut self) -> Result<()> {
        let x = self.half(0, &[1, TOKENS, DIM])?;
        let [shift, scale] = [self.draw(1, &[1, 1, DIM], DType::F32)?, self.draw(2, &[1, 1, DIM], DType::F32)?];
        let modulate = LayerNormModulate { eps: 1e-6 };
        let norms = [2.0, 4.0, 3.0];
        self.op("layer_norm_modulate", &modulate, &[&x, &shift, &scale], &[true, false, false], norms)?;
        let (weight, bias) = (scale.reshape(&[DIM])?, shift.reshape(&[DIM])?);
        let affine = LayerNormAffine { eps: 1e-6 };
        self.op("layer_norm_affine", &affine, &[&x, &weight, &bias], &[true, false, false], norms)?;
        let pairs = DIM / HEADS / 2;
        let table = Arc::new(RopeTable::lazy(TOKENS, pairs, move || (0..TOKENS * pairs).map(|i| i as f64).collect()));
        let rope = Some(Rope { style: RopeStyle::Interleaved, table });
        let rms = RmsNormRope { heads: HEADS, scope: NormScope::Width, eps: 1e-6, rope };
        // Cosines and sines in f32, in activations.
        let table = (2 * TOKENS * pairs * DType::F32.size()) as f64 / (x.len() * x.dtype().size()) as f64;
        self.op("rms_norm_rope", &rms, &[&x, &weight], &[true, false], norms.map(|n| n + table))
    }

    fn attention(&mut self) -> Result<()> {
        for (width, keys) in [(128, TOKENS), (128, TEXT), (64, TOKENS), (64, TEXT)] {
            let op = Attention { heads: HEADS, scale: None };
            let [q, k, v] =
                [(0, TOKENS), (1, keys), (2, keys)].map(|(seed, l)| self.half(seed, &[1, l, HEADS * width]));
            let (q, k, v) = (q?, k?, v?);
            let at = match keys == TOKENS {
                true => format!("1x{HEADS}x{TOKENS}x{width}"),
                false => format!("1x{HEADS}x{TOKENS}x{width} keys {keys}"),
            };
            let product = 2.0 * (HEADS * TOKENS * keys * width) as f64;
            let x = [&q, &k, &v];
            self.measure(format!("attention forward {at}"), (2.0 * product, 0.0), forward(&op, x.to_vec()))?;
            let dots = [self.half(3, q.shape())?, self.half(4, k.shape())?, self.half(5, v.shape())?];
            // The text's keys and values do not move.
            let (moved, products) = if keys == TOKENS { (3, 6.0) } else { (1, 4.0) };
            let jvp = || {
                let dots: Vec<Option<&Tensor>> =
                    dots.iter().enumerate().map(|(i, d)| (i < moved).then_some(d)).collect();
                Ok(op.jvp(&x, &dots).map(drop)?)
            };
            self.measure(format!("attention jvp {at}"), (products * product, 0.0), Box::new(jvp))?;
            let (saved, y_bar) = (saved(&op, &x)?, self.half(6, q.shape())?);
            let work = (5.0 * product, 0.0);
            self.measure(format!("attention vjp {at}"), work, vjp(&op, &saved, &y_bar, vec![true; 3]))?;
        }
        Ok(())
    }

    fn optimizer(&mut self) -> Result<()> {
        let draw = |seed| self.draw(seed, &[PARAMETERS], DType::F32);
        let (mut params, grads) = (vec![draw(0)?], vec![draw(1)?]);
        let mut adamw = AdamW::new(AdamWConfig::default(), &["w".into()], &params)?;
        // Parameter, second moment: read and written; the gradient is read for its norm and again.
        let bytes = 6.0 * 4.0 * PARAMETERS as f64;
        let step = || Ok(adamw.step(&mut params, &grads, 1.0).map(drop)?);
        self.measure(format!("adamw {PARAMETERS}"), (0.0, bytes), Box::new(step))
    }
}

pub(super) fn forward<'a>(op: &'a dyn Op, x: Vec<&'a Tensor>) -> Call<'a> {
    Box::new(move || Ok(op.forward(&x).map(drop)?))
}

fn vjp<'a>(op: &'a dyn Op, saved: &'a Saved, y_bar: &'a Tensor, wanted: Vec<bool>) -> Call<'a> {
    Box::new(move || Ok(op.vjp(saved, y_bar, &wanted).map(drop)?))
}

fn saved(op: &dyn Op, x: &[&Tensor]) -> Result<Saved> {
    Ok(Saved::of(op, x, &op.forward(x)?))
}
