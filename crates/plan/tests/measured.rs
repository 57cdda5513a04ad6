//! Plans against what real passes and iterations measure. One test: the measured peak is the process's.

use fewstep_diffusion::{Denoiser, Guidance, Predictor, Shift, TimeDistribution, TrigTime, Wrapper};
use fewstep_distill::Result;
use fewstep_distill::distiller::{DistillConfig, Distiller, TeacherReference};
use fewstep_distill::examples::{ExampleSource, Examples};
use fewstep_distill::method::{Consistency, Dmd, Method, Scm, Simulation, Tangent};
use fewstep_distill::optimizer::AdamWConfig;
use fewstep_distill::train::{Lora, Train};
use fewstep_distill::training::{Keep, LoopConfig, Training};
use fewstep_nn::wan::{Wan, WanConfig};
use fewstep_ops::{Compute, Conditions, Grads, Network, Params, Recompute};
use fewstep_plan::{Hardware, Latent, Request, Work, plan};
use fewstep_tensor::random::{Purpose, Stream};
use fewstep_tensor::{DType, Device, Tensor, arith, memory, reset_peak};

/// A plan may be off by so much: the bar.
const TOLERANCE: f64 = 0.10;

struct Noise {
    shape: [usize; 4],
    text: [usize; 2],
}

impl ExampleSource for Noise {
    fn examples(&self, position: u64, n: usize) -> Result<Examples> {
        let stream = Stream::new(9, Purpose::Data, 0);
        let draw = |shape: &[usize]| arith::normal(&stream, position, shape, DType::F32, Device::Cpu);
        let ([c, f, h, w], [s, d]) = (self.shape, self.text);
        Ok(Examples { x_0: draw(&[n, c, f, h, w])?, conditions: Conditions::text(draw(&[n, s, d])?) })
    }

    fn unconditional(&self, n: usize) -> Result<Conditions> {
        Ok(Conditions::text(Tensor::zeros(&[n, self.text[0], self.text[1]], DType::F32, Device::Cpu)))
    }
}

fn time() -> TimeDistribution {
    TimeDistribution::UniformShift { shift: Shift::new(5.0).unwrap() }
}

fn method(r: &Request) -> Method {
    let consistency = Consistency::Scm(Scm { tangent: Tangent::Full, tangent_warmup: 0, scale: 100.0, time: time() });
    let simulation = Simulation::Random;
    let dmd = Dmd {
        scale: 1.0,
        start: 0,
        student_update_freq: 2,
        max_simulation_steps: r.simulation_steps as u64,
        simulation,
        time: time(),
    };
    match r.work {
        Work::Scm => Method::Consistency(consistency),
        Work::Dmd => Method::Dmd(dmd),
        _ => Method::Rcm { consistency, dmd },
    }
}

fn keep(recompute: Recompute) -> Keep {
    match recompute {
        Recompute::Nothing => Keep::Everything,
        Recompute::AllButAttention => Keep::Attention,
        Recompute::Everything => Keep::Inputs,
    }
}

fn source(r: &Request) -> Noise {
    let Latent { frames, height, width } = r.latent;
    Noise { shape: [r.network.out_channels, frames, height, width], text: [r.text_tokens, r.network.text_dim] }
}

/// Bytes at the peak of iterations of a real distillation, once every role has weights of its own.
fn measured_iterations(r: &Request, iterations: usize) -> f64 {
    let before = memory().0;
    let source = source(r);
    let denoiser = Denoiser::new(Wan::new(r.network.clone()).unwrap(), Wrapper::Rf1000);
    let teacher = Params::init(denoiser.network().specs(), 0, DType::F32, Device::Cpu).unwrap();
    let optimizer = AdamWConfig { learning_rate: 1e-4, ..AdamWConfig::default() };
    let targets = ["q", "k", "v", "o", "ffn.0", "ffn.2"].map(String::from).to_vec();
    let train = match r.lora {
        Some(rank) => Train::Lora(Lora { rank, alpha: rank as f64, targets, seed: 0 }),
        None => Train::Full,
    };
    let config = DistillConfig {
        train,
        run: LoopConfig {
            iterations: 100,
            batch: r.batch,
            accumulation: 1,
            seed: 1,
            recompute: keep(r.recompute),
            log_every: 1,
            checkpoint_every: 100,
            keep_checkpoints: 1,
            preview_every: 0,
            non_finite_budget: 0,
        },
        method: method(r),
        guidance: Guidance::new(2.0).unwrap(),
        student: optimizer.clone(),
        fake_score: optimizer,
        ema: 0.1,
    };
    let reference = TeacherReference { path: "teacher".into(), sha256: "0".into() };
    let mut distiller =
        Distiller::new(config, &denoiser, &source, teacher, reference, Compute::on(Device::Cpu)).unwrap();
    // Weights are shared with the teacher until the first update of each role.
    (0..2).for_each(|_| drop(distiller.step().unwrap()));
    reset_peak();
    (2..iterations).for_each(|_| drop(distiller.step().unwrap()));
    (memory().1 - before) as f64
}

/// Peaks of the passes beyond what lives before them: forward, JVP, gradient.
fn measured_passes(r: &Request) -> [f64; 3] {
    let source = source(r);
    let denoiser = Denoiser::new(Wan::new(r.network.clone()).unwrap(), Wrapper::Rf1000);
    let params = Params::init(denoiser.network().specs(), 0, DType::F32, Device::Cpu).unwrap();
    let m = Predictor { denoiser: &denoiser, params: &params };
    let examples = source.examples(0, r.batch).unwrap();
    let (x, c) = (examples.x_0.to_dtype(DType::F64), examples.conditions);
    let t = vec![TrigTime::new(0.7).unwrap(); r.batch];
    let peak = |run: &dyn Fn()| {
        let live = memory().0;
        reset_peak();
        run();
        (memory().1 - live) as f64
    };
    [
        peak(&|| drop(m.velocity(&x, &t, &c).unwrap())),
        peak(&|| drop(m.velocity_jvp((&x, &x), (&t, &vec![1.0; r.batch]), &c).unwrap())),
        peak(&|| {
            let tape = m.velocity_tape(&x, &t, &c, r.recompute).unwrap();
            let bar = tape.f().clone();
            tape.backward(bar, &mut Grads::new(&params)).unwrap();
        }),
    ]
}

fn check(label: &str, planned: f64, measured: f64) -> bool {
    let ratio = planned / measured;
    println!("{label:50} {:>9.2} {:>9.2} {ratio:>7.3}", planned / 1048576.0, measured / 1048576.0);
    (ratio - 1.0).abs() <= TOLERANCE
}

fn digits(work: Work, recompute: Recompute, batch: usize) -> Request {
    let latent = Latent { frames: 6, height: 16, width: 16 };
    let new = Request::new(WanConfig::digits(), latent);
    Request { text_tokens: 8, batch, work, recompute, ..new }
}

fn mid(work: Work, recompute: Recompute, frames: usize) -> Request {
    let network = WanConfig { layers: 2, ..WanConfig::mid() };
    let new = Request::new(network, Latent { frames, height: 16, width: 16 });
    Request { text_tokens: 64, work, recompute, simulation_steps: 2, ..new }
}

#[test]
fn planned_peaks_are_within_a_tenth_of_measured_ones() {
    let hardware = Hardware::measured(1e11, 1e10, 1 << 34);
    let mut good = true;
    let policies =
        [("all", Recompute::Nothing), ("attention", Recompute::AllButAttention), ("inputs", Recompute::Everything)];
    for (name, recompute) in policies {
        for (size, r) in [("digits", digits(Work::Scm, recompute, 8)), ("mid", mid(Work::Scm, recompute, 4))] {
            let phases = plan(&r, &hardware).unwrap().phases;
            for (phase, measured) in phases.iter().zip(measured_passes(&r)) {
                good &= check(&format!("{size}, keeping {name}: {}", phase.name), phase.peak as f64, measured);
            }
        }
    }
    let adapted = Request { lora: Some(8), ..mid(Work::Rcm, Recompute::AllButAttention, 4) };
    let runs = [
        ("digits rcm, batch 32, everything kept", digits(Work::Rcm, Recompute::Nothing, 32)),
        ("digits scm, batch 8, recomputed", digits(Work::Scm, Recompute::Everything, 8)),
        ("mid dmd, all but attention recomputed", mid(Work::Dmd, Recompute::AllButAttention, 4)),
        ("mid rcm by adapters, all but attention recomputed", adapted),
    ];
    for (label, r) in runs {
        // Two iterations a length of the simulations, after the two that separate the weights.
        good &= check(
            label,
            plan(&r, &hardware).unwrap().total() as f64,
            measured_iterations(&r, 2 + 2 * r.simulation_steps),
        );
    }
    assert!(good, "a ratio is off by more than {TOLERANCE}");
}
