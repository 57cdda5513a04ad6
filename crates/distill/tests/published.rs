//! Objectives and samplers against the rCM reference: `rcm_losses`, `rcm_sampling`.

use std::path::PathBuf;

use fewstep_diffusion::{
    FewStepGrid, FewStepPreset, Guidance, Predictor, Sampler, Schedule, Shift, Sigma, TrigTime, clean, few_step,
};
use fewstep_nn::wan::Wan;
use fewstep_ops::{Compute, Conditions, Network};
use fewstep_tensor::file::TensorFile;
use fewstep_tensor::{DType, Device, Tensor};
use fewstep_verify::fixtures::losses;
use serde_json::Value;

type Reference = losses::Reference<Wan>;

fn folder() -> PathBuf {
    let own = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures");
    std::env::var_os("FEWSTEP_FIXTURES").map_or_else(|| own.into(), PathBuf::from)
}

fn read(name: &str) -> TensorFile {
    TensorFile::read(&folder().join(format!("{name}.safetensors"))).unwrap()
}

fn reference(dtype: DType) -> Reference {
    Reference::new(&folder(), Compute { device: Device::Cpu, dtype }).unwrap()
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

/// Values, losses and gradients of a step, in both precisions.
fn is_the_published_one(step: &str) {
    for dtype in [DType::F64, DType::F32] {
        let all = reference(dtype).step(step).unwrap();
        assert!(all.iter().any(|c| c.name.contains("grad")) && all.iter().any(|c| c.name.contains("loss")));
        for c in all {
            let m = c.margin(dtype);
            println!("{} {dtype}: {:.1e}", c.name, m.error);
            assert!(m.holds(), "{} {dtype}: off by {:e}, tolerance {:e}", c.name, m.error, m.allowed);
        }
    }
}

#[test]
fn scm_with_the_full_tangent_is_the_published_one() {
    is_the_published_one("scm");
}

#[test]
fn scm_with_tangent_warmup_is_the_published_one() {
    is_the_published_one("scm_warm");
}

#[test]
fn scm_without_guidance_is_the_published_one() {
    is_the_published_one("scm_nocfg");
}

#[test]
fn scm_with_the_semi_continuous_tangent_is_the_published_one() {
    is_the_published_one("scm_fd1");
}

#[test]
fn scm_with_the_discrete_tangent_is_the_published_one() {
    is_the_published_one("scm_fd2");
}

#[test]
fn dcm_is_the_published_one() {
    is_the_published_one("dcm");
}

#[test]
fn dmd_with_random_simulation_is_the_published_one() {
    is_the_published_one("dmd");
}

#[test]
fn dmd_with_fixed_simulation_is_the_published_one() {
    is_the_published_one("dmd_fix");
}

#[test]
fn critic_is_the_published_one() {
    is_the_published_one("critic");
}

#[test]
fn few_step_samples_are_the_published_ones() {
    for (dtype, tolerance) in [(DType::F64, 1e-6), (DType::F32, 1e-5)] {
        let (r, s) = (reference(dtype), read("rcm_sampling"));
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
        let (r, s) = (reference(dtype), read("rcm_sampling"));
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
                .sample(&schedule, &x, |x, step| raw(&r, dtype, x, step.timestep, [&ctx, &neg], guidance), |_, _| {})
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
    dtype: DType,
    x: &Tensor,
    timestep: f64,
    [ctx, neg]: [&Conditions; 2],
    guidance: Guidance,
) -> Result<Tensor, fewstep_distill::Error> {
    guidance.apply(|branch| {
        let m = fewstep_ops::Plain::new(&r.teacher);
        let c = if branch == fewstep_diffusion::Branch::Conditional { ctx } else { neg };
        let t = Tensor::from_vec(vec![timestep; x.shape()[0]], &[x.shape()[0]])?;
        let v = r.denoiser.network().forward(&m, &x.to_dtype(dtype), &t, &c.in_mode(&m))?;
        Ok(v.to_dtype(DType::F64))
    })
}
