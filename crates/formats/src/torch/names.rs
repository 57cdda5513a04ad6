//! Which tensors of a pickle are the weights, and their names.

use fewstep_tensor::file::TensorFile;

use super::pickle::{Id, Value};
use super::{Archive, SAVE_AGAIN};
use crate::Result;

/// Where a checkpoint keeps its weights, in the order of preference: averages before what they average.
const STATE_DICTS: [&str; 8] = ["generator_ema", "net_ema", "ema", "generator", "net", "model", "state_dict", "module"];
/// The name of a tensor that has none.
const BARE: &str = "tensor";
/// Dictionaries deeper than this are no weights.
const MAX_DEPTH: usize = 32;
/// More values than this, with all paths counted, are no weights.
const MAX_VISITS: usize = 1 << 20;
/// All names together.
const MAX_NAMES: usize = 64 << 20;

/// Which dictionary of a file holds the weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Select<'a> {
    /// As long as there is a dictionary under `generator_ema`, `net_ema`, `ema`, `generator`, `net`, `model`, `state_dict` or
    /// `module` (in this order: averages first), that one; then whatever is there.
    #[default]
    Auto,
    /// The file's whole content.
    Whole,
    /// The dictionary under a key, or under keys joined by dots.
    Under(&'a str),
}

struct Walk {
    file: TensorFile,
    budget: usize,
    visits: usize,
    name_bytes: usize,
}

impl Archive<'_> {
    pub(super) fn tensors(&self, select: Select) -> Result<TensorFile> {
        let root = match select {
            Select::Whole => self.root,
            Select::Auto => self.state_dict(),
            Select::Under(keys) => {
                let below = |at: Option<Id>, key: &str| self.entry(at?, key);
                let found = keys.split('.').fold(Some(self.root), below);
                found.ok_or_else(|| self.refused(format!("holds nothing under '{keys}'"), "name another key"))?
            }
        };
        let (budget, visits) = (self.budget(), MAX_VISITS);
        let mut walk = Walk { file: TensorFile::default(), budget, visits, name_bytes: MAX_NAMES };
        self.collect(root, "", 0, &mut walk)?;
        if walk.file.tensors.is_empty() && walk.file.unreadable.is_empty() {
            return Err(self.refused("holds no tensors".into(), SAVE_AGAIN));
        }
        Ok(walk.file)
    }

    fn state_dict(&self) -> Id {
        let mut at = self.root;
        for _ in 0..MAX_DEPTH {
            let inner = STATE_DICTS.iter().filter_map(|key| self.entry(at, key));
            match inner.into_iter().find(|&id| matches!(self.values[id as usize], Value::Dict(_))) {
                Some(id) => at = id,
                None => break,
            }
        }
        at
    }

    /// The value under a key of a dictionary.
    fn entry(&self, dict: Id, key: &str) -> Option<Id> {
        let Value::Dict(entries) = &self.values[dict as usize] else { return None };
        let is_key = |id: Id| matches!(&self.values[id as usize], Value::Text(t) if t == key);
        entries.iter().rev().find(|(k, _)| is_key(*k)).map(|(_, v)| *v)
    }

    fn collect(&self, id: Id, name: &str, depth: usize, walk: &mut Walk) -> Result<()> {
        let too_much = || self.refused("holds more, or deeper, than weights do".into(), SAVE_AGAIN);
        walk.visits = walk.visits.checked_sub(1).ok_or_else(too_much)?;
        if depth > MAX_DEPTH {
            return Err(too_much());
        }
        match &self.values[id as usize] {
            Value::Tensor(view) => {
                let name = if name.is_empty() { BARE } else { name };
                let twice = walk.file.tensors.contains_key(name) || walk.file.unreadable.contains_key(name);
                if twice {
                    return Err(self.damaged(format!("two tensors are named '{name}'")));
                }
                match self.tensor(view, &mut walk.budget)? {
                    Ok(t) => drop(walk.file.tensors.insert(name.into(), t)),
                    Err(why) => drop(walk.file.unreadable.insert(name.into(), why)),
                }
                Ok(())
            }
            Value::Dict(entries) => entries.iter().try_for_each(|&(key, value)| match &self.values[key as usize] {
                Value::Text(key) => self.below(name, key, value, depth, walk),
                Value::Int(key) => self.below(name, &key.to_string(), value, depth, walk),
                _ => Ok(()),
            }),
            Value::Sequence(items) => {
                items.iter().enumerate().try_for_each(|(i, &v)| self.below(name, &i.to_string(), v, depth, walk))
            }
            _ => Ok(()),
        }
    }

    fn below(&self, name: &str, key: &str, value: Id, depth: usize, walk: &mut Walk) -> Result<()> {
        let leaf = !matches!(self.values[value as usize], Value::Tensor(_) | Value::Dict(_) | Value::Sequence(_));
        if leaf {
            return Ok(());
        }
        let spent = walk.name_bytes.checked_sub(name.len() + key.len() + 1);
        walk.name_bytes = spent.ok_or_else(|| self.refused("holds names of unlikely length".into(), SAVE_AGAIN))?;
        let full = if name.is_empty() { key.to_string() } else { format!("{name}.{key}") };
        self.collect(value, &full, depth + 1, walk)
    }
}
