//! umT5 and T5 against the published implementations' own outputs, in every layout, f64 and f32.

use std::path::{Path, PathBuf};

use fewstep_nn::t5::{T5Config, T5Encoder, T5Layout, Tokens, bucket};
use fewstep_ops::{Forward, Grads, ParamId, Params, Plain, Recompute, Reverse};
use fewstep_tensor::cuda::EMULATED;
use fewstep_tensor::file::TensorFile;
use fewstep_tensor::random::{Purpose, Stream};
use fewstep_tensor::{DType, Tensor, arith};

fn fixtures() -> PathBuf {
    let own = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures");
    std::env::var_os("FEWSTEP_FIXTURES").map_or_else(|| own.into(), PathBuf::from)
}

fn read(name: &str) -> TensorFile {
    TensorFile::read(&fixtures().join(format!("{name}.safetensors"))).unwrap()
}

struct Case {
    encoder: T5Encoder,
    weights: &'static str,
    ids: Vec<u32>,
    lengths: Vec<usize>,
    len: usize,
    io: TensorFile,
}

impl Case {
    fn new(weights: &'static str, io: &str) -> Self {
        let (file, io) = (read(weights), read(io));
        let integers = |name: &str| io.get(name).unwrap().to_vec_f64();
        let [_, len] = io.get("ids").unwrap().dims().unwrap();
        let lengths = integers("mask").chunks(len).map(|m| m.iter().sum::<f64>() as usize).collect();
        let ids = integers("ids").into_iter().map(|id| id as u32).collect();
        Case { encoder: T5Encoder::new(T5Config::of_weights(&file).unwrap()).unwrap(), weights, ids, lengths, len, io }
    }

    fn load(&self, dtype: DType) -> Params {
        let path = fixtures().join(format!("{}.safetensors", self.weights));
        self.encoder.load(&path, dtype).unwrap()
    }

    fn padded(&self) -> Tokens {
        Tokens::padded(&self.ids, self.len, &self.lengths).unwrap()
    }

    /// The tokens of each sequence, padding left out.
    fn sequences(&self) -> Vec<&[u32]> {
        self.ids.chunks(self.len).zip(&self.lengths).map(|(ids, &l)| &ids[..l]).collect()
    }

    /// Embeddings with padding computed, [B, L, D].
    fn whole(&self, dtype: DType) -> Tensor {
        let params = self.load(dtype);
        let y = self.encoder.forward(&Plain::new(&params), &self.padded(), dtype).unwrap();
        y.reshape(&[self.lengths.len(), self.len, self.encoder.config().dim]).unwrap()
    }

    fn trimmed(&self, dtype: DType) -> Tensor {
        self.encoder.encode(&self.load(dtype), &self.sequences(), self.len, dtype).unwrap()
    }

    /// A tensor [B, L, D] with the rows past each length zero.
    fn zeroed(&self, t: &Tensor) -> Tensor {
        let (mut values, d) = (t.to_vec_f64(), t.last_dim());
        for (b, &length) in self.lengths.iter().enumerate() {
            values[(b * self.len + length) * d..(b + 1) * self.len * d].fill(0.0);
        }
        Tensor::from_vec(values, t.shape()).unwrap()
    }
}

/// Every weights file with every file of outputs of its network.
const CASES: [(&str, &str); 5] = [
    ("umt5_weights_orig_bf16", "umt5_io"),
    ("umt5_weights_hf_f32", "umt5_io"),
    ("umt5_weights_orig_bf16", "umt5_io_hf"),
    ("umt5_weights_hf_f32", "umt5_io_hf"),
    ("t5_weights_hf_f32", "t5_io_hf"),
];

/// max|got − want| relative to max|want|.
#[track_caller]
fn assert_close(what: &str, got: &Tensor, want: &Tensor, tolerance: f64) {
    assert_eq!(got.shape(), want.shape(), "{what}");
    let (got, want) = (got.to_vec_f64(), want.to_vec_f64());
    let scale = want.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    assert!(scale > 0.0, "a reference of zeros proves nothing");
    let e =
        got.iter().zip(&want).fold(0.0f64, |m, (a, b)| if (a - b).is_nan() { f64::NAN } else { m.max((a - b).abs()) });
    println!("{what}: {:.1e}", e / scale);
    assert!(e / scale <= tolerance, "{what}: off by {:e}, tolerance {tolerance:e}", e / scale);
}

#[test]
fn embeddings_are_the_published_ones_in_every_layout_and_precision_padding_included() {
    for (weights, io) in CASES {
        let case = Case::new(weights, io);
        let want = case.io.get("out_f64").unwrap();
        for (dtype, tolerance) in [(DType::F64, 1e-9), (DType::F32, 1e-5)] {
            assert_close(&format!("{weights} {io} {dtype}"), &case.whole(dtype), want, tolerance);
        }
    }
}

#[test]
fn rows_past_the_length_are_zero_and_the_others_the_published_ones() {
    for (weights, io) in CASES {
        let case = Case::new(weights, io);
        let want = case.zeroed(case.io.get("out_f64").unwrap());
        if let Some(stored) = case.io.tensors.get("out_f64_zeroed") {
            assert_eq!(want.to_vec_f64(), stored.to_vec_f64(), "{io}");
        }
        for (dtype, tolerance) in [(DType::F64, 1e-9), (DType::F32, 1e-5)] {
            let got = case.trimmed(dtype);
            assert_close(&format!("{weights} {io} trimmed {dtype}"), &got, &want, tolerance);
            assert_eq!(case.zeroed(&got).to_vec_f64(), got.to_vec_f64(), "the padding is zero");
        }
    }
}

/// Padding and other sequences change how many rows a product has, by which the kernels choose the order of its sums; nothing
/// else. Here every inner extent fits one block of the kernels, so even the bits are the same.
#[test]
fn a_gpu_computes_the_embeddings_of_the_host() {
    for (weights, io) in [CASES[0], CASES[4]] {
        let case = Case::new(weights, io);
        let on_gpu = |dtype: DType| {
            let params = case.load(dtype.wide()).to(EMULATED, dtype).unwrap();
            case.encoder.encode(&params, &case.sequences(), case.len, dtype).unwrap()
        };
        let want = case.trimmed(DType::F64);
        assert_close("f64 on a GPU", &on_gpu(DType::F64), &want, 1e-11);
        // Some ten results a layer are rounded on the way of the values, each to half a unit of 8 bits.
        let roundings = 10 * case.encoder.config().layers;
        assert_close("bf16 on a GPU", &on_gpu(DType::Bf16), &want, roundings as f64 * 2f64.powi(-8));
    }
}

#[test]
fn leaving_padding_out_changes_no_bit_where_products_are_small() {
    for (weights, io) in CASES {
        let case = Case::new(weights, io);
        for dtype in [DType::F64, DType::F32] {
            let whole = case.zeroed(&case.whole(dtype));
            assert_eq!(whole.to_vec_f64(), case.trimmed(dtype).to_vec_f64(), "{weights} {dtype}");
        }
    }
}

#[test]
fn leaving_padding_out_is_rounding_at_most_where_products_are_blocked() {
    let config =
        T5Config { vocab: 50, dim: 640, heads: 5, head_dim: 64, ffn_dim: 1536, layers: 2, ..T5Config::umt5_xxl() };
    let encoder = T5Encoder::new(config).unwrap();
    let params = Params::init(encoder.specs(), 3, DType::F32, Default::default()).unwrap();
    let (lengths, len) = ([5usize, 33, 1], 40);
    let ids: Vec<u32> = (0..3 * len as u32).map(|i| i * 7 % 50).collect();
    let tokens = Tokens::padded(&ids, len, &lengths).unwrap();
    let whole = encoder.forward(&Plain::new(&params), &tokens, DType::F32).unwrap();
    let sequences: Vec<&[u32]> = ids.chunks(len).zip(lengths).map(|(s, l)| &s[..l]).collect();
    let trimmed = encoder.encode(&params, &sequences, len, DType::F32).unwrap();
    for (b, &length) in lengths.iter().enumerate() {
        let rows = |t: &Tensor| t.reshape(&[3 * len, 640]).unwrap().narrow(b * len, length).unwrap();
        // f32 sums of 1536 terms in another order, through two blocks.
        assert_close(&format!("sequence {b}"), &rows(&trimmed), &rows(&whole), 1e-5);
    }
}

#[test]
fn buckets_are_the_published_ones() {
    for io in ["umt5_io", "umt5_io_hf"] {
        let file = read(io);
        let (rel, want) = (file.get("rel").unwrap().to_vec_f64(), file.get("bucket").unwrap().to_vec_f64());
        assert!(rel.len() > 800);
        for (rel, want) in rel.into_iter().zip(want) {
            assert_eq!(bucket(rel as isize, 32, 128), want as usize, "{io}, {rel} apart");
        }
    }
    assert_eq!((bucket(isize::MIN, 32, 128), bucket(isize::MAX, 32, 128)), (15, 31));
}

#[test]
fn the_gradient_of_every_parameter_is_the_derivative() {
    for (weights, io) in [("umt5_weights_orig_bf16", "umt5_io"), ("t5_weights_hf_f32", "t5_io_hf")] {
        let case = Case::new(weights, io);
        let params = case.load(DType::F64);
        let tokens = Tokens::packed(&[&case.ids[..23], &case.ids[40..47]]);
        let gradients = |policy| {
            let m = Reverse::new(&params, policy);
            let y = case.encoder.forward(&m, &tokens, DType::F64).unwrap();
            let stream = Stream::new(1, Purpose::Check, 0);
            let y_bar = arith::normal(&stream, 0, y.value().shape(), DType::F64, Default::default()).unwrap();
            let mut grads = Grads::new(&params);
            m.backward(&y, y_bar.clone(), &mut grads).unwrap();
            (y_bar, grads)
        };
        let (y_bar, grads) = gradients(Recompute::Nothing);
        let (_, again) = gradients(Recompute::Everything);
        for (i, (name, value)) in params.iter().enumerate() {
            let bar = grads.get(ParamId(i)).unwrap_or_else(|| panic!("no gradient of {name}"));
            let bits = |t: &Tensor| t.to_vec_f64().into_iter().map(f64::to_bits).collect::<Vec<_>>();
            assert!(
                bits(bar) == bits(again.get(ParamId(i)).unwrap()),
                "{name}: recomputed gradients are the kept ones"
            );
            let stream = Stream::new(2, Purpose::Check, i as u64);
            let along = arith::normal(&stream, 0, &[1, value.len()], DType::F64, Default::default()).unwrap();
            let along = along.reshape(value.shape()).unwrap();
            let slope = difference(&case.encoder, &params, i, &along, &tokens, &y_bar);
            let dot: f64 = bar.to_vec_f64().iter().zip(along.to_vec_f64()).map(|(a, b)| a * b).sum();
            assert!((dot - slope).abs() <= 1e-6 * slope.abs().max(1.0), "{name}: {dot} against {slope}");
        }
    }
}

/// ⟨ȳ, dy⟩ for a move of one parameter, by a central difference.
fn difference(encoder: &T5Encoder, params: &Params, i: usize, along: &Tensor, tokens: &Tokens, y_bar: &Tensor) -> f64 {
    let at = |h: f64| -> f64 {
        let mut moved = params.clone();
        let n = along.shape()[0];
        let t = &mut moved.trained_mut()[i];
        *t = arith::combine(&[(&vec![1.0; n], t), (&vec![h; n], along)]).unwrap();
        let y = encoder.forward(&Plain::new(&moved), tokens, DType::F64).unwrap();
        y.to_vec_f64().iter().zip(y_bar.to_vec_f64()).map(|(a, b)| a * b).sum()
    };
    (at(1e-6) - at(-1e-6)) / 2e-6
}

#[test]
fn dual_numbers_have_the_plain_primal() {
    let case = Case::new("umt5_weights_orig_bf16", "umt5_io");
    let params = case.load(DType::F32);
    let y = case.encoder.forward(&Forward::new(&params), &case.padded(), DType::F32).unwrap();
    assert_eq!(y.primal.to_vec_f64(), case.whole(DType::F32).to_vec_f64());
}

#[test]
fn weights_written_in_every_layout_come_back_bit_for_bit_and_under_the_published_names() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.safetensors");
    let layouts = [
        ("umt5_weights_orig_bf16", T5Layout::Original, DType::Bf16),
        ("umt5_weights_hf_f32", T5Layout::HuggingFace { gated: true }, DType::F32),
        ("t5_weights_hf_f32", T5Layout::HuggingFace { gated: false }, DType::F32),
    ];
    for (weights, layout, dtype) in layouts {
        let case = Case::new(weights, "umt5_io");
        let params = case.load(DType::F32);
        let written = case.encoder.store(&params, layout, dtype).unwrap();
        let list = |f: &TensorFile| f.tensors.iter().map(|(n, t)| (n.clone(), t.shape().to_vec())).collect::<Vec<_>>();
        assert_eq!(list(&written), list(&read(weights)));
        written.write(&path).unwrap();
        for ((name, a), (_, b)) in params.iter().zip(case.encoder.load(&path, DType::F32).unwrap().iter()) {
            assert_eq!(a.to_vec_f64(), b.to_vec_f64(), "{name} in {layout:?}");
        }
    }
}

/// Loads changed weights of Hugging Face's layout.
fn load_changed(change: impl FnOnce(&mut TensorFile)) -> fewstep_nn::Result<Params> {
    let case = Case::new("umt5_weights_hf_f32", "umt5_io_hf");
    let mut file = read(case.weights);
    change(&mut file);
    case.encoder.load_from(&file, Path::new("w.safetensors"), DType::F32)
}

#[test]
fn a_tied_embedding_a_decoder_and_a_prefix_are_passed_over() {
    let plain = load_changed(|_| ()).unwrap();
    let embedding = |f: &TensorFile| f.tensors["shared.weight"].clone();
    let same = |changed: fewstep_nn::Result<Params>| {
        for ((name, a), (_, b)) in plain.iter().zip(changed.unwrap().iter()) {
            assert_eq!(a.to_vec_f64(), b.to_vec_f64(), "{name}");
        }
    };
    same(load_changed(|f| drop(f.tensors.insert("encoder.embed_tokens.weight".into(), embedding(f)))));
    same(load_changed(|f| {
        let t = f.tensors.remove("shared.weight").unwrap();
        f.tensors.insert("encoder.embed_tokens.weight".into(), t);
    }));
    same(load_changed(|f| {
        f.tensors.insert("lm_head.weight".into(), embedding(f));
        f.tensors.insert("decoder.block.0.layer.0.SelfAttention.q.weight".into(), embedding(f));
    }));
    same(load_changed(|f| {
        f.tensors = std::mem::take(&mut f.tensors).into_iter().map(|(k, t)| (format!("text_encoder.{k}"), t)).collect();
    }));
}

#[test]
fn weights_that_are_not_the_encoders_are_refused_by_name() {
    let refused = |change: fn(&mut TensorFile)| load_changed(change).unwrap_err().to_string();
    let other = refused(|f| {
        let mut t = f.tensors["shared.weight"].clone();
        t.make_mut::<f32>().unwrap()[5] += 1.0;
        f.tensors.insert("encoder.embed_tokens.weight".into(), t);
    });
    assert!(other.contains("unexpected encoder.embed_tokens.weight"), "{other}");
    let name = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight";
    let missing = refused(|f| {
        f.tensors.remove("encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight");
    });
    assert!(missing.contains("missing") && missing.contains(name), "{missing}");
    assert!(refused(|f| f.tensors.clear()).contains("no known layout of umT5 or T5"));
}

#[test]
fn extents_are_read_off_the_weights() {
    let umt5 = T5Config { vocab: 64, dim: 32, heads: 6, head_dim: 8, ffn_dim: 40, layers: 3, ..T5Config::umt5_xxl() };
    let t5 = T5Config { ffn_dim: 64, gated: false, shared_bias: true, ..umt5.clone() };
    for (weights, want) in
        [("umt5_weights_orig_bf16", &umt5), ("umt5_weights_hf_f32", &umt5), ("t5_weights_hf_f32", &t5)]
    {
        assert_eq!(&T5Config::of_weights(&read(weights)).unwrap(), want, "{weights}");
    }
    let mut damaged = read("umt5_weights_hf_f32");
    damaged.tensors.remove("shared.weight");
    let message = T5Config::of_weights(&damaged).unwrap_err().to_string();
    assert!(message.contains("no matrix 'shared.weight'"), "{message}");
}

#[test]
fn tokens_that_do_not_fit_are_refused() {
    let case = Case::new("umt5_weights_orig_bf16", "umt5_io");
    let params = case.load(DType::F32);
    let encode = |s: &[u32], len| case.encoder.encode(&params, &[s], len, DType::F32).map(|t| t.shape().to_vec());
    assert!(encode(&[3, 64, 1], 4).unwrap_err().to_string().contains("below the 64 rows"));
    assert!(encode(&[3, 4, 1], 2).unwrap_err().to_string().contains("at most 2 tokens"));
    assert_eq!(encode(&[], 2).unwrap(), [1, 2, 32]);
    assert_eq!(case.encoder.encode(&params, &[], 7, DType::F32).unwrap().shape(), [0, 7, 32]);
    assert!(Tokens::padded(&[1, 2, 3], 2, &[1]).is_err());
    assert!(Tokens::padded(&[1, 2], 2, &[3]).is_err());
}
