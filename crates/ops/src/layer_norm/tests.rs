use fewstep_tensor::cuda::EMULATED;
use fewstep_tensor::random::{Purpose, Stream};

use super::*;
use crate::suite;

/// Large enough that rows of one or two elements stay smooth over a difference quotient's step.
const EPS: f64 = 0.3;

/// Four integers below `below`, a function of the seed.
fn random_extents(seed: u64, below: usize) -> [usize; 4] {
    let u = Stream::new(seed, Purpose::Check, 99).uniform(0, 4);
    std::array::from_fn(|i| (u[i] * below as f64) as usize)
}

#[test]
fn every_rule_of_the_modulated_norm_holds_on_random_shapes() {
    for seed in 0..24 {
        let [b, g, per_group, d] = random_extents(seed, 9);
        let (b, g, d) = (b % 3, g % 4 + 1, d * d + seed as usize % 3);
        let (x, m) = ([b, g * per_group, d], [b, g, d]);
        suite::check(&LayerNormModulate { eps: EPS }, &[&x, &m, &m], seed).unwrap();
    }
    let (x, m) = ([1, 2 * 150, 33], [1, 2, 33]);
    suite::check(&LayerNormModulate { eps: EPS }, &[&x, &m, &m], 100).unwrap();
}

#[test]
fn every_rule_of_the_affine_norm_holds_on_random_shapes() {
    for seed in 0..24 {
        let [a, b, c, d] = random_extents(seed, 7);
        let d = d * d + 1;
        let x: &[usize] = if seed % 2 == 0 { &[a, b, c, d] } else { &[d] };
        suite::check(&LayerNormAffine { eps: EPS }, &[x, &[d], &[d]], seed).unwrap();
    }
}

#[test]
fn every_rule_of_the_modulated_norm_holds_on_a_gpu() {
    // Rows of one lane, of a part of a warp, of a warp and more, of several warps; aligned and not.
    for (seed, [b, g, per_group, d]) in
        [[2, 3, 5, 1], [1, 1, 37, 6], [2, 2, 20, 33], [1, 2, 3, 136], [0, 1, 2, 3], [1, 2, 0, 4]]
            .into_iter()
            .enumerate()
    {
        let (x, m) = ([b, g * per_group, d], [b, g, d]);
        suite::check_on(EMULATED, &LayerNormModulate { eps: EPS }, &[&x, &m, &m], seed as u64).unwrap();
    }
}

#[test]
fn every_rule_of_the_affine_norm_holds_on_a_gpu() {
    for (seed, x) in [&[3, 4, 6][..], &[33], &[2, 0, 6]].into_iter().enumerate() {
        let d = x[x.len() - 1];
        suite::check_on(EMULATED, &LayerNormAffine { eps: EPS }, &[x, &[d], &[d]], seed as u64).unwrap();
    }
}

#[test]
fn every_rule_holds_in_bf16_on_a_gpu() {
    // Each output is rounded once, by at most 2⁻⁸ of it.
    for (seed, [b, g, per_group, d]) in [[2, 2, 20, 136], [1, 1, 9, 33], [1, 3, 1, 2056]].into_iter().enumerate() {
        let shapes: [&[usize]; 3] = [&[b, g * per_group, d], &[b, g, d], &[b, g, d]];
        let (op, wide) = (LayerNormModulate { eps: 1e-6 }, &[1, 2]);
        suite::check_half(EMULATED, &op, (&shapes, wide), 2f64.powi(-8), seed as u64).unwrap();
    }
}

#[test]
fn the_primal_on_a_gpu_does_not_depend_on_where_a_tangent_lies() {
    let [b, l, d] = [1, 5, 264];
    let draw = |seed| suite::draw(seed, 0, &[&[1 + b * l * d], &[b, 1, d], &[b, 1, d]]).unwrap();
    let there = |t: &Tensor| t.to_dtype(fewstep_tensor::DType::F32).to_device(EMULATED).unwrap();
    let (x, x_dot): (Vec<Tensor>, Vec<Tensor>) =
        (draw(1).iter().map(there).collect(), draw(2).iter().map(there).collect());
    let rows = |t: &Tensor, start| t.narrow(start, b * l * d).unwrap().reshape(&[b, l, d]).unwrap();
    let (op, x) = (LayerNormModulate { eps: 1e-6 }, [&rows(&x[0], 0), &x[1], &x[2]]);
    let y = op.forward(&x).unwrap().y.to_vec_f64();
    let apart = rows(&x_dot[0], 1);
    assert!(!apart.is_aligned(16));
    let dual = op.jvp(&x, &[Some(&apart), None, None]).unwrap();
    assert!(dual.primal.to_vec_f64() == y);
    let moved = there(&apart.to_device(Device::Cpu).unwrap());
    let again = op.jvp(&x, &[Some(&moved), None, None]).unwrap();
    assert!(dual.tangent.unwrap().to_vec_f64() == again.tangent.unwrap().to_vec_f64());
}

#[test]
fn a_large_mean_does_not_cancel_the_variance() {
    let d = 257;
    let noise = suite::draw(5, 0, &[&[1, 1, d]]).unwrap().remove(0).to_vec_f64();
    let y = |mean: f64| {
        // Rounded before both runs, so that they see the same differences.
        let x: Vec<f32> = noise.iter().map(|n| (mean + n) as f32).collect();
        let exact: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        let run = |x: Tensor| {
            let zero = Tensor::zeros(&[1, 1, d], x.dtype(), x.device());
            LayerNormModulate { eps: 1e-6 }.forward(&[&x, &zero, &zero]).unwrap().y.to_vec_f64()
        };
        (run(Tensor::from_vec(x, &[1, 1, d]).unwrap()), run(Tensor::from_vec(exact, &[1, 1, d]).unwrap()))
    };
    let (single, double) = y(1024.0);
    for (s, d) in single.iter().zip(&double) {
        // The mean itself is known to ε·1024 = 6e-5 of a standard deviation.
        assert!((s - d).abs() < 2e-4, "{s} against {d}");
    }
}

#[test]
fn a_modulation_that_does_not_divide_the_tokens_is_refused() {
    let f = |s: &[usize]| Tensor::zeros(s, fewstep_tensor::DType::F32, Device::Cpu);
    let e = LayerNormModulate { eps: 1e-6 }.forward(&[&f(&[1, 5, 4]), &f(&[1, 2, 4]), &f(&[1, 2, 4])]).unwrap_err();
    assert!(e.to_string().contains("G dividing L"), "{e}");
}
