use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};
use tokenizers::ModelWrapper;

use crate::{Error, Result, charsmap, sentencepiece};

/// The id that fills a sequence up.
pub const PAD: u32 = 0;
/// The id of `</s>`, which ends every sequence.
pub const END: u32 = 1;
/// Larger than any published tokenizer (16 MB).
const MAX_FILE_BYTES: u64 = 64 << 20;
/// Text of which the tokens are formed at first: far more than a sequence holds.
const FIRST_BYTES: usize = 1 << 15;
const REMEDY: &str = "use the tokenizer.json or spiece.model that was published with the encoder";

/// A tokenizer of sentencepiece's unigram kind, from a `tokenizer.json` or a sentencepiece model.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    file: String,
    digest: [u8; 32],
    largest: u32,
}

impl Tokenizer {
    /// Reads a file, or the `tokenizer.json`, `spiece.model` or `tokenizer.model` of a folder.
    ///
    /// # Errors
    /// If there is none, it cannot be read, or as [`Tokenizer::parse`].
    pub fn read(path: &Path) -> Result<Self> {
        let file = if path.is_dir() { in_folder(path)? } else { path.to_path_buf() };
        let size = std::fs::metadata(&file).map_err(Error::io(&file))?.len();
        if size > MAX_FILE_BYTES {
            return Err(refusal(&file.display().to_string(), format!("{size} bytes are no tokenizer")));
        }
        Self::parse(&std::fs::read(&file).map_err(Error::io(&file))?, &file.display().to_string())
    }

    /// Reads a tokenizer already in memory; `file` names it in messages.
    ///
    /// # Errors
    /// If it is damaged, of another kind than unigram, has steps of normalisation that T5's tokenizers do not have, or ends
    /// sequences with another id than 1.
    pub fn parse(bytes: &[u8], file: &str) -> Result<Self> {
        let json = bytes.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'{');
        // The library indexes by numbers that come from the file; what the checks before do not find must not end the program.
        let built = catch_unwind(|| if json { of_json(bytes) } else { sentencepiece::tokenizer(bytes) });
        let built = built.unwrap_or_else(|_| Err("it is damaged".into()));
        let inner = built.map_err(|problem| refusal(file, problem))?;
        if inner.token_to_id("</s>") != Some(END) {
            let got = inner.token_to_id("</s>").map_or("no id".into(), |id| format!("the id {id}"));
            return Err(refusal(file, format!("'</s>' has {got}, where the encoders expect 1")));
        }
        let largest = inner.get_vocab(true).into_values().max().unwrap_or(0);
        Ok(Tokenizer { inner, file: file.to_string(), digest: Sha256::digest(bytes).into(), largest })
    }

    /// The ids of a text, `</s>` included, at most `max_len` of them.
    ///
    /// # Errors
    /// If the tokenizer is damaged in a way that shows only now.
    pub fn ids(&self, text: &str, max_len: usize) -> Result<Vec<u32>> {
        let wanted = max_len.saturating_sub(1);
        let mut bytes = FIRST_BYTES;
        let mut ids = loop {
            let head = head(text, bytes);
            let ids = self.all_ids(head)?;
            // Tokens do not cross a blank, so those of a head that ends at one are the text's own.
            if ids.len() >= wanted || head.len() == text.len() {
                break ids;
            }
            bytes = bytes.saturating_mul(4);
        };
        ids.truncate(wanted);
        ids.push(END);
        ids.truncate(max_len);
        Ok(ids)
    }

    fn all_ids(&self, text: &str) -> Result<Vec<u32>> {
        let encoded = catch_unwind(AssertUnwindSafe(|| self.inner.encode_fast(text, false)));
        match encoded {
            Ok(Ok(encoding)) => Ok(encoding.get_ids().to_vec()),
            Ok(Err(e)) => Err(refusal(&self.file, e.to_string())),
            Err(_) => Err(refusal(&self.file, "it is damaged".into())),
        }
    }

    /// SHA-256 of the file.
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// Refuses an encoder with fewer rows than there are ids.
    ///
    /// # Errors
    /// If an id lies beyond the rows.
    pub fn refuse_beyond(&self, rows: usize) -> Result<()> {
        if self.largest as usize >= rows {
            return Err(Error::Mismatch { file: self.file.clone(), largest: self.largest, rows });
        }
        Ok(())
    }
}

/// The longest head of at most so many bytes that ends before a blank; the whole text where there is none.
fn head(text: &str, bytes: usize) -> &str {
    if text.len() <= bytes {
        return text;
    }
    let blank = text.as_bytes()[..bytes].iter().rposition(|&b| b == b' ');
    blank.filter(|&at| at > 0).map_or(text, |at| &text[..at])
}

fn in_folder(folder: &Path) -> Result<PathBuf> {
    let names = ["tokenizer.json", "spiece.model", "tokenizer.model"];
    let found = names.map(|name| folder.join(name)).into_iter().find(|p| p.is_file());
    found.ok_or_else(|| refusal(&folder.display().to_string(), format!("none of {} in this folder", names.join(", "))))
}

fn refusal(file: &str, problem: String) -> Error {
    Error::Tokenizer { file: file.to_string(), problem, remedy: REMEDY }
}

/// A Hugging Face tokenizer without what this crate does itself: padding, truncation, the end of a sequence.
fn of_json(bytes: &[u8]) -> std::result::Result<tokenizers::Tokenizer, String> {
    let mut json: Value = serde_json::from_slice(bytes).map_err(|e| format!("not a whole tokenizer.json ({e})"))?;
    let kind = json["model"]["type"].as_str().unwrap_or("Unigram");
    if kind != "Unigram" || !json["model"]["vocab"].is_array() {
        return Err(format!("a tokenizer of kind {kind}, which is not Unigram"));
    }
    refuse_steps(
        &json["normalizer"],
        &["Sequence", "Precompiled", "Replace", "Strip", "NFKC", "NFC", "Nmt", "Prepend"],
    )?;
    refuse_steps(&json["pre_tokenizer"], &["Sequence", "Metaspace", "WhitespaceSplit", "Whitespace"])?;
    for part in ["truncation", "padding", "post_processor", "decoder"] {
        json[part] = Value::Null;
    }
    let vocab: Vec<(String, f64)> =
        serde_json::from_value(json["model"]["vocab"].clone()).map_err(|e| e.to_string())?;
    sentencepiece::refuse_pieces(&vocab)?;
    let whole = serde_json::to_vec(&json).map_err(|e| e.to_string())?;
    let tokenizer = tokenizers::Tokenizer::from_bytes(whole).map_err(|e| e.to_string())?;
    match tokenizer.get_model() {
        ModelWrapper::Unigram(_) => Ok(tokenizer),
        _ => Err("a tokenizer of another kind than Unigram".into()),
    }
}

/// Refuses steps of other kinds, patterns that can run long, and damaged character maps.
fn refuse_steps(step: &Value, kinds: &[&str]) -> std::result::Result<(), String> {
    if step.is_null() {
        return Ok(());
    }
    let kind = step["type"].as_str().unwrap_or("");
    if !kinds.contains(&kind) {
        return Err(format!("it has a step '{kind}', which no tokenizer of this family has"));
    }
    for list in ["normalizers", "pretokenizers"] {
        step[list].as_array().into_iter().flatten().try_for_each(|inner| refuse_steps(inner, kinds))?;
    }
    let pattern = &step["pattern"];
    if pattern["Regex"].as_str().is_some_and(|p| p != " {2,}") || pattern["String"].as_str() == Some("") {
        return Err(format!("it replaces the pattern {pattern}, which no tokenizer of this family does"));
    }
    if let Some(map) = step["precompiled_charsmap"].as_str() {
        let map = base64::decode(map).map_err(|e| format!("its character map is damaged ({e})"))?;
        return charsmap::refuse(&map).map_or(Ok(()), |problem| Err(problem.to_string()));
    }
    Ok(())
}
