//! CLIP's vision tower against transformers' own outputs, in both layouts, f64 and f32.

use std::path::PathBuf;

use fewstep_nn::clip::{ClipConfig, ClipVision, preprocess};
use fewstep_ops::{Forward, Plain};
use fewstep_tensor::file::TensorFile;
use fewstep_tensor::{DType, Tensor};

const HEADS: usize = 4;
const LAYOUTS: [&str; 2] = ["clip_weights_orig_bf16", "clip_weights_hf_f32"];
const IMAGES: [&str; 2] = ["small", "large"];

fn path(name: &str) -> PathBuf {
    let own = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures");
    let folder = std::env::var_os("FEWSTEP_FIXTURES").map_or_else(|| own.into(), PathBuf::from);
    folder.join(format!("{name}.safetensors"))
}

fn read(name: &str) -> TensorFile {
    TensorFile::read(&path(name)).unwrap()
}

fn tower(layout: &str) -> ClipVision {
    ClipVision::new(ClipConfig::of_weights(&read(layout), Some(HEADS)).unwrap()).unwrap()
}

#[track_caller]
fn assert_close(what: &str, got: &Tensor, want: &Tensor, tolerance: f64) {
    assert_eq!(got.shape(), want.shape());
    let (got, want) = (got.to_vec_f64(), want.to_vec_f64());
    let scale = want.iter().fold(0.0_f64, |m, x| m.max(x.abs()));
    let error = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / scale;
    assert!(scale > 0.0 && error <= tolerance, "{what}: off by {error:e}");
}

#[test]
fn tokens_are_the_published_ones_in_both_layouts_and_precisions() {
    let io = read("clip_io");
    for layout in LAYOUTS {
        let tower = tower(layout);
        for (dtype, tolerance) in [(DType::F64, 1e-9), (DType::F32, 1e-5)] {
            let params = tower.load(&path(layout), dtype).unwrap();
            for image in IMAGES {
                let x = io.get(&format!("{image}.image")).unwrap().to_dtype(dtype);
                let y = tower.encode(&params, &x).unwrap();
                assert_eq!(y.dtype(), dtype);
                let want = io.get(&format!("{image}.out_f64")).unwrap();
                assert_close(&format!("{layout} {image} {dtype:?}"), &y, want, tolerance);
            }
        }
    }
}

#[test]
fn pixels_are_resized_and_normalised_as_pytorch_does() {
    let io = read("clip_io");
    for image in IMAGES {
        let get = |part: &str| io.get(&format!("{image}.{part}")).unwrap();
        assert_close(image, &preprocess(get("image"), 12).unwrap(), get("pixels"), 1e-9);
    }
}

#[test]
fn the_primal_of_the_tangent_pass_is_the_plain_pass() {
    let (tower, io) = (tower(LAYOUTS[0]), read("clip_io"));
    let params = tower.load(&path(LAYOUTS[0]), DType::F64).unwrap();
    let pixels = io.get("small.pixels").unwrap();
    let plain = tower.forward(&Plain::new(&params), pixels).unwrap();
    let m = Forward::new(&params);
    let dual = tower.forward(&m, &m.input(pixels.clone(), Some(pixels.clone()))).unwrap();
    assert_eq!(dual.primal.to_vec_f64(), plain.to_vec_f64());
    assert!(dual.tangent.unwrap().to_vec_f64().iter().any(|&x| x != 0.0));
}

#[test]
fn the_published_tower_has_257_tokens_and_31_blocks() {
    let config = ClipConfig::vit_h_14();
    assert_eq!((config.tokens(), config.run_layers()), (257, 31));
    let tower = ClipVision::new(config).unwrap();
    let count: usize = tower.specs().iter().map(|s| s.shape.iter().product::<usize>()).sum();
    // 31 blocks of 12·1280² + 13·1280, the patches' 588·1280, 258 class and position rows, one norm.
    assert_eq!(count, 31 * (12 * 1280 * 1280 + 13 * 1280) + 588 * 1280 + 258 * 1280 + 2 * 1280);
}

#[test]
fn missing_and_unexpected_tensors_are_named() {
    for (layout, gone) in [
        (LAYOUTS[0], "visual.transformer.1.attn.to_qkv.weight"),
        (LAYOUTS[1], "vision_model.encoder.layers.1.self_attn.k_proj.weight"),
    ] {
        let mut file = read(layout);
        let taken = file.tensors.remove(gone).unwrap();
        file.tensors.insert("visual.strange".into(), taken);
        let error = tower(layout).load_from(&file, "weights".as_ref(), DType::F32).unwrap_err().to_string();
        assert!(error.contains("missing    visual.transformer.1.attn.to_qkv.weight"), "{error}");
        assert!(error.contains("unexpected visual.strange"), "{error}");
    }
}

#[test]
fn weights_of_something_else_are_refused() {
    assert!(ClipConfig::of_weights(&TensorFile::default(), None).is_err());
    assert!(ClipConfig::of_weights(&read("wan_i2v_weights_orig_bf16"), None).is_err());
    let impossible = ClipConfig { heads: 7, ..ClipConfig::vit_h_14() };
    assert!(impossible.validate().unwrap_err().to_string().contains(';'));
}

#[test]
fn an_image_of_other_axes_is_refused() {
    for shape in [&[1, 1, 4, 4][..], &[3, 4, 4], &[1, 3, 0, 4]] {
        assert!(preprocess(&Tensor::full(shape, 0.0, DType::F32, fewstep_tensor::Device::Cpu), 12).is_err());
    }
}
