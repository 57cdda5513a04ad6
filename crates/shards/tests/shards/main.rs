//! The crate from outside: building, crashing, verifying, reading.

mod building;
mod crash;
mod hostile;
mod read;
mod verifying;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::Path;

use fewstep_shards::{BuildOutcome, BuildPlan, Encoding, Example, Sample, build};
use fewstep_tensor::random::{Purpose, Stream};
use fewstep_tensor::{DType, Tensor};

pub const LATENT: [usize; 4] = [4, 2, 3, 5];
pub const EMBED: [usize; 2] = [6, 8];

/// Sample i: normal numbers, and a prompt of a length that varies.
pub fn sample(i: u64) -> Sample {
    let stream = Stream::new(3, Purpose::Check, i);
    let draw = |k, shape: &[usize]| {
        let n = shape.iter().product();
        Tensor::from_vec(stream.normal(k, n), shape).unwrap().to_dtype(DType::Bf16)
    };
    Sample {
        latent: draw(0, &LATENT),
        embed: draw(1, &EMBED),
        prompt: format!("prompt {i}: {}", "é".repeat(i as usize % 7)),
    }
}

pub fn plan(total: u64, shard_size: u64) -> BuildPlan {
    let settings = BTreeMap::from([("seed".to_string(), 3.into()), ("teacher".to_string(), "abc".into())]);
    BuildPlan { shard_size, ..BuildPlan::new(total, settings) }
}

/// A whole set in a folder.
pub fn whole(folder: &Path, total: u64, shard_size: u64, encoding: Encoding) {
    let plan = BuildPlan { encoding, ..plan(total, shard_size) };
    let outcome = build(folder, &plan, |i| Ok::<_, Infallible>(sample(i)), || false, |_| {}).unwrap();
    assert!(matches!(outcome, BuildOutcome::Complete(p) if p.finished == total));
}

/// The names and bytes of a set's tars and manifest.
pub fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap());
    let named = entries.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap()));
    named.filter(|(name, _)| name != "dataset.lock" && name != ".fewstep-index.json").collect()
}

pub fn assert_is_sample(example: &Example, i: u64) {
    let want = sample(i);
    assert_eq!(example.key, format!("{i:09}"));
    assert_eq!(example.prompt, want.prompt);
    assert_eq!((example.latent.dtype(), example.latent.shape()), (DType::Bf16, &LATENT[..]));
    assert_eq!(example.latent.to_vec_f64(), want.latent.to_vec_f64());
    assert_eq!(example.embed.to_vec_f64(), want.embed.to_vec_f64());
}
