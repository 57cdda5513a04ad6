use std::sync::LazyLock;

use plsfix::TextFixerConfig;

/// Longest piece that is searched for wrongly decoded text at a time.
const PIECE_BYTES: usize = 1 << 16;
/// What a terminal's escape sequence begins with.
const ESCAPE: &str = "\u{1b}[";

static FIXES: LazyLock<TextFixerConfig> = LazyLock::new(TextFixerConfig::default);

/// A prompt as Wan's published code cleans it: ftfy's `fix_text`, HTML entities decoded twice, stripped, runs of white space
/// made one blank.
///
/// The fixes are those of the `plsfix` crate, a port of ftfy; where the two differ is in `docs/decisions/0010`.
pub fn clean(text: &str) -> String {
    let text = without_escapes(text);
    let fixed: String = pieces(&text).map(|piece| plsfix::fix_text(piece, Some(&FIXES))).collect();
    unescape(&unescape(&fixed)).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// HTML entities decoded as Python's `html.unescape` does it.
fn unescape(text: &str) -> String {
    // Python decodes references to control characters to nothing. None stand in fixed text otherwise.
    let control = |c: char| c.is_ascii_control() && !matches!(c, '\t' | '\n' | '\u{c}' | '\r');
    htmlize::unescape(text).chars().filter(|&c| !control(c)).collect()
}

/// Terminals' escape sequences taken out, which the port leaves behind without their first character.
fn without_escapes(text: &str) -> String {
    let mut parts = text.split(ESCAPE);
    let mut out = parts.next().unwrap_or("").to_string();
    for part in parts {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';');
        match rest.strip_prefix(|c: char| c.is_ascii_alphabetic()) {
            Some(after) => out.push_str(after),
            None => out.extend([ESCAPE, part]),
        }
    }
    out
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
