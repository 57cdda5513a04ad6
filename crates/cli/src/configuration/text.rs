//! A layer as text: its name, its TOML, and places in it.

use std::ops::Range;
use std::path::{Path, PathBuf};

use miette::NamedSource;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigurationError, Excerpt, Kind};
use super::origin::Origin;

/// The top-level key by which a preset or a file names the preset below it.
pub(super) const BASE: &str = "base";

/// The text of one layer.
#[derive(Clone, Debug)]
pub(super) struct Text {
    form: Form,
    text: String,
}

#[derive(Clone, Debug)]
enum Form {
    Preset(String),
    File(PathBuf),
    Override,
}

/// A stretch of the text with the number `text`, in bytes.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) text: usize,
    pub(super) span: Range<usize>,
}

impl Text {
    pub(super) fn preset(name: &str, text: &str) -> Self {
        Self { form: Form::Preset(name.to_owned()), text: text.to_owned() }
    }

    pub(super) fn file(path: &Path) -> Result<Self, ConfigurationError> {
        let text = std::fs::read_to_string(path).map_err(|e| ConfigurationError::unreadable(path, &e))?;
        Ok(Self { form: Form::File(path.to_owned()), text })
    }

    pub(super) fn assignment(text: &str) -> Self {
        Self { form: Form::Override, text: text.to_owned() }
    }

    pub(super) fn is_preset(&self) -> bool {
        matches!(self.form, Form::Preset(_))
    }

    pub(super) fn is_file(&self) -> bool {
        matches!(self.form, Form::File(_))
    }

    /// The name under which an error shows the text.
    pub(super) fn name(&self) -> String {
        match &self.form {
            Form::Preset(name) => format!("preset {name}"),
            Form::File(path) => path.display().to_string(),
            Form::Override => "--set".to_owned(),
        }
    }

    pub(super) fn origin(&self, place: &Place) -> Origin {
        match &self.form {
            Form::Preset(name) => Origin::Preset { name: name.clone() },
            Form::File(path) => {
                let line = 1 + self.text[..place.span.start].matches('\n').count();
                Origin::File { path: path.clone(), line }
            }
            Form::Override => Origin::Override { text: self.text.clone() },
        }
    }

    pub(super) fn excerpt(&self, span: &Range<usize>, label: &str) -> Excerpt {
        let source = NamedSource::new(self.name(), self.text.clone());
        // A place after the last character would not be drawn.
        let last = self.text.char_indices().last().map_or(0..0, |(i, c)| i..i + c.len_utf8());
        let span = if span.start >= self.text.len() { last } else { span.clone() };
        Excerpt { source, span: span.into(), label: label.to_owned() }
    }

    /// The preset that this layer stands on, by its key `base`.
    pub(super) fn base(&self) -> Result<Option<Spanned<String>>, ConfigurationError> {
        let table = self.parse()?.into_inner();
        let Some(value) = table.get(BASE) else { return Ok(None) };
        let Some(name) = value.get_ref().as_str() else {
            let message = "`base` names a preset: expected text".to_owned();
            return Err(ConfigurationError::new(Kind::Value, message, None, Some(self.excerpt(&value.span(), ""))));
        };
        Ok(Some(Spanned::new(value.span(), name.to_owned())))
    }

    /// The values of this layer, without `base`.
    pub(super) fn tree(&self) -> Result<Spanned<DeValue<'_>>, ConfigurationError> {
        let parsed = match self.form {
            Form::Override => self.parse_assignment()?,
            Form::Preset(_) | Form::File(_) => self.parse()?,
        };
        let span = parsed.span();
        let mut table = parsed.into_inner();
        if !matches!(self.form, Form::Override) {
            table.remove(BASE);
        }
        Ok(Spanned::new(span, DeValue::Table(table)))
    }

    fn parse(&self) -> Result<Spanned<DeTable<'_>>, ConfigurationError> {
        DeTable::parse(&self.text).map_err(|e| {
            let excerpt = e.span().map(|span| self.excerpt(&span, "here"));
            let message = format!("{} is not valid TOML: {}", self.name(), e.message());
            ConfigurationError::new(Kind::Syntax, message, None, excerpt)
        })
    }

    /// Parses `key.path=value`, where a value that is no TOML and does not begin as a quoted text, a list or a table does
    /// is text as it stands.
    fn parse_assignment(&self) -> Result<Spanned<DeTable<'_>>, ConfigurationError> {
        if let Ok(table) = DeTable::parse(&self.text)
            && !table.get_ref().is_empty()
        {
            return Ok(table);
        }
        let refuse = |message: &str, span: Range<usize>| {
            let help = "write key.path=value, such as --set student.learning_rate=1e-4".to_owned();
            let excerpt = self.excerpt(&span, "here");
            Err(ConfigurationError::new(Kind::Syntax, message.to_owned(), Some(help), Some(excerpt)))
        };
        let Some((key, rest)) = self.text.split_once('=') else {
            return refuse("an override needs a `=`", 0..self.text.len());
        };
        let value = rest.trim();
        let start = key.len() + 1 + (rest.len() - rest.trim_start().len());
        if value.is_empty() {
            return refuse("an override needs a value; an empty text is `\"\"`", 0..self.text.len());
        }
        if value.starts_with(['"', '\'', '[', '{']) {
            return self.parse();
        }
        let text = DeValue::String(value.into());
        match with_value(key, Spanned::new(start..start + value.len(), text)) {
            Some(table) => Ok(table),
            None => refuse("this is not a key", 0..key.len()),
        }
    }
}

/// The table of `key = value` for a key with dots.
fn with_value<'a>(key: &str, value: Spanned<DeValue<'a>>) -> Option<Spanned<DeTable<'a>>> {
    let line = format!("{key}=0");
    let mut table = DeTable::parse(&line).ok()?;
    table.get_mut().make_owned();
    // Only keys are kept of what was parsed, and they are owned: the value takes the place of the 0.
    let keys = std::iter::successors(table.get_ref().iter().next(), |(_, v)| v.get_ref().as_table()?.iter().next());
    let keys: Vec<_> = keys.map(|(k, _)| Spanned::new(k.span(), k.get_ref().clone().into_owned())).collect();
    let mut value = value;
    for key in keys.into_iter().rev() {
        let span = key.span();
        let key = Spanned::new(span.clone(), key.into_inner().into());
        value = Spanned::new(span, DeValue::Table([(key, value)].into_iter().collect()));
    }
    match value.into_inner() {
        DeValue::Table(table) => Some(Spanned::new(0..line.len(), table)),
        _ => None,
    }
}
