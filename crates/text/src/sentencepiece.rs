//! The parts of sentencepiece's model file that a unigram tokenizer needs.

use prost::Message;
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{Precompiled, Replace, Sequence, Strip};
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::{AddedToken, NormalizerWrapper, Tokenizer};

use crate::charsmap;

/// Field numbers as in sentencepiece_model.proto.
#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    trainer: Option<Trainer>,
    #[prost(message, optional, tag = "3")]
    normalizer: Option<Normalizer>,
}

#[derive(Clone, PartialEq, Message)]
struct Piece {
    #[prost(string, optional, tag = "1")]
    piece: Option<String>,
    #[prost(float, optional, tag = "2")]
    score: Option<f32>,
    #[prost(int32, optional, tag = "3")]
    kind: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct Trainer {
    #[prost(int32, optional, tag = "3")]
    model_type: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct Normalizer {
    #[prost(bytes = "vec", optional, tag = "2")]
    charsmap: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "3")]
    add_dummy_prefix: Option<bool>,
}

const UNIGRAM: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const BYTE: i32 = 6;

/// The tokenizer of a model file, as Hugging Face's converter for T5 builds it.
pub(crate) fn tokenizer(bytes: &[u8]) -> Result<Tokenizer, String> {
    let model =
        ModelProto::decode(bytes).map_err(|e| format!("neither a tokenizer.json nor a sentencepiece model ({e})"))?;
    let kind = model.trainer.as_ref().and_then(|t| t.model_type).unwrap_or(UNIGRAM);
    if kind != UNIGRAM {
        return Err(format!("a sentencepiece model of kind {kind}, which is not unigram"));
    }
    let kind = |p: &Piece| p.kind.unwrap_or(1);
    let unknown = model.pieces.iter().position(|p| kind(p) == UNKNOWN);
    let bytes_too = model.pieces.iter().any(|p| kind(p) == BYTE);
    let score = |p: &Piece| f64::from(p.score.unwrap_or(0.0));
    let vocab = model.pieces.iter().map(|p| (p.piece.clone().unwrap_or_default(), score(p))).collect::<Vec<_>>();
    refuse_pieces(&vocab)?;
    let unigram = Unigram::from(vocab, unknown, bytes_too).map_err(|e| e.to_string())?;
    let mut tokenizer = Tokenizer::new(unigram);

    let normalizer = model.normalizer.unwrap_or_default();
    let steps = steps(&normalizer.charsmap.unwrap_or_default())?;
    tokenizer.with_normalizer(Some(Sequence::new(steps))).map_err(|e| e.to_string())?;
    let scheme = if normalizer.add_dummy_prefix.unwrap_or(true) { PrependScheme::Always } else { PrependScheme::Never };
    tokenizer.with_pre_tokenizer(Some(Metaspace::new('▁', scheme, true)));

    let special = |p: &Piece| matches!(kind(p), UNKNOWN | CONTROL | USER_DEFINED);
    let added: Vec<AddedToken> = model
        .pieces
        .iter()
        .filter(|p| special(p))
        .map(|p| AddedToken::from(p.piece.clone().unwrap_or_default(), true).normalized(false))
        .collect();
    tokenizer.add_special_tokens(added).map_err(|e| e.to_string())?;
    Ok(tokenizer)
}

/// The character map, if any, no blanks at the end, and runs of blanks as one.
fn steps(map: &[u8]) -> Result<Vec<NormalizerWrapper>, String> {
    let mut steps: Vec<NormalizerWrapper> = Vec::new();
    if !map.is_empty() {
        if let Some(problem) = charsmap::refuse(map) {
            return Err(problem.to_string());
        }
        steps.push(Precompiled::from(map).map_err(|e| e.to_string())?.into());
    }
    steps.push(Strip::new(false, true).into());
    steps.push(Replace::new(ReplacePattern::Regex(" {2,}".into()), "▁").map_err(|e| e.to_string())?.into());
    Ok(steps)
}

/// Refuses pieces that no trained model has and that its search cannot take.
pub(crate) fn refuse_pieces(vocab: &[(String, f64)]) -> Result<(), String> {
    match vocab.iter().position(|(piece, score)| piece.is_empty() || !score.is_finite()) {
        Some(i) => Err(format!("piece {i} is empty or has no finite score")),
        None if vocab.is_empty() => Err("it holds no pieces".into()),
        None => Ok(()),
    }
}
