//! Wan against the published implementations' own outputs, in both layouts, f64 and f32.

use std::path::{Path, PathBuf};

use fewstep_nn::wan::{Wan, WanConfig, WanLayout};
use fewstep_nn::weights::Policy;
use fewstep_ops::{Conditions, Forward, Grads, Mode, Network, ParamId, Params, Plain, Recompute, Reverse};
use fewstep_tensor::file::TensorFile;
use fewstep_tensor::{DType, Tensor};

fn fixtures() -> PathBuf {
    let own = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures");
    std::env::var_os("FEWSTEP_FIXTURES").map_or_else(|| own.into(), PathBuf::from)
}

fn read(name: &str) -> TensorFile {
    TensorFile::read(&fixtures().join(format!("{name}.safetensors"))).unwrap()
}

/// The network of a fixture, from the configuration in its header.
fn network(file: &TensorFile) -> Wan {
    let json: serde_json::Value = serde_json::from_str(&file.metadata["json"]).unwrap();
    Wan::new(WanConfig::from_json(&json["config"]).unwrap()).unwrap()
}

struct Case {
    wan: Wan,
    io: TensorFile,
    family: &'static str,
}

impl Case {
    fn new(family: &'static str) -> Self {
        let io = read(&format!("{family}_io"));
        Case { wan: network(&io), io, family }
    }

    fn load(&self, layout: &str, dtype: DType) -> Params {
        let path = fixtures().join(format!("{}_weights_{layout}.safetensors", self.family));
        self.wan.load(&path, dtype).unwrap()
    }

    fn get(&self, name: &str, dtype: DType) -> Tensor {
        self.io.get(name).unwrap().to_dtype(dtype)
    }

    fn conditions(&self, dtype: DType) -> Conditions {
        let optional = |name: &str| self.io.tensors.get(name).map(|t| t.to_dtype(dtype));
        Conditions { text: self.get("ctx", dtype), image: optional("clip"), latent: optional("y") }
    }

    fn forward(&self, params: &Params, dtype: DType) -> Tensor {
        let m = Plain::new(params);
        let (x, t) = (self.get("x", dtype), self.get("t", DType::F64));
        self.wan.forward(&m, &x, &t, &self.conditions(dtype).in_mode(&m)).unwrap()
    }

    fn jvp(&self, params: &Params, dtype: DType) -> Tensor {
        let m = Forward::new(params);
        let x = m.input(self.get("x", dtype), Some(self.get("dx", dtype)));
        let t = m.input(self.get("t", DType::F64), Some(self.get("dt", DType::F64)));
        let y = self.wan.forward(&m, &x, &t, &self.conditions(dtype).in_mode(&m)).unwrap();
        assert_eq!(y.primal.to_vec_f64(), self.forward(params, dtype).to_vec_f64(), "the primal is the plain forward");
        y.tangent.unwrap()
    }
}

/// max|got − want| relative to max|want|.
fn error(got: &Tensor, want: &Tensor) -> f64 {
    assert_eq!(got.len(), want.len());
    let (got, want) = (got.to_vec_f64(), want.to_vec_f64());
    let scale = want.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    assert!(scale > 0.0, "a reference of zeros proves nothing");
    assert!(got.iter().all(|x| x.is_finite()));
    got.iter().zip(&want).fold(0.0f64, |m, (a, b)| m.max((a - b).abs())) / scale
}

#[track_caller]
fn assert_close(what: &str, got: &Tensor, want: &Tensor, tolerance: f64) {
    let e = error(got, want);
    println!("{what}: {e:.1e}");
    assert!(e <= tolerance, "{what}: off by {e:e}, tolerance {tolerance:e}");
}

const FAMILIES: [&str; 2] = ["wan_t2v", "wan_i2v"];
const LAYOUTS: [&str; 2] = ["orig_bf16", "diffusers_f32"];

#[test]
fn forward_and_jvp_are_the_published_ones_in_both_layouts_and_precisions() {
    for family in FAMILIES {
        let case = Case::new(family);
        let (out, jvp) = (case.get("out_f64", DType::F64), case.get("jvp_f64", DType::F64));
        for layout in LAYOUTS {
            let wide = case.load(layout, DType::F64);
            assert_close(&format!("{family} {layout} out f64"), &case.forward(&wide, DType::F64), &out, 1e-9);
            assert_close(&format!("{family} {layout} jvp f64"), &case.jvp(&wide, DType::F64), &jvp, 1e-9);
            let single = case.load(layout, DType::F32);
            assert_close(&format!("{family} {layout} out f32"), &case.forward(&single, DType::F32), &out, 1e-5);
            assert_close(&format!("{family} {layout} jvp f32"), &case.jvp(&single, DType::F32), &jvp, 1e-4);
        }
    }
}

#[test]
fn diffusers_own_outputs_agree() {
    for family in FAMILIES {
        let (case, theirs) = (Case::new(family), read(&format!("{family}_io_diffusers")));
        let params = case.load("diffusers_f32", DType::F64);
        let out = case.forward(&params, DType::F64);
        assert_close(&format!("{family} diffusers out"), &out, theirs.get("out_f64").unwrap(), 1e-9);
        let jvp = case.jvp(&params, DType::F64);
        assert_close(&format!("{family} diffusers jvp"), &jvp, theirs.get("jvp_f64").unwrap(), 1e-9);
    }
}

#[test]
fn every_intermediate_is_the_published_one() {
    for family in FAMILIES {
        let case = Case::new(family);
        let params = case.load("orig_bf16", DType::F64);
        let m = Plain::with_taps(&params);
        let (x, t) = (case.get("x", DType::F64), case.get("t", DType::F64));
        case.wan.forward(&m, &x, &t, &case.conditions(DType::F64).in_mode(&m)).unwrap();
        let taps = m.into_taps();
        let mut compared = 0;
        for (name, want) in case.io.tensors.iter().filter(|(n, _)| n.starts_with("inter.")) {
            let label = &name["inter.".len()..];
            let want = want.to_dtype(DType::F64);
            if label == "rope_angles" {
                let [_, _, f, h, w] = case.get("x", DType::F64).dims().unwrap();
                let [pt, ph, pw] = case.wan.config().patch;
                let angles = case.wan.rope_angles([f / pt, h / ph, w / pw]);
                let angles = Tensor::from_vec(angles, want.shape()).unwrap();
                assert_close(&format!("{family} {label}"), &angles, &want, 1e-9);
            } else {
                let (_, got) = taps.iter().find(|(l, _)| l == label).unwrap_or_else(|| panic!("no tap '{label}'"));
                assert_close(&format!("{family} {label}"), got, &want, 1e-6);
            }
            compared += 1;
        }
        assert!(compared > 0);
    }
}

/// Gradients of every parameter and input under one policy, as (name, value).
fn gradients(case: &Case, params: &Params, dtype: DType, policy: Recompute) -> Vec<(String, Tensor)> {
    let m = Reverse::new(params, policy);
    let (x, t) = (m.input(case.get("x", dtype)), m.input(case.get("t", DType::F64)));
    let text = m.input(case.get("ctx", dtype));
    let conditions = Conditions { text: text.clone(), image: None, latent: None };
    let y = case.wan.forward(&m, &x, &t, &conditions).unwrap();
    let mut grads = Grads::new(params);
    let bars = m.backward(&y, case.get("loss_w", dtype), &mut grads).unwrap();
    let mut all: Vec<(String, Tensor)> = [("grad_x", &x), ("grad_t", &t), ("grad_ctx", &text)]
        .map(|(n, v)| (n.into(), bars.get(v).unwrap().clone()))
        .into();
    for (i, spec) in params.specs().iter().enumerate() {
        all.push((format!("grad.{}", spec.name), grads.get(ParamId(i)).unwrap().clone()));
    }
    all
}

#[test]
fn every_gradient_is_the_published_one() {
    let case = Case::new("wan_t2v");
    for (dtype, inputs, parameters) in [(DType::F64, 1e-9, 1e-6), (DType::F32, 1e-5, 1e-5)] {
        let params = case.load("orig_bf16", dtype);
        let stored = case.io.tensors.keys().filter(|k| k.starts_with("grad")).count();
        let all = gradients(&case, &params, dtype, Recompute::Nothing);
        assert_eq!(all.len(), stored, "every stored gradient is compared");
        for (name, got) in all {
            let tolerance = if name.starts_with("grad.") { parameters } else { inputs };
            assert_close(&format!("{name} {dtype}"), &got, &case.get(&name, DType::F64), tolerance);
        }
    }
}

#[test]
fn recomputed_gradients_are_the_kept_ones_bit_for_bit() {
    let case = Case::new("wan_t2v");
    let params = case.load("orig_bf16", DType::F32);
    let bits = |policy| -> Vec<(String, Vec<u64>)> {
        let all = gradients(&case, &params, DType::F32, policy);
        all.into_iter().map(|(n, t)| (n, t.to_vec_f64().into_iter().map(f64::to_bits).collect())).collect()
    };
    let kept = bits(Recompute::Nothing);
    assert!(kept == bits(Recompute::Everything));
    assert!(kept == bits(Recompute::AllButAttention));
}

#[test]
fn weights_written_in_every_layout_come_back_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    for family in FAMILIES {
        let case = Case::new(family);
        let params = case.load("orig_bf16", DType::F32);
        let patch = case.wan.config().patch;
        for layout in [WanLayout::Original { patch }, WanLayout::Rcm, WanLayout::Diffusers { patch }] {
            let path = dir.path().join("w.safetensors");
            case.wan.store(&params, layout, DType::Bf16).unwrap().write(&path).unwrap();
            let back = case.wan.load(&path, DType::F32).unwrap();
            for ((name, a), (_, b)) in params.iter().zip(back.iter()) {
                assert_eq!(a.to_vec_f64(), b.to_vec_f64(), "{name} in {layout:?}");
            }
        }
    }
}

#[test]
fn the_written_names_are_the_published_ones() {
    for family in FAMILIES {
        let case = Case::new(family);
        let params = case.load("orig_bf16", DType::F32);
        let patch = case.wan.config().patch;
        for (file, layout) in [("orig_bf16", WanLayout::Rcm), ("diffusers_f32", WanLayout::Diffusers { patch })] {
            let published = read(&format!("{family}_weights_{file}"));
            let ours = case.wan.store(&params, layout, DType::F32).unwrap();
            let list =
                |f: &TensorFile| f.tensors.iter().map(|(n, t)| (n.clone(), t.shape().to_vec())).collect::<Vec<_>>();
            assert_eq!(list(&ours), list(&published));
        }
    }
}

fn load_changed(change: impl FnOnce(&mut TensorFile)) -> String {
    let case = Case::new("wan_t2v");
    let mut file = read("wan_t2v_weights_orig_bf16");
    change(&mut file);
    case.wan.load_from(&file, Path::new("w.safetensors"), DType::F32).unwrap_err().to_string()
}

#[test]
fn wrong_weights_are_refused_with_every_kind_of_difference_named() {
    let name = "blocks.0.ffn.0.bias";
    let renamed = load_changed(|f| {
        let t = f.tensors.remove(name).unwrap();
        f.tensors.insert("blocks.0.ffn.0.bais".into(), t);
    });
    assert!(renamed.contains("missing    blocks.0.ffn.0.bias") && renamed.contains("unexpected blocks.0.ffn.0.bais"));
    let misshapen = load_changed(|f| {
        f.tensors.insert(name.into(), Tensor::zeros(&[3], DType::F32, Default::default()));
    });
    assert!(misshapen.contains("misshapen  blocks.0.ffn.0.bias") && misshapen.contains("[3]"), "{misshapen}");
    let nan = load_changed(|f| {
        let t = f.tensors.get_mut(name).unwrap();
        *t = t.to_dtype(DType::F32);
        t.make_mut::<f32>().unwrap()[1] = f32::NAN;
    });
    assert!(nan.contains("1 non-finite"), "{nan}");
    let empty = load_changed(|f| f.tensors.clear());
    assert!(empty.contains("layout"), "{empty}");
}

#[test]
fn extents_are_read_off_the_weights_of_every_layout() {
    for family in FAMILIES {
        let config = network(&read(&format!("{family}_io"))).config().clone();
        for layout in LAYOUTS {
            let file = read(&format!("{family}_weights_{layout}"));
            assert_eq!(WanConfig::of_weights(&file, Some(config.heads), config.patch).unwrap(), config);
        }
    }
    assert!(WanConfig::of_weights(&TensorFile::default(), None, [1, 2, 2]).is_err());
    let guessed = WanConfig::of_weights(&read("wan_t2v_weights_orig_bf16"), None, [1, 2, 2]).unwrap_err().to_string();
    assert!(guessed.contains("heads"), "{guessed}");
}

#[test]
fn names_under_a_prefix_load_too() {
    let case = Case::new("wan_t2v");
    let mut file = read("wan_t2v_weights_orig_bf16");
    file.tensors = std::mem::take(&mut file.tensors).into_iter().map(|(k, t)| (format!("module.net.{k}"), t)).collect();
    let extra = Tensor::zeros(&[0], DType::F64, Default::default());
    file.tensors.insert("module.net.blocks.0._extra_state".into(), extra);
    case.wan.load_from(&file, Path::new("w.safetensors"), DType::F32).unwrap();
}

#[test]
fn matrices_kept_in_bf16_give_the_bits_of_widened_ones() {
    let case = Case::new("wan_t2v");
    let path = fixtures().join("wan_t2v_weights_orig_bf16.pth");
    let kept = case.wan.load(&path, Policy::KeepMatrices(DType::F32)).unwrap();
    assert!(kept.iter().any(|(_, t)| t.dtype() == DType::Bf16 && t.is_mapped()));
    let widened = case.load("orig_bf16", DType::F32);
    assert_eq!(case.forward(&kept, DType::F32).to_vec_f64(), case.forward(&widened, DType::F32).to_vec_f64());
    assert_eq!(case.jvp(&kept, DType::F32).to_vec_f64(), case.jvp(&widened, DType::F32).to_vec_f64());
}

#[test]
fn both_descriptions_of_a_network_say_what_its_weights_show() {
    for family in FAMILIES {
        let config = network(&read(&format!("{family}_io"))).config().clone();
        let theirs = read(&format!("{family}_io_diffusers"));
        let json: serde_json::Value = serde_json::from_str(&theirs.metadata["json"]).unwrap();
        assert_eq!(WanConfig::from_json(&json["config"]).unwrap(), config);
        let file = read(&format!("{family}_weights_orig_bf16"));
        assert_eq!(WanConfig::of_weights_with(&file, config.clone()).unwrap(), config);
        let silent = WanConfig { image_dim: Some(1280), ..config.clone() };
        assert_eq!(WanConfig::of_weights_with(&file, silent).unwrap(), config, "weights know the image branch");
        let other = WanConfig { layers: 3, ..config };
        assert!(WanConfig::of_weights_with(&file, other).unwrap_err().to_string().contains("another network"));
    }
}

#[test]
fn inputs_that_do_not_fit_are_refused_by_name() {
    let case = Case::new("wan_t2v");
    let params = case.load("orig_bf16", DType::F32);
    let m = Plain::new(&params);
    let t = case.get("t", DType::F64);
    let run = |x: Tensor| case.wan.forward(&m, &x, &t, &case.conditions(DType::F32).in_mode(&m));
    let wrong = |shape: &[usize]| run(Tensor::zeros(shape, DType::F32, Default::default())).unwrap_err().to_string();
    assert!(wrong(&[2, 16, 3, 4]).contains("[B, C, F, H, W]"));
    assert!(wrong(&[2, 15, 3, 4, 6]).contains("16 channels"));
    assert!(wrong(&[2, 16, 3, 5, 6]).contains("divisible"));
    assert_eq!(m.shape(&t).len(), 1);
}

#[test]
fn tables_are_the_published_ones() {
    use fewstep_ops::{Op, TimeEmbedding};
    use fewstep_tensor::Device;
    let tables = read("wan_tables");
    let temb = tables.get("temb256").unwrap();
    let t = tables.get("t").unwrap().to_dtype(DType::F64);
    let dim = temb.last_dim();
    let got = TimeEmbedding { dim, dtype: DType::F64, device: Device::Cpu }.forward(&[&t]).unwrap().y;
    assert_close("time embedding", &got, &temb.to_dtype(DType::F64), 1e-9);

    let json: serde_json::Value = serde_json::from_str(&tables.metadata["json"]).unwrap();
    let grid: Vec<usize> = json["rope_grid"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as usize).collect();
    let want = tables.get("rope128.f64").unwrap();
    let wan = Wan::new(WanConfig { layers: 1, ..WanConfig::t2v_1_3b() }).unwrap();
    let got = Tensor::from_vec(wan.rope_angles(grid.try_into().unwrap()), want.shape()).unwrap();
    assert_close("rope", &got, want, 1e-9);
}
