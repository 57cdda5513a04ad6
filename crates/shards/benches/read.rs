//! The rate at which samples of the published shapes come out of shards in the page cache.
//!
//! `cargo bench -p fewstep-shards`; the rates count the bytes of members read. `FEWSTEP_BENCH_SAMPLES` (default 64).

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use divan::Bencher;
use divan::counter::BytesCount;
use fewstep_shards::{BuildPlan, Encoding, Prefetcher, ReadOptions, Sample, ShardReader, build, verify};
use fewstep_tensor::{DType, Device, Tensor};
use tempfile::TempDir;

const LATENT: [usize; 4] = [16, 21, 60, 104];
const EMBED: [usize; 2] = [512, 4096];

static SAMPLES: LazyLock<u64> =
    LazyLock::new(|| std::env::var("FEWSTEP_BENCH_SAMPLES").ok().and_then(|n| n.parse().ok()).unwrap_or(64));
static TORCH: LazyLock<TempDir> = LazyLock::new(|| set(Encoding::Torch));
static SAFETENSORS: LazyLock<TempDir> = LazyLock::new(|| set(Encoding::Safetensors));

fn main() {
    divan::main();
    // Statics are never dropped: the folders go by hand.
    for folder in [LazyLock::get(&TORCH), LazyLock::get(&SAFETENSORS)].into_iter().flatten() {
        let _ = std::fs::remove_dir_all(folder.path());
    }
}

fn set(encoding: Encoding) -> TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let full = |shape: &[usize], value| Tensor::full(shape, value, DType::Bf16, Device::Cpu);
    let sample = Sample { latent: full(&LATENT, 0.5), embed: full(&EMBED, -0.25), prompt: "a prompt".into() };
    let plan = BuildPlan { encoding, ..BuildPlan::new(*SAMPLES, BTreeMap::new()) };
    build(dir.path(), &plan, |_| Ok::<_, Infallible>(sample.clone()), || false, |_| {}).expect("a set");
    dir
}

fn folder(encoding: Encoding) -> &'static Path {
    match encoding {
        Encoding::Torch => TORCH.path(),
        Encoding::Safetensors => SAFETENSORS.path(),
    }
}

fn bytes() -> BytesCount {
    BytesCount::new(*SAMPLES * 2 * (LATENT.iter().product::<usize>() + EMBED.iter().product::<usize>()) as u64)
}

/// An epoch read ahead, decoded to bf16 as stored or widened to f32.
#[divan::bench(args = [(Encoding::Torch, DType::Bf16), (Encoding::Torch, DType::F32), (Encoding::Safetensors, DType::Bf16)], sample_count = 10, sample_size = 1)]
fn read_ahead(bencher: Bencher, (encoding, dtype): (Encoding, DType)) {
    let reader = Arc::new(ShardReader::open(folder(encoding), ReadOptions::default()).expect("a set"));
    bencher.counter(bytes()).bench_local(|| {
        let mut ahead = Prefetcher::new(Arc::clone(&reader), 0, 4).expect("a thread");
        for position in 0..*SAMPLES {
            let example = ahead.get(position).expect("a sample");
            divan::black_box((example.latent.to_dtype(dtype), example.embed.to_dtype(dtype)));
        }
    });
}

/// The same bytes read by one thread and not decoded.
#[divan::bench(sample_count = 10, sample_size = 1)]
fn raw(bencher: Bencher) {
    let path = folder(Encoding::Torch).join("shard_000000.tar");
    let mut buffer = vec![0; 8 << 20];
    bencher.counter(bytes()).bench_local(|| {
        let mut file = std::fs::File::open(&path).expect("a shard");
        while std::io::Read::read(&mut file, &mut buffer).expect("bytes") > 0 {}
    });
}

/// Every byte verified: structure, decoding, finite values, SHA-256.
#[divan::bench(sample_count = 3, sample_size = 1)]
fn verify_set(bencher: Bencher) {
    let folder = folder(Encoding::Torch);
    bencher.counter(bytes()).bench_local(|| verify(folder, &Default::default(), &|_| {}).expect("a report"));
}
