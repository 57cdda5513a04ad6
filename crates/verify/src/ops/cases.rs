//! The list of cases.
//!
//! Widths of rows reach every division of a row among threads: less than a warp, parts of a warp, whole warps, several chunks
//! a thread, each with and without 16-byte accesses; 1536, 5120 and 8960, 13824 are those of Wan.

use std::sync::Arc;

use fewstep_diffusion::{Coefficient, Which, Wrapper};
use fewstep_ops::{
    Activation, Add, Attention, Cast, CausalConv, ChannelNorm, Combine, Concat, Embedding, GatedResidual,
    LayerNormAffine, LayerNormModulate, Linear, LinearGelu, Mask, MaskedAttention, Multiply, NormScope, Padding, Pairs,
    PatchOrder, Rearrange, RelativeAttention, Reshape, RmsNormRope, Rope, RopeStyle, RopeTable, Scale, Slice, Span,
    TimeEmbedding, Upsample,
};
use fewstep_tensor::random::{Purpose, Stream};
use fewstep_tensor::{DType, Device};

use super::Case;
use super::attention::Unfused;

/// Large enough that rows of one or two elements stay smooth over a difference quotient's step.
const EPS: f64 = 0.3;

pub(super) fn all(device: Device) -> Vec<Case> {
    [
        elementwise(),
        add(),
        linear(),
        norms(),
        rms_norm_rope(),
        attention(),
        masked_attention(),
        relative_attention(),
        convolutions(),
        shapes(),
        times(device),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Away from the kink at zero, over which a difference quotient would reach.
fn away(x: f64) -> f64 {
    if x.abs() < 0.1 { x + 0.2_f64.copysign(x) } else { x }
}

fn elementwise() -> Vec<Case> {
    let mut all = Vec::new();
    for op in [Activation::GeluTanh, Activation::GeluExact, Activation::Silu, Activation::Relu] {
        let case = |shape: &[usize]| Case::new(op, &[shape]).at(if op == Activation::Relu { away } else { |x| x });
        all.extend([
            case(&[3, 5, 7]),
            case(&[1]),
            case(&[0, 3]),
            case(&[7, 304]).and_windows(),
            case(&[9, 8960]).large(),
        ]);
    }
    for shape in [&[3usize, 5, 7][..], &[1], &[0, 3], &[70, 300], &[9, 8960]] {
        let large = |case: Case| if shape[0] * shape[shape.len() - 1] > 40_000 { case.large() } else { case };
        all.push(large(Case::new(Multiply, &[shape, shape])));
        all.push(large(Case::new(Scale { by: -1.7 }, &[shape])));
    }
    all.push(Case::new(Multiply, &[&[7, 304], &[7, 304]]).and_windows());
    all.push(Case::new(Scale { by: 0.3 }, &[&[2, 304]]).and_windows());
    let double = |op: Cast, shape: &[usize]| Case::new(op, &[shape]);
    let to = |to| Cast { to };
    // In f64 and f32 the cast to f64 is exact; in bf16 a value is rounded once on its way from f32, and not on its way to it.
    all.push(double(to(DType::F64), &[3, 5]).in_half(to(DType::Bf16)).wide(&[0]));
    all.push(double(to(DType::F64), &[7, 304]).in_half(to(DType::Bf16)).wide(&[0]).and_windows());
    // Cotangents are rounded to the dtype of the input.
    all.push(double(to(DType::F64), &[70, 31]).in_half(to(DType::F32)));
    // Coefficients are f64 in the kernels; here they come as f32.
    for (pairs, shape) in
        [(1usize, &[3usize, 5, 7][..]), (3, &[2, 9]), (1, &[1, 1]), (2, &[0, 4]), (2, &[2, 0]), (4, &[3, 304])]
    {
        let one: [&[usize]; 2] = [&shape[..1], shape];
        let wide: Vec<usize> = (0..pairs).map(|i| 2 * i).collect();
        let case = Case::new(Combine, &vec![one; pairs].concat()).wide(&wide);
        all.push(if shape.last() == Some(&304) { case.and_windows() } else { case });
    }
    all
}

fn add() -> Vec<Case> {
    let shapes: [(&[usize], &[usize]); 9] = [
        (&[3, 5, 7], &[3, 5, 7]),
        (&[1, 6, 8], &[3, 6, 8]),
        (&[1, 2, 5], &[4, 1, 5]),
        (&[5], &[2, 3, 5]),
        (&[0, 3], &[1, 3]),
        (&[2, 1, 3, 1], &[2, 5, 3, 4]),
        // Modulation tables beside times; positions beside tokens.
        (&[1, 6, 1536], &[2, 6, 1536]),
        (&[1, 257, 40], &[2, 257, 40]),
        (&[2, 1, 136], &[1, 21, 136]),
    ];
    let both = shapes.iter().flat_map(|&(a, b)| [[a, b], [b, a]]);
    let large = |case: Case, a: &[usize]| if a.iter().product::<usize>() > 2_000 { case.large() } else { case };
    let mut all: Vec<Case> = both.map(|[a, b]| large(large(Case::new(Add, &[a, b]), a), b)).collect();
    all.push(Case::new(Add, &[&[9, 304], &[9, 304]]).and_windows());
    all.push(Case::new(Add, &[&[3, 7, 136], &[136]]).and_windows());
    all
}

fn linear() -> Vec<Case> {
    let mut all = Vec::new();
    let small: [(&[usize], usize); 7] =
        [(&[3, 5, 7], 4), (&[1, 1], 1), (&[0, 3], 2), (&[2, 9, 33], 65), (&[4], 3), (&[2, 3], 0), (&[64, 48], 56)];
    for (x, o) in small {
        let i = x[x.len() - 1];
        // The tangents by x and by W are rounded one after the other: of a single element they may cancel.
        let half = |case: Case| if o == 1 { case.never_half() } else { case };
        all.push(half(Case::new(Linear { bias: true }, &[x, &[o, i], &[o]])));
        all.push(half(Case::new(Linear { bias: false }, &[x, &[o, i]])));
    }
    all.push(Case::new(Linear { bias: true }, &[&[5, 40], &[24, 40], &[24]]).and_windows());
    // One row, many rows, odd extents; Wan's widths.
    let large = |[rows, i, o]: [usize; 3]| Case::new(Linear { bias: true }, &[&[rows, i], &[o, i], &[o]]).large();
    all.extend([[1, 256, 1536], [129, 257, 255], [300, 1536, 64]].map(large));
    all.extend([[7, 1536, 8960], [6, 8960, 1536], [260, 1536, 1536]].map(|e| large(e).only_half()));

    // With the GELU in the product, and apart where the outputs are not a multiple of 8.
    let shapes: [(&[usize], usize); 6] =
        [(&[3, 5, 7], 4), (&[0, 3], 8), (&[2, 9, 33], 65), (&[64, 48], 56), (&[5, 40], 24), (&[3, 33], 16)];
    for (x, o) in shapes {
        let i = x[x.len() - 1];
        // Not so large that difference quotients are off.
        let case = |case: Case| case.rounded_twice().at(|x| 0.4 * x);
        all.push(case(Case::new(LinearGelu { bias: true }, &[x, &[o, i], &[o]])).and_windows());
        all.push(case(Case::new(LinearGelu { bias: false }, &[x, &[o, i]])));
    }
    let gelu = |[rows, i, o]: [usize; 3]| Case::new(LinearGelu { bias: true }, &[&[rows, i], &[o, i], &[o]]);
    all.extend([[7, 1536, 8960], [300, 1536, 64]].map(|e| gelu(e).rounded_twice().large().only_half()));
    all
}

fn norms() -> Vec<Case> {
    let mut all = Vec::new();
    let modulated = [
        [3, 2, 5, 7],
        [1, 1, 1, 1],
        [0, 1, 3, 4],
        [2, 1, 0, 3],
        [2, 3, 1, 33],
        [1, 2, 35, 6],
        [1, 4, 2, 0],
        [2, 2, 20, 136],
        [1, 1, 6, 1536],
        [1, 3, 2, 1537],
        [2, 1, 2, 5120],
        [1, 1, 3, 13824],
        // So many rows that their sums are formed in many parts.
        [1, 1, 9000, 40],
        [2, 7, 600, 24],
    ];
    for [b, g, per_group, d] in modulated {
        let (x, m) = ([b, g * per_group, d], [b, g, d]);
        let large = |case: Case| if b * g * per_group * d > 6_000 { case.large() } else { case };
        all.push(large(Case::new(GatedResidual, &[&x, &x, &m]).wide(&[2])));
        let eps = if d < 33 { EPS } else { 1e-6 };
        if d > 0 {
            all.push(large(Case::new(LayerNormModulate { eps }, &[&x, &m, &m]).wide(&[1, 2])));
        }
    }
    all.push(Case::new(GatedResidual, &[&[1, 9, 136], &[1, 9, 136], &[1, 3, 136]]).wide(&[2]).and_windows());
    let (x, m): ([usize; 3], [usize; 3]) = ([1, 9, 136], [1, 3, 136]);
    all.push(Case::new(LayerNormModulate { eps: 1e-6 }, &[&x, &m, &m]).wide(&[1, 2]).and_windows());

    let shared: [&[usize]; 8] =
        [&[3, 4, 6], &[33], &[2, 0, 6], &[1, 1], &[2, 3, 136], &[2, 2, 1280], &[6, 1536], &[9000, 40]];
    for x in shared {
        let d = x[x.len() - 1];
        let large = |case: Case| if x.iter().product::<usize>() > 6_000 { case.large() } else { case };
        let eps = if d < 33 { EPS } else { 1e-5 };
        all.push(large(Case::new(LayerNormAffine { eps }, &[x, &[d], &[d]]).wide(&[1, 2])));
        all.push(large(Case::new(ChannelNorm, &[x, &[d]]).wide(&[1])));
    }
    // The widths of the autoencoder.
    for c in [96, 192, 384] {
        all.push(Case::new(ChannelNorm, &[&[1, 5, 7, c], &[c]]).wide(&[1]).large());
    }
    all.push(Case::new(ChannelNorm, &[&[9, 136], &[136]]).wide(&[1]).and_windows());
    all.push(Case::new(LayerNormAffine { eps: 1e-5 }, &[&[9, 136], &[136], &[136]]).wide(&[1, 2]).and_windows());
    all
}

fn rope(style: RopeStyle, tokens: usize, pairs: usize) -> Rope {
    let turns = Stream::new(tokens as u64, Purpose::Check, 98).uniform(0, tokens * pairs);
    let angles: Vec<f64> = turns.iter().map(|u| u * 100.0).collect();
    let table = RopeTable::lazy(tokens, pairs, move || angles.clone());
    Rope { style, table: Arc::new(table) }
}

fn rms_norm_rope() -> Vec<Case> {
    let mut all = Vec::new();
    // Samples, tokens, heads, pairs of a head; whether it is too much to emulate.
    let extents = [
        ([2, 3, 3, 1], false),
        ([1, 37, 2, 3], true),
        ([2, 5, 2, 8], true),
        ([0, 2, 1, 2], false),
        ([1, 3, 2, 32], false),
        ([1, 5, 12, 64], true),
        ([1, 3, 40, 64], true),
        ([2, 9, 3, 20], true),
        ([1, 1500, 2, 12], true),
    ];
    for (([b, l, heads, half], large), scope) in
        extents.into_iter().flat_map(|e| [NormScope::Width, NormScope::Head].map(|scope| (e, scope)))
    {
        for style in [None, Some(RopeStyle::Interleaved), Some(RopeStyle::HalfSplit)] {
            let k = if style.is_none() && half < 8 { 2 * half + 1 } else { 2 * half };
            let weight = if scope == NormScope::Width { heads * k } else { k };
            let rope = style.map(|s| rope(s, l, half));
            let op = RmsNormRope { heads, scope, eps: if k < 16 { EPS } else { 1e-6 }, rope };
            let case = Case::new(op, &[&[b, l, heads * k], &[weight]]).wide(&[1]);
            let case = if [b, l, heads, half] == [1, 3, 2, 32] { case.and_windows() } else { case };
            all.push(if large { case.large() } else { case });
        }
    }
    for x in [&[2usize, 3, 4, 15][..], &[15], &[7, 15]] {
        let op = RmsNormRope { heads: 3, scope: NormScope::Width, eps: EPS, rope: None };
        all.push(Case::new(op, &[x, &[15]]).wide(&[1]));
    }
    all
}

fn attention() -> Vec<Case> {
    let case = |[b, l, s, n, k, v]: [usize; 6], scale: Option<f64>| {
        let op = Attention { heads: n, scale };
        Case::new(op, &[&[b, l, n * k], &[b, s, n * k], &[b, s, n * v]]).unfused(Unfused { attention: op, mask: None })
    };
    // Odd extents, none at all, several blocks of keys and of queries, values of another width than keys.
    let mut all: Vec<Case> = [
        [1, 1, 1, 1, 1, 1],
        [2, 0, 3, 2, 3, 4],
        [2, 3, 0, 2, 3, 4],
        [0, 3, 5, 1, 2, 2],
        [1, 2, 3, 1, 4, 0],
        [2, 7, 11, 2, 5, 9],
        [1, 19, 37, 2, 16, 16],
    ]
    .map(|e| case(e, Some(0.4)))
    .into();
    all.push(case([1, 17, 21, 2, 64, 64], None).and_windows());
    all.push(case([1, 5, 70, 1, 128, 128], None).large());
    all.push(case([1, 70, 9, 2, 32, 64], None).large());
    let large = [[1, 70, 300, 2, 5, 9], [2, 161, 129, 1, 33, 40], [1, 300, 70, 1, 3, 5], [1, 70, 20, 34, 2, 3]];
    all.extend(large.map(|e| case(e, Some(0.4)).large()));
    // Every head width that is a multiple of 8.
    all.extend((8..=256).step_by(8).map(|k| case([1, 67, 83, 2, k, k], None).large()));
    // Lengths around the edges of tiles.
    for (l, s) in [
        (1, 1),
        (1, 200),
        (200, 1),
        (63, 65),
        (64, 64),
        (65, 63),
        (127, 129),
        (128, 128),
        (129, 127),
        (257, 191),
        (512, 640),
    ] {
        all.extend([64, 128].map(|k| case([1, l, s, 2, k, k], None).large()));
    }
    // Text and image tokens; values of another width; a batch of heads side by side.
    all.push(case([2, 390, 512, 12, 128, 128], None).large().only_half());
    all.push(case([1, 390, 257, 4, 128, 128], None).large());
    all.push(case([1, 200, 150, 3, 128, 64], None).large());
    all.push(case([1, 200, 150, 3, 64, 128], None).large());
    all.push(case([1, 130, 140, 2, 128, 128], None).large().and_windows());
    // One head wider than tensor-core kernels take.
    all.push(case([2, 67, 83, 1, 384, 384], None).large().and_windows());
    all.push(case([1, 70, 33, 1, 16, 264], None).large());
    all.push(case([1, 1500, 1560, 1, 384, 384], None).large().only_half());
    // As long as a host can follow.
    all.push(case([1, 3000, 3000, 1, 128, 128], None).large().only_half());
    all.push(case([1, 3001, 2999, 2, 64, 64], None).large().only_half());
    all
}

/// Masks of every kind: added to scores, forbidding keys, of packed samples, and all at once. The first query of all may attend
/// to nothing.
fn masks([b, l, s, n]: [usize; 4], seed: u64) -> Vec<(&'static str, [usize; 3], Mask)> {
    let uniform =
        |shape: [usize; 4], purpose| Stream::new(seed, Purpose::Check, purpose).uniform(0, shape.iter().product());
    let bias = |shape: [usize; 4]| {
        let value = |u: f64| if u < 0.1 { f32::NEG_INFINITY } else { (3.0 * u - 1.5) as f32 };
        let mut values: Vec<f32> = uniform(shape, 50).into_iter().map(value).collect();
        values[..shape[3]].fill(f32::NEG_INFINITY);
        Pairs::new(shape, values).ok()
    };
    let allowed =
        |shape: [usize; 4]| Pairs::new(shape, uniform(shape, 51).into_iter().map(|u| u < 0.7).collect::<Vec<_>>()).ok();
    let packed: Option<Arc<[[usize; 2]]>> = Some([[3, 5], [0, 2], [4, 0], [l, s]].into());
    let rows = [1, l + 7, s + 7];
    vec![
        ("a bias", [b, l, s], Mask { bias: bias([1, n, l, s]), ..Mask::default() }),
        ("keys allowed", [b, l, s], Mask { allowed: allowed([b, 1, 1, s]), ..Mask::default() }),
        ("packed samples", rows, Mask { packed: packed.clone(), ..Mask::default() }),
        ("all of a mask", rows, Mask { bias: bias([4, 1, l, s]), allowed: allowed([1, n, l, s]), packed }),
    ]
}

fn masked_attention() -> Vec<Case> {
    let mut all = Vec::new();
    let extents = [
        ([2, 19, 41, 2], [5, 9]),
        ([1, 17, 23, 2], [16, 8]),
        ([2, 130, 150, 2], [64, 64]),
        ([2, 70, 200, 2], [128, 128]),
    ];
    for (i, (extents, [k, v])) in extents.into_iter().enumerate() {
        let n = extents[3];
        for (kind, [b, l, s], mask) in masks(extents, i as u64) {
            let (attention, mask) = (Attention { heads: n, scale: None }, Arc::new(mask));
            let op = MaskedAttention { attention, mask: mask.clone() };
            let unfused = Unfused { attention, mask: Some(mask) };
            let name = format!("{kind}: B {b}, L {l}, S {s}, {n} heads of {k} and {v}");
            let shapes: [&[usize]; 3] = [&[b, l, n * k], &[b, s, n * k], &[b, s, n * v]];
            let case = Case::new(op, &shapes).unfused(unfused).named(name);
            all.push(if i < 2 { case } else { case.large() });
        }
    }
    all
}

fn relative_attention() -> Vec<Case> {
    let case = |n: usize, k: usize, v: usize, r: usize, spans: &[[usize; 2]]| {
        let t: usize = spans.iter().map(|s| s[0]).sum();
        let spans = spans.iter().map(|&[rows, keys]| Span { rows, keys }).collect();
        let op = RelativeAttention { heads: n, spans };
        Case::new(op, &[&[t, n * k], &[t, n * k], &[t, n * v], &[r, n]])
    };
    vec![
        case(1, 1, 1, 1, &[[1, 1]]),
        case(2, 3, 4, 11, &[[5, 5], [6, 2]]),
        case(3, 2, 2, 41, &[[9, 9], [0, 0], [1, 1], [21, 13]]),
        case(2, 2, 0, 7, &[[3, 2]]),
        case(1, 4, 3, 9, &[]),
        case(2, 3, 3, 9, &[[3, 0], [2, 2]]),
        case(1, 8, 8, 23, &[[7, 5], [9, 9]]).and_windows(),
        case(1, 5, 34, 77, &[[0, 0], [35, 33], [2, 1]]).large(),
        case(2, 8, 8, 151, &[[70, 41], [33, 33]]).large(),
        case(6, 16, 24, 399, &[[200, 150], [77, 77]]).large(),
        // Scores as wide as an encoder's bend too sharply for a difference quotient.
        case(6, 64, 64, 399, &[[200, 150], [77, 77]]).large().only_half(),
    ]
}

fn convolutions() -> Vec<Case> {
    let mut all = Vec::new();
    let around = Padding::around(1);
    let down = Padding { top: 0, bottom: 1, left: 0, right: 1 };
    let uneven = Padding { top: 2, bottom: 0, left: 1, right: 3 };
    let op = |stride, padding| CausalConv { stride, padding };
    let case = |op: CausalConv, w: &[usize], frame: &[usize], frames: usize| {
        Case::new(op, &[&[w, &w[..1]][..], &vec![frame; frames][..]].concat())
    };
    for frames in 1..=3 {
        all.push(case(op(1, around), &[4, 3, 3, 3, 3], &[2, 3, 4, 3], frames));
    }
    all.push(case(op(2, down), &[3, 2, 3, 3], &[2, 6, 8, 2], 1));
    all.push(case(op(2, down), &[3, 2, 3, 3], &[1, 5, 7, 2], 1));
    all.push(case(op(1, Padding::default()), &[4, 3, 3, 1, 1], &[1, 2, 3, 3], 2));
    all.push(case(op(1, Padding::default()), &[5, 3, 1, 1, 1], &[2, 3, 2, 3], 1));
    all.push(case(op(3, uneven), &[2, 3, 2, 3, 1], &[1, 4, 5, 3], 2));
    all.push(case(op(1, around), &[2, 3, 3, 3], &[0, 4, 5, 3], 1));
    all.push(case(op(1, around), &[2, 9, 3, 3, 3], &[1, 3, 4, 9], 1));
    all.push(case(op(1, around), &[8, 8, 3, 3], &[1, 3, 5, 8], 1).and_windows());
    all.push(case(op(1, around), &[67, 1, 3, 3], &[1, 9, 8, 1], 1).large());
    // Every tile of tensor cores, at its edges; more positions than a part of a sum; the autoencoder's widths.
    for outputs in [8, 33, 72, 96, 128, 192, 384] {
        all.push(case(op(1, around), &[outputs, 16, 2, 3, 3], &[1, 11, 13, 16], 2).large());
    }
    all.push(case(op(1, around), &[12, 16, 3, 3], &[1, 45, 51, 16], 1).large());
    all.push(case(op(1, around), &[96, 96, 3, 3, 3], &[1, 6, 10, 96], 3).large());
    all.push(case(op(2, down), &[192, 192, 3, 3], &[1, 12, 8, 192], 1).large());
    all.push(case(op(1, Padding::default()), &[32, 384, 1, 1, 1], &[1, 6, 8, 384], 1).large());
    // Every tile of the kernel for Hopper at its edges, several of them, samples and blocks of outputs.
    all.push(case(op(1, around), &[96, 96, 3, 3, 3], &[2, 50, 9, 96], 3).large());
    all.push(case(op(1, around), &[192, 64, 3, 3, 3], &[1, 25, 17, 64], 2).large());
    all.push(case(op(1, around), &[384, 32, 3, 3], &[1, 5, 6, 32], 1).large());
    all.push(case(op(1, around), &[3, 96, 3, 3, 3], &[1, 50, 9, 96], 3).large());
    all.push(case(op(1, around), &[20, 32, 3, 3, 3], &[2, 5, 70, 32], 1).large());
    // So large that blocks have three warpgroups, some more than one tile.
    for (outputs, rows, columns) in [(192, 71, 350), (96, 143, 350), (3, 143, 702)] {
        all.push(case(op(1, around), &[outputs, 32, 2, 3, 3], &[1, rows, columns, 32], 2).large().only_half());
    }
    // What goes to a library where there is one: frames side by side, a kernel in time alone.
    for frames in 1..=3 {
        all.push(case(op(1, around), &[64, 64, 3, 3, 3], &[2, 7, 9, 64], frames).large());
    }
    all.push(case(op(1, Padding::default()), &[512, 64, 3, 1, 1], &[2, 5, 4, 64], 3).large());
    for shape in [[2, 3, 5, 7], [1, 1, 1, 1], [0, 2, 2, 3], [2, 3, 2, 8]] {
        all.push(Case::new(Upsample, &[&shape]));
    }
    all.push(Case::new(Upsample, &[&[1, 3, 2, 16]]).and_windows());
    all.push(Case::new(Upsample, &[&[1, 40, 30, 96]]).large());
    all
}

fn shapes() -> Vec<Case> {
    let mut all = Vec::new();
    let patches: [([usize; 5], [usize; 3], bool); 6] = [
        ([2, 3, 2, 4, 6], [1, 2, 3], true),
        ([1, 3, 1, 4, 8], [1, 1, 8], false),
        ([2, 16, 3, 4, 4], [1, 2, 2], false),
        ([1, 2, 2, 3, 5], [2, 3, 5], false),
        ([1, 16, 2, 6, 16], [1, 2, 2], true),
        ([0, 2, 2, 2, 2], [1, 1, 1], false),
    ];
    for ((video, patch, windows), order) in
        patches.into_iter().flat_map(|p| [PatchOrder::ChannelsFirst, PatchOrder::ChannelsLast].map(|order| (p, order)))
    {
        let (Ok(there), Ok(back)) =
            (Rearrange::patchify(&video, patch, order), Rearrange::unpatchify(&video, patch, order))
        else {
            continue;
        };
        let [b, c, f, h, w] = video;
        let features = c * patch.iter().product::<usize>();
        let tokens = f * h * w * c / features;
        for (op, shape) in [(there, &video[..]), (back, &[b, tokens, features])] {
            let name = |op: &str| format!("{op} {video:?} by {patch:?}, {order:?}");
            let name = name(if shape.len() == 5 { "patchify" } else { "unpatchify" });
            let case = Case::new(op, &[shape]).exact().named(name);
            all.push(if windows { case.and_windows() } else { case });
        }
    }
    let slices: [(usize, usize, usize, &[usize]); 6] = [
        (1, 2, 3, &[2, 6, 5]),
        (0, 1, 1, &[3]),
        (2, 0, 0, &[2, 1, 4]),
        (2, 8, 16, &[3, 2, 32]),
        (1, 4, 2, &[2, 6, 4]),
        (1, 0, 3, &[2, 3, 5]),
    ];
    for (axis, start, len, shape) in slices {
        let case = Case::new(Slice { axis, start, len }, &[shape]).exact();
        all.push(if shape.contains(&32) { case.and_windows() } else { case });
    }
    let joined: [(usize, &[&[usize]]); 5] = [
        (1, &[&[2, 3, 5], &[2, 1, 5], &[2, 0, 5]]),
        (1, &[&[2, 1, 8], &[2, 3, 8]]),
        (1, &[&[0, 2, 3], &[0, 1, 3]]),
        (0, &[&[1], &[4]]),
        (2, &[&[2, 3, 16], &[2, 3, 8]]),
    ];
    for (axis, shapes) in joined {
        let case = Case::new(Concat { axis }, shapes).exact();
        all.push(if shapes[0].contains(&16) { case.and_windows() } else { case });
    }
    all.push(Case::new(Reshape { shape: vec![3, 10] }, &[&[2, 3, 5]]).exact());
    let embedding = |ids: &[u32], [v, d]: [usize; 2]| {
        let name = format!("{} of {v} rows of {d}", ids.len());
        let op = |dtype| Embedding { ids: ids.into(), dtype };
        Case::new(op(DType::F64), &[&[v, d]]).in_half(op(DType::Bf16)).named(name)
    };
    let many: Vec<u32> = (0..600).map(|i| i * 7 % 33).collect();
    all.push(embedding(&[3, 0, 3, 3, 1], [5, 7]).and_windows());
    all.push(embedding(&[], [5, 7]));
    all.push(embedding(&[0], [1, 1]));
    all.push(embedding(&[1, 0], [2, 0]));
    all.push(embedding(&many[..60], [33, 265]));
    all.push(embedding(&many, [33, 4096]).large());
    all
}

fn times(device: Device) -> Vec<Case> {
    let mut all = Vec::new();
    for (b, dim) in [(3, 8), (1, 2), (0, 4), (2, 256)] {
        let op = |dtype, device| TimeEmbedding { dim, dtype, device };
        let case = Case::new(op(DType::F64, device), &[&[b]]).on_host(op(DType::F64, Device::Cpu)).wide(&[0]);
        all.push(case.in_half(op(DType::Bf16, device)).named(format!("{b} times, {dim} wide")));
    }
    for wrapper in [Wrapper::Rf, Wrapper::Rf1000] {
        for which in [Which::CIn, Which::CNoise, Which::OnXt, Which::OnNet] {
            // Times within (0, π/2), where nothing is nearer to an end than a difference quotient reaches. They stay f64.
            let within = |x: f64| std::f64::consts::FRAC_PI_2 * (0.5 + 0.48 * x.tanh());
            all.push(Case::new(Coefficient { wrapper, which }, &[&[5]]).at(within).never_half());
        }
    }
    all
}
