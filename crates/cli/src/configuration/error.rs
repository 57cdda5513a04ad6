use std::fmt;

use miette::{Diagnostic, LabeledSpan, NamedSource, SourceCode, SourceSpan};

/// What is wrong with a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// A file cannot be read.
    Read,
    /// A layer is no TOML, or an override not of the form `key.path=value`.
    Syntax,
    /// A preset does not exist, stands on itself or contradicts another.
    Preset,
    /// A key does not exist.
    UnknownKey,
    /// A key must be given and is not.
    MissingKey,
    /// A value is not of the type or in the range of its key.
    Value,
    /// The program's configuration has no TOML form: the program's fault.
    Program,
}

/// A configuration that was refused: a `miette` diagnostic with the place, an excerpt and, where there is one, a remedy.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ConfigurationError {
    kind: Kind,
    message: String,
    help: Option<Box<str>>,
    excerpt: Option<Box<Excerpt>>,
}

/// A stretch of a layer to point at.
#[derive(Debug)]
pub(super) struct Excerpt {
    pub(super) source: NamedSource<String>,
    pub(super) span: SourceSpan,
    pub(super) label: String,
}

impl ConfigurationError {
    pub(super) fn new(kind: Kind, message: String, help: Option<String>, excerpt: Option<Excerpt>) -> Self {
        Self { kind, message, help: help.map(Into::into), excerpt: excerpt.map(Box::new) }
    }

    pub(super) fn unreadable(path: &std::path::Path, cause: &std::io::Error) -> Self {
        let message = format!("cannot read the configuration `{}`: {cause}", path.display());
        let help = (cause.kind() == std::io::ErrorKind::NotFound)
            .then(|| "check the path; relative paths start at the current folder".to_owned());
        Self::new(Kind::Read, message, help, None)
    }

    pub(super) fn not_toml(cause: &dyn fmt::Display) -> Self {
        Self::new(Kind::Program, format!("the configuration cannot be written as TOML: {cause}"), None, None)
    }

    /// What is wrong, for a caller that tells cases apart.
    pub fn kind(&self) -> Kind {
        self.kind
    }
}

impl Diagnostic for ConfigurationError {
    fn help(&self) -> Option<Box<dyn fmt::Display + '_>> {
        self.help.as_ref().map(|help| Box::new(help) as _)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.excerpt.as_ref().map(|excerpt| &excerpt.source as _)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let excerpt = self.excerpt.as_ref()?;
        let label = (!excerpt.label.is_empty()).then(|| excerpt.label.clone());
        Some(Box::new(std::iter::once(LabeledSpan::new_primary_with_span(label, excerpt.span))))
    }
}

/// The name that was probably meant, and all that are valid.
pub(super) fn suggestion(what: &str, got: &str, valid: &[&str]) -> String {
    if valid.is_empty() {
        return format!("there are no {what}s here: remove it");
    }
    let names = valid.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let list = format!("the {what}s here are {names}");
    let list = if valid.len() == 1 { format!("the only {what} here is {names}") } else { list };
    match nearest(got, valid) {
        Some(name) => format!("did you mean `{name}`? {}{}", list[..1].to_uppercase(), &list[1..]),
        None => list,
    }
}

/// The name with the fewest typing mistakes, if it is near enough to be meant: up to one in three characters, or a part.
fn nearest<'a>(got: &str, valid: &[&'a str]) -> Option<&'a str> {
    let distance = |name: &&&str| strsim::damerau_levenshtein(got, name);
    let part = |name: &&&str| got.len() > 2 && (name.contains(got) || got.contains(**name));
    let near = |name: &&&str| 3 * distance(name) <= got.chars().count().max(3);
    let best = valid.iter().min_by_key(distance).filter(near);
    best.or_else(|| valid.iter().find(part)).copied()
}
