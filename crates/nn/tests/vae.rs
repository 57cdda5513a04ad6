//! The Wan autoencoder against the published implementations' own outputs, in both layouts, f64 and f32.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use fewstep_nn::Error;
use fewstep_nn::vae::{Half, Step, Tile, VaeConfig, VaeLayout, VaeOptions, WanVae};
use fewstep_ops::{Forward, Grads, Params, Plain, Recompute, Reverse, suite};
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
