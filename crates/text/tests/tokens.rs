//! Tokenizers of both kinds of file against sentencepiece's and Hugging Face's own ids, and against damage.

use std::path::PathBuf;

use fewstep_text::{END, Tokenizer};
use serde_json::Value;

fn fixture(name: &str) -> Vec<u8> {
    let own = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures");
    let folder = std::env::var_os("FEWSTEP_FIXTURES").map_or_else(|| own.into(), PathBuf::from);
    std::fs::read(folder.join("text").join(name)).unwrap()
}

const FILES: [&str; 2] = ["tokenizer.json", "unigram.model"];

fn tokenizers() -> Vec<Tokenizer> {
    FILES.iter().map(|name| Tokenizer::parse(&fixture(name), name).unwrap()).collect()
}

#[test]
fn ids_are_the_published_ones_from_either_file() {
    let expected: Vec<Value> = serde_json::from_slice(&fixture("tokens.json")).unwrap();
    assert!(expected.len() > 200);
    for case in &expected {
        let want: Vec<u32> = case["ids"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect();
        for (tokenizer, file) in tokenizers_once().iter().zip(FILES) {
            let text = case["text"].as_str().unwrap();
            assert_eq!(tokenizer.ids(text, 4096).unwrap(), want, "{text:?} by {file}");
        }
    }
}

fn tokenizers_once() -> &'static [Tokenizer] {
    static ALL: std::sync::OnceLock<Vec<Tokenizer>> = std::sync::OnceLock::new();
    ALL.get_or_init(tokenizers)
}

#[test]
fn a_sequence_is_cut_so_that_its_end_still_fits() {
    for tokenizer in tokenizers_once() {
        let whole = tokenizer.ids("a red cat runs over the river", 512).unwrap();
        for max in 1..whole.len() {
            let ids = tokenizer.ids("a red cat runs over the river", max).unwrap();
            assert_eq!((ids.len(), *ids.last().unwrap()), (max, END));
            assert_eq!(ids[..max - 1], whole[..max - 1]);
        }
        assert_eq!(tokenizer.ids("", 512).unwrap(), [END]);
        assert_eq!(tokenizer.ids("a", 0).unwrap(), [] as [u32; 0]);
    }
}

#[test]
fn a_long_text_has_the_tokens_of_its_beginning() {
    let words = "a red cat runs over the river ";
    for tokenizer in tokenizers_once() {
        let some = tokenizer.ids(&words.repeat(200), 512).unwrap();
        assert_eq!(tokenizer.ids(&words.repeat(300_000), 512).unwrap(), some, "9 MB");
        assert_eq!(some.len(), 512);
        assert_eq!(tokenizer.ids(&"\0".repeat(100_000), 512).unwrap().last(), Some(&END));
    }
}

#[test]
fn tokenizers_of_another_kind_are_refused_with_the_kind() {
    let refused = |bytes: &[u8]| Tokenizer::parse(bytes, "t").unwrap_err().to_string();
    let changed = |change: fn(&mut Value)| {
        let mut json: Value = serde_json::from_slice(&fixture("tokenizer.json")).unwrap();
        change(&mut json);
        refused(&serde_json::to_vec(&json).unwrap())
    };
    assert!(changed(|j| j["model"]["type"] = "BPE".into()).contains("kind BPE, which is not Unigram"));
    assert!(changed(|j| j["normalizer"]["normalizers"][2]["pattern"]["Regex"] = "(a*)*b".into()).contains("pattern"));
    assert!(
        changed(|j| j["normalizer"]["normalizers"][0]["precompiled_charsmap"] = "AAAA".into())
            .contains("character map")
    );
    assert!(changed(|j| j["pre_tokenizer"]["type"] = "ByteLevel".into()).contains("step 'ByteLevel'"));
    let renamed = changed(|j| {
        j["model"]["vocab"][1][0] = "<end>".into();
        j["added_tokens"] = Value::Array(Vec::new());
    });
    assert!(renamed.contains("'</s>' has no id"), "{renamed}");
    assert!(refused(b"").contains("published with the encoder"));
    assert!(refused(b"{").contains("not a whole tokenizer.json"));
    assert!(refused(b"{}").contains("Unigram"));
    assert!(refused(&[0xff; 64]).contains("neither"));
    let tokenizer = &tokenizers_once()[0];
    tokenizer.refuse_beyond(209).unwrap();
    assert!(tokenizer.refuse_beyond(64).unwrap_err().to_string().contains("ids up to 208, the encoder embeds 64"));
}

/// A generator for mutations: splitmix64.
struct Draws(u64);

impl Draws {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n.max(1) as u64) as usize
    }
}

#[test]
fn damaged_tokenizers_are_refused_or_harmless() {
    // A case reads a file of 300 KB: hundreds of them take seconds.
    let cases = std::env::var("FEWSTEP_FUZZ_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(300);
    let mut draws = Draws(7);
    let files = FILES.map(fixture);
    for case in 0..cases {
        let mut bytes = files[case % 2].clone();
        if draws.below(8) == 0 {
            bytes.truncate(draws.below(bytes.len()));
        }
        for _ in 0..=draws.below(4) {
            // Most of a file is its character map; half of the damage goes elsewhere.
            let span = if draws.below(2) == 0 { bytes.len() } else { bytes.len().min(6000) };
            let at = draws.below(span);
            let at = if draws.below(2) == 0 { at } else { bytes.len().saturating_sub(at + 1) };
            if let Some(b) = bytes.get_mut(at) {
                *b = draws.below(256) as u8;
            }
        }
        if let Ok(tokenizer) = Tokenizer::parse(&bytes, "damaged") {
            // Refused or encoded: neither may end the program.
            if let Ok(ids) = tokenizer.ids("A réd 猫 ｶ ﬁ 😀 e\u{301} <pad> runs", 64) {
                assert!(ids.len() <= 64, "case {case}");
            }
        }
    }
}
