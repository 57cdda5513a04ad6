//! Objectives and samplers against the rCM reference: `rcm_losses`, `rcm_sampling`.

use std::path::PathBuf;

use fewstep_diffusion::{
    Denoiser, FewStepGrid, FewStepPreset, Guidance, Predictor, Sampler, Schedule, Shift, Sigma, TimeDistribution,
    TrigTime, Wrapper, clean, few_step,
};
use fewstep_distill::method::{Dcm, Dmd, Method, Phase, Scm, Simulation, Tangent};
use fewstep_distill::objectives::Loss;
use fewstep_distill::steps::{Batch, Diffusion, Roles, SimulationDraws, dcm_grid};
use fewstep_nn::wan::{Wan, WanConfig};
use fewstep_ops::{Conditions, Grads, Network, Params, Recompute};
use fewstep_tensor::file::TensorFile;
use fewstep_tensor::{DType, Tensor, arith};
use serde_json::Value;

fn read(name: &str) -> TensorFile {
    let own = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures");
    let folder = std::env::var_os("FEWSTEP_FIXTURES").map_or_else(|| own.into(), PathBuf::from);
    TensorFile::read(&folder.join(format!("{name}.safetensors"))).unwrap()
}

fn network(net: &Value) -> Wan {
    Wan::new(WanConfig::from_json(net).unwrap()).unwrap()
}

/// A time rounded to f32.
fn single(t: TrigTime) -> TrigTime {
    TrigTime::new(f64::from(t.get() as f32)).unwrap()
}

struct Reference {
    file: TensorFile,
    json: Value,
    denoiser: Denoiser<Wan>,
    dtype: DType,
    student: Params,
    teacher: Params,
    fake_score: Params,
}

fn weights(file: &TensorFile, wan: &Wan, role: &str, dtype: DType) -> Params {
    let prefix = format!("w.{role}.");
    let own = file.tensors.iter().filter_map(|(k, t)| Some((k.strip_prefix(&prefix)?.to_string(), t.clone())));
    let file = TensorFile { tensors: own.collect(), ..Default::default() };
    wan.load_from(&file, &PathBuf::from(role), dtype).unwrap()
}

impl Reference {
    fn new(dtype: DType) -> Self {
        let file = read("rcm_losses");
        let json: Value = serde_json::from_str(&file.metadata["json"]).unwrap();
        let wan = network(&json["net"]);
        let [student, teacher, fake_score] =
            ["student", "teacher", "fake_score"].map(|role| weights(&file, &wan, role, dtype));
        Reference { denoiser: Denoiser::new(wan, Wrapper::Rf1000), file, json, dtype, student, teacher, fake_score }
    }

    fn get(&self, name: &str) -> Tensor {
        self.file.get(name).unwrap().to_dtype(DType::F64)
    }

    fn conditions(&self, name: &str) -> Conditions {
        Conditions::text(self.get(name).to_dtype(self.dtype))
    }

    fn number(&self, variant: &str, key: &str) -> f64 {
        let over = &self.json["variants"][variant]["over"][key];
        if over.is_null() { &self.json["config"][key] } else { over }.as_f64().unwrap()
    }

    fn batch(&self) -> Batch {
        Batch { x_0: self.get("x0"), conditions: self.conditions("ctx"), unconditional: self.conditions("neg") }
    }

    fn roles(&self, variant: &str) -> Roles<'_, Wan> {
        let with = |params| Predictor { denoiser: &self.denoiser, params };
        Roles {
            student: with(&self.student),
            teacher: with(&self.teacher),
            fake_score: with(&self.fake_score),
            guidance: Guidance::new(self.number(variant, "teacher_guidance")).unwrap(),
            recompute: Recompute::AllButAttention,
            weight: 1.0,
        }
    }

    fn draw(&self, variant: &str, i: usize) -> Tensor {
        self.get(&format!("{variant}.draw{i}"))
    }

    fn times(&self, variant: &str, i: usize, from: TimeDistribution) -> Vec<TrigTime> {
        self.draw(variant, i).to_vec_f64().into_iter().map(|raw| from.time(raw).unwrap()).collect()
    }

    fn iteration(&self, variant: &str) -> u64 {
        self.json["variants"][variant]["iteration"].as_u64().unwrap()
    }

    fn p_g(&self) -> TimeDistribution {
        TimeDistribution::LogNormal { mean: 0.7, std: 1.6 }
    }

    fn p_d(&self) -> TimeDistribution {
        TimeDistribution::UniformShift { shift: Shift::new(5.0).unwrap() }
    }

    fn dmd(&self, variant: &str) -> Dmd {
        let fixed = self.json["variants"][variant]["over"]["dmd_fix_timesteps"].as_bool().unwrap_or(false);
        let mids = self.json["config"]["backward_timesteps"].as_array().unwrap();
        // The reference holds these times in f32.
        let times = mids.iter().map(|t| single(TrigTime::new(t.as_f64().unwrap()).unwrap())).collect();
        Dmd {
            scale: self.number(variant, "loss_scale_dmd"),
            start: 0,
            student_update_freq: self.number(variant, "student_update_freq") as u64,
            max_simulation_steps: self.number(variant, "max_simulation_steps_fake") as u64,
            simulation: if fixed { Simulation::Fixed { times } } else { Simulation::Random },
            time: self.p_d(),
        }
    }

    /// The draws of a simulation and of the score after it, in the reference's order.
    fn simulation(&self, variant: &str, settings: &Dmd, effective: u64) -> (SimulationDraws, Diffusion) {
        let steps = (1 + effective % settings.max_simulation_steps) as usize;
        let start = self.draw(variant, 0);
        let mut next = 1;
        let mut candidates = vec![vec![TrigTime::NOISE; start.shape()[0]]; steps - 1];
        if settings.simulation == Simulation::Random {
            for c in &mut candidates {
                *c = self.times(variant, next, settings.time);
                next += 1;
            }
        }
        let noise = (0..steps - 1).map(|i| self.draw(variant, next + i)).collect();
        next += steps - 1;
        let score = Diffusion { t: self.times(variant, next, settings.time), eps: self.draw(variant, next + 1) };
        // The reference forms π/2 in f32; c_noise feels it at 4e-5.
        (SimulationDraws { start, start_time: TrigTime::NOISE_F32, candidates, noise }, score)
    }
}

#[track_caller]
fn assert_close(what: &str, got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    let scale = want.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    assert!(scale > 0.0 && got.iter().all(|x| x.is_finite()), "{what}: a reference of zeros, or a value not finite");
    let worst = got.iter().zip(want).fold(0.0f64, |m, (a, b)| m.max((a - b).abs())) / scale;
    println!("{what}: {worst:.1e}");
    assert!(worst <= tolerance, "{what}: off by {worst:e}, tolerance {tolerance:e}");
}

/// Tolerances of a precision: what is stored in f64, gradients of parameters (stored in f32), and the same for values that
/// contain a Jacobian-vector product or a difference quotient.
struct Tolerances {
    value: f64,
    gradient: f64,
    derivative: f64,
}

fn tolerances(dtype: DType) -> Tolerances {
    match dtype {
        DType::F64 => Tolerances { value: 1e-9, gradient: 1e-6, derivative: 1e-9 },
        _ => Tolerances { value: 1e-5, gradient: 1e-5, derivative: 1e-4 },
    }
}

struct Check<'r> {
    r: &'r Reference,
    variant: &'r str,
}

impl Check<'_> {
    fn value(&self, name: &str, got: &Tensor, tolerance: f64) {
        let want = self.r.get(&format!("{}.f64.{name}", self.variant));
        assert_close(
            &format!("{} {name} {}", self.variant, self.r.dtype),
            &got.to_vec_f64(),
            &want.to_vec_f64(),
            tolerance,
        );
    }

    fn loss(&self, loss: &Loss, tolerance: f64) {
        let want = self.r.get(&format!("{}.f64.loss", self.variant)).to_vec_f64();
        assert!(loss.excluded.is_empty());
        assert_close(&format!("{} loss {}", self.variant, self.r.dtype), &loss.per_sample, &want, tolerance);
    }

    fn times(&self, name: &str, got: &[TrigTime], tolerance: f64) {
        let got = Tensor::from_vec(got.iter().map(|t| t.get()).collect::<Vec<_>>(), &[got.len()]).unwrap();
        self.value(name, &got, tolerance);
    }

    fn gradients(&self, grads: Grads, params: &Params, tolerance: f64) {
        let prefix = format!("{}.grad.", self.variant);
        let stored = self.r.file.tensors.keys().filter(|k| k.starts_with(&prefix)).count();
        assert_eq!(stored, params.specs().len(), "every parameter has a reference gradient");
        for (spec, got) in params.specs().iter().zip(grads.into_tensors(params)) {
            let want = self.r.get(&format!("{prefix}{}", spec.name)).to_vec_f64();
            let what = format!("{prefix}{} {}", spec.name, self.r.dtype);
            assert_close(&what, &got.to_vec_f64(), &want, tolerance);
        }
    }
}

/// In f32 a difference quotient over h loses digits: rounding of F (6e-8) over h enters J, and J is most of g.
fn quotient_tolerance(dtype: DType, h: f64) -> f64 {
    if dtype == DType::F64 { 1e-9 } else { 1e-6 / h }
}

fn scm_variant(r: &Reference, variant: &str, tangent: Tangent, tangent_warmup: u64) {
    let tol = tolerances(r.dtype);
    let derivative = match tangent {
        Tangent::Full => tol.derivative,
        Tangent::SemiContinuous { h } | Tangent::Discrete { h } => quotient_tolerance(r.dtype, h),
    };
    let scm = Scm { tangent, tangent_warmup, scale: r.number(variant, "loss_scale"), time: r.p_g() };
    let d = Diffusion { t: r.times(variant, 0, scm.time), eps: r.draw(variant, 1) };
    let mut grads = Grads::new(&r.student);
    let out = r.roles(variant).scm(&scm, &r.batch(), &d, scm.warmup(r.iteration(variant)), &mut grads).unwrap();
    let check = Check { r, variant };
    check.times("time", &d.t, 1e-12);
    check.value("xt", &out.x_t, 1e-9);
    check.value("teacher_pred.F", &out.f_teacher, tol.value);
    check.value("model_pred.F", &out.f_theta, tol.value);
    check.value("model_pred.x0", &clean(&out.x_t, &out.f_theta, &d.t).unwrap(), tol.value);
    if tangent == Tangent::Full {
        check.value("t_F", &out.f_dot, derivative);
        check.value("F_primal", &out.f_theta, tol.value);
    }
    // The reference logs df/dt without its weights: −cos t·(F_θ − F_teacher) − (sin t·x_t + J).
    let (sin, cos): (Vec<f64>, Vec<f64>) = d.t.iter().map(|t| t.sin_cos()).unzip();
    let negative = |v: &[f64]| v.iter().map(|x| -x).collect::<Vec<_>>();
    let (minus_cos, minus_sin, minus) = (negative(&cos), negative(&sin), vec![-1.0; d.t.len()]);
    let terms: [(&[f64], &Tensor); 4] =
        [(&minus_cos, &out.f_theta), (&cos, &out.f_teacher), (&minus_sin, &out.x_t), (&minus, &out.f_dot)];
    check.value("df_dt", &arith::combine(&terms).unwrap(), derivative);
    check.loss(&out.loss, tol.value);
    check.gradients(grads, &r.student, tol.gradient);
}

fn both_precisions(f: impl Fn(&Reference)) {
    for dtype in [DType::F64, DType::F32] {
        f(&Reference::new(dtype));
    }
}

#[test]
fn scm_with_the_full_tangent_is_the_published_one() {
    both_precisions(|r| scm_variant(r, "scm", Tangent::Full, 0));
}

#[test]
fn scm_with_tangent_warmup_is_the_published_one() {
    both_precisions(|r| scm_variant(r, "scm_warm", Tangent::Full, r.number("scm_warm", "tangent_warmup") as u64));
}

#[test]
fn scm_without_guidance_is_the_published_one() {
    both_precisions(|r| scm_variant(r, "scm_nocfg", Tangent::Full, 0));
}

#[test]
fn scm_with_the_semi_continuous_tangent_is_the_published_one() {
    both_precisions(|r| {
        scm_variant(r, "scm_fd1", Tangent::SemiContinuous { h: r.number("scm_fd1", "fd_size") }, 0);
    });
}

#[test]
fn scm_with_the_discrete_tangent_is_the_published_one() {
    both_precisions(|r| scm_variant(r, "scm_fd2", Tangent::Discrete { h: r.number("scm_fd2", "fd_size") }, 0));
}

#[test]
fn dcm_is_the_published_one() {
    both_precisions(|r| {
        let v = "dcm";
        let tol = tolerances(r.dtype);
        let dcm = Dcm {
            steps: r.number(v, "dcm_total_steps") as u64,
            skip: r.number(v, "dcm_skipping_interval_steps") as u64,
            shift: Shift::new(r.number(v, "dcm_timestep_shift")).unwrap(),
            scale: r.number(v, "loss_scale"),
        };
        let mut grads = Grads::new(&r.student);
        let (eps, u) = (r.draw(v, 0), r.draw(v, 1).to_vec_f64());
        let mut grid = dcm_grid(&dcm, &u).unwrap();
        // The reference forms these times in f32.
        grid.iter_mut().flatten().for_each(|t| *t = single(*t));
        let out = r.roles(v).dcm(&dcm, &r.batch(), &grid, &eps, &mut grads).unwrap();
        let check = Check { r, variant: v };
        check.times("time", &out.t, 1e-12);
        // It forms their sines and cosines in f32 too, and the time steps of the trajectory: 6e-8 of rounding.
        check.value("xt", &out.x_t, 1e-7);
        check.value("model_pred.x0", &out.x_0, tol.value.max(1e-7));
        check.loss(&out.loss, tol.value.max(1e-7));
        check.gradients(grads, &r.student, tol.gradient);
    });
}

fn dmd_variant(r: &Reference, v: &str) {
    let (mut tol, dmd) = (tolerances(r.dtype), r.dmd(v));
    if dmd.simulation != Simulation::Random {
        // The reference re-noises to fixed times with sines and cosines in f32.
        tol.value = tol.value.max(1e-7);
    }
    let Phase::Student { effective, dmd: true } = Method::Dmd(dmd.clone()).phase(r.iteration(v)) else {
        panic!("a student iteration")
    };
    let (simulation, score) = r.simulation(v, &dmd, effective);
    let mut grads = Grads::new(&r.student);
    let out = r.roles(v).dmd(&dmd, &r.batch(), &simulation, &score, &mut grads).unwrap();
    let check = Check { r, variant: v };
    check.times("D_time", &score.t, 1e-12);
    check.value("G_x0", &out.sample, tol.value);
    check.value("D_xt", &out.x_t, tol.value);
    check.value("x0_theta_fake", &out.x_0_fake, tol.value);
    check.value("x0_theta_teacher", &out.x_0_teacher.unwrap(), tol.value);
    check.loss(&out.loss, tol.value);
    check.gradients(grads, &r.student, tol.gradient);
}

#[test]
fn dmd_with_random_simulation_is_the_published_one() {
    both_precisions(|r| dmd_variant(r, "dmd"));
}

#[test]
fn dmd_with_fixed_simulation_is_the_published_one() {
    both_precisions(|r| dmd_variant(r, "dmd_fix"));
}

#[test]
fn critic_is_the_published_one() {
    both_precisions(|r| {
        let v = "critic";
        let (tol, dmd) = (tolerances(r.dtype), r.dmd(v));
        let Phase::FakeScore { effective } = Method::Dmd(dmd.clone()).phase(r.iteration(v)) else {
            panic!("a fake-score iteration")
        };
        let (simulation, score) = r.simulation(v, &dmd, effective);
        let mut grads = Grads::new(&r.fake_score);
        let out = r.roles(v).critic(&dmd, &r.batch(), &simulation, &score, &mut grads).unwrap();
        let check = Check { r, variant: v };
        check.times("D_time", &score.t, 1e-12);
        check.value("G_x0", &out.sample, tol.value);
        check.value("D_xt", &out.x_t, tol.value);
        check.value("x0_theta_fake", &out.x_0_fake, tol.value);
        check.loss(&out.loss, tol.value);
        check.gradients(grads, &r.fake_score, tol.gradient);
    });
}

#[test]
fn few_step_samples_are_the_published_ones() {
    for (dtype, tolerance) in [(DType::F64, 1e-6), (DType::F32, 1e-5)] {
        let (r, s) = (Reference::new(dtype), read("rcm_sampling"));
        let student = Predictor { denoiser: &r.denoiser, params: &r.student };
        let ctx = Conditions::text(s.get("ctx").unwrap().to_dtype(dtype));
        let sigma_max = Sigma::new(r.json["config"]["sigma_max"].as_f64().unwrap()).unwrap();
        let runs: Vec<usize> =
            s.tensors.keys().filter_map(|k| k.strip_prefix("student")?.strip_suffix(".f64")?.parse().ok()).collect();
        assert!(!runs.is_empty());
        for steps in runs {
            let draw = |i: usize| s.get(&format!("student{steps}.draw{i}")).unwrap().to_dtype(DType::F64);
            let grid = FewStepGrid::published(steps, sigma_max, FewStepPreset::Reference).unwrap();
            let predict = |x: &Tensor, _: usize, t: TrigTime| {
                let t = vec![t; x.shape()[0]];
                Ok::<_, fewstep_distill::Error>(clean(x, &student.velocity(x, &t, &ctx)?, &t)?)
            };
            let got = few_step(&grid, &draw(0), predict, |n| Ok(draw(n)), |_, _| {}).unwrap();
            let want = s.get(&format!("student{steps}.f64")).unwrap().to_vec_f64();
            assert_close(&format!("student {steps} steps {dtype}"), &got.to_vec_f64(), &want, tolerance);
        }
    }
}

#[test]
fn teacher_samples_are_the_published_ones() {
    for dtype in [DType::F64, DType::F32] {
        let (r, s) = (Reference::new(dtype), read("rcm_sampling"));
        let run: Value = serde_json::from_str(&s.metadata["json"]).unwrap();
        let words: Vec<&str> = run["runs"]["teacher"].as_str().unwrap().split([' ', ',']).collect();
        let after = |word: &str| words[words.iter().position(|w| *w == word).unwrap() + 1].parse::<f64>().unwrap();
        let steps: usize = words[0].parse().unwrap();
        let shift = Shift::new(after("shift")).unwrap();
        let guidance = Guidance::new(after("cfg")).unwrap();
        let schedule = Schedule::rcm_teacher(steps, shift, Sigma::new(after("sigma_max")).unwrap()).unwrap();
        let condition = |name: &str| Conditions::text(s.get(name).unwrap().to_dtype(dtype));
        let (ctx, neg) = (condition("ctx"), condition("neg"));
        // The reference's Euler scheduler keeps levels and timesteps in f32, its UniPC in f64.
        let single = |v: &[f64]| v.iter().map(|&x| f64::from(x as f32)).collect::<Vec<_>>();
        let levels = single(schedule.levels());
        let timesteps = single(&levels[..steps].iter().map(|l| 1000.0 * l).collect::<Vec<_>>());
        let rounded = Schedule::from_levels(schedule.space(), levels, timesteps).unwrap();
        for (name, sampler, schedule) in [("Euler", Sampler::Euler, rounded), ("UniPC", Sampler::UniPc, schedule)] {
            let x = s.get(&format!("teacher_{name}.draw0")).unwrap().to_dtype(DType::F64);
            let got = sampler
                .sample(&schedule, &x, |x, step| raw(&r, x, step.timestep, &ctx, &neg, guidance), |_, _| {})
                .unwrap();
            let want = s.get(&format!("teacher_{name}.f64")).unwrap().to_vec_f64();
            // The reference's Euler also keeps its state in f32: six guided steps multiply that rounding.
            let tolerance = if name == "UniPC" && dtype == DType::F64 { 1e-6 } else { 1e-5 };
            assert_close(&format!("teacher {name} {dtype}"), &got.to_vec_f64(), &want, tolerance);
        }
    }
}

/// The guided raw prediction ε − x_0 of the teacher's network at a timestep in [0, 1000].
fn raw(
    r: &Reference,
    x: &Tensor,
    timestep: f64,
    ctx: &Conditions,
    neg: &Conditions,
    guidance: Guidance,
) -> Result<Tensor, fewstep_distill::Error> {
    guidance.apply(|branch| {
        let m = fewstep_ops::Plain::new(&r.teacher);
        let c = if branch == fewstep_diffusion::Branch::Conditional { ctx } else { neg };
        let t = Tensor::from_vec(vec![timestep; x.shape()[0]], &[x.shape()[0]])?;
        let v = r.denoiser.network().forward(&m, &x.to_dtype(r.dtype), &t, &c.in_mode(&m))?;
        Ok(v.to_dtype(DType::F64))
    })
}
