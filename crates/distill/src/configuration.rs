//! Whether a run may continue from a checkpoint: its configuration, flattened and compared key by key.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use serde_json::Value;

use crate::digest::sha256;
use crate::{Error, Result};

/// A configuration as dotted keys, such as `student.learning_rate`; a list is one value.
///
/// Keys declared as free to differ (the number of iterations, the intervals of logging) are kept, but neither compared
/// nor part of the fingerprint.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Configuration {
    values: BTreeMap<String, Value>,
    may_differ: Vec<String>,
}

/// A setting that is not what it was.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// The dotted key.
    pub key: String,
    /// Its value in the checkpoint; none if it had no such key.
    pub saved: Option<Value>,
    /// Its value now; none if there is no such key now.
    pub current: Option<Value>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |v: &Option<Value>| v.as_ref().map_or("not set".to_string(), Value::to_string);
        write!(f, "{}: {} in the checkpoint, {} now", self.key, show(&self.saved), show(&self.current))
    }
}

impl Configuration {
    /// Flattens a configuration. An entry of `may_differ` is a key, or a table with all that is under it.
    ///
    /// # Errors
    /// If the configuration has no JSON form, as a map with keys that are no strings.
    pub fn flatten(configuration: &impl Serialize, may_differ: &[&str]) -> Result<Self> {
        // Through text, so that the values are those that a manifest gives back (an f32 0.1 reads as 0.1).
        let text = serde_json::to_string(configuration);
        let value = text
            .and_then(|t| serde_json::from_str(&t))
            .map_err(|e| Error::parameters("the configuration", "values that JSON can hold", e.to_string()))?;
        let mut values = BTreeMap::new();
        flatten_into(&mut values, String::new(), value);
        Ok(Configuration { values, may_differ: may_differ.iter().map(|k| k.to_string()).collect() })
    }

    pub(crate) fn from_flat(values: BTreeMap<String, Value>) -> Self {
        Configuration { values, may_differ: Vec::new() }
    }

    /// The values by dotted key.
    pub fn values(&self) -> &BTreeMap<String, Value> {
        &self.values
    }

    /// The SHA-256 of every key that may not differ and its value.
    pub fn fingerprint(&self) -> String {
        let pinned = self.values.iter().filter(|(k, _)| !self.may_differ(k));
        sha256(pinned.map(|(key, value)| format!("{key}={value}\n")).collect::<String>().as_bytes())
    }

    /// Every key that differs from a saved configuration's and may not, in alphabetical order.
    pub fn differences_from(&self, saved: &Configuration) -> Vec<Difference> {
        let mut keys: Vec<&String> = self.values.keys().chain(saved.values.keys()).collect();
        keys.sort_unstable();
        keys.dedup();
        let differs = keys.into_iter().filter(|k| !self.may_differ(k) && self.values.get(*k) != saved.values.get(*k));
        differs
            .map(|k| Difference {
                key: k.clone(),
                saved: saved.values.get(k).cloned(),
                current: self.values.get(k).cloned(),
            })
            .collect()
    }

    fn may_differ(&self, key: &str) -> bool {
        let under = |table: &str| key.strip_prefix(table).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        self.may_differ.iter().any(|k| under(k))
    }
}

fn flatten_into(values: &mut BTreeMap<String, Value>, key: String, value: Value) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (k, v) in map {
                flatten_into(values, if key.is_empty() { k } else { format!("{key}.{k}") }, v);
            }
        }
        leaf => drop(values.insert(key, leaf)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(value: Value) -> Configuration {
        Configuration::flatten(&value, &["iterations", "log"]).unwrap()
    }

    #[test]
    fn differing_missing_and_added_keys_are_listed_and_free_ones_are_not() {
        let saved = of(json!({"iterations": 10, "log": {"every": 1}, "seed": 1, "student": {"lr": 0.1, "old": true}}));
        let now = of(json!({"iterations": 99, "log": {"every": 5}, "seed": 1, "student": {"lr": 0.2, "new": [1, 2]}}));
        let shown: Vec<String> = now.differences_from(&saved).iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            [
                "student.lr: 0.1 in the checkpoint, 0.2 now",
                "student.new: not set in the checkpoint, [1,2] now",
                "student.old: true in the checkpoint, not set now",
            ]
        );
        assert_ne!(now.fingerprint(), saved.fingerprint());
    }

    #[test]
    fn a_free_table_does_not_free_its_namesakes() {
        let (a, b) = (of(json!({"logger": 1, "x": {"log": 1}})), of(json!({"logger": 2, "x": {"log": 2}})));
        assert_eq!(a.differences_from(&b).len(), 2);
    }

    #[test]
    fn the_fingerprint_ignores_free_keys_and_field_order() {
        let a = of(json!({"iterations": 1, "seed": 3, "name": "a"}));
        let b = of(json!({"name": "a", "seed": 3, "iterations": 2}));
        assert_eq!(a.fingerprint(), b.fingerprint());
        assert!(a.differences_from(&b).is_empty());
    }

    #[test]
    fn awkward_floats_survive_the_text_of_a_manifest() {
        let floats = [0.1, 1e-6, 1.7976931348623155e308, 1.0 / 3.0, 5e-324, f64::MAX, 8.0e22, 0.3 - 0.1];
        let a = Configuration::flatten(&json!({"floats": floats, "single": 0.1f32}), &[]).unwrap();
        let text = serde_json::to_string(a.values()).unwrap();
        let b = Configuration::from_flat(serde_json::from_str(&text).unwrap());
        assert_eq!(a.differences_from(&b), []);
        assert_eq!(b.values()["floats"], json!(floats));
    }
}
