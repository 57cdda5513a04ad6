//! Why a type refused its layers, as serde tells it.

use std::fmt;

use serde::de::{Error, Expected, Unexpected};

use super::error::{ConfigurationError, Kind, suggestion};
use super::text::{Place, Text};

/// A refusal on its way up from the value at fault.
#[derive(Debug)]
pub(super) struct Refusal {
    reason: Reason,
    /// The key that holds what was refused, and where it was written; set once, by the innermost that knows.
    found: Option<(String, Option<Place>)>,
}

#[derive(Debug)]
pub(super) enum Reason {
    UnknownKey { name: String, valid: &'static [&'static str] },
    UnknownVariant { name: String, valid: &'static [&'static str] },
    MissingKey(&'static str),
    Value(String),
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Self { reason, found: None }
    }
}

impl Refusal {
    /// Says where, unless that is known.
    pub(super) fn at(self, key: &str, place: Option<&Place>) -> Self {
        let found = self.found.or_else(|| Some((key.to_owned(), place.cloned())));
        Self { found, ..self }
    }

    /// The error for the user, with an excerpt of the text at fault.
    pub(super) fn explain(self, texts: &[Text]) -> ConfigurationError {
        let (key, place) = self.found.unwrap_or_default();
        let excerpt = |label: &str| place.as_ref().map(|place| texts[place.text].excerpt(&place.span, label));
        let inside = if key.is_empty() { String::new() } else { format!(" in `{key}`") };
        match self.reason {
            Reason::UnknownKey { name, valid } => {
                let (message, help) = (format!("unknown key `{name}`{inside}"), suggestion("key", &name, valid));
                ConfigurationError::new(Kind::UnknownKey, message, Some(help), excerpt("no such key"))
            }
            Reason::UnknownVariant { name, valid } => {
                let (message, help) = (format!("`{key}` cannot be `{name}`"), suggestion("choice", &name, valid));
                ConfigurationError::new(Kind::Value, message, Some(help), excerpt("no such choice"))
            }
            Reason::MissingKey(name) => {
                let in_presets = texts.iter().any(Text::is_preset);
                let or = if in_presets { "" } else { ", or stand on a preset by `base = \"name\"` at the top" };
                let whole = texts.iter().rfind(|text| text.is_file()).map(|text| format!(" in {}", text.name()));
                let inside = if key.is_empty() { whole.unwrap_or_default() } else { inside };
                let message = format!("the key `{name}` is missing{inside}");
                let help = format!("give `{name}` a value{or}");
                ConfigurationError::new(Kind::MissingKey, message, Some(help), excerpt(""))
            }
            Reason::Value(message) if key.is_empty() => ConfigurationError::new(Kind::Value, message, None, None),
            Reason::Value(message) if message.starts_with(&format!("`{key}`")) => {
                ConfigurationError::new(Kind::Value, message, None, excerpt(""))
            }
            Reason::Value(message) => {
                ConfigurationError::new(Kind::Value, format!("`{key}`: {message}"), None, excerpt(""))
            }
        }
    }
}

impl std::error::Error for Refusal {}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.reason)
    }
}

impl Error for Refusal {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Reason::Value(message.to_string()).into()
    }

    fn invalid_type(got: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Reason::Value(format!("expected {}, got {}", Wanted(expected), Got(got))).into()
    }

    fn invalid_value(got: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(got, expected)
    }

    fn invalid_length(length: usize, expected: &dyn Expected) -> Self {
        let elements = if length == 1 { "element" } else { "elements" };
        Reason::Value(format!("expected {}, got {length} {elements}", Wanted(expected))).into()
    }

    fn unknown_variant(name: &str, valid: &'static [&'static str]) -> Self {
        Reason::UnknownVariant { name: name.to_owned(), valid }.into()
    }

    fn unknown_field(name: &str, valid: &'static [&'static str]) -> Self {
        Reason::UnknownKey { name: name.to_owned(), valid }.into()
    }

    fn missing_field(name: &'static str) -> Self {
        Reason::MissingKey(name).into()
    }

    fn duplicate_field(name: &'static str) -> Self {
        Reason::Value(format!("`{name}` is given twice")).into()
    }
}

/// What serde expected, in the user's words rather than Rust's.
struct Wanted<'a>(&'a dyn Expected);

impl fmt::Display for Wanted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rust = self.0.to_string();
        f.write_str(match rust.as_str() {
            "f32" | "f64" => "a number",
            "u8" => "an integer from 0 to 255",
            "u16" => "an integer from 0 to 65535",
            "u32" => "an integer from 0 to 4294967295",
            "u64" | "usize" => "an integer of at least 0",
            "i8" | "i16" | "i32" | "i64" | "isize" => "an integer",
            "a nonzero u8" | "a nonzero u16" | "a nonzero u32" | "a nonzero u64" | "a nonzero usize" => {
                "an integer of at least 1"
            }
            "a boolean" => "true or false",
            "a string" | "a string or path" | "path string" => "text",
            "a sequence" => "a list",
            "a map" => "a table",
            other if other.starts_with("struct ") => "a table",
            other => return f.write_str(&other.replacen("an array of", "a list of", 1)),
        })
    }
}

/// What came, in TOML's words rather than serde's.
struct Got<'a>(Unexpected<'a>);

impl fmt::Display for Got<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Unexpected::Bool(value) => write!(f, "{value}"),
            Unexpected::Signed(value) => write!(f, "{value}"),
            Unexpected::Unsigned(value) => write!(f, "{value}"),
            Unexpected::Float(value) => write!(f, "{value:?}"),
            Unexpected::Str(text) => write!(f, "the text {text:?}"),
            Unexpected::Map => f.write_str("a table"),
            Unexpected::Seq => f.write_str("a list"),
            other => write!(f, "{other}"),
        }
    }
}
