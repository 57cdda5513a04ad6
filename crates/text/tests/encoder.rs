//! From prompts to embeddings, and their cache.

use std::path::{Path, PathBuf};

use fewstep_nn::t5::{T5Config, T5Encoder, T5Layout};
use fewstep_ops::{Compute, Params};
use fewstep_tensor::{DType, Device, Tensor};
use fewstep_text::{CacheKey, EmbeddingCache, Identity, MAX_TOKENS, TextEncoder, Tokenizer, clean};

fn fixture(name: &str) -> PathBuf {
    let own = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures");
    let folder = std::env::var_os("FEWSTEP_FIXTURES").map_or_else(|| own.into(), PathBuf::from);
    folder.join("text").join(name)
}

fn weights(folder: &Path, vocab: usize, seed: u64) -> PathBuf {
    let config = T5Config { vocab, dim: 16, heads: 2, head_dim: 8, ffn_dim: 24, layers: 2, ..T5Config::umt5_xxl() };
    let encoder = T5Encoder::new(config).unwrap();
    let params = Params::init(encoder.specs(), seed, DType::F32, Default::default()).unwrap();
    let path = folder.join(format!("{seed}.safetensors"));
    encoder.store(&params, T5Layout::Original, DType::Bf16).unwrap().write(&path).unwrap();
    path
}

fn bits(t: &Tensor) -> Vec<u64> {
    t.to_vec_f64().into_iter().map(f64::to_bits).collect()
}

fn prompts() -> Vec<String> {
    ["A red cat runs over the blue river.", "", "城市的夜晚 &amp; 😀"].map(String::from).to_vec()
}

#[test]
fn rows_up_to_the_length_are_embeddings_and_the_others_zero() {
    let dir = tempfile::tempdir().unwrap();
    let encoder =
        TextEncoder::load(&weights(dir.path(), 256, 1), &fixture("tokenizer.json"), Compute::on(Device::Cpu)).unwrap();
    let y = encoder.encode(&prompts()).unwrap();
    assert_eq!(y.shape(), [3, MAX_TOKENS, 16]);
    let tokenizer = Tokenizer::read(&fixture("tokenizer.json")).unwrap();
    for (b, prompt) in prompts().iter().enumerate() {
        let length = tokenizer.ids(&clean(prompt), MAX_TOKENS).unwrap().len();
        let rows = y.narrow(b, 1).unwrap().to_vec_f64();
        for (i, row) in rows.chunks(16).enumerate() {
            assert_eq!(row.iter().any(|&x| x != 0.0), i < length, "prompt {b}, row {i}");
        }
    }
    assert_eq!(encoder.encode(&[]).unwrap().shape(), [0, MAX_TOKENS, 16]);
}

#[test]
fn both_files_of_one_tokenizer_give_the_same_embeddings() {
    let dir = tempfile::tempdir().unwrap();
    let path = weights(dir.path(), 256, 1);
    let y =
        |name| TextEncoder::load(&path, &fixture(name), Compute::on(Device::Cpu)).unwrap().encode(&prompts()).unwrap();
    assert_eq!(bits(&y("tokenizer.json")), bits(&y("unigram.model")));
}

#[test]
fn a_tokenizer_with_more_ids_than_the_encoder_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let load =
        |vocab| TextEncoder::load(&weights(dir.path(), vocab, 1), &fixture("tokenizer.json"), Compute::on(Device::Cpu));
    assert!(load(208).unwrap_err().to_string().contains("the encoder embeds 208"));
    assert!(load(209).is_ok());
}

#[test]
fn a_cached_embedding_is_the_computed_one_and_a_damaged_entry_is_computed_again() {
    let dir = tempfile::tempdir().unwrap();
    let encoder =
        TextEncoder::load(&weights(dir.path(), 256, 1), &fixture("tokenizer.json"), Compute::on(Device::Cpu)).unwrap();
    let cache = EmbeddingCache::open(&dir.path().join("a/cache")).unwrap();
    let files = || -> Vec<PathBuf> {
        let all = std::fs::read_dir(dir.path().join("a/cache")).unwrap();
        all.map(|e| e.unwrap().path()).collect()
    };
    let one = |p: &str| encoder.encode_cached(&[p.to_string()], &cache).unwrap();
    let first = encoder.encode_cached(&prompts(), &cache).unwrap();
    assert_eq!(files().len(), 3);
    assert_eq!(bits(&encoder.encode_cached(&prompts(), &cache).unwrap()), bits(&first), "kept is computed");
    assert_eq!(bits(&one(&prompts()[0])), bits(&first.narrow(0, 1).unwrap()), "alone as in company");
    one("  A red   cat runs over the blue river. ");
    assert_eq!(files().len(), 3, "the key is of the cleaned text");
    for path in files() {
        let mut bytes = std::fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&path, &bytes[..]).unwrap();
    }
    assert_eq!(bits(&encoder.encode_cached(&prompts(), &cache).unwrap()), bits(&first), "damaged");
    for path in files() {
        std::fs::write(&path, b"cut").unwrap();
    }
    assert_eq!(bits(&encoder.encode_cached(&prompts(), &cache).unwrap()), bits(&first), "cut off");
    assert_eq!(cache.prune(u64::MAX).unwrap(), 0);
    assert_eq!(cache.prune(0).unwrap(), 3);
    assert!(files().is_empty());
}

#[test]
fn a_key_depends_on_all_that_an_embedding_depends_on() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = [1, 2].map(|seed| Identity::of_file(&weights(dir.path(), 256, seed)).unwrap());
    let base = CacheKey::new(&a, &[0; 32], "cat", 512, DType::F32);
    assert_eq!(base, CacheKey::new(&a, &[0; 32], "cat", 512, DType::F32));
    for other in [
        CacheKey::new(&b, &[0; 32], "cat", 512, DType::F32),
        CacheKey::new(&a, &[1; 32], "cat", 512, DType::F32),
        CacheKey::new(&a, &[0; 32], "cats", 512, DType::F32),
        CacheKey::new(&a, &[0; 32], "cat", 511, DType::F32),
        CacheKey::new(&a, &[0; 32], "cat", 512, DType::F64),
    ] {
        assert_ne!(base, other);
    }
}

#[test]
fn writers_side_by_side_leave_whole_entries() {
    let dir = tempfile::tempdir().unwrap();
    let cache = EmbeddingCache::open(dir.path()).unwrap();
    let identity = Identity::of_file(&fixture("tokenizer.json")).unwrap();
    let key = CacheKey::new(&identity, &[0; 32], "cat", 512, DType::F32);
    let t = Tensor::from_vec((0..512).map(|i| i as f32).collect(), &[32, 16]).unwrap();
    cache.put(&key, &t).unwrap();
    std::thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| {
                for _ in 0..20 {
                    cache.put(&key, &t).unwrap();
                    assert_eq!(bits(&cache.get(&key).unwrap()), bits(&t));
                }
            });
        }
    });
}
