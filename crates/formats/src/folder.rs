//! One way in: a file of weights of either kind, or a folder of one or of shards with an index.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use fewstep_tensor::file::TensorFile;

use crate::{Error, Result, torch};

/// File names by which folders of published weights go, without what follows.
const STEMS: [&str; 3] = ["diffusion_pytorch_model", "model", "pytorch_model"];
/// What an index's name ends in.
const INDEX: &str = ".index.json";
/// Files of weights by their last part.
const ENDINGS: [&str; 5] = ["safetensors", "pth", "pt", "bin", "ckpt"];
/// An index of a terabyte of weights is a few hundred kilobytes.
const MAX_INDEX: u64 = 64 << 20;
const GIVE_FILE: &str = "give the file of weights itself";

/// Reads published weights: a safetensors file, a PyTorch file (told apart by content), a folder of shards with
/// `*.safetensors.index.json` or `*.bin.index.json`, or a folder with exactly one file of weights.
///
/// Every file stays mapped. An index is held against its shards: every tensor it names must be where it says, and nowhere
/// else. Of a PyTorch file, see [`torch::Select::Auto`] for which dictionary is read.
///
/// # Errors
/// If a file is missing, damaged or of another kind; if the folder holds no weights or several; if index and shards differ.
pub fn read_weights(path: &Path) -> Result<TensorFile> {
    if !path.is_dir() {
        return read_file(path);
    }
    match index_of(path)? {
        Some(index) => read_shards(&index),
        None => read_file(&only_file(path)?),
    }
}

pub(crate) fn io(path: &Path, source: std::io::Error) -> Error {
    fewstep_tensor::Error::Io { path: path.display().to_string(), source }.into()
}

fn damaged(path: &Path, problem: String) -> Error {
    Error::Damaged { file: path.display().to_string(), problem }
}

fn refused(path: &Path, what: String, remedy: &'static str) -> Error {
    Error::Refused { file: path.display().to_string(), what, remedy }
}

fn read_file(path: &Path) -> Result<TensorFile> {
    if path.to_string_lossy().ends_with(INDEX) {
        return read_shards(path);
    }
    let mut start = Vec::new();
    File::open(path).and_then(|f| f.take(9).read_to_end(&mut start)).map_err(|e| io(path, e))?;
    // A safetensors file starts with eight bytes of length and a JSON object.
    match start.get(8) == Some(&b'{') || path.extension().is_some_and(|e| e == "safetensors") {
        true => Ok(TensorFile::read(path)?),
        false => torch::read(path),
    }
}

/// The files of a folder, in order.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(|e| io(folder, e))?;
    let mut all =
        entries.map(|e| e.map(|e| e.path())).collect::<std::io::Result<Vec<_>>>().map_err(|e| io(folder, e))?;
    all.retain(|p| p.is_file());
    all.sort();
    Ok(all)
}

fn index_of(folder: &Path) -> Result<Option<PathBuf>> {
    let named = STEMS.iter().flat_map(|s| ["safetensors", "bin"].map(|e| folder.join(format!("{s}.{e}{INDEX}"))));
    if let Some(index) = named.into_iter().find(|p| p.is_file()) {
        return Ok(Some(index));
    }
    let mut others: Vec<PathBuf> = files(folder)?;
    others.retain(|p| p.to_string_lossy().ends_with(INDEX));
    match others.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(one.clone())),
        _ => Err(refused(folder, format!("holds {} indices of shards", others.len()), "give one of them")),
    }
}

fn only_file(folder: &Path) -> Result<PathBuf> {
    let all = files(folder)?;
    let named = STEMS.iter().flat_map(|s| ["safetensors", "bin"].map(|e| folder.join(format!("{s}.{e}"))));
    if let Some(file) = named.into_iter().find(|p| all.contains(p)) {
        return Ok(file);
    }
    let is_weights = |p: &&PathBuf| p.extension().is_some_and(|e| ENDINGS.iter().any(|w| e == *w));
    let weights: Vec<&PathBuf> = all.iter().filter(is_weights).collect();
    match weights.as_slice() {
        [one] => Ok((*one).clone()),
        [] => Err(refused(folder, "holds no weights".into(), GIVE_FILE)),
        many => {
            let names = many.iter().take(6).filter_map(|p| p.file_name()).map(|n| n.to_string_lossy());
            let what = format!("holds {} files of weights ({})", many.len(), names.collect::<Vec<_>>().join(", "));
            Err(refused(folder, what, GIVE_FILE))
        }
    }
}

/// Tensor → shard, as an index says.
fn weight_map(index: &Path) -> Result<BTreeMap<String, String>> {
    let mut text = String::new();
    let file = File::open(index).map_err(|e| io(index, e))?;
    file.take(MAX_INDEX).read_to_string(&mut text).map_err(|e| io(index, e))?;
    let json: serde_json::Value =
        serde_json::from_str(&text).map_err(|e| damaged(index, format!("not a complete JSON file ({e})")))?;
    let no_map = || damaged(index, "it has no 'weight_map' from tensors to files".into());
    let map = json.get("weight_map").and_then(|m| m.as_object()).ok_or_else(no_map)?;
    map.iter().map(|(k, v)| Ok((k.clone(), v.as_str().ok_or_else(no_map)?.to_string()))).collect()
}

fn read_shards(index: &Path) -> Result<TensorFile> {
    let map = weight_map(index)?;
    let folder = index.parent().unwrap_or(Path::new("."));
    let shards: BTreeSet<&String> = map.values().collect();
    let mut all = TensorFile::default();
    for &shard in &shards {
        if Path::new(shard).file_name() != Some(shard.as_ref()) {
            return Err(damaged(index, format!("the shard '{shard}' is not the name of a file beside the index")));
        }
        let file = read_file(&folder.join(shard))?;
        let listed = |name: &String| match map.get(name) {
            Some(there) if there == shard => Ok(()),
            Some(there) => Err(damaged(index, format!("tensor '{name}' is in {shard}; the index says in {there}"))),
            None => Err(damaged(index, format!("tensor '{name}' is in {shard}; the index does not know it"))),
        };
        file.tensors.keys().chain(file.unreadable.keys()).try_for_each(listed)?;
        all.tensors.extend(file.tensors);
        all.unreadable.extend(file.unreadable);
        all.metadata.extend(file.metadata);
    }
    let absent = |name: &&String| !all.tensors.contains_key(*name) && !all.unreadable.contains_key(*name);
    match map.keys().find(absent) {
        Some(name) => Err(damaged(index, format!("tensor '{name}' is not in {}, where the index says", map[name]))),
        None => Ok(all),
    }
}
