use fewstep_tensor::random::{Purpose, Stream};

use fewstep_tensor::cuda::EMULATED;

use super::*;
use crate::suite;

/// Large enough that parts of one element stay smooth over a difference quotient's step.
const EPS: f64 = 0.3;

fn rope(style: RopeStyle, tokens: usize, pairs: usize, seed: u64) -> Rope {
    let turns = Stream::new(seed, Purpose::Check, 98).uniform(0, tokens * pairs);
    let angles: Vec<f64> = turns.iter().map(|u| u * 100.0).collect();
    Rope { style, table: Arc::new(RopeTable::new(&angles, tokens, pairs).unwrap()) }
}

#[test]
fn every_rule_holds_on_random_shapes() {
    for seed in 0..30u64 {
        let u = Stream::new(seed, Purpose::Check, 99).uniform(0, 4);
        let [b, l, heads, half] = std::array::from_fn(|i| (u[i] * [3.0, 6.0, 4.0, 20.0][i]) as usize);
        let heads = heads + 1;
        for scope in [NormScope::Width, NormScope::Head] {
            for style in [None, Some(RopeStyle::Interleaved), Some(RopeStyle::HalfSplit)] {
                let k = if style.is_some() { 2 * half } else { 2 * half + 1 };
                let rope = style.map(|s| rope(s, l, half, seed));
                let weight = if scope == NormScope::Width { heads * k } else { k };
                let op = RmsNormRope { heads, scope, eps: EPS, rope };
                suite::check(&op, &[&[b, l, heads * k], &[weight]], seed).unwrap();
            }
        }
    }
}

#[test]
fn every_rule_holds_on_a_gpu() {
    // Heads whose halves accesses of 16 bytes do not divide and such that they do.
    for (seed, [b, l, heads, half]) in [[1, 37, 2, 3], [2, 5, 2, 8], [0, 2, 1, 2]].into_iter().enumerate() {
        for scope in [NormScope::Width, NormScope::Head] {
            for style in [None, Some(RopeStyle::Interleaved), Some(RopeStyle::HalfSplit)] {
                let k = if style.is_some() { 2 * half } else { 2 * half + 1 };
                let rope = style.map(|s| rope(s, l, half, seed as u64));
                let weight = if scope == NormScope::Width { heads * k } else { k };
                let op = RmsNormRope { heads, scope, eps: EPS, rope };
                suite::check_on(EMULATED, &op, &[&[b, l, heads * k], &[weight]], seed as u64).unwrap();
            }
        }
    }
}

#[test]
fn every_rule_holds_in_bf16_on_a_gpu() {
    for (seed, [b, l, heads, half]) in [[2, 9, 3, 16], [2, 5, 2, 3]].into_iter().enumerate() {
        for scope in [NormScope::Width, NormScope::Head] {
            for style in [None, Some(RopeStyle::Interleaved), Some(RopeStyle::HalfSplit)] {
                let rope = style.map(|s| rope(s, l, half, seed as u64));
                let weight = if scope == NormScope::Width { heads * 2 * half } else { 2 * half };
                let (op, x) = (RmsNormRope { heads, scope, eps: 1e-6, rope }, [b, l, heads * 2 * half]);
                // Each output is rounded once, by at most 2⁻⁸ of it.
                suite::check_half(EMULATED, &op, (&[&x, &[weight]], &[1]), 2f64.powi(-8), seed as u64).unwrap();
            }
        }
    }
}

#[test]
fn every_rule_holds_over_several_pieces_of_rows() {
    let op =
        RmsNormRope { heads: 2, scope: NormScope::Head, eps: EPS, rope: Some(rope(RopeStyle::Interleaved, 131, 3, 1)) };
    suite::check(&op, &[&[2, 131, 12], &[6]], 1).unwrap();
}

#[test]
fn without_a_rotation_any_leading_axes_do() {
    let op = RmsNormRope { heads: 3, scope: NormScope::Width, eps: EPS, rope: None };
    for (seed, x) in [&[2usize, 3, 4, 15][..], &[15], &[7, 15]].into_iter().enumerate() {
        suite::check(&op, &[x, &[15]], seed as u64).unwrap();
    }
}

#[test]
fn a_rotation_keeps_the_norm_of_every_pair() {
    for (style, pair) in [(RopeStyle::Interleaved, [2, 3]), (RopeStyle::HalfSplit, [1, 5])] {
        let x = suite::draw(3, 0, &[&[1, 5, 8]]).unwrap().remove(0);
        let one = Tensor::full(&[8], 1.0, DType::F64, Device::Cpu);
        let run =
            |rope| RmsNormRope { heads: 1, scope: NormScope::Head, eps: 1e-6, rope }.forward(&[&x, &one]).unwrap().y;
        let (plain, turned) = (run(None).to_vec_f64(), run(Some(rope(style, 5, 4, 7))).to_vec_f64());
        for row in 0..5 {
            let norm = |y: &[f64]| pair.iter().map(|p| y[row * 8 + p].powi(2)).sum::<f64>();
            assert!((norm(&plain) - norm(&turned)).abs() < 1e-12, "{style:?}, row {row}");
        }
    }
}

#[test]
fn a_table_of_another_length_is_refused() {
    let op =
        RmsNormRope { heads: 1, scope: NormScope::Head, eps: 1e-6, rope: Some(rope(RopeStyle::HalfSplit, 4, 2, 0)) };
    let f = |s: &[usize]| Tensor::zeros(s, DType::F32, Device::Cpu);
    assert!(op.forward(&[&f(&[1, 5, 4]), &f(&[4])]).unwrap_err().to_string().contains("table"));
}
