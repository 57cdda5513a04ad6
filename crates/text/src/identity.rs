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

/// What weights a file holds, told without reading all of it.
///
/// SHA-256 of the size, the first MiB (in which safetensors keep names and places), and 256 blocks of 4 KiB spread evenly to
/// the end: 2 MiB of reading for 11 GB. Training changes weights everywhere, so other weights of the same shapes differ in
/// the blocks; a change of single numbers by hand may not. Time stamps do not count, so a copied file keeps its embeddings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity(pub(crate) [u8; 32]);

impl Identity {
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
