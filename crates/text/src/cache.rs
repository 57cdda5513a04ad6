use std::path::{Path, PathBuf};
use std::time::SystemTime;

use fewstep_tensor::file::TensorFile;
use fewstep_tensor::{DType, Tensor};
use sha2::{Digest, Sha256};

use crate::{Error, Identity, Result};

/// The name of an embedding: a digest of all that it depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheKey(String);

impl CacheKey {
    /// The key of a cleaned text under given weights, tokenizer, most tokens and compute dtype.
    pub fn new(weights: &Identity, tokenizer: &[u8; 32], text: &str, max_tokens: usize, dtype: DType) -> Self {
        let mut hash = Sha256::new();
        // The number is of this arrangement; another one shall have other keys.
        hash.update(b"fewstep prompt embedding 1");
        hash.update(weights.0);
        hash.update(tokenizer);
        hash.update((max_tokens as u64).to_le_bytes());
        hash.update((dtype.size() as u64).to_le_bytes());
        hash.update(text.as_bytes());
        CacheKey(hex(&hash.finalize()))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Prompt embeddings on disk, each a safetensors file named by its key.
///
/// Entries are written aside and renamed, and carry a checksum: several processes may share a folder, and a damaged entry is
/// as good as none. Nothing is removed unless [`EmbeddingCache::prune`] is asked to; any file may be deleted at any time.
#[derive(Clone, Debug)]
pub struct EmbeddingCache {
    folder: PathBuf,
}

impl EmbeddingCache {
    /// Opens a folder, making it where it is missing.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn open(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        Ok(EmbeddingCache { folder: folder.to_path_buf() })
    }

    /// `prompts` in `$FEWSTEP_CACHE`, in `$XDG_CACHE_HOME/fewstep` or in `~/.cache/fewstep`: the first that is set.
    pub fn default_folder() -> Option<PathBuf> {
        let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let root = set("FEWSTEP_CACHE")
            .or_else(|| set("XDG_CACHE_HOME").map(|p| p.join("fewstep")))
            .or_else(|| set("HOME").map(|p| p.join(".cache/fewstep")))?;
        Some(root.join("prompts"))
    }

    fn path(&self, key: &CacheKey) -> PathBuf {
        self.folder.join(format!("{}.safetensors", key.0))
    }

    /// The embedding `[tokens, D]` of a key; `None` if there is none, or a damaged one.
    pub fn get(&self, key: &CacheKey) -> Option<Tensor> {
        let file = TensorFile::read(&self.path(key)).ok()?;
        let t = file.tensors.get("embedding")?;
        let whole = file.metadata.get("sum") == Some(&sum(key, t)) && t.shape().len() == 2;
        whole.then(|| t.clone())
    }

    /// Keeps an embedding `[tokens, D]`.
    ///
    /// # Errors
    /// If it cannot be written; an older entry of the key is then untouched.
    pub fn put(&self, key: &CacheKey, embedding: &Tensor) -> Result<()> {
        let mut file = TensorFile::default();
        file.metadata.insert("sum".into(), sum(key, embedding));
        file.tensors.insert("embedding".into(), embedding.clone());
        Ok(file.write(&self.path(key))?)
    }

    /// Removes the oldest entries until all together hold at most so many bytes; returns how many went.
    ///
    /// # Errors
    /// If the folder cannot be read or an entry cannot be removed.
    pub fn prune(&self, max_bytes: u64) -> Result<usize> {
        let mut entries: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
        for entry in std::fs::read_dir(&self.folder).map_err(Error::io(&self.folder))? {
            let path = entry.map_err(Error::io(&self.folder))?.path();
            // Another process may have removed it meanwhile.
            let Ok(meta) = std::fs::metadata(&path) else { continue };
            if path.extension().is_some_and(|e| e == "safetensors") {
                entries.push((meta.modified().unwrap_or(SystemTime::UNIX_EPOCH), meta.len(), path));
            }
        }
        entries.sort();
        let mut total: u64 = entries.iter().map(|e| e.1).sum();
        let mut removed = 0;
        for (_, size, path) in entries {
            if total <= max_bytes {
                break;
            }
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io(&path)(e)),
                _ => removed += 1,
            }
            total -= size;
        }
        Ok(removed)
    }
}

/// A digest of the key, the shape and every value.
fn sum(key: &CacheKey, t: &Tensor) -> String {
    let mut hash = Sha256::new();
    hash.update(key.0.as_bytes());
    hash.update(format!("{:?}{}", t.shape(), t.dtype()));
    t.to_vec_f64().iter().for_each(|x| hash.update(x.to_bits().to_le_bytes()));
    hex(&hash.finalize())
}
