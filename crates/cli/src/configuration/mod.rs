//! Configuration in layers: presets, a file and overrides, lowest first, resolved to one typed value.
//!
//! - A **preset** is TOML text built into the program. Its top-level key `base = "name"` puts it on top of another.
//! - A **file** may name its preset by the same key. One that does not, where the command line names none either, stands
//!   alone and must be complete; so a resolved configuration that a run wrote down gives the same run again.
//! - An **override** is `key.path=value`, the value in TOML; what is no TOML, such as a bare word or a path, is text.
//!
//! Layers merge when they are read into the type, which alone says what each place is:
//!
//! - Tables merge key by key; a number, text or list replaces what lies below it.
//! - An enum is a table with one key, its variant (`[method.rcm]`), or the variant's name alone (`method = "rcm"`). The
//!   topmost layer decides the variant. Settings of the same variant below it merge; those of another are dropped, with all
//!   that is below them.
//! - Unknown keys are refused, if the type says `#[serde(deny_unknown_fields)]`. The type should avoid serde's `flatten`,
//!   `untagged`, `tag` (places get lost), `rename` in one direction and `alias` (sources get lost), and keys named `base`.

mod error;
mod layered;
mod origin;
mod presets;
mod refusal;
mod show;
mod text;
mod variant;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use self::error::{ConfigurationError, Kind};
pub use self::origin::Origin;
pub use self::presets::Preset;
use self::text::{Place, Text};

/// Where a configuration comes from, lowest layer first.
#[derive(Clone, Copy, Debug, Default)]
pub struct Layers<'a> {
    /// The presets that may be named.
    pub presets: &'a [Preset<'a>],
    /// The preset named on the command line. With neither a preset nor a file, the first of the presets is taken.
    pub preset: Option<&'a str>,
    /// The user's file.
    pub file: Option<&'a Path>,
    /// Overrides of the form `key.path=value`, the last one winning.
    pub overrides: &'a [String],
}

/// A configuration with the source of each value. `Display` shows it as TOML with the sources as comments.
#[derive(Clone, Debug)]
pub struct Resolved<T> {
    /// The configuration.
    pub value: T,
    /// The same as TOML, complete: with no other layer it resolves to the same value.
    pub toml: String,
    /// Where each value of [`Self::toml`] came from, by dotted key, such as `student.learning_rate`.
    pub sources: BTreeMap<String, Origin>,
    texts: Vec<Text>,
    places: BTreeMap<String, Place>,
}

/// Reads the layers into one value.
///
/// # Errors
/// [`ConfigurationError`], with the place in the layer that is at fault: a file that cannot be read, TOML that cannot be
/// parsed, a preset that does not exist, a key that the type does not have, a value of the wrong type, a value missing.
pub fn resolve<T: Serialize + DeserializeOwned>(layers: Layers<'_>) -> Result<Resolved<T>, ConfigurationError> {
    let texts = presets::texts(layers)?;
    let trees = texts.iter().map(Text::tree).collect::<Result<Vec<_>, _>>()?;
    let (value, places) = layered::read::<T>(&trees).map_err(|refusal| refusal.explain(&texts))?;
    let toml = toml::to_string(&value).map_err(|e| ConfigurationError::not_toml(&e))?;
    let keys = show::leaves(&toml)?.into_iter().map(|leaf| leaf.key);
    let source = |key: &String| places.get(key).map_or(Origin::Default, |place| texts[place.text].origin(place));
    let sources = keys.map(|key| (key.clone(), source(&key))).collect();
    Ok(Resolved { value, toml, sources, texts, places })
}

impl<T> Resolved<T> {
    /// The error that refuses the value of a key for a reason that its type cannot express, such as a bound that depends
    /// on another key. It shows the place where the value was written, if it was.
    pub fn refuse(&self, key: &str, reason: impl fmt::Display) -> ConfigurationError {
        let excerpt = self.places.get(key).map(|place| self.texts[place.text].excerpt(&place.span, ""));
        ConfigurationError::new(Kind::Value, format!("`{key}`: {reason}"), None, excerpt)
    }
}

impl<T> fmt::Display for Resolved<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&show::annotated(&self.toml, &self.sources))
    }
}
