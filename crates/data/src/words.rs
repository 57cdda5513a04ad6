//! Text for the demo: a fixed table of words, and one-hot rows for a network's cross-attention.

use crate::error::{DataError, Result};

/// Text positions S of an embedding.
pub const TEXT_LEN: usize = 8;
/// Width of an embedding's rows; more than there are words, so that words can be added.
pub const TEXT_DIM: usize = 32;

/// A token is an index into this table and is part of what a trained network knows: append, never reorder.
const WORDS: [&str; 24] = [
    EMPTY, "a", "moving", "and", "up", "down", "left", "right", "red", "green", "blue", "yellow", "magenta", "cyan",
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
];

/// Stands alone for the empty text, so that attention has a row to attend to; nobody can type it.
const EMPTY: &str = "<empty>";
const EMPTY_TOKEN: usize = 0;

const _: () = assert!(WORDS.len() <= TEXT_DIM, "every word needs its own column");

/// The fixed table of the words that captions are made of.
#[derive(Clone, Copy, Debug)]
pub struct Vocabulary;

impl Vocabulary {
    /// Every word in token order; the first is the one that stands for the empty text.
    pub const fn words() -> &'static [&'static str] {
        &WORDS
    }

    /// The word of a token.
    pub fn word(token: usize) -> Option<&'static str> {
        WORDS.get(token).copied()
    }

    /// The tokens of a text, a [`Caption`](crate::Caption) or words of captions in any order; case is ignored. The empty
    /// text, which serves as the negative prompt, is the one token `<empty>`.
    ///
    /// # Errors
    /// [`DataError::UnknownWord`] with the nearest valid word; [`DataError::TextTooLong`] past [`TEXT_LEN`] words.
    pub fn tokens(text: impl ToString) -> Result<Vec<usize>> {
        let text = text.to_string();
        let mut tokens = text.split_whitespace().map(token).collect::<Result<Vec<_>>>()?;
        if tokens.len() > TEXT_LEN {
            return Err(DataError::TextTooLong { got: tokens.len(), limit: TEXT_LEN });
        }
        if tokens.is_empty() {
            tokens.push(EMPTY_TOKEN);
        }
        Ok(tokens)
    }
}

/// The embedding [S = TEXT_LEN, TEXT_DIM] of a text: row i is one at the i-th token and zero elsewhere; rows past the
/// last token are zero.
///
/// # Errors
/// As [`Vocabulary::tokens`].
pub fn text_embedding(text: impl ToString) -> Result<Vec<f32>> {
    let mut rows = vec![0.0; TEXT_LEN * TEXT_DIM];
    for (row, token) in Vocabulary::tokens(text)?.into_iter().enumerate() {
        rows[row * TEXT_DIM + token] = 1.0;
    }
    Ok(rows)
}

fn token(typed: &str) -> Result<usize> {
    let word = typed.to_lowercase();
    let valid = &WORDS[EMPTY_TOKEN + 1..];
    if let Some(place) = valid.iter().position(|&known| known == word) {
        return Ok(EMPTY_TOKEN + 1 + place);
    }
    let nearest = valid.iter().min_by_key(|known| strsim::damerau_levenshtein(known, &word));
    Err(DataError::UnknownWord {
        word: typed.to_owned(),
        nearest: nearest.copied().unwrap_or_default(),
        valid: valid.join(", "),
    })
}
