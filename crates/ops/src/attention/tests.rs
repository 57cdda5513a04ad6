use std::path::PathBuf;

use fewstep_tensor::cuda::EMULATED;
use fewstep_tensor::random::{Purpose, Stream};
use fewstep_tensor::{DType, file::TensorFile};

use super::*;
use crate::suite;

#[test]
fn every_rule_holds_on_random_shapes() {
    for seed in 0..30 {
        let u = Stream::new(seed, Purpose::Check, 99).uniform(0, 6);
        let up_to = |i: usize, n: f64| (u[i] * (n + 1.0)) as usize;
        let (b, n, l, s) = (up_to(0, 2.0), 1 + up_to(1, 3.0), up_to(2, 40.0), up_to(3, 40.0));
        let (k, v) = (1 + up_to(4, 20.0), up_to(5, 20.0));
        let op = Attention { heads: n, scale: None };
        suite::check(&op, &[&[b, l, n * k], &[b, s, n * k], &[b, s, n * v]], seed).unwrap();
    }
}

#[test]
fn every_rule_holds_over_several_blocks_and_at_the_extremes() {
    let shapes = [
        [1, 1, 1, 1, 1, 1],
        [2, 0, 3, 2, 3, 4],
        [2, 3, 0, 2, 3, 4],
        [0, 3, 5, 1, 2, 2],
        [1, 2, 3, 1, 4, 0],
        [1, 70, 300, 2, 5, 9],
        [2, 161, 129, 1, 33, 40],
        // More queries than a group of the backward pass; enough heads for tasks of several panels.
        [1, 300, 70, 1, 3, 5],
        [1, 70, 20, 34, 2, 3],
    ];
    for (seed, [b, l, s, n, k, v]) in shapes.into_iter().enumerate() {
        let op = Attention { heads: n, scale: Some(0.4) };
        suite::check(&op, &[&[b, l, n * k], &[b, s, n * k], &[b, s, n * v]], seed as u64).unwrap();
    }
}

#[test]
fn every_rule_holds_on_a_gpu() {
    let shapes = [
        [1, 1, 1, 1, 1, 1],
        [2, 0, 3, 2, 3, 4],
        [2, 3, 0, 2, 3, 4],
        [0, 3, 5, 1, 2, 2],
        [1, 2, 3, 1, 4, 0],
        // More rows than a block, more keys than a piece, odd widths, more columns than a part.
        [2, 19, 70, 2, 5, 9],
        [1, 33, 34, 1, 40, 131],
        [1, 5, 4, 1, 130, 3],
    ];
    for (seed, [b, l, s, n, k, v]) in shapes.into_iter().enumerate() {
        let op = Attention { heads: n, scale: Some(0.4) };
        suite::check_on(EMULATED, &op, &[&[b, l, n * k], &[b, s, n * k], &[b, s, n * v]], seed as u64).unwrap();
    }
}

#[test]
fn every_rule_holds_in_bf16_on_the_tensor_cores_of_a_gpu() {
    // No keys; a padded width; the widths that are to be fast.
    let shapes = [[1, 3, 0, 2, 16, 8], [2, 70, 130, 2, 72, 40], [1, 150, 77, 1, 128, 128]];
    for (seed, [b, l, s, n, k, v]) in shapes.into_iter().enumerate() {
        let op = Attention { heads: n, scale: None };
        let shapes: [&[usize]; 3] = [&[b, l, n * k], &[b, s, n * k], &[b, s, n * v]];
        suite::check_half(EMULATED, &op, (&shapes, &[]), HALF_TOLERANCE, seed as u64).unwrap();
    }
}

#[test]
fn every_rule_holds_in_bf16_of_one_head_wider_than_tensor_core_kernels_take() {
    for (seed, [b, l, s, k, v]) in
        [[2, 9, 21, 264, 264], [1, 3, 300, 16, 257], [1, 4, 1, 384, 8]].into_iter().enumerate()
    {
        let op = Attention { heads: 1, scale: None };
        let shapes: [&[usize]; 3] = [&[b, l, k], &[b, s, k], &[b, s, v]];
        suite::check_half(EMULATED, &op, (&shapes, &[]), HALF_TOLERANCE, seed as u64).unwrap();
    }
}

#[test]
fn any_tangents_give_the_same_primal_and_their_part_on_the_tensor_cores_of_a_gpu() {
    let op = Attention { heads: 2, scale: None };
    let shapes: [&[usize]; 3] = [&[1, 40, 32], &[1, 70, 32], &[1, 70, 48]];
    let drawn = |purpose| {
        let half: Vec<_> = suite::draw(7, purpose, &shapes).unwrap().iter().map(|t| t.to_dtype(DType::Bf16)).collect();
        let exact: Vec<_> = half.iter().map(|t| t.to_dtype(DType::F64)).collect();
        (half.iter().map(|t| t.to_device(EMULATED).unwrap()).collect::<Vec<_>>(), exact)
    };
    let ((x, x64), (u, u64)) = (drawn(0), drawn(1));
    let (x, x64): (Vec<_>, Vec<_>) = (x.iter().collect(), x64.iter().collect());
    let y = op.forward(&x).unwrap().y.to_vec_f64();
    for subset in 1..8 {
        let some = |t: &'_ [Tensor]| -> Vec<Option<Tensor>> {
            (0..3).map(|i| (subset >> i & 1 == 1).then(|| t[i].clone())).collect()
        };
        let (u, u64) = (some(&u), some(&u64));
        let dual = op.jvp(&x, &u.iter().map(Option::as_ref).collect::<Vec<_>>()).unwrap();
        let want = op.jvp(&x64, &u64.iter().map(Option::as_ref).collect::<Vec<_>>()).unwrap().tangent.unwrap();
        assert!(dual.primal.to_vec_f64() == y, "the primal with tangents {subset:03b}");
        let e = suite::relative_l2(&dual.tangent.unwrap(), &want);
        assert!(e < HALF_TOLERANCE, "tangents {subset:03b}: {e:e}");
    }
}

/// Rounding of probabilities, of what multiplies them and of the output: 2⁻⁹ each, and as much again for the means.
pub(super) const HALF_TOLERANCE: f64 = 4.0 * 0.001_953_125;

fn fixture() -> TensorFile {
    let local = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
    let folder = std::env::var_os("FEWSTEP_FIXTURES").map_or(local, PathBuf::from);
    TensorFile::read(&folder.join("attention_jvp.safetensors")).unwrap()
}

/// The largest difference relative to the largest reference.
fn error(got: &Tensor, want: &Tensor) -> f64 {
    let (got, want) = (got.to_vec_f64(), want.to_vec_f64());
    let scale = want.iter().fold(0.0f64, |m, w| m.max(w.abs()));
    got.iter().zip(&want).fold(0.0f64, |m, (g, w)| if m >= (g - w).abs() { m } else { (g - w).abs() }) / scale
}

/// Tolerances of the fixtures: forward, tangent, cotangents.
fn matches_the_published_kernels(dtype: DType, [forward, tangent, cotangent]: [f64; 3]) {
    let f = fixture();
    for case in ["a", "b"] {
        let get = |name: &str| {
            let t = f.get(&format!("{case}.{name}")).unwrap();
            let [b, s, h, d] = t.dims().unwrap();
            (h, t.reshape(&[b, s, h * d]).unwrap().to_dtype(dtype))
        };
        let op = Attention { heads: get("q").0, scale: None };
        let [q, k, v, tq, tk, tv] = ["q", "k", "v", "tq", "tk", "tv"].map(|name| get(name).1);
        let x = [&q, &k, &v];
        let output = op.forward(&x).unwrap();
        let dual = op.jvp(&x, &[Some(&tq), Some(&tk), Some(&tv)]).unwrap();
        let bars = op.vjp(&Saved::of(&op, &x, &output), &get("do").1, &[true; 3]).unwrap();
        let check = |name: &str, got: &Tensor, tolerance: f64| {
            let e = error(got, f.get(&format!("{case}.{name}")).unwrap());
            println!("{case}.{name} in {dtype}: {e:.1e}");
            assert!(e < tolerance, "{case}.{name} in {dtype}: {e:e} above {tolerance:e}");
        };
        check("out", &output.y, forward);
        check("tout", dual.tangent.as_ref().unwrap(), tangent);
        for (name, bar) in ["dq", "dk", "dv"].into_iter().zip(&bars) {
            check(name, bar.as_ref().unwrap(), cotangent);
        }
    }
}

#[test]
fn matches_the_published_kernels_in_double_precision() {
    matches_the_published_kernels(DType::F64, [1e-9; 3]);
}

#[test]
fn matches_the_published_kernels_in_single_precision() {
    matches_the_published_kernels(DType::F32, [1e-5, 1e-4, 1e-5]);
}

#[test]
fn scores_far_beyond_the_range_of_exp_do_not_overflow() {
    let [q, k, v] = [0, 1, 2].map(|i| suite::draw(i, 0, &[&[1, 150, 16]]).unwrap().remove(0));
    // Every fifth key is an outlier; a common offset of all keys does not change the softmax.
    let row = |i: usize| if i.is_multiple_of(5) { 300.0 } else { 40.0 };
    let k: Vec<f64> = k.to_vec_f64().iter().enumerate().map(|(i, x)| row(i / 16) * x + 1000.0).collect();
    let k = Tensor::from_vec(k, &[1, 150, 16]).unwrap();
    let op = Attention { heads: 2, scale: None };
    for dtype in [DType::F32, DType::F64] {
        let x = [&q, &k, &v].map(|t| t.to_dtype(dtype));
        let x = [&x[0], &x[1], &x[2]];
        let output = op.forward(&x).unwrap();
        let dual = op.jvp(&x, &[Some(x[0]), Some(x[2]), Some(x[2])]).unwrap();
        let bars = op.vjp(&Saved::of(&op, &x, &output), x[0], &[true; 3]).unwrap();
        for t in bars.iter().flatten().chain([&output.y, &output.kept[0], &dual.tangent.unwrap()]) {
            assert!(t.to_vec_f64().iter().all(|x| x.is_finite()), "{dtype}");
        }
        let largest = |t: &Tensor| t.to_vec_f64().iter().fold(0.0f64, |m, x| m.max(x.abs()));
        // A mean of values never exceeds the largest of them, but for rounding.
        assert!(largest(&output.y) <= largest(&v) * (1.0 + 1e-6), "{dtype}");
    }
}

#[test]
fn many_small_probabilities_count_beside_a_large_one() {
    // One key scores 0 and all others −17: each is less than half a unit in the last place of 1, but there are thousands.
    const KEYS: usize = 4096;
    let keys: Vec<f64> = (0..KEYS * 8).map(|i| if i % 8 == 0 && i > 0 { -17.0 } else { 0.0 }).collect();
    let query: Vec<f64> = (0..8).map(|i| f64::from(u8::from(i == 0))).collect();
    let half = |values: Vec<f64>, rows: usize| {
        let t = Tensor::from_vec(values, &[1, rows, 8]).unwrap().to_dtype(DType::Bf16);
        t.to_device(EMULATED).unwrap()
    };
    let (q, k) = (half(query, 1), half(keys, KEYS));
    let op = Attention { heads: 1, scale: Some(1.0) };
    let lse = op.forward(&[&q, &k, &k]).unwrap().kept[0].to_device(Device::Cpu).unwrap().to_vec_f64()[0];
    let exact = ((KEYS - 1) as f64 * (-17.0f64).exp()).ln_1p();
    // 1.7e-4. Beside 1 every tile's sum may lose half a unit of 1.2e-7; tiles have 64 keys or more.
    let allowed = (KEYS / 64) as f64 * 6e-8;
    assert!((lse - exact).abs() < allowed, "{lse:e} against {exact:e}");
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let shapes: [&[usize]; 3] = [&[2, 200, 20], &[2, 700, 20], &[2, 700, 12]];
    let x: Vec<Tensor> = suite::draw(1, 0, &shapes).unwrap().iter().map(|t| t.to_dtype(DType::F32)).collect();
    let x = [&x[0], &x[1], &x[2]];
    let op = Attention { heads: 2, scale: None };
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let output = op.forward(&x).unwrap();
            let dual = op.jvp(&x, &[Some(x[0]), Some(x[1]), Some(x[2])]).unwrap();
            let bars = op.vjp(&Saved::of(&op, &x, &output), &output.y, &[true; 3]).unwrap();
            let all = bars.iter().flatten().chain(&output.kept).chain([&output.y, &dual.primal]).chain(&dual.tangent);
            all.flat_map(|t| t.as_slice::<f32>().unwrap().iter().map(|x| x.to_bits())).collect::<Vec<_>>()
        })
    };
    let one = run(1);
    assert!(one == run(2) && one == run(5));
}

#[test]
fn without_keys_the_output_is_zero_and_the_log_sum_exp_negative_infinity() {
    let f = |s: &[usize]| Tensor::full(s, 1.0, DType::F32, Device::Cpu);
    let output =
        Attention { heads: 2, scale: None }.forward(&[&f(&[1, 3, 4]), &f(&[1, 0, 4]), &f(&[1, 0, 6])]).unwrap();
    assert_eq!(output.y.shape(), [1, 3, 6]);
    assert!(output.y.to_vec_f64().iter().all(|&y| y == 0.0));
    assert!(output.kept[0].to_vec_f64().iter().all(|&y| y == f64::NEG_INFINITY));
}

#[test]
fn keys_and_values_of_different_lengths_are_refused() {
    let f = |s: &[usize]| Tensor::zeros(s, DType::F32, Device::Cpu);
    let e = Attention { heads: 1, scale: None }.forward(&[&f(&[1, 3, 4]), &f(&[1, 5, 4]), &f(&[1, 6, 4])]).unwrap_err();
    assert!(e.to_string().contains("attention"), "{e}");
}
