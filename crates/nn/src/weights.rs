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

/// What weights become in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Every tensor in the compute dtype.
    Widen(DType),
    /// Matrices in bf16 stay as they are stored, and mapped where the file is; the rest is in the compute dtype. Those
    /// matrices are not read, so their values are unchecked.
    KeepMatrices(DType),
}

impl From<DType> for Policy {
    fn from(compute: DType) -> Self {
        Policy::Widen(compute)
    }
}

impl Policy {
    fn keeps(self, t: &Tensor, spec: &ParamSpec) -> bool {
        matches!(self, Policy::KeepMatrices(_)) && spec.shape.len() == 2 && t.dtype() == DType::Bf16
    }

    fn compute(self) -> DType {
        match self {
            Policy::Widen(dtype) | Policy::KeepMatrices(dtype) => dtype,
        }
    }
}

/// Buffers of known training code that are no weights.
const IGNORED_ENDINGS: [&str; 1] = ["_extra_state"];

/// A published layout of weights: how a canonical name is spelled there, and under which shape it may be stored.
pub trait Layout {
    /// The layout's name of a canonical name.
    fn name_of(&self, canonical: &str) -> String;
    /// The shape under which the layout stores a parameter.
    fn shape_of(&self, spec: &ParamSpec) -> Vec<usize>;
    /// Prefixes that a file may put before every name.
    fn prefixes(&self) -> &[&str];
}

/// Loads every parameter of a network from a file, by a policy; a dtype alone widens everything to it.
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
    policy: impl Into<Policy>,
) -> Result<Params> {
    let policy = policy.into();
    let named = strip_prefix(file, layout);
    let mut wanted = BTreeMap::new();
    let (mut tensors, mut problems) = (Vec::new(), Vec::new());
    for spec in specs.iter() {
        let name = layout.name_of(&spec.name);
        match named.get(name.as_str()) {
            Some(t) if t.shape() == spec.shape || t.shape() == layout.shape_of(spec) => {
                let t = t.reshape(&spec.shape)?;
                if policy.keeps(&t, spec) {
                    tensors.push(t);
                } else {
                    let t = t.to_dtype(policy.compute());
                    refuse_non_finite(&t, &name, path)?;
                    tensors.push(t);
                }
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

/// The tensors by name, without the prefixes that all of them may carry, and without what is known to be no weight.
pub(crate) fn strip_prefix<'f>(file: &'f TensorFile, layout: &dyn Layout) -> BTreeMap<&'f str, &'f Tensor> {
    let all = |named: &BTreeMap<&str, &Tensor>, p: &str| !named.is_empty() && named.keys().all(|k| k.starts_with(p));
    let mut named: BTreeMap<&str, &Tensor> = file.tensors.iter().map(|(k, t)| (k.as_str(), t)).collect();
    named.retain(|k, _| !IGNORED_ENDINGS.iter().any(|end| k.ends_with(end)));
    // Wrappers nest: `module.net.` is stripped prefix by prefix.
    while let Some(prefix) = layout.prefixes().iter().find(|p| all(&named, p)) {
        named = named.into_iter().map(|(k, t)| (&k[prefix.len()..], t)).collect();
    }
    named
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
