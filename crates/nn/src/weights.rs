//! Strict loading and writing of weights by the names of a published layout.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use fewstep_ops::{ParamSpec, Params};
use fewstep_tensor::file::TensorFile;
use fewstep_tensor::{DType, Tensor, arith};

use crate::{Error, Result};

/// At most so many tensors of each kind are listed in a message.
const LISTED: usize = 12;

/// A published layout of weights: how a canonical name is spelled there, and under which shape it may be stored.
pub trait Layout {
    /// The layout's name of a canonical name.
    fn name_of(&self, canonical: &str) -> String;
    /// The shape under which the layout stores a parameter.
    fn shape_of(&self, spec: &ParamSpec) -> Vec<usize>;
    /// Prefixes that a file may put before every name.
    fn prefixes(&self) -> &[&str];
}

/// Loads every parameter of a network from a file, in a compute dtype.
///
/// A shape is accepted if it is the canonical one or the layout's own (the same row-major data).
///
/// # Errors
/// If tensors are missing, unexpected or misshapen (the first of each kind are listed), or
/// hold non-finite values.
pub fn load(
    file: &TensorFile,
    path: &Path,
    specs: &Arc<[ParamSpec]>,
    layout: &dyn Layout,
    dtype: DType,
) -> Result<Params> {
    let named = strip_prefix(file, layout);
    let mut wanted = BTreeMap::new();
    let (mut tensors, mut problems) = (Vec::new(), Vec::new());
    for spec in specs.iter() {
        let name = layout.name_of(&spec.name);
        match named.get(name.as_str()) {
            Some(t) if t.shape() == spec.shape || t.shape() == layout.shape_of(spec) => {
                refuse_non_finite(t, &name, path)?;
                tensors.push(t.reshape(&spec.shape)?.to_dtype(dtype));
            }
            Some(t) => problems.push(format!("  misshapen  {name}: expected {:?}, got {:?}", spec.shape, t.shape())),
            None => problems.push(format!("  missing    {name} {:?}", spec.shape)),
        }
        wanted.insert(name, ());
    }
    let unexpected = named.iter().filter(|(n, _)| !wanted.contains_key(**n));
    problems.extend(unexpected.map(|(n, t)| format!("  unexpected {n} {:?}", t.shape())));
    if !problems.is_empty() {
        return Err(Error::Weights { file: path.display().to_string(), report: listing(&problems) });
    }
    Ok(Params::new(specs, tensors)?)
}

/// A file of a network's weights in a layout, in a storage dtype.
///
/// # Errors
/// If a parameter does not fit the layout's shape.
pub fn store(params: &Params, layout: &dyn Layout, dtype: DType) -> Result<TensorFile> {
    let mut file = TensorFile::default();
    for (spec, t) in params.specs().iter().zip(params.tensors()) {
        let shaped = t.to_dtype(dtype).reshape(&layout.shape_of(spec))?;
        file.tensors.insert(layout.name_of(&spec.name), shaped);
    }
    Ok(file)
}

/// The tensors by name, without the prefix that all of them may carry.
pub(crate) fn strip_prefix<'f>(file: &'f TensorFile, layout: &dyn Layout) -> BTreeMap<&'f str, &'f Tensor> {
    let all = |p: &str| !file.tensors.is_empty() && file.tensors.keys().all(|k| k.starts_with(p));
    let prefix = layout.prefixes().iter().copied().find(|p| all(p)).unwrap_or("");
    file.tensors.iter().map(|(k, t)| (&k[prefix.len()..], t)).collect()
}

fn refuse_non_finite(t: &Tensor, name: &str, path: &Path) -> Result<()> {
    let wide = if t.dtype() == DType::Bf16 { t.to_dtype(DType::F32) } else { t.clone() };
    match arith::count_non_finite(&wide)? {
        0 => Ok(()),
        count => Err(Error::NonFinite { file: path.display().to_string(), tensor: name.to_string(), count }),
    }
}

fn listing(problems: &[String]) -> String {
    let mut kinds: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for p in problems {
        kinds.entry(p.split_whitespace().next().unwrap_or("")).or_default().push(p);
    }
    let mut lines = Vec::new();
    for (kind, list) in kinds {
        lines.extend(list.iter().take(LISTED).map(|l| l.to_string()));
        if list.len() > LISTED {
            lines.push(format!("  … and {} more {kind}", list.len() - LISTED));
        }
    }
    lines.join("\n")
}
