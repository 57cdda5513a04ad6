use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fewstep_shards::{Encoding, Error, Incomplete, IndexCache, Prefetcher, ReadOptions, ShardReader};

use super::{LATENT, assert_is_sample, whole};

fn options(seed: u64) -> ReadOptions {
    ReadOptions { seed, window: 2, ..ReadOptions::default() }
}

/// The members of some tars written again under other names, and some left out.
fn rewrite(from: &[PathBuf], to: &Path, rename: impl Fn(&str) -> Option<String>) {
    let mut out = tar::Builder::new(std::fs::File::create(to).unwrap());
    for file in from {
        let mut archive = tar::Archive::new(std::fs::File::open(file).unwrap());
        for entry in archive.entries().unwrap() {
            let entry = entry.unwrap();
            let name = rename(&entry.path().unwrap().display().to_string());
            let mut header = entry.header().clone();
            if let Some(name) = name {
                out.append_data(&mut header, name, entry).unwrap();
            }
        }
    }
    out.finish().unwrap();
}

#[test]
fn what_was_built_is_read_in_both_encodings() {
    for encoding in [Encoding::Torch, Encoding::Safetensors] {
        let dir = tempfile::tempdir().unwrap();
        whole(dir.path(), 11, 4, encoding);
        let reader = ShardReader::open(dir.path(), options(1)).unwrap();
        (0..11).for_each(|i| assert_is_sample(&reader.in_order(i as usize).unwrap(), i));
        assert!(reader.in_order(11).is_err());
    }
}

#[test]
fn every_epoch_shows_every_sample_once_in_an_order_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    whole(dir.path(), 11, 4, Encoding::Torch);
    let reader = ShardReader::open(dir.path(), options(1)).unwrap();
    let epoch = |e: u64| (0..11).map(|p| reader.sample(e * 11 + p).unwrap().key).collect::<Vec<_>>();
    let mut first = epoch(0);
    assert_ne!(first, epoch(1));
    first.sort_unstable();
    assert!(first.into_iter().eq((0..11).map(|i| format!("{i:09}"))));
    assert_eq!(reader.sample(17).unwrap().key, reader.key(17));
}

#[test]
fn the_merged_form_holds_the_same_samples() {
    let dir = tempfile::tempdir().unwrap();
    whole(dir.path(), 6, 2, Encoding::Torch);
    let merged = dir.path().join("merged");
    rewrite(&fewstep_shards::shard_files(dir.path()).unwrap(), &merged, |name| {
        Some(format!("{}/{name}", name.split('.').next()?))
    });
    let reader = ShardReader::open(&merged, options(1)).unwrap();
    (0..6).for_each(|i| assert_is_sample(&reader.in_order(i as usize).unwrap(), i));
}

#[test]
fn a_missing_member_is_refused_by_name_or_left_out() {
    let dir = tempfile::tempdir().unwrap();
    whole(dir.path(), 4, 4, Encoding::Torch);
    let holed = dir.path().join("holed.tar");
    rewrite(&[dir.path().join("shard_000000.tar")], &holed, |n| (n != "000000002.embed.pt").then(|| n.to_string()));
    let e = ShardReader::open(&holed, options(1)).unwrap_err().to_string();
    assert!(e.contains("holed.tar") && e.contains("000000002") && e.contains("no embed"), "{e}");
    let options = ReadOptions { incomplete: Incomplete::LeaveOut, ..options(1) };
    let reader = ShardReader::open(&holed, options).unwrap();
    assert_eq!((reader.len(), reader.left_out().len()), (3, 1));
    assert_is_sample(&reader.in_order(2).unwrap(), 3);
}

#[test]
fn a_misshapen_sample_is_an_error_that_names_shard_and_key() {
    let dir = tempfile::tempdir().unwrap();
    whole(dir.path(), 3, 2, Encoding::Torch);
    let shape = |latent: &[usize]| ReadOptions { latent: Some(latent.to_vec()), ..options(1) };
    ShardReader::open(dir.path(), shape(&LATENT)).unwrap().in_order(2).unwrap();
    let e = ShardReader::open(dir.path(), shape(&[16, 21])).unwrap().in_order(2).unwrap_err().to_string();
    assert!(e.contains("shard_000001.tar") && e.contains("000000002") && e.contains("[16, 21]"), "{e}");
}

#[test]
fn a_damaged_stale_or_unwritable_cache_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    whole(dir.path(), 5, 2, Encoding::Torch);
    let cache = dir.path().join(".fewstep-index.json");
    let keys = |cache| {
        let reader = ShardReader::open(dir.path(), ReadOptions { cache, ..options(1) }).unwrap();
        (0..5).map(|p| reader.sample(p).unwrap().key).collect::<Vec<_>>()
    };
    let want = keys(IndexCache::Off);
    assert!(!cache.exists());
    assert_eq!(keys(IndexCache::Beside), want);
    let good = std::fs::read(&cache).unwrap();
    assert_eq!(keys(IndexCache::Beside), want);
    for i in (0..good.len()).step_by(29) {
        let mut bad = good.clone();
        bad[i] ^= 1;
        std::fs::write(&cache, bad).unwrap();
        assert_eq!(keys(IndexCache::Beside), want, "byte {i}");
    }
    assert_eq!(keys(IndexCache::Folder("/nonexistent".into())), want);
    // The same names with other contents.
    std::fs::remove_file(dir.path().join("dataset.json")).unwrap();
    (0..3).for_each(|i| std::fs::remove_file(dir.path().join(format!("shard_{i:06}.tar"))).unwrap());
    whole(dir.path(), 5, 5, Encoding::Safetensors);
    assert_eq!(ShardReader::open(dir.path(), options(1)).unwrap().in_order(4).unwrap().key, "000000004");
}

#[test]
fn reading_ahead_gives_what_reading_gives_whatever_the_positions() {
    let dir = tempfile::tempdir().unwrap();
    whole(dir.path(), 11, 4, Encoding::Torch);
    let reader = Arc::new(ShardReader::open(dir.path(), options(1)).unwrap());
    let positions = (0..30).chain([3, 4, 5, 90, 91, 91, 91, 90, 95, 0, 2, 1, 1 << 30]).chain(7..20);
    for depth in [1, 3, 16] {
        let mut ahead = Prefetcher::new(Arc::clone(&reader), 0, depth).unwrap();
        for p in positions.clone() {
            assert_eq!(ahead.get(p).unwrap().key, reader.key(p), "position {p}, depth {depth}");
        }
    }
    assert!(Prefetcher::new(reader, 0, 0).is_err());
}

#[test]
fn reading_ahead_brings_an_error_at_its_own_position_and_ends_with_its_owner() {
    let dir = tempfile::tempdir().unwrap();
    whole(dir.path(), 8, 4, Encoding::Torch);
    // One byte of the storage's size in the zip directory of the first sample.
    let path = dir.path().join("shard_000000.tar");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[512..1024].fill(0xee);
    std::fs::File::create(&path).unwrap().write_all(&bytes).unwrap();
    let reader = Arc::new(ShardReader::open(dir.path(), options(1)).unwrap());
    let bad = (0..8).find(|&p| reader.key(p) == "000000000").unwrap();
    let mut ahead = Prefetcher::new(Arc::clone(&reader), 0, 4).unwrap();
    for p in 0..8 {
        match ahead.get(p) {
            Ok(example) => assert_eq!((example.key.as_str(), p != bad), (reader.key(p), true)),
            Err(Error::BadSample { key, .. }) => assert_eq!((key.as_str(), p), ("000000000", bad)),
            Err(e) => panic!("{e}"),
        }
    }
    drop(ahead);
    assert_eq!(Arc::strong_count(&reader), 1, "the thread has let go of the set");
}

#[test]
fn a_folder_without_shards_is_an_error_that_says_what_is_expected() {
    let dir = tempfile::tempdir().unwrap();
    let e = ShardReader::open(dir.path(), options(1)).unwrap_err().to_string();
    assert!(e.contains("shard_000000.tar"), "{e}");
    assert!(ShardReader::open(&dir.path().join("none"), options(1)).unwrap_err().to_string().contains("none"));
}
