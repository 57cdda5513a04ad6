//! A GPU's memory that runs out in the middle of an iteration. Alone in their process, one after the other: the emulated device
//! is one for all tests.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use fewstep_diffusion::{Denoiser, TimeDistribution, Wrapper};
use fewstep_distill::configuration::Configuration;
use fewstep_distill::ema::PowerProfile;
use fewstep_distill::examples::{ExampleSource, Examples};
use fewstep_distill::learner::Learner;
use fewstep_distill::optimizer::{AdamWConfig, Step};
use fewstep_distill::run_folder::Start;
use fewstep_distill::teaching::{TeachConfig, Teaching};
use fewstep_distill::training::{Hooks, Keep, LoopConfig, MAY_DIFFER, Training, run};
use fewstep_distill::{Error, Result};
use fewstep_nn::wan::{Wan, WanConfig};
use fewstep_ops::{Compute, Conditions, Grads, Init, Network, ParamSpec, Params};
use fewstep_tensor::cuda::{EMULATED, gpu};
use fewstep_tensor::file::TensorFile;
use fewstep_tensor::{DType, Device, Tensor};

const VIDEO: [usize; 5] = [1, 2, 1, 4, 4];
const TEXT: [usize; 3] = [1, 3, 8];

/// The limit of the device's memory.
static LIMIT: Mutex<()> = Mutex::new(());

struct Still;

impl ExampleSource for Still {
    fn examples(&self, _position: u64, _n: usize) -> Result<Examples> {
        let conditions = self.unconditional(1)?;
        Ok(Examples { x_0: Tensor::full(&VIDEO, 0.5, DType::F32, Device::Cpu), conditions })
    }

    fn unconditional(&self, _n: usize) -> Result<Conditions> {
        Ok(Conditions::text(Tensor::full(&TEXT, 0.5, DType::F32, Device::Cpu)))
    }
}

/// Leaves no memory beyond what is in use after the second iteration.
#[derive(Default)]
struct Starving {
    said: Vec<String>,
}

impl Hooks for Starving {
    fn iteration(&mut self, done: u64, _of: u64, _phase: &str, _values: &[(String, f64)]) {
        if done == 2 {
            let gpu = gpu(EMULATED).unwrap();
            gpu.limit_memory(gpu.usage().live + 4096);
        }
    }
    fn preview(&mut self, _iteration: u64, _weights: &Params) -> Result<Vec<(String, Vec<u8>)>> {
        Ok(Vec::new())
    }
    fn say(&mut self, message: &str) {
        self.said.push(message.into());
    }
    fn stop_requested(&self) -> bool {
        false
    }
}

#[test]
fn memory_that_runs_out_leaves_the_iterations_before_saved_and_the_run_goes_on_from_there() {
    let _limit = LIMIT.lock().unwrap_or_else(PoisonError::into_inner);
    let config = WanConfig {
        dim: 16,
        ffn_dim: 16,
        heads: 2,
        layers: 1,
        in_channels: 2,
        out_channels: 2,
        text_dim: 8,
        freq_dim: 8,
        ..WanConfig::mid()
    };
    let denoiser = Denoiser::new(Wan::new(config).unwrap(), Wrapper::Rf1000);
    let teach = TeachConfig {
        run: LoopConfig {
            iterations: 4,
            batch: 1,
            accumulation: 1,
            seed: 0,
            recompute: Keep::Everything,
            log_every: 1,
            checkpoint_every: 100,
            keep_checkpoints: 2,
            preview_every: 0,
            non_finite_budget: 0,
        },
        time: TimeDistribution::LogNormal { mean: 0.0, std: 1.0 },
        dropout: 0.0,
        optimizer: AdamWConfig::default(),
        ema: 0.1,
        decay_iterations: 1,
    };
    let folder = tempfile::tempdir().unwrap();
    let attempt = |start, hooks: &mut Starving| {
        let weights = Params::init(denoiser.network().specs(), 0, DType::F32, Device::Cpu).unwrap();
        let mut teaching = Teaching::new(teach.clone(), &denoiser, &Still, weights, Compute::on(EMULATED))?;
        let configuration = Configuration::flatten(&teach, &MAY_DIFFER)?;
        run(&mut teaching, &folder.path().join("run"), start, (configuration, ""), hooks)?;
        Ok::<u64, Error>(teaching.iteration())
    };
    let mut hooks = Starving::default();
    let e = attempt(Start::Fresh, &mut hooks).unwrap_err();
    assert!(e.is_out_of_memory(), "{e}");
    for part in ["out of GPU memory in ", " asked for with ", "peak", "activations", "fewstep plan"] {
        assert!(e.to_string().contains(part), "{e}");
    }
    assert!(hooks.said.iter().any(|m| m.contains("saved after iteration 2")), "{:?}", hooks.said);
    gpu(EMULATED).unwrap().limit_memory(usize::MAX);
    assert!(folder.path().join("run/checkpoints/iter_000000002").is_dir());
    let mut resumed = Starving::default();
    assert_eq!(attempt(Start::Resume, &mut resumed).unwrap(), 4);
    assert!(resumed.said.iter().any(|m| m.contains("resuming after iteration 2")), "{:?}", resumed.said);
}

/// A matrix, which networks read in bf16, and a gain that stays wide, with both moments and an average.
fn learner() -> Learner {
    let spec =
        |name: &str, shape: &[usize], init, wide| ParamSpec { name: name.into(), shape: shape.into(), init, wide };
    let specs: Arc<[ParamSpec]> =
        [spec("w", &[30, 40], Init::Normal(1.0), false), spec("gain", &[40], Init::Ones, true)].into();
    let params = Params::init(&specs, 1, DType::F32, Device::Cpu).unwrap().to(EMULATED, DType::F32).unwrap();
    let config = AdamWConfig {
        betas: [0.9, 0.99],
        weight_decay: 1.0,
        learning_rate: 0.1,
        warmup_steps: 0,
        ..Default::default()
    };
    Learner::new("student", params, Compute::on(EMULATED), config, Some(PowerProfile::new(0.1).unwrap())).unwrap()
}

/// The bits of all that a checkpoint keeps, and of what networks compute with.
fn state(learner: &Learner) -> Vec<(String, Vec<u64>)> {
    let bits = |t: &Tensor| t.to_vec_f64().into_iter().map(f64::to_bits).collect::<Vec<_>>();
    let mut files: BTreeMap<String, TensorFile> = BTreeMap::new();
    learner.export(&mut files).unwrap();
    let kept = files.iter().flat_map(|(file, f)| f.tensors.iter().map(move |(n, t)| (format!("{file}/{n}"), bits(t))));
    let computed = learner.params().tensors().iter().map(|t| (format!("computed in {}", t.dtype()), bits(t)));
    let taken = files.values().map(|f| (format!("{:?}", f.metadata), Vec::new()));
    kept.chain(computed).chain(taken).collect()
}

#[test]
fn memory_that_runs_out_anywhere_in_an_optimizer_step_leaves_all_as_it_was() {
    let _limit = LIMIT.lock().unwrap_or_else(PoisonError::into_inner);
    let gpu = gpu(EMULATED).unwrap();
    let (mut starved, mut free) = (learner(), learner());
    // The first step gives the average memory of its own, the later ones do not.
    for k in 0..3 {
        assert!(matches!(free.update(Grads::new(free.params()), k, 1.0).unwrap(), Step::Taken(_)));
        let before = state(&starved);
        let mut failures = 0;
        loop {
            gpu.limit_memory(gpu.usage().live + 256 * failures);
            match starved.update(Grads::new(starved.params()), k, 1.0) {
                Ok(step) => break assert!(matches!(step, Step::Taken(_))),
                Err(e) => assert!(e.is_out_of_memory(), "{e}"),
            }
            assert!(starved.is_whole());
            assert_eq!(state(&starved), before, "step {k}, after {failures} failures");
            failures += 1;
        }
        gpu.limit_memory(usize::MAX);
        assert!(failures > 4, "step {k} failed {failures} times");
        assert_eq!(state(&starved), state(&free), "step {k}");
    }
}
