use std::sync::Arc;

use fewstep_tensor::cuda::EMULATED;
use fewstep_tensor::random::{Purpose, Stream};

use super::tests::HALF_TOLERANCE;
use super::*;
use crate::suite;

/// Extents b, l, s, n, k, v of the inputs.
type Shape = [usize; 6];

fn shapes([b, l, s, n, k, v]: Shape) -> [Vec<usize>; 3] {
    [vec![b, l, n * k], vec![b, s, n * k], vec![b, s, n * v]]
}

fn bias(shape: [usize; 4], seed: u64) -> Pairs<f32> {
    let u = Stream::new(seed, Purpose::Check, 50).uniform(0, shape.iter().product());
    let value = |u: &f64| if *u < 0.1 { f32::NEG_INFINITY } else { (3.0 * u - 1.5) as f32 };
    let mut values: Vec<f32> = u.iter().map(value).collect();
    // The first query of all may attend to nothing.
    values[..shape[3]].fill(f32::NEG_INFINITY);
    Pairs::new(shape, values).unwrap()
}

fn allowed(shape: [usize; 4], seed: u64) -> Pairs<bool> {
    let u = Stream::new(seed, Purpose::Check, 51).uniform(0, shape.iter().product());
    Pairs::new(shape, u.iter().map(|&u| u < 0.7).collect::<Vec<_>>()).unwrap()
}

/// Masks of every kind, with the extents of inputs that they fit, for heads of widths k and v.
fn cases([k, v]: [usize; 2]) -> Vec<(Shape, Mask)> {
    let packed = || Some([[3, 5], [0, 2], [4, 0], [20, 40]].into());
    vec![
        ([2, 19, 41, 2, k, v], Mask { bias: Some(bias([1, 2, 19, 41], 1)), ..Mask::default() }),
        ([2, 19, 41, 2, k, v], Mask { allowed: Some(allowed([2, 1, 1, 41], 2)), ..Mask::default() }),
        ([1, 27, 47, 2, k, v], Mask { packed: packed(), ..Mask::default() }),
        (
            [1, 27, 47, 2, k, v],
            Mask { bias: Some(bias([4, 1, 20, 40], 3)), allowed: Some(allowed([1, 2, 20, 40], 4)), packed: packed() },
        ),
    ]
}

fn op(shape: Shape, mask: Mask) -> MaskedAttention {
    MaskedAttention { attention: Attention { heads: shape[3], scale: None }, mask: Arc::new(mask) }
}

#[test]
fn every_rule_holds_under_masks() {
    for (seed, (shape, mask)) in cases([5, 9]).into_iter().enumerate() {
        let shapes = shapes(shape);
        let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
        let op = op(shape, mask);
        suite::check(&op, &shapes, seed as u64).unwrap();
        suite::check_on(EMULATED, &op, &shapes, seed as u64).unwrap();
    }
}

#[test]
fn every_rule_holds_under_masks_in_bf16_on_the_tensor_cores_of_a_gpu() {
    for (seed, (shape, mask)) in cases([16, 8]).into_iter().enumerate() {
        let shapes = shapes(shape);
        let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
        suite::check_half(EMULATED, &op(shape, mask), (&shapes, &[]), HALF_TOLERANCE, seed as u64).unwrap();
    }
}

#[test]
fn a_mask_is_its_definition() {
    let shape @ [b, l, s, n, k, v] = [2, 7, 11, 2, 3, 4];
    let mask = Mask { bias: Some(bias([1, n, l, s], 5)), allowed: Some(allowed([b, 1, l, s], 6)), packed: None };
    let shapes = shapes(shape);
    let x = suite::draw(3, 0, &shapes.each_ref().map(Vec::as_slice)).unwrap();
    let got = op(shape, mask.clone()).forward(&x.iter().collect::<Vec<_>>()).unwrap().y.to_vec_f64();
    let [q, k_rows, v_rows] = [0, 1, 2].map(|i| x[i].to_vec_f64());
    for (sample, head, query) in (0..b).flat_map(|b| (0..n).flat_map(move |n| (0..l).map(move |l| (b, n, l)))) {
        let score = |(key, added): (usize, f64)| -> f64 {
            let (q, k_row) =
                (&q[(sample * l + query) * n * k + head * k..], &k_rows[(sample * s + key) * n * k + head * k..]);
            ((0..k).map(|i| q[i] * k_row[i]).sum::<f64>() / (k as f64).sqrt() + added).exp()
        };
        let p: Vec<f64> = mask.added([sample, head, query], 0..s).enumerate().map(score).collect();
        let total: f64 = p.iter().sum();
        for column in 0..v {
            let at = |key: usize| v_rows[(sample * s + key) * n * v + head * v + column];
            let want =
                if total == 0.0 { 0.0 } else { p.iter().enumerate().map(|(key, p)| p * at(key)).sum::<f64>() / total };
            let got = got[(sample * l + query) * n * v + head * v + column];
            assert!((got - want).abs() < 1e-12, "sample {sample} head {head} query {query}: {got} against {want}");
        }
    }
}

#[test]
fn a_query_without_keys_is_zero_and_gets_no_gradient() {
    let shape = [1, 3, 5, 1, 8, 8];
    let one = |forbidden: bool| (0..15).map(move |i| !(forbidden && i < 5));
    let mask =
        Mask { allowed: Some(Pairs::new([1, 1, 3, 5], one(true).collect::<Vec<_>>()).unwrap()), ..Mask::default() };
    let op = op(shape, mask);
    let shapes = shapes(shape);
    let x = suite::draw(1, 0, &shapes.each_ref().map(Vec::as_slice)).unwrap();
    let x: Vec<&Tensor> = x.iter().collect();
    let output = op.forward(&x).unwrap();
    assert!(output.y.to_vec_f64()[..8].iter().all(|&y| y == 0.0));
    assert_eq!(output.kept[0].to_vec_f64()[0], f64::NEG_INFINITY);
    let bars = op.vjp(&Saved::of(&op, &x, &output), &output.y, &[true; 3]).unwrap();
    assert!(bars[0].as_ref().unwrap().to_vec_f64()[..8].iter().all(|&x| x == 0.0));
    assert!(bars.iter().flatten().all(|t| t.to_vec_f64().iter().all(|x| x.is_finite())));
}

#[test]
fn masks_that_do_not_fit_are_refused() {
    let shape = [2, 3, 5, 2, 4, 4];
    let shapes = shapes(shape);
    let x = suite::draw(1, 0, &shapes.each_ref().map(Vec::as_slice)).unwrap();
    let x: Vec<&Tensor> = x.iter().collect();
    let wrong = [
        Mask { bias: Some(bias([2, 2, 3, 4], 0)), ..Mask::default() },
        Mask { allowed: Some(allowed([1, 3, 3, 5], 0)), ..Mask::default() },
        Mask { packed: Some([[3, 5]].into()), ..Mask::default() },
    ];
    for mask in wrong {
        let e = op(shape, mask).forward(&x).unwrap_err();
        assert!(e.to_string().contains("attention"), "{e}");
    }
    assert!(Pairs::new([1, 1, 2, 2], vec![true; 3]).is_err());
}
