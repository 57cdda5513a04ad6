//! The 1.3B network from a file of its size: how soon it computes, and in how much memory.

// Private memory is read from /proc.
#![cfg(target_os = "linux")]

use std::path::PathBuf;
use std::time::Instant;

use fewstep_nn::wan::{Wan, WanConfig};
use fewstep_nn::weights::Policy;
use fewstep_ops::{Conditions, Network, Plain};
use fewstep_tensor::{DType, Device, Tensor};

/// Private memory in MB: now, of pages that belong to no file.
fn private_mb() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() / 1024
}

#[test]
#[ignore = "needs a 2.8 GB file: FEWSTEP_WAN_1_3B names bf16 weights of the 1.3B shape in any layout"]
fn the_first_block_of_1_3b_is_computed_within_five_seconds_and_weights_take_no_private_memory() {
    let path = PathBuf::from(std::env::var_os("FEWSTEP_WAN_1_3B").expect("FEWSTEP_WAN_1_3B"));
    let began = Instant::now();
    let wan = Wan::new(WanConfig::t2v_1_3b()).unwrap();
    let params = wan.load(&path, Policy::KeepMatrices(DType::F32)).unwrap();
    let (loaded, after_load) = (began.elapsed(), private_mb());

    // The embeddings, one block and the head, on a latent small enough that reading, not arithmetic, is what takes time.
    let first = Wan::new(WanConfig { layers: 1, ..WanConfig::t2v_1_3b() }).unwrap();
    let of = |name: &str| params.iter().find(|(n, _)| *n == name).map(|(_, t)| t.clone()).unwrap();
    let first_params =
        fewstep_ops::Params::new(first.specs(), first.specs().iter().map(|s| of(&s.name)).collect()).unwrap();
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, Device::Cpu);
    let m = Plain::new(&first_params);
    let t = Tensor::full(&[1], 500.0, DType::F64, Device::Cpu);
    let text = Conditions { text: zeros(&[1, 512, 4096]), image: None, latent: None };
    let y = first.forward(&m, &zeros(&[1, 16, 1, 32, 32]), &t, &text).unwrap();
    let (computed, after_block) = (began.elapsed(), private_mb());
    println!(
        "loaded after {loaded:?} with {after_load} MB private; first block after {computed:?} with {after_block} MB"
    );
    assert_eq!(y.shape(), [1, 16, 1, 32, 32]);
    assert!(computed.as_secs_f64() < 5.0, "{computed:?}");
    assert!(after_load < 200, "{after_load} MB: matrices stay in the file");
    assert!(after_block < 500, "{after_block} MB");
}
