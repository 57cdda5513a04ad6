use crate::error::{MediaError, Result};

/// Longest key, in bytes: PNG's limit on a keyword.
const LONGEST_KEY: usize = 79;

/// What an image should remember of its making: pairs such as prompt, seed and settings, in order. They become PNG text
/// chunks (tEXt where Latin-1 suffices, else iTXt) or the lines `key: value` of a GIF comment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata(Vec<(String, String)>);

impl Metadata {
    /// No entries.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an entry: `Metadata::new().with("prompt", caption).with("seed", 7)`.
    pub fn with(mut self, key: &str, value: impl ToString) -> Self {
        self.0.push((key.to_owned(), value.to_string()));
        self
    }

    /// The entries in the order in which they were added.
    pub fn entries(&self) -> &[(String, String)] {
        &self.0
    }

    /// The entries, if an image can hold them.
    ///
    /// # Errors
    /// [`MediaError::Metadata`] for a key that is no PNG keyword or a value with a NUL.
    pub(crate) fn checked(&self) -> Result<&[(String, String)]> {
        for (key, value) in &self.0 {
            let spaced = key.trim() != key || key.contains("  ");
            let printable = key.bytes().all(|b| b == b' ' || b.is_ascii_graphic());
            let reason = if key.is_empty() || key.len() > LONGEST_KEY || spaced || !printable {
                "a key has 1 to 79 printable ASCII characters with single spaces between words only"
            } else if value.contains('\0') {
                "a value must not contain a NUL character"
            } else {
                continue;
            };
            return Err(MediaError::Metadata { key: key.clone(), reason });
        }
        Ok(&self.0)
    }
}
