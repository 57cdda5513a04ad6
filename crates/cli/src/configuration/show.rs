//! A resolved configuration with its sources as comments.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::error::ConfigurationError;
use super::origin::Origin;

/// Where comments stand at most, in columns; beyond, a line's comment follows it at once.
const COMMENT_COLUMN: usize = 48;

/// A value in a text that is no table, or an empty one.
pub(super) struct Leaf {
    pub(super) key: String,
    span: Range<usize>,
}

/// The values of a TOML text, in its order.
pub(super) fn leaves(toml: &str) -> Result<Vec<Leaf>, ConfigurationError> {
    let table = DeTable::parse(toml).map_err(|e| ConfigurationError::not_toml(&e))?;
    let mut leaves = Vec::new();
    collect(table.get_ref(), "", &mut leaves);
    leaves.sort_by_key(|leaf| leaf.span.start);
    Ok(leaves)
}

fn collect(table: &DeTable<'_>, prefix: &str, leaves: &mut Vec<Leaf>) {
    for (name, value) in table {
        let key = format!("{prefix}{}", name.get_ref());
        match value.get_ref() {
            DeValue::Table(below) if !below.is_empty() => collect(below, &format!("{key}."), leaves),
            _ => leaves.push(Leaf { key, span: value.span() }),
        }
    }
}

/// The text with the source of each value as a comment at the end of the value's last line.
pub(super) fn annotated(toml: &str, sources: &BTreeMap<String, Origin>) -> String {
    let mut comments: BTreeMap<usize, String> = BTreeMap::new();
    for leaf in leaves(toml).unwrap_or_default() {
        if let Some(source) = sources.get(&leaf.key) {
            // A newline in an override would end the comment.
            let source = source.to_string().replace(['\n', '\r'], " ");
            comments.insert(toml[..leaf.span.end].matches('\n').count(), source);
        }
    }
    let commented = |i: &usize| comments.contains_key(i);
    let widths = toml.lines().enumerate().filter(|(i, _)| commented(i)).map(|(_, line)| line.chars().count());
    let column = widths.filter(|&width| width <= COMMENT_COLUMN).max().unwrap_or(0);
    let line = |(i, line): (usize, &str)| match comments.get(&i) {
        Some(comment) => format!("{line:column$}  # {comment}\n"),
        None => format!("{line}\n"),
    };
    toml.lines().enumerate().map(line).collect()
}
