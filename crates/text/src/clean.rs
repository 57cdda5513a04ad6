use std::sync::LazyLock;

use plsfix::TextFixerConfig;

/// Longest piece that is searched for wrongly decoded text at a time.
const PIECE_BYTES: usize = 1 << 16;

static FIXES: LazyLock<TextFixerConfig> = LazyLock::new(TextFixerConfig::default);

/// A prompt as Wan's published code cleans it: ftfy's `fix_text`, HTML entities decoded twice, stripped, runs of white space
/// made one blank.
///
/// The fixes are those of the `plsfix` crate, a port of ftfy; where the two differ is in `docs/decisions/0010`.
pub fn clean(text: &str) -> String {
    let fixed: String = pieces(text).map(|piece| plsfix::fix_text(piece, Some(&FIXES))).collect();
    let decoded = htmlize::unescape(htmlize::unescape(fixed)).into_owned();
    decoded.split(is_space).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// What Python's regular expressions call white space: Unicode's, and the four separators of ASCII.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Pieces of bounded length that end at a character's boundary: the port splits long text inside characters, and panics.
fn pieces(mut text: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        let mut at = text.len().min(PIECE_BYTES);
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        let (piece, rest) = text.split_at(at);
        text = rest;
        (!piece.is_empty()).then_some(piece)
    })
}
