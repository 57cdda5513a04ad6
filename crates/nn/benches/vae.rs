//! The Wan autoencoder at its published size with random weights: times, and the peak of tensor memory on stderr.
//!
//! `cargo bench -p fewstep-nn --bench vae`; the full decode, 480 × 832 × 17 frames, takes minutes on two cores.

use std::ops::ControlFlow;

use divan::Bencher;
use divan::counter::ItemsCount;
use fewstep_nn::vae::{VaeConfig, VaeOptions, WanVae};
use fewstep_ops::Params;
use fewstep_tensor::{DType, Device, Tensor, keep_freed_memory, memory, reset_peak};

fn main() {
    keep_freed_memory();
    divan::main();
}

/// Decodes a latent of [frames, height, width]; `flops` are multiplications and additions.
fn decode(bencher: Bencher<'_, '_>, [f, h, w]: [usize; 3]) {
    let Ok(vae) = WanVae::new(VaeConfig::wan21()) else { return };
    let Ok(params) = Params::init(vae.specs(), 0, DType::F32, Device::Cpu) else { return };
    let latent = Tensor::full(&[1, 16, f, h, w], 0.5, DType::F32, Device::Cpu);
    bencher.counter(ItemsCount::new(flops(f, h * w))).bench_local(|| {
        reset_peak();
        let video = vae.decode(&params, &latent, &VaeOptions::default(), &mut |step| {
            eprintln!("{step:?}, peak {:.2} GB", memory().1 as f64 * 1e-9);
            ControlFlow::Continue(())
        });
        video.map(|v| v.len())
    });
}

/// Multiplications and additions of the decoder's convolutions at the published size, without what tiles compute twice.
fn flops(frames: usize, area: usize) -> usize {
    let (first, later) = (area, frames - 1);
    let conv = |taps: usize, i: usize, o: usize| 2 * taps * i * o;
    // Positions of all frames at each of the four resolutions.
    let at = [first * frames, 4 * first * (1 + 2 * later), 16 * first * (1 + 4 * later), 64 * first * (1 + 4 * later)];
    let level0 = conv(27, 16, 384) + 10 * conv(27, 384, 384) + conv(1, 384, 4 * 384);
    let level1 = conv(9, 384, 192) + conv(27, 192, 384) + conv(1, 192, 384) + 5 * conv(27, 384, 384);
    let level2 = conv(9, 384, 192) + 6 * conv(27, 192, 192);
    let level3 = conv(9, 192, 96) + 6 * conv(27, 96, 96) + conv(27, 96, 3);
    let in_time = conv(3, 384, 768) * first * later * (1 + 4 * 2);
    at[0] * level0 + at[1] * level1 + at[2] * level2 + at[3] * level3 + in_time
}

#[divan::bench(sample_count = 1, sample_size = 1)]
fn decode_small(bencher: Bencher<'_, '_>) {
    decode(bencher, [2, 15, 26]);
}

#[divan::bench(sample_count = 1, sample_size = 1)]
fn decode_480x832x17(bencher: Bencher<'_, '_>) {
    decode(bencher, [5, 60, 104]);
}
