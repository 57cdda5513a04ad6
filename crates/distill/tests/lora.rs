//! Training by low-rank adapters: where it starts, what it differentiates, what it saves.

use fewstep_diffusion::{Denoiser, Predictor, TrigTime, Wrapper};
use fewstep_distill::check_jvp::{Precision, check_jvp};
use fewstep_distill::train::{Lora, Train};
use fewstep_nn::wan::{Wan, WanConfig};
use fewstep_ops::{Compute, Conditions, Grads, Network, ParamId, Params, Recompute};
use fewstep_tensor::random::{Purpose, Stream};
use fewstep_tensor::{DType, Device, Tensor, arith};

const TEXT: [usize; 2] = [3, 8];
const VIDEO: [usize; 4] = [2, 2, 4, 4];

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

fn normal(seed: u64, i: u64, shape: &[usize], std: f64, dtype: DType) -> Tensor {
    let stream = Stream::new(seed, Purpose::Check, 0);
    let flat = arith::normal(&stream, i, &[1, shape.iter().product()], dtype, Device::Cpu).unwrap();
    arith::scale(&[std], &flat).unwrap().reshape(shape).unwrap()
}

/// Weights without the zeros of an untrained head.
fn weights(d: &Denoiser<Wan>, dtype: DType) -> Params {
    let params = Params::init(d.network().specs(), 3, dtype, Device::Cpu).unwrap();
    let moved = params
        .tensors()
        .iter()
        .enumerate()
        .map(|(i, t)| arith::add(t, &normal(4, i as u64, t.shape(), 0.1, dtype)).unwrap());
    Params::new(params.specs(), moved.collect()).unwrap()
}

fn lora(targets: &[&str]) -> Train {
    Train::Lora(Lora { rank: 3, alpha: 6.0, targets: targets.iter().map(|t| t.to_string()).collect(), seed: 7 })
}

/// Adapters whose B is not zero any more.
fn trained(base: &Params, targets: &[&str], dtype: DType) -> Params {
    let start = lora(targets).start(base, Compute { device: Device::Cpu, dtype }).unwrap();
    let moved = start.trained().iter().enumerate().map(|(i, t)| normal(5, i as u64, t.shape(), 0.2, dtype)).collect();
    start.with_trained(moved).unwrap()
}

struct Input {
    x: Tensor,
    t: Vec<TrigTime>,
    conditions: Conditions,
}

fn input(dtype: DType) -> Input {
    let [c, f, h, w] = VIDEO;
    let text = normal(6, 1, &[2, TEXT[0], TEXT[1]], 1.0, dtype);
    let t = [0.4, 1.2].map(|t| TrigTime::new(t).unwrap()).to_vec();
    Input { x: normal(6, 0, &[2, c, f, h, w], 1.0, DType::F64), t, conditions: Conditions::text(text) }
}

fn velocity(d: &Denoiser<Wan>, params: &Params, i: &Input) -> Tensor {
    Predictor { denoiser: d, params }.velocity(&i.x, &i.t, &i.conditions).unwrap()
}

fn gradients(d: &Denoiser<Wan>, params: &Params, i: &Input, bar: &Tensor, recompute: Recompute) -> (Grads, Tensor) {
    let mut grads = Grads::new(params);
    let tape = Predictor { denoiser: d, params }.velocity_tape(&i.x, &i.t, &i.conditions, recompute).unwrap();
    let f = tape.f().clone();
    tape.backward(bar.clone(), &mut grads).unwrap();
    (grads, f)
}

fn distance(a: &Tensor, b: &Tensor) -> f64 {
    (arith::sum_squares(&arith::sub(a, b).unwrap()).unwrap() / arith::sum_squares(b).unwrap()).sqrt()
}

#[test]
fn at_the_start_the_student_is_the_teacher_bit_for_bit_in_every_mode() {
    let d = denoiser();
    for dtype in [DType::F32, DType::F64] {
        let (teacher, i) = (weights(&d, dtype), input(dtype));
        let student = lora(&["*"]).start(&teacher, Compute { device: Device::Cpu, dtype }).unwrap();
        assert_eq!(velocity(&d, &student, &i).to_vec_f64(), velocity(&d, &teacher, &i).to_vec_f64());
        let jvp = |params| {
            let p = Predictor { denoiser: &d, params };
            let (f, dot) = p.velocity_jvp((&i.x, &i.x), (&i.t, &[0.3, -0.2]), &i.conditions).unwrap();
            (f.to_vec_f64(), dot.to_vec_f64())
        };
        assert_eq!(jvp(&student), jvp(&teacher));
    }
}

#[test]
fn frozen_weights_are_shared_with_the_teacher_and_get_no_gradient() {
    let d = denoiser();
    let (teacher, i) = (weights(&d, DType::F32), input(DType::F32));
    let student = trained(&teacher, &["self_attn.q", "ffn.0"], DType::F32);
    for (a, b) in teacher.tensors().iter().zip(student.tensors()) {
        assert!(std::ptr::eq(a.as_slice::<f32>().unwrap(), b.as_slice::<f32>().unwrap()));
    }
    let bar = normal(8, 0, i.x.shape(), 1.0, DType::F64);
    let (grads, _) = gradients(&d, &student, &i, &bar, Recompute::Nothing);
    let n = teacher.tensors().len();
    assert!((0..n).all(|k| grads.get(ParamId(k)).is_none()), "a frozen weight has a gradient");
    assert_eq!(student.trained().len(), 2 * 2 * 2, "two layers, two blocks, A and B");
    for k in n..student.tensors().len() {
        let g = grads.get(ParamId(k)).unwrap();
        assert!(arith::sum_squares(g).unwrap() > 0.0, "{} is idle", student.specs()[k].name);
    }
}

#[test]
fn gradients_of_adapters_match_central_differences() {
    let d = denoiser();
    let (base, i) = (weights(&d, DType::F64), input(DType::F64));
    let params = trained(&base, &["*"], DType::F64);
    let bar = normal(8, 0, i.x.shape(), 1.0, DType::F64);
    let (grads, _) = gradients(&d, &params, &i, &bar, Recompute::Nothing);
    let direction: Vec<Tensor> =
        params.trained().iter().enumerate().map(|(k, t)| normal(9, k as u64, t.shape(), 1.0, DType::F64)).collect();
    let dot = |a: &Tensor, b: &Tensor| -> f64 { a.to_vec_f64().iter().zip(b.to_vec_f64()).map(|(x, y)| x * y).sum() };
    let got: f64 = grads.into_tensors(&params).iter().zip(&direction).map(|(g, v)| dot(g, v)).sum();
    let value = |h: f64| {
        let moved = params.trained().iter().zip(&direction);
        let moved = moved.map(|(p, v)| arith::add(p, &arith::scale(&vec![h; v.shape()[0]], v).unwrap()).unwrap());
        dot(&velocity(&d, &params.with_trained(moved.collect()).unwrap(), &i), &bar)
    };
    let h = 1e-4;
    let want = (8.0 * (value(h) - value(-h)) - (value(2.0 * h) - value(-2.0 * h))) / (12.0 * h);
    // Fourth-order curvature at 1e-4, and rounding of 1e-16/1e-4 over a sum of some hundred terms.
    assert!((got / want - 1.0).abs() < 1e-8, "{got} {want}");
}

#[test]
fn recomputed_activations_give_the_gradients_of_kept_ones_bit_for_bit() {
    let d = denoiser();
    let (base, i) = (weights(&d, DType::F32), input(DType::F32));
    let params = trained(&base, &["self_attn.v", "cross_attn.o", "ffn.2"], DType::F32);
    let bar = normal(8, 0, i.x.shape(), 1.0, DType::F64);
    let of = |recompute| {
        let (grads, f) = gradients(&d, &params, &i, &bar, recompute);
        (f.to_vec_f64(), grads.into_tensors(&params).iter().map(Tensor::to_vec_f64).collect::<Vec<_>>())
    };
    let kept = of(Recompute::Nothing);
    assert!(kept == of(Recompute::AllButAttention) && kept == of(Recompute::Everything));
}

#[test]
fn merged_weights_compute_what_the_adapters_did() {
    let d = denoiser();
    let (base, i) = (weights(&d, DType::F64), input(DType::F64));
    let params = trained(&base, &["*"], DType::F64);
    let merged = params.merged().unwrap();
    assert_eq!(merged.specs(), base.specs());
    let (a, b) = (velocity(&d, &params, &i), velocity(&d, &merged, &i));
    assert!(distance(&a, &b) < 1e-12, "{}", distance(&a, &b));
    assert!(distance(&a, &velocity(&d, &base, &i)) > 1e-2, "the adapters change something");
}

#[test]
fn merged_weights_keep_the_dtype_in_which_they_were_stored() {
    let d = denoiser();
    let base = weights(&d, DType::F32).to_dtype(DType::Bf16);
    let params = trained(&base, &["ffn.0"], DType::F32);
    let merged = params.merged().unwrap();
    assert!(merged.tensors().iter().all(|t| t.dtype() == DType::Bf16));
    let changed = base.tensors().iter().zip(merged.tensors()).filter(|(a, b)| a.to_vec_f64() != b.to_vec_f64());
    assert_eq!(changed.count(), 2, "ffn.0 of two blocks");
}

#[test]
fn a_target_that_names_no_layer_is_refused_with_the_names_that_do() {
    let d = denoiser();
    let base = weights(&d, DType::F32);
    for target in ["self_attn.qq", "attn.q", "norm_q", ""] {
        let e = lora(&["ffn.0", target]).start(&base, Compute::on(Device::Cpu)).unwrap_err().to_string();
        assert!(e.contains("self_attn.q, ") && e.contains("ffn.2") && e.contains(&format!("'{target}'")), "{e}");
    }
    let refused = |change: &dyn Fn(&mut Lora)| {
        let Train::Lora(mut l) = lora(&["*"]) else { unreachable!() };
        change(&mut l);
        Train::Lora(l).validate().unwrap_err().to_string()
    };
    assert!(refused(&|l| l.rank = 0).contains("train.lora.rank"));
    assert!(refused(&|l| l.alpha = f64::NAN).contains("train.lora.alpha"));
    assert!(refused(&|l| l.targets.clear()).contains("train.lora.targets"));
}

#[test]
fn beyond_the_budget_tangents_are_checked_in_the_compute_dtype_alone() {
    let d = denoiser();
    let (params, i) = (weights(&d, DType::F32), input(DType::F32));
    let model = Predictor { denoiser: &d, params: &params };
    let check = |budget| check_jvp(model, &i.x, &i.conditions, Precision { compute: DType::F32, budget }).unwrap();
    let whole = params.count() * DType::F64.size();
    let (within, beyond) = (check(whole), check(whole - 1));
    assert!(within.ok() && beyond.ok(), "{within}{beyond}");
    assert_eq!((within.rows.len(), beyond.rows.len()), (2 * within.times(), beyond.times()));
    assert!(beyond.rows.iter().all(|r| r.dtype == DType::F32 && r.against_f64.is_none()));
}
