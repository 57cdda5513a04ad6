use fewstep_tensor::cuda::EMULATED;
use fewstep_tensor::{DType, arith};

use super::*;
use crate::suite;

fn op(heads: usize, spans: &[[usize; 2]]) -> RelativeAttention {
    RelativeAttention { heads, spans: spans.iter().map(|&[rows, keys]| Span { rows, keys }).collect() }
}

#[test]
fn every_rule_holds_over_sequences_with_and_without_padding() {
    let cases = [
        (1, 1, 1, 1, &[[1, 1]][..]),
        (2, 3, 4, 11, &[[5, 5], [6, 2]]),
        (3, 2, 2, 41, &[[9, 9], [0, 0], [1, 1], [21, 13]]),
        (2, 2, 0, 7, &[[3, 2]]),
        (1, 4, 3, 9, &[]),
        (2, 3, 3, 9, &[[3, 0], [2, 2]]),
        (2, 8, 8, 151, &[[70, 41], [33, 33]]),
        (6, 8, 8, 77, &[[39, 39]]),
    ];
    for (seed, (n, k, v, r, spans)) in cases.into_iter().enumerate() {
        let t = spans.iter().map(|s| s[0]).sum();
        suite::check(&op(n, spans), &[&[t, n * k], &[t, n * k], &[t, n * v], &[r, n]], seed as u64).unwrap();
    }
}

#[test]
fn every_rule_holds_on_a_gpu() {
    let cases = [
        (1, 1, 1, 1, &[[1, 1]][..]),
        (2, 3, 4, 11, &[[5, 5], [6, 2]]),
        (2, 2, 0, 7, &[[3, 2]]),
        (1, 4, 3, 9, &[]),
        (2, 3, 3, 9, &[[3, 0], [2, 2]]),
        (1, 5, 34, 77, &[[0, 0], [35, 33], [2, 1]]),
    ];
    for (seed, (n, k, v, r, spans)) in cases.into_iter().enumerate() {
        let t = spans.iter().map(|s| s[0]).sum();
        let shapes: [&[usize]; 4] = [&[t, n * k], &[t, n * k], &[t, n * v], &[r, n]];
        suite::check_on(EMULATED, &op(n, spans), &shapes, seed as u64).unwrap();
        // Scores and probabilities are f32: each result is rounded once, to half a unit of 8 bits.
        suite::check_half(EMULATED, &op(n, spans), (&shapes, &[]), 2f64.powi(-8), seed as u64).unwrap();
    }
    let wide: [&[usize]; 4] = [&[35, 66], &[35, 66], &[35, 66], &[71, 2]];
    suite::check_half(EMULATED, &op(2, &[[33, 32], [2, 2]]), (&wide, &[]), 2f64.powi(-8), 6).unwrap();
}

/// The definition, term by term.
fn definition(x: &[Tensor], n: usize, rows: usize, keys: usize) -> Vec<f64> {
    let [q, k, v, bias] = [0, 1, 2, 3].map(|i| x[i].to_vec_f64());
    let (d, centre) = (x[0].last_dim(), x[3].shape()[0] / 2);
    let width = d / n;
    let mut out = vec![0.0; rows * d];
    for (i, h) in (0..rows).flat_map(|i| (0..n).map(move |h| (i, h))) {
        let at = |x: &[f64], row: usize, c: usize| x[row * d + h * width + c];
        let score =
            |j: usize| (0..width).map(|c| at(&q, i, c) * at(&k, j, c)).sum::<f64>() + bias[(centre + j - i) * n + h];
        let weights: Vec<f64> = (0..keys).map(|j| score(j).exp()).collect();
        let total: f64 = weights.iter().sum();
        for c in 0..width {
            out[i * d + h * width + c] = (0..keys).map(|j| weights[j] / total * at(&v, j, c)).sum();
        }
    }
    out
}

#[test]
fn it_is_the_definition() {
    let (n, rows, keys, d) = (3, 11, 7, 12);
    let x = suite::draw(5, 0, &[&[rows, d], &[rows, d], &[rows, d], &[2 * rows + 3, n]]).unwrap();
    let y = op(n, &[[rows, keys]]).forward(&x.iter().collect::<Vec<_>>()).unwrap().y.to_vec_f64();
    for (y, want) in y.iter().zip(definition(&x, n, rows, keys)) {
        assert!((y - want).abs() < 1e-12, "{y} against {want}");
    }
}

#[test]
fn sequences_do_not_see_each_other_or_padding() {
    let x = suite::draw(6, 0, &[&[10, 4], &[10, 4], &[10, 4], &[21, 2]]).unwrap();
    let run = |x: &[Tensor]| op(2, &[[4, 4], [6, 3]]).forward(&x.iter().collect::<Vec<_>>()).unwrap().y;
    let y = run(&x);
    // Rows 4.. are the other sequence's, and rows 7.. its padding.
    let changed = |from: usize| {
        let mut x = x.clone();
        for t in &mut x[1..3] {
            let rows = t.narrow(from, 10 - from).unwrap();
            let ones = vec![3.0; 10 - from];
            *t = Tensor::cat(&[&t.narrow(0, from).unwrap(), &arith::scale(&ones, &rows).unwrap()]).unwrap();
        }
        run(&x)
    };
    let first = |t: &Tensor, n: usize| t.narrow(0, n).unwrap().to_vec_f64();
    assert_eq!(first(&changed(4), 4), first(&y, 4));
    assert_eq!(changed(7).to_vec_f64(), y.to_vec_f64());
    assert_ne!(changed(4).to_vec_f64(), y.to_vec_f64());
}

#[test]
fn extents_that_do_not_fit_are_refused() {
    let t = |s: &[usize]| Tensor::zeros(s, DType::F32, Device::Cpu);
    let run = |op: RelativeAttention, r: usize| {
        let (q, bias) = (t(&[5, 4]), t(&[r, 2]));
        op.forward(&[&q, &q, &q, &bias]).unwrap_err().to_string()
    };
    assert!(run(op(2, &[[5, 5]]), 8).contains("R odd"));
    assert!(run(op(3, &[[5, 5]]), 9).contains("3 heads"));
    assert!(run(op(2, &[[4, 4]]), 9).contains("5 rows in all"));
    assert!(run(op(2, &[[5, 6]]), 11).contains("as many keys"));
    assert!(run(op(2, &[[5, 5]]), 7).contains("at most 4 rows"));
}
