//! The Wan autoencoder against the published implementations' own outputs, in both layouts, f64 and f32.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use fewstep_nn::Error;
use fewstep_nn::vae::{Half, Step, Tile, VaeConfig, VaeLayout, VaeOptions, WanVae};
use fewstep_ops::{Forward, Grads, Params, Recompute, Reverse, suite};
use fewstep_tensor::cuda::EMULATED;
use fewstep_tensor::file::TensorFile;
use fewstep_tensor::{DType, Tensor};

fn fixtures() -> PathBuf {
    let own = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures");
    std::env::var_os("FEWSTEP_FIXTURES").map_or_else(|| own.into(), PathBuf::from)
}

fn read(name: &str) -> TensorFile {
    TensorFile::read(&fixtures().join(format!("{name}.safetensors"))).unwrap()
}

const LAYOUTS: [&str; 2] = ["orig_bf16", "diffusers_f32"];
const WHOLE: VaeOptions = VaeOptions { tile: Tile::Off };

fn load(layout: &str, dtype: DType) -> (WanVae, Params) {
    let file = read(&format!("vae_weights_{layout}"));
    let vae = WanVae::new(VaeConfig::of_weights(&file).unwrap()).unwrap();
    let params = vae.load_from(&file, Path::new(layout), dtype).unwrap();
    (vae, params)
}

fn go_on(_: Step) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// max|got − want| relative to max|want|.
fn error(got: &Tensor, want: &Tensor) -> f64 {
    assert_eq!(got.shape(), want.shape());
    let (got, want) = (got.to_vec_f64(), want.to_vec_f64());
    let scale = want.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    assert!(scale > 0.0 && got.iter().all(|x| x.is_finite()));
    got.iter().zip(&want).fold(0.0f64, |m, (a, b)| m.max((a - b).abs())) / scale
}

#[track_caller]
fn assert_close(what: &str, got: &Tensor, want: &Tensor, tolerance: f64) {
    let e = error(got, want);
    println!("{what}: {e:.1e}");
    assert!(e <= tolerance, "{what}: off by {e:e}, tolerance {tolerance:e}");
}

fn clamped(x: &Tensor) -> Tensor {
    Tensor::from_vec(x.to_vec_f64().iter().map(|x| x.clamp(-1.0, 1.0)).collect::<Vec<f64>>(), x.shape()).unwrap()
}

#[test]
fn images_and_videos_are_encoded_and_decoded_as_published() {
    let (io, theirs) = (read("vae_io"), read("vae_io_diffusers"));
    for (layout, dtype, tolerance) in LAYOUTS.into_iter().flat_map(|l| [(l, DType::F64, 1e-9), (l, DType::F32, 1e-5)]) {
        let (vae, params) = load(layout, dtype);
        for (kind, latent) in [("image", "z1"), ("video", "z")] {
            let name = format!("{layout} {dtype} {kind}");
            let code = vae.encode(&params, io.get(kind).unwrap(), &WHOLE, &mut go_on).unwrap();
            assert_close(&name, &code, io.get(&format!("enc_{kind}.f64")).unwrap(), tolerance);
            let want = theirs.get(&format!("enc_{kind}.normalised.f64")).unwrap();
            assert_close(&format!("{name} diffusers"), &code, want, tolerance);
            let video = vae.decode(&params, io.get(latent).unwrap(), &WHOLE, &mut go_on).unwrap();
            assert_close(&name, &video, io.get(&format!("dec_{kind}.f64")).unwrap(), tolerance);
            let want = theirs.get(&format!("dec_{kind}.f64")).unwrap();
            assert_close(&format!("{name} diffusers"), &clamped(&video), want, tolerance);
        }
    }
}

#[test]
fn a_gpu_encodes_and_decodes_as_the_host() {
    let (vae, params) = load(LAYOUTS[0], DType::F64);
    let (video, latent) = (pattern(&[1, 3, 5, 8, 16]), pattern(&[1, 16, 3, 1, 1]));
    let run = |params: &Params| {
        let z = vae.encode(params, &video, &WHOLE, &mut go_on).unwrap();
        let whole = vae.decode(params, &latent, &WHOLE, &mut go_on).unwrap();
        assert_eq!(handed_on(&vae, params, &latent, &WHOLE).to_vec_f64(), whole.to_vec_f64());
        [z, whole]
    };
    let (want, got) = (run(&params), run(&params.to(EMULATED, DType::F64).unwrap()));
    let rounded = run(&params.to(EMULATED, DType::Bf16).unwrap());
    for (i, what) in ["encode", "decode"].into_iter().enumerate() {
        assert_close(&format!("{what} in f64"), &got[i], &want[i], 1e-11);
        // Some fifty results are rounded on the way of the values, each to half a unit of 8 bits.
        assert_close(&format!("{what} in bf16"), &rounded[i], &want[i], 50.0 * 2f64.powi(-8));
    }
}

/// A decoded video, joined from what is handed on in chunks of one and four frames.
fn handed_on(vae: &WanVae, params: &Params, latent: &Tensor, options: &VaeOptions) -> Tensor {
    let mut chunks = Vec::new();
    let each = |t: Tensor| -> Result<(), Error> {
        chunks.push(t);
        Ok(())
    };
    vae.decode_frames(params, latent, options, &mut go_on, each).unwrap();
    assert_eq!(chunks.iter().map(|c| c.shape()[2]).collect::<Vec<_>>(), [1, 4, 4]);
    let parts: Vec<&Tensor> = chunks.iter().collect();
    fewstep_ops::Op::forward(&fewstep_ops::Concat { axis: 2 }, &parts).unwrap().y
}

/// Smooth values in [−1, 1], the same on every machine.
fn pattern(shape: &[usize]) -> Tensor {
    let n = shape.iter().product::<usize>();
    Tensor::from_vec((0..n).map(|i| (i as f64 * 0.37).sin() * (i as f64 * 0.011).cos()).collect(), shape).unwrap()
}

#[test]
fn what_a_long_video_begins_with_does_not_depend_on_what_follows() {
    let (vae, params) = load("orig_bf16", DType::F64);
    let video = pattern(&[1, 3, 13, 16, 24]);
    let begin = fewstep_ops::Slice { axis: 2, start: 0, len: 5 };
    let begin = fewstep_ops::Op::forward(&begin, &[&video]).unwrap().y;
    let long = vae.encode(&params, &video, &WHOLE, &mut go_on).unwrap();
    let short = vae.encode(&params, &begin, &WHOLE, &mut go_on).unwrap();
    assert_eq!(long.shape(), [1, 16, 4, 2, 3]);
    let start = |t: &Tensor, per: usize| t.to_vec_f64().chunks(per).map(|c| c[..2 * 6].to_vec()).collect::<Vec<_>>();
    assert_eq!(start(&long, 4 * 6), start(&short, 2 * 6));
    let whole = vae.decode(&params, &long, &WHOLE, &mut go_on).unwrap();
    let part = vae.decode(&params, &short, &WHOLE, &mut go_on).unwrap();
    let start = |t: &Tensor, per: usize| t.to_vec_f64().chunks(per).map(|c| c[..5 * 384].to_vec()).collect::<Vec<_>>();
    assert_eq!(start(&whole, 13 * 384), start(&part, 5 * 384));
}

#[test]
fn frames_handed_on_are_those_of_the_whole_decode_in_chunks_of_one_and_four() {
    let (vae, params) = load("orig_bf16", DType::F32);
    let latent = pattern(&[2, 16, 3, 3, 3]);
    for tile in [Tile::Off, Tile::Size { height: 16, width: 16, overlap: 8 }] {
        let options = VaeOptions { tile };
        let whole = vae.decode(&params, &latent, &options, &mut go_on).unwrap();
        assert_eq!(handed_on(&vae, &params, &latent, &options).to_vec_f64(), whole.to_vec_f64());
    }
}

#[test]
fn one_tile_is_the_whole_bit_for_bit_and_several_are_near() {
    let (vae, params) = load("orig_bf16", DType::F32);
    let (video, latent) = (pattern(&[1, 3, 5, 96, 80]), pattern(&[1, 16, 2, 12, 10]));
    let run = |tile: Tile| {
        let options = VaeOptions { tile };
        let code = vae.encode(&params, &video, &options, &mut go_on).unwrap();
        [code, vae.decode(&params, &latent, &options, &mut go_on).unwrap()]
    };
    let whole = run(Tile::Off);
    for one in [Tile::default(), Tile::Size { height: 96, width: 80, overlap: 16 }] {
        for (a, b) in run(one).iter().zip(&whole) {
            assert_eq!(a.to_vec_f64(), b.to_vec_f64());
        }
    }
    // Random weights attend to the whole frame, and a frame of 12 × 10 positions is nothing but seams: what is held is that
    // tiles agree but for what they do not see, and that a wrong place or weight (errors of the order of 1) is not this.
    for (name, (a, b)) in
        ["encode", "decode"].iter().zip(run(Tile::Size { height: 64, width: 64, overlap: 32 }).iter().zip(&whole))
    {
        let e = error(a, b);
        println!("{name}: tiled against whole {e:.2e}");
        assert!(e > 0.0 && e < 0.5, "{name}: {e}");
    }
}

#[test]
fn the_observer_hears_of_every_chunk_of_every_tile_and_can_stop() {
    let (vae, params) = load("orig_bf16", DType::F32);
    let latent = pattern(&[1, 16, 2, 3, 2]);
    let options = VaeOptions { tile: Tile::Size { height: 16, width: 16, overlap: 8 } };
    let mut steps = Vec::new();
    let mut hear = |s: Step| {
        steps.push((s.tile, s.chunk));
        ControlFlow::Continue(())
    };
    vae.decode(&params, &latent, &options, &mut hear).unwrap();
    assert_eq!(steps, [(0, 1), (0, 2), (1, 1), (1, 2)]);
    let mut stop = |_: Step| ControlFlow::Break(());
    assert!(matches!(vae.decode(&params, &latent, &options, &mut stop), Err(Error::Stopped)));
    let video = pattern(&[1, 3, 5, 8, 8]);
    assert!(matches!(vae.encode(&params, &video, &WHOLE, &mut stop), Err(Error::Stopped)));
}

/// Latent frames decoded in any mode, the last frame returned.
fn last_frame<M: fewstep_ops::Mode>(vae: &WanVae, m: &M, frames: Vec<M::Value>) -> M::Value {
    let (mut stream, mut last) = (vae.stream(Half::Decoder), None);
    for x in frames {
        let keep = &mut |y: M::Value| -> Result<(), fewstep_ops::Error> {
            last = Some(y);
            Ok(())
        };
        stream.push(m, x, keep).unwrap();
    }
    last.unwrap()
}

#[test]
fn gradients_through_time_are_the_adjoint_of_tangents() {
    let (vae, params) = load("orig_bf16", DType::F64);
    let shapes: [&[usize]; 3] = [&[1, 2, 3, 16]; 3];
    let (x, x_dot) = (suite::draw(1, 0, &shapes).unwrap(), suite::draw(1, 1, &shapes).unwrap());
    let m = Forward::new(&params);
    let y = last_frame(&vae, &m, x.iter().zip(&x_dot).map(|(x, d)| m.input(x.clone(), Some(d.clone()))).collect());
    let y_dot = y.tangent.unwrap();
    let y_bar = suite::draw(1, 2, &[y_dot.shape()]).unwrap().remove(0);
    let m = Reverse::new(&params, Recompute::Nothing);
    let inputs: Vec<_> = x.iter().map(|x| m.input(x.clone())).collect();
    let y = last_frame(&vae, &m, inputs.clone());
    let bars = m.backward(&y, y_bar.clone(), &mut Grads::new(&params)).unwrap();
    let dot = |a: &Tensor, b: &Tensor| a.to_vec_f64().iter().zip(b.to_vec_f64()).map(|(a, b)| a * b).sum::<f64>();
    let left = dot(&y_bar, &y_dot);
    let parts: Vec<f64> = inputs.iter().zip(&x_dot).map(|(v, d)| dot(bars.get(v).unwrap(), d)).collect();
    assert!(parts.iter().all(|p| p.abs() > 1e-9), "every frame counts: {parts:?}");
    let right: f64 = parts.iter().sum();
    assert!((left - right).abs() < 1e-10 * left.abs().max(1.0), "{left} against {right}");
}

#[test]
fn weights_written_in_both_layouts_have_the_published_names_and_come_back_bit_for_bit() {
    let (vae, params) = load("orig_bf16", DType::F32);
    for (name, layout) in [("orig_bf16", VaeLayout::Original), ("diffusers_f32", VaeLayout::Diffusers)] {
        let list = |f: &TensorFile| f.tensors.iter().map(|(n, t)| (n.clone(), t.shape().to_vec())).collect::<Vec<_>>();
        let written = vae.store(&params, layout, DType::Bf16).unwrap();
        assert_eq!(list(&written), list(&read(&format!("vae_weights_{name}"))));
        let back = vae.load_from(&written, Path::new("w"), DType::F32).unwrap();
        for ((name, a), (_, b)) in params.iter().zip(back.iter()) {
            assert_eq!(a.to_vec_f64(), b.to_vec_f64(), "{name}");
        }
    }
}

#[test]
fn videos_and_latents_that_do_not_fit_are_refused_with_what_would() {
    let (vae, params) = load("orig_bf16", DType::F32);
    let encode = |shape: &[usize]| {
        let video = Tensor::zeros(shape, DType::F32, Default::default());
        vae.encode(&params, &video, &WHOLE, &mut go_on).unwrap_err().to_string()
    };
    assert!(encode(&[1, 3, 4, 8, 8]).contains("1 or 5 frames"));
    assert!(encode(&[1, 3, 8, 8, 8]).contains("5 or 9 frames"));
    assert!(encode(&[1, 3, 0, 8, 8]).contains("1 or 5 frames"));
    assert!(encode(&[0, 3, 1, 8, 8]).contains("at least one video"));
    assert!(encode(&[1, 3, 1, 12, 17]).contains("crop to 8 x 16"));
    assert!(encode(&[1, 3, 1, 0, 8]).contains("crop to 8 x 8"));
    assert!(encode(&[1, 4, 1, 8, 8]).contains("[B, 3, F, H, W]"));
    assert!(encode(&[3, 8, 8]).contains("[B, 3, F, H, W]"));
    assert!(encode(&[1, 3, 1, 0, usize::MAX]).contains("crop"));
    for shape in [&[1, 15, 1, 2, 2][..], &[1, 16, 0, 2, 2], &[16, 2, 2], &[0, 16, 1, 2, 2]] {
        let latent = Tensor::zeros(shape, DType::F32, Default::default());
        let message = vae.decode(&params, &latent, &WHOLE, &mut go_on).unwrap_err().to_string();
        assert!(message.contains("[B, 16, F, H, W]"), "{message}");
    }
    let latent = Tensor::zeros(&[1, 16, 1, 64, 64], DType::F32, Default::default());
    let tight = VaeOptions { tile: Tile::Auto { budget_bytes: 1000 } };
    let message = vae.decode(&params, &latent, &tight, &mut go_on).unwrap_err().to_string();
    assert!(message.contains("a budget of at least"), "{message}");
}

#[test]
fn weights_of_another_autoencoder_or_damaged_ones_are_refused_by_name() {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, Default::default());
    let config = |change: &dyn Fn(&mut TensorFile)| {
        let mut file = read("vae_weights_orig_bf16");
        change(&mut file);
        VaeConfig::of_weights(&file).map(|_| ()).unwrap_err().to_string()
    };
    let message = config(&|f| drop(f.tensors.insert("conv2.weight".into(), zeros(&[48, 48, 1, 1, 1]))));
    assert!(message.contains("Wan2.2 autoencoder") && message.contains("Wan2.1_VAE.pth"), "{message}");
    let message = config(&|f| drop(f.tensors.insert("conv2.weight".into(), zeros(&[8, 8, 1, 1, 1]))));
    assert!(message.contains("Some(8)") && message.contains("16 latent"), "{message}");
    let message = config(&|f| drop(f.tensors.insert("encoder.conv1.weight".into(), zeros(&[4, 12, 3, 3, 3]))));
    assert!(message.contains("encoder.conv1.weight"), "{message}");
    assert!(config(&|f| f.tensors.clear()).contains("layout"));

    let (vae, _) = load("orig_bf16", DType::F32);
    let refused = |change: &dyn Fn(&mut TensorFile)| {
        let mut file = read("vae_weights_orig_bf16");
        change(&mut file);
        vae.load_from(&file, Path::new("w"), DType::F32).unwrap_err().to_string()
    };
    let name = "decoder.head.2.bias";
    assert!(refused(&|f| drop(f.tensors.remove(name))).contains("missing    decoder.head.2.bias"));
    assert!(refused(&|f| drop(f.tensors.insert(name.into(), zeros(&[4])))).contains("misshapen"));
    let nan = Tensor::from_vec(vec![0.0f32, f32::NAN, f32::INFINITY], &[3]).unwrap();
    assert!(refused(&|f| drop(f.tensors.insert(name.into(), nan.clone()))).contains("2 non-finite"));
}

#[test]
fn weights_of_another_size_are_refused_before_anything_runs() {
    let (_, params) = load("orig_bf16", DType::F32);
    let other = WanVae::new(VaeConfig { base: 8, ..VaeConfig::wan21() }).unwrap();
    let latent = Tensor::zeros(&[1, 16, 1, 2, 2], DType::F32, Default::default());
    let message = other.decode(&params, &latent, &WHOLE, &mut go_on).unwrap_err().to_string();
    assert!(message.contains("parameters of this autoencoder"), "{message}");
}

#[test]
fn impossible_configurations_are_refused_with_a_remedy() {
    let base = VaeConfig::wan21;
    let cases = [
        VaeConfig { base: 0, ..base() },
        VaeConfig { base: usize::MAX, ..base() },
        VaeConfig { base: 3, multipliers: [1; 4], ..base() },
        VaeConfig { multipliers: [1, 0, 2, 2], ..base() },
        VaeConfig { latent: 8, ..base() },
        VaeConfig { std: vec![0.0; 16], ..base() },
        VaeConfig { mean: vec![f64::NAN; 16], ..base() },
    ];
    for config in cases {
        assert!(WanVae::new(config).unwrap_err().to_string().contains(';'));
    }
}
