use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// The beginning of a file that is read whole: names, types and places of every tensor.
const HEAD_BYTES: u64 = 1 << 20;
/// Blocks spread evenly over the rest.
const BLOCKS: u64 = 256;
/// Bytes of one such block.
const BLOCK_BYTES: u64 = 4096;

/// Endings of files of weights.
const WEIGHTS: [&str; 4] = ["safetensors", "pth", "pt", "bin"];

/// What weights a file holds, told without reading all of it.
///
/// SHA-256 of the size, the first MiB (in which safetensors keep names and places), and 256 blocks of 4 KiB spread evenly to
/// the end: 2 MiB of reading for 11 GB. Training changes weights everywhere, so other weights of the same shapes differ in
/// the blocks; a change of single numbers by hand may not. Time stamps do not count, so a copied file keeps its embeddings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity(pub(crate) [u8; 32]);

impl std::fmt::Display for Identity {
    /// Hexadecimal.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Identity {
    /// The identity of published weights: of a file, or of all files of weights in a folder or beside an index, by name.
    ///
    /// # Errors
    /// If one cannot be read.
    pub fn of_weights(path: &Path) -> Result<Self> {
        let index = path.to_string_lossy().ends_with(".json");
        let Some(folder) = (if path.is_dir() { Some(path) } else { path.parent().filter(|_| index) }) else {
            return Self::of_file(path);
        };
        let entries =
            std::fs::read_dir(folder).and_then(|e| e.map(|e| Ok(e?.path())).collect::<std::io::Result<Vec<_>>>());
        let mut files = entries.map_err(Error::io(folder))?;
        files.retain(|f| f.extension().is_some_and(|e| WEIGHTS.iter().any(|w| e == *w)));
        files.sort_unstable();
        let mut hash = Sha256::new();
        for file in files {
            hash.update(file.file_name().unwrap_or_default().as_encoded_bytes());
            hash.update(Self::of_file(&file)?.0);
        }
        Ok(Identity(hash.finalize().into()))
    }

    /// The identity of a file.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn of_file(path: &Path) -> Result<Self> {
        Self::read(path).map_err(Error::io(path))
    }

    fn read(path: &Path) -> std::io::Result<Self> {
        let mut file = File::open(path)?;
        let size = file.metadata()?.len();
        let mut hash = Sha256::new();
        hash.update(size.to_le_bytes());
        let mut take = |from: u64, bytes: u64| -> std::io::Result<()> {
            let mut block = Vec::new();
            file.seek(SeekFrom::Start(from))?;
            (&mut file).take(bytes).read_to_end(&mut block)?;
            hash.update(&block);
            Ok(())
        };
        take(0, HEAD_BYTES)?;
        let last = size.saturating_sub(BLOCK_BYTES);
        for i in 1..=BLOCKS {
            take((u128::from(last) * u128::from(i) / u128::from(BLOCKS)) as u64, BLOCK_BYTES)?;
        }
        Ok(Identity(hash.finalize().into()))
    }
}
