use fewstep_tensor::cuda::EMULATED;

use super::*;
use crate::suite;

fn op(stride: usize, padding: Padding) -> CausalConv {
    CausalConv { stride, padding }
}

#[test]
fn every_rule_holds_for_every_number_of_frames_given() {
    for frames in 1..=3 {
        let frame: &[usize] = &[2, 5, 6, 3];
        let shapes = [&[&[4, 3, 3, 3, 3][..], &[4]], &vec![frame; frames][..]].concat();
        suite::check(&op(1, Padding::around(1)), &shapes, frames as u64).unwrap();
    }
}

#[test]
fn every_rule_holds_for_strides_uneven_padding_and_small_kernels() {
    let down = Padding { top: 0, bottom: 1, left: 0, right: 1 };
    suite::check(&op(2, down), &[&[3, 2, 3, 3], &[3], &[2, 6, 8, 2]], 1).unwrap();
    suite::check(&op(2, down), &[&[3, 2, 3, 3], &[3], &[1, 5, 7, 2]], 2).unwrap();
    suite::check(&op(1, Padding::default()), &[&[4, 3, 3, 1, 1], &[4], &[1, 2, 3, 3], &[1, 2, 3, 3]], 3).unwrap();
    suite::check(&op(1, Padding::default()), &[&[5, 3, 1, 1, 1], &[5], &[2, 3, 2, 3]], 4).unwrap();
    let uneven = Padding { top: 2, bottom: 0, left: 1, right: 3 };
    suite::check(&op(3, uneven), &[&[2, 3, 2, 3, 1], &[2], &[1, 4, 5, 3], &[1, 4, 5, 3]], 5).unwrap();
    suite::check(&op(1, Padding::around(1)), &[&[2, 3, 3, 3], &[2], &[0, 4, 5, 3]], 6).unwrap();
    // Several panels a frame.
    suite::check(&op(1, Padding::around(1)), &[&[2, 1, 3, 3], &[2], &[1, 9, 500, 1]], 7).unwrap();
}

#[test]
fn every_rule_holds_on_a_gpu() {
    let down = Padding { top: 0, bottom: 1, left: 0, right: 1 };
    let uneven = Padding { top: 2, bottom: 0, left: 1, right: 3 };
    let cases: [(CausalConv, &[&[usize]]); 7] = [
        (op(1, Padding::around(1)), &[&[4, 3, 3, 3, 3], &[4], &[2, 3, 4, 3], &[2, 3, 4, 3], &[2, 3, 4, 3]]),
        (op(1, Padding::around(1)), &[&[2, 9, 3, 3, 3], &[2], &[1, 3, 4, 9]]),
        (op(2, down), &[&[3, 2, 3, 3], &[3], &[1, 5, 7, 2]]),
        (op(1, Padding::default()), &[&[4, 3, 3, 1, 1], &[4], &[1, 2, 3, 3], &[1, 2, 3, 3]]),
        (op(3, uneven), &[&[2, 3, 2, 3, 1], &[2], &[1, 4, 5, 3], &[1, 4, 5, 3]]),
        (op(1, Padding::around(1)), &[&[2, 3, 3, 3], &[2], &[0, 4, 5, 3]]),
        (op(1, Padding::around(1)), &[&[67, 1, 3, 3], &[67], &[1, 9, 8, 1]]),
    ];
    for (seed, (op, shapes)) in cases.into_iter().enumerate() {
        suite::check_on(EMULATED, &op, shapes, seed as u64).unwrap();
        // Products accumulate in f32, and each result is rounded once, to half a unit of 8 bits.
        suite::check_half(EMULATED, &op, (shapes, &[]), 2f64.powi(-8), seed as u64).unwrap();
    }
}

#[test]
fn tiles_of_tensor_cores_hold_every_rule_at_their_edges() {
    for (outputs, seed) in [(33, 1), (72, 2), (128, 3)] {
        let shapes: [&[usize]; 4] = [&[outputs, 16, 2, 3, 3], &[outputs], &[1, 11, 13, 16], &[1, 11, 13, 16]];
        suite::check_half(EMULATED, &op(1, Padding::around(1)), (&shapes, &[]), 2f64.powi(-8), seed).unwrap();
    }
}

#[test]
fn frames_side_by_side_and_packed_weights_are_the_convolution_of_the_frames() {
    let conv = op(1, Padding::around(1));
    for frames in 1..=3 {
        let frame: &[usize] = &[2, 4, 5, 3];
        let shapes = [&[&[4, 3, 3, 3, 3][..], &[4]], &vec![frame; frames][..]].concat();
        let x = suite::draw(frames as u64, 0, &shapes).unwrap();
        let want = conv.forward(&x.iter().collect::<Vec<_>>()).unwrap().y.to_vec_f64();
        let e = Extents::new(&conv, &shapes).unwrap();
        let on_gpu: Vec<Tensor> = x.iter().map(|t| t.to_device(EMULATED).unwrap()).collect();
        let packed = cuda::packed_for_library(&e, &on_gpu[0], &on_gpu[2..].iter().collect::<Vec<_>>()).unwrap();
        // [O, KH, KW, C] as [O, C, KH, KW].
        let (packed, depth) = (packed.to_device(Device::Cpu).unwrap().to_vec_f64(), 3 * frames);
        let at = |o: usize, c: usize, k: usize| packed[(o * 9 + k) * depth + c];
        let all = (0..4 * depth * 9).map(|n| at(n / 9 / depth, n / 9 % depth, n % 9)).collect();
        let weight = Tensor::from_vec::<f64>(all, &[4, depth, 3, 3]).unwrap();
        let beside = crate::Concat { axis: 3 }.forward(&x[2..].iter().collect::<Vec<_>>()).unwrap().y;
        let got = conv.forward(&[&weight, &x[1], &beside]).unwrap().y.to_vec_f64();
        let worst = got.iter().zip(&want).fold(0.0f64, |m, (a, b)| m.max((a - b).abs()));
        assert!(got.len() == want.len() && worst < 1e-12, "{frames} frames: {worst:e}");
    }
}

#[test]
fn a_bias_is_repeated_at_every_position() {
    use fewstep_tensor::DType;
    let bias = Tensor::from_vec::<f64>((0..24).map(f64::from).collect(), &[24]).unwrap();
    let bias = bias.to_dtype(DType::Bf16).to_device(EMULATED).unwrap();
    let y = Tensor::empty(&[1, 7, 13, 24], DType::Bf16, EMULATED).unwrap();
    library::repeat(&bias, &y).unwrap();
    let y = y.to_device(Device::Cpu).unwrap().to_vec_f64();
    assert!(y.iter().enumerate().all(|(i, &x)| x == (i % 24) as f64));
}

/// The formula of the documentation, term by term.
fn by_definition(op: &CausalConv, x: &[Tensor]) -> Vec<f64> {
    let [o, i, kt, kh, kw] = x[0].dims().unwrap();
    let [b, h, w, _] = x[2].dims().unwrap();
    let p = op.padding;
    let (oh, ow) = ((h + p.top + p.bottom - kh) / op.stride + 1, (w + p.left + p.right - kw) / op.stride + 1);
    let (weight, bias) = (x[0].to_vec_f64(), x[1].to_vec_f64());
    let frames: Vec<Vec<f64>> = x[2..].iter().map(Tensor::to_vec_f64).collect();
    let at = |t: usize, b: usize, y: usize, x: usize, i_: usize| {
        let frame = (t + frames.len()).checked_sub(kt).map(|j| &frames[j]);
        match (frame, y.checked_sub(p.top), x.checked_sub(p.left)) {
            (Some(f), Some(y), Some(x)) if y < h && x < w => f[((b * h + y) * w + x) * i + i_],
            _ => 0.0,
        }
    };
    let mut y = Vec::new();
    for n in 0..b * oh * ow * o {
        let (c, rest) = (n % o, n / o);
        let (col, row, b) = (rest % ow, rest / ow % oh, rest / ow / oh);
        let mut sum = bias[c];
        for k in 0..i * kt * kh * kw {
            let (v, u, t, i_) = (k % kw, k / kw % kh, k / kw / kh % kt, k / kw / kh / kt);
            sum += weight[c * i * kt * kh * kw + k] * at(t, b, row * op.stride + u, col * op.stride + v, i_);
        }
        y.push(sum);
    }
    y
}

#[test]
fn the_forward_rule_is_the_definition() {
    let uneven = Padding { top: 2, bottom: 1, left: 0, right: 3 };
    for (op, frames) in [(op(1, Padding::around(1)), 3), (op(2, uneven), 2), (op(1, uneven), 1)] {
        let frame: &[usize] = &[2, 6, 7, 3];
        let shapes = [&[&[4, 3, 3, 3, 3][..], &[4]], &vec![frame; frames][..]].concat();
        let x = suite::draw(9, 0, &shapes).unwrap();
        let y = op.forward(&x.iter().collect::<Vec<_>>()).unwrap().y.to_vec_f64();
        let want = by_definition(&op, &x);
        assert_eq!(y.len(), want.len());
        let worst = y.iter().zip(&want).fold(0.0f64, |m, (a, b)| m.max((a - b).abs()));
        assert!(worst < 1e-12, "{op:?}: {worst:e}");
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let t = |s: &[usize]| Tensor::zeros(s, fewstep_tensor::DType::F32, Device::Cpu);
    let (w, b, x) = (t(&[4, 3, 3, 3, 3]), t(&[4]), t(&[1, 5, 5, 3]));
    let one = op(1, Padding::around(1));
    let cases = [
        one.forward(&[&w, &b]),
        one.forward(&[&w, &b, &x, &x, &x, &x]),
        one.forward(&[&w, &b, &t(&[1, 5, 5, 2])]),
        one.forward(&[&w, &t(&[3]), &x]),
        one.forward(&[&w, &b, &x, &t(&[1, 5, 6, 3])]),
        one.forward(&[&w, &b, &x.to_dtype(fewstep_tensor::DType::F64)]),
        op(1, Padding::default()).forward(&[&w, &b, &t(&[1, 2, 5, 3])]),
        op(0, Padding::around(1)).forward(&[&w, &b, &x]),
        op(1, Padding::around(usize::MAX)).forward(&[&w, &b, &x]),
    ];
    for case in cases {
        let e = case.unwrap_err().to_string();
        assert!(e.contains("causal_conv"), "{e}");
    }
}
