//! Adapters in the names of diffusers and PEFT.

use std::path::PathBuf;

use fewstep_nn::wan::{Wan, WanConfig};
use fewstep_nn::weights::Policy;
use fewstep_ops::{Conditions, Grads, Network, ParamId, Params, Recompute, Reverse};
use fewstep_tensor::file::TensorFile;
use fewstep_tensor::random::{Purpose, Stream};
use fewstep_tensor::{DType, Device, Tensor, arith};

fn fixture(name: &str) -> TensorFile {
    let own = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures");
    let folder = std::env::var_os("FEWSTEP_FIXTURES").map_or_else(|| own.into(), PathBuf::from);
    TensorFile::read(&folder.join(format!("{name}.safetensors"))).unwrap()
}

/// The fixture's network with adapters of every linear layer.
fn adapted() -> (Wan, Params, Params) {
    let file = fixture("wan_t2v_weights_orig_bf16");
    let wan = Wan::new(WanConfig::of_weights(&file, Some(2), [1, 2, 2]).unwrap()).unwrap();
    let base = wan.load_from(&file, &PathBuf::from("fixture"), DType::F32).unwrap();
    let linear = base.specs().iter().enumerate().filter(|(_, s)| s.shape.len() == 2);
    let targets: Vec<ParamId> = linear.map(|(i, _)| ParamId(i)).collect();
    let start = base.adapted(&targets, 3, 0.5, 1, DType::F32).unwrap();
    let stream = Stream::new(2, Purpose::Check, 0);
    let draw = |(i, t): (usize, &Tensor)| {
        arith::normal(&stream, i as u64, &[1, t.len()], DType::F32, Device::Cpu).unwrap().reshape(t.shape()).unwrap()
    };
    let moved = start.trained().iter().enumerate().map(draw).collect();
    (wan, base, start.with_trained(moved).unwrap())
}

#[test]
fn adapters_come_back_bit_for_bit_from_the_names_of_diffusers() {
    let (wan, base, params) = adapted();
    let file = wan.store_adapters(&params).unwrap();
    let back = wan.load_adapters(&base, &file, DType::F32).unwrap();
    assert_eq!(back.specs(), params.specs());
    for (a, b) in back.tensors().iter().zip(params.tensors()) {
        assert_eq!(a.to_vec_f64(), b.to_vec_f64());
    }
    assert!(back.adapters().eq(params.adapters()));
}

#[test]
fn every_module_is_one_that_the_diffusers_file_has() {
    let (wan, _, params) = adapted();
    let published = fixture("wan_t2v_weights_diffusers_f32");
    let file = wan.store_adapters(&params).unwrap();
    let modules: Vec<&str> = file.tensors.keys().filter_map(|k| k.strip_suffix(".lora_A.weight")).collect();
    assert_eq!(modules.len() * 3, file.tensors.len(), "A, B and alpha each");
    for module in modules {
        let name = format!("{}.weight", module.strip_prefix("transformer.").unwrap());
        let weight = published.get(&name).unwrap().shape().to_vec();
        let (a, b) =
            (&file.tensors[&format!("{module}.lora_A.weight")], &file.tensors[&format!("{module}.lora_B.weight")]);
        assert_eq!((a.shape()[0], &a.shape()[1..]), (3, &weight[1..]), "{module}");
        assert_eq!((b.shape()[0], b.shape()[1], b.len()), (weight[0], 3, weight[0] * 3), "{module}");
    }
}

#[test]
fn a_file_of_another_network_or_half_a_pair_is_refused_by_name() {
    let (wan, base, params) = adapted();
    let refused = |change: &dyn Fn(&mut TensorFile)| {
        let mut file = wan.store_adapters(&params).unwrap();
        change(&mut file);
        wan.load_adapters(&base, &file, DType::F32).unwrap_err().to_string()
    };
    let layer = "transformer.blocks.1.attn2.to_k";
    let (a, b) = (format!("{layer}.lora_A.weight"), format!("{layer}.lora_B.weight"));
    assert!(refused(&|f| drop(f.tensors.remove(&b))).contains(layer));
    let strange = refused(&|f| drop(f.tensors.insert("transformer.blocks.9.x".into(), f.tensors[&a].clone())));
    assert!(strange.contains("transformer.blocks.9.x"), "{strange}");
    let misshapen = refused(&|f| drop(f.tensors.insert(a.clone(), f.tensors[&b].clone())));
    assert!(misshapen.contains(layer), "{misshapen}");
    assert!(refused(&|f| f.tensors.clear()).contains("rank"));
}

#[test]
fn adapters_on_matrices_frozen_in_bf16_give_the_bits_of_those_on_widened_ones() {
    let file = fixture("wan_t2v_weights_orig_bf16");
    let (io, path) = (fixture("wan_t2v_io"), PathBuf::from("fixture"));
    let wan = Wan::new(WanConfig::of_weights(&file, Some(2), [1, 2, 2]).unwrap()).unwrap();
    let results = |policy: Policy| {
        let base = wan.load_from(&file, &path, policy).unwrap();
        let linear = base.specs().iter().enumerate().filter(|(_, s)| s.shape.len() == 2);
        let targets: Vec<ParamId> = linear.map(|(i, _)| ParamId(i)).collect();
        let start = base.adapted(&targets, 3, 0.5, 1, DType::F32).unwrap();
        // B starts at zero, which would leave A without a gradient.
        let moved = start.trained().iter().map(|t| Tensor::full(t.shape(), 0.01, DType::F32, Device::Cpu)).collect();
        let params = start.with_trained(moved).unwrap();
        let m = Reverse::new(&params, Recompute::Nothing);
        let get = |name: &str, dtype| io.get(name).unwrap().to_dtype(dtype);
        let (x, t) = (m.input(get("x", DType::F32)), m.input(get("t", DType::F64)));
        let conditions = Conditions { text: m.input(get("ctx", DType::F32)), image: None, latent: None };
        let y = wan.forward(&m, &x, &t, &conditions).unwrap();
        let mut grads = Grads::new(&params);
        let bars = m.backward(&y, get("loss_w", DType::F32), &mut grads).unwrap();
        let first = params.specs().len() - params.trained().len();
        let of_adapters = (first..params.specs().len()).map(|i| grads.get(ParamId(i)).unwrap().to_vec_f64());
        (bars.get(&x).unwrap().to_vec_f64(), of_adapters.collect::<Vec<_>>())
    };
    assert!(results(Policy::KeepMatrices(DType::F32)) == results(Policy::Widen(DType::F32)));
}
