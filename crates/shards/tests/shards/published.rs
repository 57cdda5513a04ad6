//! A shard that the published tools wrote; see `fixtures/README.md`.

use std::path::PathBuf;

use fewstep_shards::{Expected, IndexCache, ReadOptions, ShardReader, verify};
use fewstep_tensor::DType;

fn shard() -> PathBuf {
    let own = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures");
    let folder = std::env::var_os("FEWSTEP_FIXTURES").map_or_else(|| own.into(), PathBuf::from);
    let file = folder.join("shards_webdataset.tar");
    // Another set of fixtures need not have this file.
    if file.exists() { file } else { PathBuf::from(own).join("shards_webdataset.tar") }
}

#[test]
fn a_shard_of_webdataset_and_torch_is_read_bit_for_bit() {
    let options = ReadOptions { cache: IndexCache::Off, ..ReadOptions::default() };
    let reader = ShardReader::open(&shard(), options).unwrap();
    assert_eq!(reader.len(), 2);
    for i in 0..2 {
        let example = reader.in_order(i).unwrap();
        assert_eq!((example.key, example.prompt), (format!("{i:09}"), format!("prompt {i}: naïve")));
        assert_eq!((example.latent.dtype(), example.latent.shape()), (DType::Bf16, &[2, 1, 3, 4][..]));
        assert!(example.latent.to_vec_f64().into_iter().eq((0..24).map(|k| f64::from(k) / 8.0 + i as f64)));
        assert!(example.embed.to_vec_f64().into_iter().eq((0..12).map(|k| f64::from(k) - i as f64)));
    }
}

#[test]
fn a_shard_of_webdataset_and_torch_is_sound() {
    let report = verify(&shard(), &Expected::default(), &|_| {}).unwrap();
    assert!(report.is_sound() && report.samples == 2, "{report:#?}");
}
