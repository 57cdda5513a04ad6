//! Every kernel that networks and optimiser launch, and those of masked attention, compiled for each generation of GPUs that is
//! served: needs NVRTC, but no GPU.

use std::sync::{Arc, Mutex};

use fewstep_nn::clip::{ClipConfig, ClipVision};
use fewstep_nn::t5::{T5Config, T5Encoder, Tokens};
use fewstep_nn::vae::{Half, Tile, VaeConfig, VaeOptions, WanVae};
use fewstep_nn::wan::{Wan, WanConfig};
use fewstep_ops::{
    Attention, Conditions, Forward, Grads, Mask, MaskedAttention, Mode, Network, Op, Pairs, ParamSpec, Params, Plain,
    Recompute, Reverse, Saved, hopper_convolutions, hopper_kernels,
};
use fewstep_tensor::cuda::{EMULATED, Variant, compile_for, gpu};
use fewstep_tensor::{DType, Tensor};
use fewstep_verify::{Check, numbers};

const TARGETS: [&str; 3] = ["sm_80", "sm_90a", "sm_120"];

/// Parameters as a network on a GPU has them; nothing is computed with them.
fn params(specs: &Arc<[ParamSpec]>, dtype: DType) -> Params {
    let tensor = |s: &ParamSpec| {
        let dtype = if s.wide { dtype.wide() } else { dtype };
        Tensor::empty(&s.shape, dtype, EMULATED).unwrap()
    };
    Params::new(specs, specs.iter().map(tensor).collect()).unwrap()
}

fn empty(shape: &[usize], dtype: DType) -> Tensor {
    Tensor::empty(shape, dtype, EMULATED).unwrap()
}

fn wan(config: WanConfig, dtype: DType) {
    let (text_dim, channels) = (config.text_dim, config.in_channels);
    let wan = Wan::new(WanConfig { layers: 1, ..config }).unwrap();
    let params = params(wan.specs(), dtype);
    let x = empty(&[1, channels, 2, 8, 8], dtype);
    let t = Tensor::from_vec(vec![500.0], &[1]).unwrap();
    let conditions = Conditions::text(empty(&[1, 16, text_dim], dtype));
    let m = Forward::new(&params);
    let (x_dual, t_dual) = (m.input(x.clone(), Some(x.clone())), m.input(t.clone(), Some(t.clone())));
    wan.forward(&m, &x_dual, &t_dual, &conditions.in_mode(&m)).unwrap();
    let m = Reverse::new(&params, Recompute::Nothing);
    let (x, t) = (m.input(x), m.constant(t));
    let y = wan.forward(&m, &x, &t, &conditions.in_mode(&m)).unwrap();
    let bar = y.value().clone();
    m.backward(&y, bar, &mut Grads::new(&params)).unwrap();
}

fn encoders(dtype: DType) {
    let t5 = T5Encoder::new(T5Config { layers: 1, vocab: 64, ..T5Config::umt5_xxl() }).unwrap();
    let t5_params = params(t5.specs(), dtype);
    t5.forward(&Plain::new(&t5_params), &Tokens::packed(&[&[1, 2, 3]]), dtype).unwrap();
    let clip = ClipVision::new(ClipConfig { layers: 2, ..ClipConfig::vit_h_14() }).unwrap();
    let clip_params = params(clip.specs(), dtype);
    let side = clip.config().image;
    clip.forward(&Plain::new(&clip_params), &empty(&[1, 3, side, side], dtype)).unwrap();
}

fn autoencoder(dtype: DType) {
    let vae = WanVae::new(VaeConfig::wan21()).unwrap();
    let params = params(vae.specs(), dtype);
    let options = VaeOptions { tile: Tile::Off };
    let go_on = &mut |_| std::ops::ControlFlow::Continue(());
    let host = |shape: &[usize]| Tensor::zeros(shape, DType::F32, Default::default());
    vae.encode(&params, &host(&[1, 3, 5, 16, 16]), &options, go_on).unwrap();
    vae.decode(&params, &host(&[1, 16, 2, 2, 2]), &options, go_on).unwrap();
    assert!(vae.tiles(Half::Decoder, dtype, &options, [1, 2, 2]).is_ok());
}

/// Attention under a mask, which no network of these needs.
fn masked(width: usize) {
    let x = empty(&[1, 70, 2 * width], DType::Bf16);
    let allowed = Pairs::new([1, 1, 70, 70], vec![true; 70 * 70]).unwrap();
    let mask = Arc::new(Mask { allowed: Some(allowed), ..Mask::default() });
    let op = MaskedAttention { attention: Attention { heads: 2, scale: None }, mask };
    let output = op.forward(&[&x; 3]).unwrap();
    op.jvp(&[&x; 3], &[Some(&x); 3]).unwrap();
    op.vjp(&Saved::of(&op, &[&x; 3], &output), &x, &[true; 3]).unwrap();
}

/// What the passes of all networks launch, and attention under a mask.
fn launched() -> Vec<Variant> {
    let ((), variants) = gpu(EMULATED).unwrap().noting(|| {
        for dtype in [DType::Bf16, DType::F32, DType::F64] {
            wan(WanConfig::digits(), dtype);
        }
        wan(WanConfig::t2v_1_3b(), DType::Bf16);
        wan(WanConfig::t2v_14b(), DType::Bf16);
        encoders(DType::Bf16);
        autoencoder(DType::Bf16);
        [64, 128].into_iter().for_each(masked);
        numbers::checks(EMULATED).iter().map(Check::launch).for_each(drop);
    });
    // The optimiser's step ends after its norms where nothing is computed: its update also writes copies in bf16.
    let with_copies = |v: &Variant| {
        let defines =
            v.defines.iter().map(|(n, value)| (n.clone(), if n == "COPY" { "2".into() } else { value.clone() }));
        Variant { source: v.source, defines: defines.collect() }
    };
    let updates: Vec<Variant> = variants.iter().filter(|v| v.source.name() == "adamw").map(with_copies).collect();
    assert!(!updates.is_empty());
    variants.into_iter().chain(updates).collect()
}

/// Whether a kernel is one that time goes into: those in bf16, but for attention at heads that no published network has, and
/// for the one that serves what the others do not.
fn is_hot(v: &Variant) -> bool {
    let value = |wanted: &str| v.defines.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
    let head = value("HEAD").is_none_or(|head| ["64", "128"].contains(&head));
    value("ELEMENT") == Some("bf16") && head && v.source.name() != "attention_simple"
}

/// Lines of the assembler's report that tell of registers kept in memory.
fn spills(log: &str) -> Vec<&str> {
    let spilled = |line: &&str| {
        line.split(',').filter(|part| part.contains("spill")).any(|part| !part.trim_start().starts_with("0 bytes"))
    };
    log.lines().filter(spilled).collect()
}

#[test]
fn a_report_of_spills_is_understood() {
    let none = "ptxas info    : Used 40 registers\n    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads";
    assert!(spills(none).is_empty());
    let some = "    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads";
    assert_eq!(spills(some), [some]);
}

#[test]
#[ignore = "needs NVRTC: .ci/run installs it"]
fn every_kernel_compiles_for_every_architecture_and_no_hot_one_spills() {
    let mut jobs: Vec<(&str, Variant)> =
        hopper_kernels().into_iter().chain(hopper_convolutions()).map(|v| ("sm_90a", v)).collect();
    let hopper = jobs.len();
    jobs.extend(launched().into_iter().flat_map(|v| TARGETS.map(|target| (target, v.clone()))));
    assert!(hopper > 10 && jobs.len() > 150, "{hopper} kernels for Hopper, {} jobs", jobs.len());
    let (next, failed) = (Mutex::new(jobs.iter()), Mutex::new(Vec::new()));
    let work = || {
        while let Some((target, v)) = { next.lock().unwrap().next() } {
            let what = format!("{} {:?} for {target}", v.source.name(), v.defines);
            let problem = match compile_for(target, &v.source, &v.defines) {
                Err(e) => Some(e.to_string()),
                Ok(made) if is_hot(v) && !spills(&made.log).is_empty() => Some(spills(&made.log).join("; ")),
                Ok(made) => made.code.is_empty().then(|| "no code".to_string()),
            };
            if let Some(problem) = problem {
                failed.lock().unwrap().push(format!("{what}: {problem}"));
            }
        }
    };
    std::thread::scope(|s| {
        (0..std::thread::available_parallelism().map_or(1, usize::from)).for_each(|_| drop(s.spawn(work)));
    });
    let failed = failed.into_inner().unwrap();
    println!("{} compilations", jobs.len());
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
