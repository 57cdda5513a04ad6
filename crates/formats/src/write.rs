//! The ways out: a file of either kind, or a folder as diffusers and the original code load it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use fewstep_tensor::DType;
use fewstep_tensor::file::{TensorFile, write_aside};
use serde_json::{Value, json};

use crate::folder::io;
use crate::{Error, Result, torch};

/// What weights are called in a folder.
const STEM: &str = "diffusion_pytorch_model";
/// The endings of PyTorch's files.
const TORCH_ENDINGS: [&str; 2] = ["pth", "pt"];

/// A kind of file of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// safetensors.
    Safetensors,
    /// What `torch.save` writes of a state dict.
    Torch,
}

impl FileKind {
    /// The kind that a name's ending says: `.safetensors`, `.pth` or `.pt`.
    pub fn of_name(path: &Path) -> Option<Self> {
        let ending = path.extension()?.to_str()?;
        match ending {
            "safetensors" => Some(FileKind::Safetensors),
            other => TORCH_ENDINGS.contains(&other).then_some(FileKind::Torch),
        }
    }
}

/// Writes weights as one file, aside and renamed, each tensor converted to a dtype (if one is given) as it is written.
///
/// # Errors
/// If the folder cannot be written or the disk is full; an older file of the name is then untouched. If a tensor could not
/// be read and would be lost.
pub fn write_weights(path: &Path, kind: FileKind, file: &TensorFile, dtype: Option<DType>) -> Result<()> {
    match kind {
        FileKind::Safetensors => Ok(file.write_as(path, dtype)?),
        FileKind::Torch => torch::write_as(path, file, dtype),
    }
}

/// Writes a folder of `config.json` and `diffusion_pytorch_model.safetensors`; above `shard_bytes` of tensors, in their order
/// by name, `…-00001-of-0000N.safetensors` and an index. A tensor is never divided.
///
/// The folder is written aside and renamed; one that is there is replaced as a whole, and stays if anything fails.
///
/// # Errors
/// As [`write_weights`]; if the parent folder is missing.
pub fn write_folder(
    folder: &Path,
    config: &Value,
    file: &TensorFile,
    dtype: Option<DType>,
    shard_bytes: u64,
) -> Result<()> {
    let parent = match folder.parent() {
        Some(p) if !p.as_os_str().is_empty() => p.to_path_buf(),
        _ => PathBuf::from("."),
    };
    let aside = tempfile::Builder::new().prefix(".export-").tempdir_in(&parent).map_err(|e| io(&parent, e))?;
    let new = aside.path().join("new");
    std::fs::create_dir(&new).map_err(|e| io(&new, e))?;
    write_json(&new.join("config.json"), config)?;
    write_shards(&new, file, dtype, shard_bytes)?;
    replace(folder, &new, &aside.path().join("old"))?;
    File::open(&parent).and_then(|d| d.sync_all()).map_err(|e| io(&parent, e))
}

/// Puts `new` in a folder's place; `old` is where it goes meanwhile.
fn replace(folder: &Path, new: &Path, old: &Path) -> Result<()> {
    let there = folder.exists();
    if there {
        std::fs::rename(folder, old).map_err(|e| io(folder, e))?;
    }
    std::fs::rename(new, folder).map_err(|e| {
        if there {
            // Nothing better can be done where this fails too; the first failure is the one to tell.
            drop(std::fs::rename(old, folder));
        }
        io(folder, e)
    })
}

fn write_json(path: &Path, json: &Value) -> Result<()> {
    Ok(write_aside(path, |out| writeln!(out, "{json:#}"))?)
}

fn write_shards(folder: &Path, file: &TensorFile, dtype: Option<DType>, shard_bytes: u64) -> Result<()> {
    if let Some((name, why)) = file.unreadable.first_key_value() {
        return Err(Error::Damaged {
            file: folder.display().to_string(),
            problem: format!("tensor '{name}' would be lost: {why}"),
        });
    }
    let (shards, total) = split(file, dtype, shard_bytes);
    if let [_] = shards.as_slice() {
        return Ok(file.write_as(&folder.join(format!("{STEM}.safetensors")), dtype)?);
    }
    let (count, mut map) = (shards.len(), BTreeMap::new());
    for (i, names) in shards.into_iter().enumerate() {
        let shard = format!("{STEM}-{:05}-of-{count:05}.safetensors", i + 1);
        let tensors = names.iter().map(|&n| (n.clone(), file.tensors[n].clone())).collect();
        let part = TensorFile { tensors, metadata: file.metadata.clone(), ..TensorFile::default() };
        part.write_as(&folder.join(&shard), dtype)?;
        map.extend(names.into_iter().map(|n| (n.clone(), shard.clone())));
    }
    let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
    write_json(&folder.join(format!("{STEM}.safetensors.index.json")), &index)
}

/// Names of each shard, at least one, and the bytes of all tensors.
fn split(file: &TensorFile, dtype: Option<DType>, shard_bytes: u64) -> (Vec<Vec<&String>>, u64) {
    let (mut shards, mut filled, mut total) = (vec![Vec::new()], 0, 0);
    for (name, t) in &file.tensors {
        let bytes = (t.len() * dtype.unwrap_or(t.dtype()).size()) as u64;
        if filled > 0 && filled + bytes > shard_bytes {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += bytes;
        total += bytes;
        // There is a last one: the list starts with one and only grows.
        if let Some(last) = shards.last_mut() {
            last.push(name);
        }
    }
    (shards, total)
}
