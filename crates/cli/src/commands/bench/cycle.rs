//! Whole iterations of a distillation, by phase, with random weights and data of a preset's extents.

use std::collections::BTreeMap;
use std::time::Instant;

use fewstep_diffusion::{Denoiser, Wrapper};
use fewstep_distill::distiller::{Distiller, TeacherReference};
use fewstep_distill::examples::{ExampleSource, Examples};
use fewstep_distill::training::Training;
use fewstep_nn::wan::{Wan, WanConfig};
use fewstep_ops::{Compute, Conditions, Params};
use fewstep_pipeline::Autoencoder;
use fewstep_tensor::cuda::profile::{Share, profiled};
use fewstep_tensor::cuda::{Gpu, gpu};
use fewstep_tensor::random::{Purpose, Stream};
use fewstep_tensor::{DType, Device, Tensor, arith};
use serde::Serialize;

use super::{median, print_json};
use crate::args::{BenchArgs, ConfigArgs};
use crate::commands::training::settings;
use crate::device;
use crate::error::{Error, Result};
use crate::settings::{DISTILL_PRESETS, DistillSettings};
use crate::status;
use crate::terminal::print;

/// The preset if none is named.
const PRESET: &str = "wan2.1-t2v-1.3b";
/// Latent height and width of 480 by 832 pixels.
const LATENT: [usize; 2] = [480 / Autoencoder::SCALE, 832 / Autoencoder::SCALE];
const TEXT_TOKENS: usize = 512;

/// What one iteration of a phase takes.
#[derive(Clone, Debug, Serialize)]
struct PhaseRow {
    phase: &'static str,
    /// Iterations of the phase in a cycle.
    iterations: usize,
    /// Median seconds of an iteration.
    seconds: f64,
    /// The most memory of the device in use, in GB; 0 on a CPU.
    peak_gb: f64,
}

/// Random latents and embeddings.
struct Noise {
    latent: [usize; 4],
    text_dim: usize,
}

impl Noise {
    fn draw(&self, position: u64, purpose: Purpose, n: usize, shape: &[usize]) -> fewstep_tensor::Result<Tensor> {
        let shape = [&[n], shape].concat();
        arith::normal(&Stream::new(0, purpose, 0), position, &shape, DType::F32, Device::Cpu)
    }
}

impl ExampleSource for Noise {
    fn examples(&self, position: u64, n: usize) -> fewstep_distill::Result<Examples> {
        let text = self.draw(position, Purpose::Data, n, &[TEXT_TOKENS, self.text_dim])?;
        let x_0 = self.draw(position, Purpose::Check, n, &self.latent)?;
        Ok(Examples { x_0, conditions: Conditions::text(text) })
    }

    fn unconditional(&self, n: usize) -> fewstep_distill::Result<Conditions> {
        Ok(Conditions::text(self.draw(0, Purpose::Dropout, n, &[TEXT_TOKENS, self.text_dim])?))
    }
}

/// Runs the benchmark.
///
/// # Errors
/// If the preset is unknown, or the device has no memory for it.
pub fn run(args: &BenchArgs) -> Result<()> {
    let preset = args.preset.as_deref().unwrap_or(PRESET);
    let config = ConfigArgs { preset: Some(preset.into()), config: None, overrides: Vec::new(), seed: None };
    let mut distill = settings::<DistillSettings>(DISTILL_PRESETS, &config, "distill.run.seed")?.value.distill;
    // So the first iteration is the student's, with both losses.
    distill.method = distill.method.matching_from(0);
    let compute = device::open(args.device)?;
    device::say_software(compute.device)?;
    let network = network(preset)?;
    let frames = 1 + (args.frames.max(1) - 1) / Autoencoder::FRAMES;
    let latent = [network.in_channels, frames, LATENT[0], LATENT[1]];
    let latent = if preset.starts_with("digits") { crate::digits::CLIP } else { latent };
    let source = Noise { latent, text_dim: network.text_dim };
    let denoiser = Denoiser::new(Wan::new(network)?, Wrapper::Rf1000);
    let weights = weights(denoiser.network(), compute)?;
    status!("Network", "{preset}: {} parameters, latents {latent:?}", weights.count());
    let reference = TeacherReference { path: "random".into(), sha256: String::new() };
    let cycle = distill.method.dmd().map_or(1, |d| d.student_update_freq as usize);
    let mut distiller = Distiller::new(distill, &denoiser, &source, weights, reference, compute)?;
    let gpu = match compute.device {
        Device::Cpu => None,
        Device::Cuda(_) => Some(gpu(compute.device)?),
    };
    let mut bench = Bench { gpu, measured: BTreeMap::new() };
    for round in 0..=args.repeat {
        for _ in 0..cycle {
            // The first cycle warms up.
            bench.step(&mut distiller, round > 0)?;
        }
    }
    let rows = bench.rows(args.repeat);
    let shares = bench.profile(&mut distiller, cycle)?;
    report(args.json, &rows, &shares)
}

/// The extents that a preset of `distill` is meant for: those of the name that it begins with.
fn network(preset: &str) -> Result<WanConfig> {
    let known = WanConfig::PRESETS.iter().find(|(name, _)| preset.starts_with(name));
    let (_, config) =
        known.ok_or_else(|| Error::Argument(format!("no extents are known for the preset '{preset}'")))?;
    Ok(config())
}

/// Random weights on the device; none is zero, so that no part of the network costs less than in use.
fn weights(wan: &Wan, compute: Compute) -> Result<Params> {
    use fewstep_ops::Network;
    let params = Params::init(wan.specs(), 0, DType::F32, compute.device)?;
    let stream = Stream::new(0, Purpose::Check, 1);
    let tensors = params.tensors().iter().enumerate().map(|(i, t)| {
        let noise = arith::normal(&stream, i as u64, &[1, t.len()], DType::F32, compute.device)?;
        Ok(arith::add(t, &arith::scale(&[0.02], &noise)?.reshape(t.shape())?)?)
    });
    Ok(Params::new(params.specs(), tensors.collect::<Result<_>>()?)?)
}

struct Bench {
    gpu: Option<Gpu>,
    measured: BTreeMap<&'static str, Vec<(f64, f64)>>,
}

impl Bench {
    fn step(&mut self, distiller: &mut Distiller<'_, Wan>, counts: bool) -> Result<()> {
        let began = Instant::now();
        let (phase, values) = distiller.step()?;
        self.synchronize()?;
        let seconds = began.elapsed().as_secs_f64();
        let peak = values.iter().find(|(name, _)| name.starts_with("peak_gb/")).map_or(0.0, |(_, gb)| *gb);
        status!("Measured", "{phase}: {seconds:.3} s{}", if counts { "" } else { ", warming up" });
        if counts {
            self.measured.entry(phase).or_default().push((seconds, peak));
        }
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(self.gpu.as_ref().map_or(Ok(()), Gpu::synchronize)?)
    }

    fn rows(&self, cycles: usize) -> Vec<PhaseRow> {
        let row = |(&phase, all): (&&'static str, &Vec<(f64, f64)>)| PhaseRow {
            phase,
            iterations: all.len() / cycles,
            seconds: median(all.iter().map(|m| m.0).collect()),
            peak_gb: all.iter().map(|m| m.1).fold(0.0, f64::max),
        };
        self.measured.iter().map(row).collect()
    }

    /// What each op takes of a cycle on a GPU.
    fn profile(&self, distiller: &mut Distiller<'_, Wan>, cycle: usize) -> Result<BTreeMap<&'static str, Share>> {
        let Some(gpu) = &self.gpu else { return Ok(BTreeMap::new()) };
        let (ran, shares) = profiled(gpu, || (0..cycle).try_for_each(|_| distiller.step().map(drop)))?;
        ran?;
        Ok(shares)
    }
}

fn report(json: bool, rows: &[PhaseRow], shares: &BTreeMap<&'static str, Share>) -> Result<()> {
    let cycle: f64 = rows.iter().map(|r| r.iterations as f64 * r.seconds).sum();
    if json {
        let ops: BTreeMap<_, _> = shares.iter().map(|(op, s)| (op, s.seconds)).collect();
        return print_json(&serde_json::json!({ "cycle_seconds": cycle, "phases": rows, "op_seconds": ops }));
    }
    print(format_args!("{:24} {:>6} {:>10} {:>9}\n", "phase", "times", "seconds", "peak GB"))?;
    for r in rows {
        print(format_args!("{:24} {:>6} {:>10.3} {:>9.1}\n", r.phase, r.iterations, r.seconds, r.peak_gb))?;
    }
    print(format_args!("{:24} {:>6} {cycle:>10.3}\n", "cycle", ""))?;
    let all: f64 = shares.values().map(|s| s.seconds).sum();
    let mut shares: Vec<_> = shares.iter().collect();
    shares.sort_by(|a, b| b.1.seconds.total_cmp(&a.1.seconds));
    for (op, share) in shares {
        let of = 100.0 * share.seconds / all;
        print(format_args!("  {op:22} {:>6} {:>10.3} {of:>8.1} %\n", share.calls, share.seconds))?;
    }
    Ok(())
}
