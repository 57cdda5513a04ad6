//! Times of the ops at the shapes of the benchmark network (two videos of 2048 tokens, 64 text tokens, width 384, six
//! heads), beside the matrix product whose rate they are measured against.
//!
//! `cargo bench -p fewstep-ops`; the column of rates counts multiplications and additions (items) or bytes.

use std::sync::Arc;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use fewstep_ops::{
    Attention, CausalConv, GatedResidual, LayerNormAffine, LayerNormModulate, Linear, NormScope, Op, Padding,
    RmsNormRope, Rope, RopeStyle, RopeTable, Saved, suite,
};
use fewstep_tensor::gemm::{Mat, MatMut, Threads, gemm};
use fewstep_tensor::{DType, Tensor};

const B: usize = 2;
const L: usize = 2048;
const TEXT: usize = 64;
const D: usize = 384;
const N: usize = 6;

fn main() {
    divan::main();
}

/// f32 inputs, drawn once.
fn draw(shapes: &[&[usize]]) -> Vec<Tensor> {
    let drawn = suite::draw(0, 0, shapes).unwrap_or_default();
    drawn.iter().map(|t| t.to_dtype(DType::F32)).collect()
}

/// A rule of an op: which one, and which inputs have tangents.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Rule {
    Forward,
    Jvp,
    Vjp,
}

const RULES: [Rule; 3] = [Rule::Forward, Rule::Jvp, Rule::Vjp];

/// Times a rule; `moving` says which inputs have a tangent.
fn bench(bencher: Bencher<'_, '_>, op: &dyn Op, shapes: &[&[usize]], moving: &[bool], rule: Rule) {
    let (x, x_dot) = (draw(shapes), draw(shapes));
    let x: Vec<&Tensor> = x.iter().collect();
    let x_dot: Vec<Option<&Tensor>> = x_dot.iter().zip(moving).map(|(t, &m)| m.then_some(t)).collect();
    let Ok(output) = op.forward(&x) else { return };
    let (saved, wanted) = (Saved::of(op, &x, &output), vec![true; x.len()]);
    match rule {
        Rule::Forward => bencher.bench_local(|| op.forward(&x)),
        Rule::Jvp => bencher.bench_local(|| op.jvp(&x, &x_dot)),
        Rule::Vjp => bencher.bench_local(|| op.vjp(&saved, &output.y, &wanted)),
    }
}

/// A layer of Wan 1.3B on the 6630 tokens of 17×30×52 latents; the weight in f32, or in bf16 as it is stored.
#[divan::bench(args = [(1536, DType::F32), (1536, DType::Bf16), (8960, DType::F32), (8960, DType::Bf16)], sample_count = 5)]
fn linear_1536_to(bencher: Bencher<'_, '_>, (outputs, stored): (usize, DType)) {
    let (rows, inputs) = (6630, 1536);
    let drawn = draw(&[&[rows, inputs], &[outputs, inputs]]);
    let (x, w) = (&drawn[0], drawn[1].to_dtype(stored));
    let bencher = bencher.counter(ItemsCount::new(2 * rows * inputs * outputs));
    bencher.bench_local(|| Linear { bias: false }.forward(&[x, &w]));
}

/// The reference: 1024³ in f32 on the whole pool.
#[divan::bench]
fn gemm_1024(bencher: Bencher<'_, '_>) {
    let n = 1024;
    let (a, b, mut c) = (vec![0.5f32; n * n], vec![0.25f32; n * n], vec![0.0f32; n * n]);
    bencher.counter(ItemsCount::new(2 * n * n * n)).bench_local(|| {
        let (a, b) = (Mat::new(&a, n, n, n), Mat::new(&b, n, n, n));
        gemm(MatMut::new(&mut c, n, n, n), false, 1.0, a, b, Threads::Pool);
    });
}

fn attention_flops(s: usize, products: usize) -> ItemsCount {
    ItemsCount::new(products * 2 * B * L * s * D)
}

#[divan::bench(args = RULES, sample_count = 20, sample_size = 1)]
fn self_attention(bencher: Bencher<'_, '_>, rule: Rule) {
    let products = [2, 6, 5][rule as usize];
    let bencher = bencher.counter(attention_flops(L, products));
    let x: &[usize] = &[B, L, D];
    bench(bencher, &Attention { heads: N, scale: None }, &[x; 3], &[true; 3], rule);
}

#[divan::bench(args = RULES, sample_count = 20, sample_size = 1)]
fn cross_attention(bencher: Bencher<'_, '_>, rule: Rule) {
    let products = [2, 4, 5][rule as usize];
    let bencher = bencher.counter(attention_flops(TEXT, products));
    let shapes: [&[usize]; 3] = [&[B, L, D], &[B, TEXT, D], &[B, TEXT, D]];
    bench(bencher, &Attention { heads: N, scale: None }, &shapes, &[true, false, false], rule);
}

/// Activations read and written once by each rule, for the rate of memory.
fn activations(count: usize) -> BytesCount {
    BytesCount::new(count * B * L * D * size_of::<f32>())
}

#[divan::bench(args = RULES, sample_count = 20, sample_size = 1)]
fn layer_norm_modulate(bencher: Bencher<'_, '_>, rule: Rule) {
    let shapes: [&[usize]; 3] = [&[B, L, D], &[B, 1, D], &[B, 1, D]];
    let bencher = bencher.counter(activations([2, 4, 3][rule as usize]));
    bench(bencher, &LayerNormModulate { eps: 1e-6 }, &shapes, &[true; 3], rule);
}

#[divan::bench(args = RULES, sample_count = 20, sample_size = 1)]
fn layer_norm_affine(bencher: Bencher<'_, '_>, rule: Rule) {
    let bencher = bencher.counter(activations([2, 4, 3][rule as usize]));
    bench(bencher, &LayerNormAffine { eps: 1e-6 }, &[&[B, L, D], &[D], &[D]], &[true, false, false], rule);
}

fn rope(style: RopeStyle) -> Option<Rope> {
    let pairs = D / N / 2;
    let angles: Vec<f64> = (0..L * pairs).map(|i| i as f64 * 0.01).collect();
    Some(Rope { style, table: Arc::new(RopeTable::new(&angles, L, pairs).ok()?) })
}

#[divan::bench(args = RULES, sample_count = 20, sample_size = 1)]
fn rms_norm_rope_interleaved(bencher: Bencher<'_, '_>, rule: Rule) {
    let op = RmsNormRope { heads: N, scope: NormScope::Width, eps: 1e-6, rope: rope(RopeStyle::Interleaved) };
    let bencher = bencher.counter(activations([2, 4, 3][rule as usize]));
    bench(bencher, &op, &[&[B, L, D], &[D]], &[true, false], rule);
}

#[divan::bench(args = RULES, sample_count = 20, sample_size = 1)]
fn rms_norm_rope_half_split_by_head(bencher: Bencher<'_, '_>, rule: Rule) {
    let op = RmsNormRope { heads: N, scope: NormScope::Head, eps: 1e-6, rope: rope(RopeStyle::HalfSplit) };
    let bencher = bencher.counter(activations([2, 4, 3][rule as usize]));
    bench(bencher, &op, &[&[B, L, D], &[D / N]], &[true, false], rule);
}

#[divan::bench(args = RULES, sample_count = 20, sample_size = 1)]
fn gated_residual(bencher: Bencher<'_, '_>, rule: Rule) {
    let shapes: [&[usize]; 3] = [&[B, L, D], &[B, L, D], &[B, 1, D]];
    let bencher = bencher.counter(activations([3, 6, 4][rule as usize]));
    bench(bencher, &GatedResidual, &shapes, &[true; 3], rule);
}

/// Convolutions of the autoencoder's decoder, 3 × 3 × 3 over three frames: [height, width, channels].
const FRAMES: [[usize; 3]; 3] = [[60, 104, 384], [120, 208, 192], [120, 208, 96]];

#[divan::bench(args = FRAMES, sample_count = 5, sample_size = 1)]
fn causal_conv(bencher: Bencher<'_, '_>, [h, w, c]: [usize; 3]) {
    let bencher = bencher.counter(ItemsCount::new(2 * 27 * c * c * h * w));
    let frame: &[usize] = &[1, h, w, c];
    let op = CausalConv { stride: 1, padding: Padding::around(1) };
    bench(bencher, &op, &[&[c, c, 3, 3, 3], &[c], frame, frame, frame], &[false; 5], Rule::Forward);
}
