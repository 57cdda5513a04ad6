//! Time and memory of a network's passes on a CPU, beside the rate of the matrix product.

use std::time::Instant;

use fewstep_nn::wan::{Wan, WanConfig};
use fewstep_ops::{Conditions, Forward, Grads, Mode, Network, Params, Plain, Recompute, Reverse};
use fewstep_plan::{Hardware, Latent, Phase, Request, Work, plan};
use fewstep_tensor::gemm::{Mat, MatMut, Threads, gemm};
use fewstep_tensor::random::{Purpose, Stream};
use fewstep_tensor::{DType, Device, Tensor, arith, memory, reset_peak};
use serde::Serialize;

use super::median;
use crate::args::BenchArgs;
use crate::error::{Error, Result};
use crate::status;
use crate::terminal::print;

/// The network if none is named.
const PRESET: &str = "mid";
/// Edge of the matrix product whose rate is the ceiling.
const GEMM_EDGE: usize = 1024;
const SAMPLES: usize = 2;
const TEXT_TOKENS: usize = 64;

/// One measured pass.
#[derive(Clone, Debug, Serialize)]
struct Row {
    pass: &'static str,
    /// Median seconds.
    seconds: f64,
    /// Relative to the plain forward pass.
    of_forward: f64,
    gflops: f64,
    /// Share of the matrix product's rate.
    of_gemm: f64,
    /// Most tensor memory beyond what was live before, in MiB.
    peak_mib: f64,
}

/// The network under test with its inputs.
struct Bench {
    wan: Wan,
    params: Params,
    x: Tensor,
    t: Tensor,
    conditions: Conditions,
    repeat: usize,
}

impl Bench {
    fn new(args: &BenchArgs) -> Result<Self> {
        let config = WanConfig::preset(args.preset.as_deref().unwrap_or(PRESET)).ok_or_else(|| {
            let names: Vec<&str> = WanConfig::PRESETS.iter().map(|(n, _)| *n).collect();
            Error::Argument(format!(
                "no network '{}'; there are {}",
                args.preset.as_deref().unwrap_or(PRESET),
                names.join(", ")
            ))
        })?;
        let [_, ph, pw] = config.patch;
        // 2,048 tokens a sample: 8 frames of 16 × 16 patches.
        let shape = [SAMPLES, config.in_channels, 8 * config.patch[0], 16 * ph, 16 * pw];
        let stream = Stream::new(0, Purpose::Check, 0);
        let draw = |first, shape: &[usize]| arith::normal(&stream, first, shape, DType::F32, Device::Cpu);
        let text = draw(10, &[SAMPLES, TEXT_TOKENS, config.text_dim])?;
        let wan = Wan::new(config)?;
        let params = randomised(&Params::init(wan.specs(), 0, DType::F32, Device::Cpu)?)?;
        let t = Tensor::from_vec(vec![300.0, 700.0], &[SAMPLES])?;
        Ok(Bench { x: draw(0, &shape)?, t, conditions: Conditions::text(text), wan, params, repeat: args.repeat })
    }

    fn forward(&self) -> Result<()> {
        let m = Plain::new(&self.params);
        self.wan.forward(&m, &self.x, &self.t, &self.conditions.in_mode(&m))?;
        Ok(())
    }

    fn jvp(&self) -> Result<()> {
        let m = Forward::new(&self.params);
        let x = m.input(self.x.clone(), Some(self.x.clone()));
        let t = m.input(self.t.clone(), Some(self.t.clone()));
        self.wan.forward(&m, &x, &t, &self.conditions.in_mode(&m))?;
        Ok(())
    }

    fn gradient(&self, recompute: Recompute) -> Result<()> {
        let m = Reverse::new(&self.params, recompute);
        let (x, t) = (m.constant(self.x.clone()), m.constant(self.t.clone()));
        let y = self.wan.forward(&m, &x, &t, &self.conditions.in_mode(&m))?;
        let bar = y.value().clone();
        m.backward(&y, bar, &mut Grads::new(&self.params))?;
        Ok(())
    }

    /// Operations of the matrix products and of attention in a forward pass, as `plan` counts them.
    fn forward_flops(&self) -> Result<f64> {
        let [batch, _, frames, height, width] = self.x.dims()?;
        let new = Request::new(self.wan.config().clone(), Latent { frames, height, width });
        let work = Work::Sample { steps: 1, guided: false };
        let request = Request { batch, text_tokens: TEXT_TOKENS, work, ..new };
        let plan = plan(&request, &Hardware::measured(1.0, 1.0, 0))?;
        Ok(plan.phases.iter().map(Phase::product_flops).sum())
    }

    /// Medians of passes taken in turns, so that a slow moment of the machine touches all of them.
    fn measure(&self, gemm_gflops: f64) -> Result<Vec<Row>> {
        type Pass<'a> = (&'static str, f64, Box<dyn Fn() -> Result<()> + 'a>);
        let passes: [Pass; 5] = [
            ("forward", 1.0, Box::new(|| self.forward())),
            ("jvp", 2.0, Box::new(|| self.jvp())),
            ("forward + backward, keeping everything", 3.0, Box::new(|| self.gradient(Recompute::Nothing))),
            (
                "forward + backward, recomputing all but attention",
                3.0,
                Box::new(|| self.gradient(Recompute::AllButAttention)),
            ),
            ("forward + backward, recomputing blocks", 3.0, Box::new(|| self.gradient(Recompute::Everything))),
        ];
        let mut seconds = vec![Vec::new(); passes.len()];
        let mut peaks = vec![0.0; passes.len()];
        for round in 0..=self.repeat {
            for (i, (name, _, pass)) in passes.iter().enumerate() {
                let live = memory().0;
                reset_peak();
                let began = Instant::now();
                pass()?;
                // The first round warms up.
                if round > 0 {
                    seconds[i].push(began.elapsed().as_secs_f64());
                }
                peaks[i] = (memory().1 - live) as f64 / f64::from(1 << 20);
                status!("Measured", "{name}, round {round} of {}", self.repeat);
            }
        }
        let forward_flops = self.forward_flops()?;
        let medians: Vec<f64> = seconds.into_iter().map(median).collect();
        let rows = passes.iter().zip(&medians).zip(peaks).map(|(((pass, work, _), &seconds), peak_mib)| {
            let gflops = work * forward_flops / seconds / 1e9;
            Row { pass, seconds, of_forward: seconds / medians[0], gflops, of_gemm: gflops / gemm_gflops, peak_mib }
        });
        Ok(rows.collect())
    }
}

/// Zero-initialised parameters would let parts of the network cost less than in use.
fn randomised(params: &Params) -> Result<Params> {
    let stream = Stream::new(0, Purpose::Check, 1);
    let tensors = params.tensors().iter().enumerate().map(|(i, t)| {
        let noise = arith::normal(&stream, i as u64, &[1, t.len()], DType::F32, Device::Cpu)?;
        Ok(arith::add(t, &arith::scale(&[0.02], &noise)?.reshape(t.shape())?)?)
    });
    Ok(Params::new(params.specs(), tensors.collect::<Result<_>>()?)?)
}

/// GFLOP/s of an f32 product at 1024³ on all threads: the median of many.
pub fn gemm_rate() -> f64 {
    let n = GEMM_EDGE;
    let (a, b, mut c) = (vec![0.5f32; n * n], vec![0.25f32; n * n], vec![0.0f32; n * n]);
    let mut once = || {
        let began = Instant::now();
        gemm(MatMut::new(&mut c, n, n, n), false, 1.0, Mat::new(&a, n, n, n), Mat::new(&b, n, n, n).t(), Threads::Pool);
        began.elapsed().as_secs_f64()
    };
    once();
    2.0 * (n as f64).powi(3) / median((0..21).map(|_| once()).collect()) / 1e9
}

/// Runs the command.
///
/// # Errors
/// If the network is not a preset.
pub fn run(args: &BenchArgs) -> Result<()> {
    let bench = Bench::new(args)?;
    let gemm = gemm_rate();
    let rows = bench.measure(gemm)?;
    let threads = rayon::current_num_threads();
    let preset = args.preset.as_deref().unwrap_or(PRESET);
    if args.json {
        let json = serde_json::json!({ "preset": preset, "threads": threads, "gemm_gflops": gemm, "passes": rows });
        return print(format_args!("{json}\n"));
    }
    let line = |text: std::fmt::Arguments| print(format_args!("{text}\n"));
    line(format_args!("{preset}, {threads} threads, f32; matrix product at {GEMM_EDGE}³: {gemm:.0} GFLOP/s"))?;
    let [pass, heads @ ..] = ["pass", "seconds", "/forward", "GFLOP/s", "of gemm", "peak MiB"];
    let [seconds, forward, gflops, of_gemm, peak] = heads;
    line(format_args!("{pass:50} {seconds:>9} {forward:>9} {gflops:>8} {of_gemm:>7} {peak:>9}"))?;
    for r in rows {
        line(format_args!(
            "{:50} {:>9.3} {:>8.2}x {:>8.0} {:>6.0}% {:>9.0}",
            r.pass,
            r.seconds,
            r.of_forward,
            r.gflops,
            100.0 * r.of_gemm,
            r.peak_mib
        ))?;
    }
    Ok(())
}
