//! Training on a tiny network: resuming is bitwise, phases alternate, non-finite values stop the run.

use std::cell::Cell;
use std::path::Path;

use fewstep_diffusion::{Denoiser, Guidance, Shift, TimeDistribution, Wrapper};
use fewstep_distill::checkpoint::SavedCheckpoint;
use fewstep_distill::configuration::Configuration;
use fewstep_distill::distiller::{DistillConfig, Distiller, TeacherReference};
use fewstep_distill::examples::{ExampleSource, Examples};
use fewstep_distill::method::{Consistency, Dmd, Method, Scm, Simulation, Tangent};
use fewstep_distill::metrics::read_metrics;
use fewstep_distill::optimizer::AdamWConfig;
use fewstep_distill::run_folder::Start;
use fewstep_distill::teaching::{TeachConfig, Teaching};
use fewstep_distill::train::{Lora, Train};
use fewstep_distill::training::{Ending, Hooks, Keep, LoopConfig, MAY_DIFFER, Training, run};
use fewstep_distill::{Error, Result};
use fewstep_nn::wan::{Wan, WanConfig, WanLayout};
use fewstep_ops::{Compute, Conditions, Network, Params};
use fewstep_tensor::cuda::EMULATED;
use fewstep_tensor::random::{Purpose, Stream};
use fewstep_tensor::{DType, Device, Tensor, arith};

const TEXT: [usize; 2] = [3, 8];
const VIDEO: [usize; 4] = [2, 2, 4, 4];

struct Noise {
    /// Position of an example that holds NaN.
    poisoned: Option<u64>,
}

impl ExampleSource for Noise {
    fn examples(&self, position: u64, n: usize) -> Result<Examples> {
        let stream = Stream::new(9, Purpose::Data, 0);
        let draw = |s: u64, shape: &[usize]| arith::normal(&stream, s, shape, DType::F32, Device::Cpu);
        let [c, f, h, w] = VIDEO;
        let mut x_0 = draw(position, &[n, c, f, h, w])?;
        if let Some(i) = self.poisoned.and_then(|p| p.checked_sub(position)).filter(|i| *i < n as u64) {
            let row = x_0.len() / n;
            x_0.make_mut::<f32>()?[i as usize * row] = f32::NAN;
        }
        Ok(Examples { x_0, conditions: Conditions::text(draw(1 << 20 | position, &[n, TEXT[0], TEXT[1]])?) })
    }

    fn unconditional(&self, n: usize) -> Result<Conditions> {
        Ok(Conditions::text(Tensor::zeros(&[n, TEXT[0], TEXT[1]], DType::F32, Device::Cpu)))
    }
}

/// Stops after some iterations, if asked to.
#[derive(Default)]
struct Quiet {
    stop_after: Option<u64>,
    done: Cell<u64>,
}

impl Hooks for Quiet {
    fn iteration(&mut self, done: u64, _of: u64, _phase: &str, _values: &[(String, f64)]) {
        self.done.set(done);
    }
    fn preview(&mut self, _iteration: u64, _weights: &Params) -> Result<Vec<(String, Vec<u8>)>> {
        Ok(Vec::new())
    }
    fn say(&mut self, _message: &str) {}
    fn stop_requested(&self) -> bool {
        self.stop_after == Some(self.done.get())
    }
}

fn denoiser() -> Denoiser<Wan> {
    let config = WanConfig {
        dim: 24,
        ffn_dim: 32,
        heads: 2,
        layers: 2,
        in_channels: VIDEO[0],
        out_channels: VIDEO[0],
        text_dim: TEXT[1],
        freq_dim: 16,
        ..WanConfig::mid()
    };
    Denoiser::new(Wan::new(config).unwrap(), Wrapper::Rf1000)
}

/// Weights without the zeros of an untrained head, so that every gradient is alive.
fn weights(d: &Denoiser<Wan>) -> Params {
    let params = Params::init(d.network().specs(), 3, DType::F32, Device::Cpu).unwrap();
    let stream = Stream::new(4, Purpose::Init, 1);
    let disturbed = params.tensors().iter().enumerate().map(|(i, t)| {
        let noise = arith::normal(&stream, i as u64, &[1, t.len()], DType::F32, Device::Cpu).unwrap();
        arith::add(t, &arith::scale(&[0.1], &noise).unwrap().reshape(t.shape()).unwrap()).unwrap()
    });
    Params::new(params.specs(), disturbed.collect()).unwrap()
}

fn loop_config(iterations: u64) -> LoopConfig {
    LoopConfig {
        iterations,
        batch: 2,
        accumulation: 2,
        seed: 5,
        recompute: Keep::Attention,
        log_every: 1,
        checkpoint_every: 20,
        keep_checkpoints: 3,
        preview_every: 0,
        non_finite_budget: 3,
    }
}

fn distill_config(iterations: u64) -> DistillConfig {
    let optimizer = AdamWConfig { learning_rate: 1e-3, warmup_steps: 5, ..Default::default() };
    let p_g = TimeDistribution::LogNormal { mean: 0.0, std: 1.6 };
    let p_d = TimeDistribution::UniformShift { shift: Shift::new(5.0).unwrap() };
    DistillConfig {
        run: loop_config(iterations),
        method: Method::Rcm {
            consistency: Consistency::Scm(Scm { tangent: Tangent::Full, tangent_warmup: 4, scale: 100.0, time: p_g }),
            dmd: Dmd {
                scale: 1.0,
                start: 3,
                student_update_freq: 3,
                max_simulation_steps: 3,
                simulation: Simulation::Random,
                time: p_d,
            },
        },
        train: Train::Full,
        guidance: Guidance::new(2.0).unwrap(),
        student: optimizer.clone(),
        fake_score: optimizer,
        ema: 0.1,
    }
}

fn reference() -> TeacherReference {
    TeacherReference { path: "teacher".into(), sha256: "0".into() }
}

fn train(
    training: &mut dyn Training,
    folder: &Path,
    start: Start,
    hooks: &mut Quiet,
    values: &impl serde::Serialize,
) -> Result<Ending> {
    run(training, folder, start, (Configuration::flatten(values, &MAY_DIFFER)?, ""), hooks)
}

fn distill(folder: &Path, start: Start, config: &DistillConfig, mut hooks: Quiet, source: &Noise) -> Result<Ending> {
    let d = denoiser();
    let mut distiller = Distiller::new(config.clone(), &d, source, weights(&d), reference(), Compute::on(Device::Cpu))?;
    train(&mut distiller, folder, start, &mut hooks, config)
}

const CLEAN: Noise = Noise { poisoned: None };

/// Every file of tensors in a checkpoint, as bytes.
fn tensors(folder: &Path, iteration: u64) -> Vec<(String, Vec<u8>)> {
    let folder = folder.join(format!("checkpoints/iter_{iteration:09}"));
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "safetensors"))
        .map(|p| (p.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&p).unwrap()))
        .collect();
    files.sort();
    files
}

fn assert_same_run(a: &Path, b: &Path, iteration: u64) {
    let (x, y) = (tensors(a, iteration), tensors(b, iteration));
    assert!(x.len() >= 3, "weights, average and moments are there");
    assert_eq!(x.iter().map(|f| &f.0).collect::<Vec<_>>(), y.iter().map(|f| &f.0).collect::<Vec<_>>());
    for ((name, x), (_, y)) in x.iter().zip(&y) {
        assert!(x == y, "{name} differs");
    }
    let values = |p: &Path| {
        let records = read_metrics(&p.join("metrics.jsonl")).unwrap();
        records
            .into_iter()
            .map(|mut r| {
                r.values.retain(|k, _| !k.starts_with("seconds/"));
                (r.iteration, r.phase, r.values)
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(values(a), values(b), "the metrics read as one run's");
}

#[test]
fn a_resumed_distillation_is_the_uninterrupted_one_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, parts) = (dir.path().join("whole"), dir.path().join("parts"));
    assert_eq!(distill(&whole, Start::Fresh, &distill_config(40), Quiet::default(), &CLEAN).unwrap(), Ending::Finished);
    // 20 iterations, a stop between checkpoints at 27, and the rest.
    distill(&parts, Start::Fresh, &distill_config(20), Quiet::default(), &CLEAN).unwrap();
    let hooks = Quiet { stop_after: Some(27), ..Default::default() };
    let stopped = distill(&parts, Start::Resume, &distill_config(40), hooks, &CLEAN).unwrap();
    assert_eq!(stopped, Ending::Stopped { iteration: 27 });
    distill(&parts, Start::Resume, &distill_config(40), Quiet::default(), &CLEAN).unwrap();
    assert_same_run(&whole, &parts, 40);
}

#[test]
fn a_resumed_distillation_of_adapters_is_the_uninterrupted_one_and_saves_them_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, parts) = (dir.path().join("whole"), dir.path().join("parts"));
    let config = |iterations| {
        let targets = vec!["self_attn.q".to_string(), "ffn.0".to_string()];
        DistillConfig {
            train: Train::Lora(Lora { rank: 2, alpha: 4.0, targets, seed: 1 }),
            ..distill_config(iterations)
        }
    };
    distill(&whole, Start::Fresh, &config(40), Quiet::default(), &CLEAN).unwrap();
    distill(&parts, Start::Fresh, &config(20), Quiet::default(), &CLEAN).unwrap();
    distill(&parts, Start::Resume, &config(40), Quiet::default(), &CLEAN).unwrap();
    assert_same_run(&whole, &parts, 40);
    let saved = SavedCheckpoint::open(&whole.join("checkpoints/iter_000000040")).unwrap();
    for file in ["student", "student_ema", "fake_score"] {
        let tensors = saved.tensors(file).unwrap().tensors;
        assert_eq!(tensors.len(), 8, "A and B of two layers in two blocks: {:?}", tensors.keys());
        assert!(tensors.values().all(|t| arith::sum_squares(t).unwrap() > 0.0), "{file} has moved");
    }
}

#[test]
fn a_teacher_stored_in_bf16_gives_full_training_f32_masters_of_its_values() {
    let d = denoiser();
    let stored = weights(&d).to_dtype(DType::Bf16);
    let distiller =
        Distiller::new(distill_config(1), &d, &CLEAN, stored.clone(), reference(), Compute::on(Device::Cpu)).unwrap();
    let student = distiller.sampling_weights().unwrap();
    assert!(student.tensors().iter().all(|t| t.dtype() == DType::F32));
    for (a, b) in student.tensors().iter().zip(stored.tensors()) {
        assert_eq!(a.to_vec_f64(), b.to_vec_f64());
    }
}

#[test]
fn a_resumed_teaching_is_the_uninterrupted_one_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    let config = |iterations| TeachConfig {
        run: loop_config(iterations),
        time: TimeDistribution::UniformShift { shift: Shift::new(2.0).unwrap() },
        dropout: 0.3,
        optimizer: AdamWConfig { learning_rate: 1e-3, betas: [0.9, 0.99], ..Default::default() },
        ema: 0.05,
        decay_iterations: 1,
    };
    let teach = |folder: &Path, start, iterations| {
        let (d, config) = (denoiser(), config(iterations));
        let mut teaching = Teaching::new(config.clone(), &d, &CLEAN, weights(&d), Compute::on(Device::Cpu)).unwrap();
        train(&mut teaching, folder, start, &mut Quiet::default(), &config).unwrap();
    };
    let (whole, parts) = (dir.path().join("whole"), dir.path().join("parts"));
    teach(&whole, Start::Fresh, 40);
    // The decay of the last iteration is 1 in both, so that 20 of 20 are 20 of 40.
    teach(&parts, Start::Fresh, 20);
    teach(&parts, Start::Resume, 40);
    assert_same_run(&whole, &parts, 40);
}

#[test]
fn gradients_of_parts_of_a_batch_add_up_to_those_of_the_whole() {
    let dir = tempfile::tempdir().unwrap();
    let first_loss = |name: &str, batch, accumulation| {
        let mut config = distill_config(1);
        (config.run.batch, config.run.accumulation) = (batch, accumulation);
        let folder = dir.path().join(name);
        distill(&folder, Start::Fresh, &config, Quiet::default(), &CLEAN).unwrap();
        let record = read_metrics(&folder.join("metrics.jsonl")).unwrap().remove(0);
        (record.values["loss/scm"], record.values["grad_norm/student"])
    };
    let (whole, parts) = (first_loss("whole", 4, 1), first_loss("parts", 1, 4));
    // The same numbers in another order of f32 summation.
    assert!((whole.0 / parts.0 - 1.0).abs() < 1e-5, "{whole:?} {parts:?}");
    assert!((whole.1 / parts.1 - 1.0).abs() < 1e-4, "{whole:?} {parts:?}");
}

#[test]
fn another_configuration_or_teacher_is_refused_on_resuming() {
    let dir = tempfile::tempdir().unwrap();
    distill(dir.path(), Start::Fresh, &distill_config(2), Quiet::default(), &CLEAN).unwrap();
    let mut other = distill_config(4);
    other.guidance = Guidance::new(3.0).unwrap();
    let e = distill(dir.path(), Start::Resume, &other, Quiet::default(), &CLEAN).unwrap_err();
    assert!(matches!(e, Error::ConfigurationDiffers { .. }) && e.to_string().contains("guidance"), "{e}");

    let d = denoiser();
    let foreign = TeacherReference { path: "other".into(), sha256: "1".into() };
    let config = distill_config(4);
    let mut distiller =
        Distiller::new(config.clone(), &d, &CLEAN, weights(&d), foreign, Compute::on(Device::Cpu)).unwrap();
    let e = train(&mut distiller, dir.path(), Start::Resume, &mut Quiet::default(), &config).unwrap_err();
    assert!(e.to_string().contains("teacher"), "{e}");
    let e = distill(dir.path(), Start::Fresh, &distill_config(4), Quiet::default(), &CLEAN).unwrap_err();
    assert!(matches!(e, Error::FolderHoldsRun { .. }), "{e}");
}

#[test]
fn a_poisoned_example_is_excluded_and_attributed_and_beyond_the_budget_stops_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let poisoned = Noise { poisoned: Some(6) };
    let folder = dir.path().join("within");
    distill(&folder, Start::Fresh, &distill_config(3), Quiet::default(), &poisoned).unwrap();
    let saved = SavedCheckpoint::open(&folder.join("checkpoints/iter_000000003")).unwrap();
    assert_eq!(saved.state()["non_finite"]["latest"][0]["sample"], 6);
    let weights = saved.tensors("student").unwrap();
    assert!(weights.tensors.values().all(|t| arith::count_non_finite(t).unwrap() == 0));

    let mut strict = distill_config(3);
    strict.run.non_finite_budget = 0;
    let e = distill(&dir.path().join("beyond"), Start::Fresh, &strict, Quiet::default(), &poisoned).unwrap_err();
    let message = e.to_string();
    assert!(matches!(e, Error::NonFiniteBudget { .. }) && message.contains("sample 6"), "{message}");
}

#[test]
fn zero_iterations_or_samples_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |change: &dyn Fn(&mut DistillConfig)| {
        let mut config = distill_config(2);
        change(&mut config);
        distill(dir.path(), Start::Fresh, &config, Quiet::default(), &CLEAN).unwrap_err().to_string()
    };
    assert!(refused(&|c| c.run.iterations = 0).contains("run.iterations"));
    assert!(refused(&|c| c.run.batch = 0).contains("run.batch"));
    assert!(refused(&|c| c.ema = 0.9).contains("ema") || refused(&|c| c.ema = 0.9).contains("relative"));
    assert!(refused(&|c| c.student.learning_rate = f64::NAN).contains("learning_rate"));
}

/// The same run on a device: three iterations of the student alone, then one with distribution matching and its fake score's.
fn on(device: Device, dtype: DType, folder: &Path, start: Start, stop_after: Option<u64>) -> Result<Params> {
    let mut config = distill_config(5);
    (config.run.batch, config.run.accumulation, config.run.checkpoint_every) = (1, 1, 100);
    let d = denoiser();
    let compute = Compute { device, dtype };
    let mut distiller =
        Distiller::new(config.clone(), &d, &CLEAN, weights(&d).to_dtype(dtype.wide()), reference(), compute)?;
    train(&mut distiller, folder, start, &mut Quiet { stop_after, ..Quiet::default() }, &config)?;
    distiller.sampling_weights()
}

#[test]
fn on_a_gpu_in_f64_a_distillation_is_that_of_a_cpu() {
    let dir = tempfile::tempdir().unwrap();
    let run = |device, name: &str| on(device, DType::F64, &dir.path().join(name), Start::Fresh, None).unwrap();
    let (cpu, gpu) = (run(Device::Cpu, "cpu"), run(EMULATED, "gpu"));
    let before = weights(&denoiser());
    for (i, (name, want)) in cpu.iter().enumerate() {
        let (want, got, old) = (want.to_vec_f64(), gpu.tensors()[i].to_vec_f64(), before.tensors()[i].to_vec_f64());
        assert!(want != old, "{name} moved");
        // A gradient of rounding size alone moves by its share of eps; all others differ in the order of sums.
        let worst = want.iter().zip(&got).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(worst < 1e-9, "{name} is off by {worst:e}");
    }
}

#[test]
fn on_a_gpu_a_resumed_distillation_is_the_uninterrupted_one_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let run = |name: &str, start, stop| on(EMULATED, DType::Bf16, &dir.path().join(name), start, stop).unwrap();
    run("whole", Start::Fresh, None);
    run("parts", Start::Fresh, Some(3));
    run("parts", Start::Resume, None);
    let (model, path) = (run("parts", Start::Resume, None), dir.path().join("model.safetensors"));
    denoiser().network().store(&model, WanLayout::Rcm, DType::Bf16).unwrap().write(&path).unwrap();
    let read = denoiser().network().load(&path, DType::F32).unwrap();
    for ((name, written), (_, read)) in model.iter().zip(read.iter()) {
        assert_eq!(written.to_dtype(DType::Bf16).to_vec_f64(), read.to_vec_f64(), "{name}");
    }
    let whole = tensors(&dir.path().join("whole"), 5);
    assert!(whole.len() > 3 && whole == tensors(&dir.path().join("parts"), 5));
    let metrics = read_metrics(&dir.path().join("whole/metrics.jsonl")).unwrap();
    assert!(metrics.iter().all(|r| r.values.iter().any(|(k, v)| k.starts_with("peak_gb/") && *v > 0.0)));
}
