//! What is where in each tar of a set, cached between runs.
//!
//! The cache is two lines: the SHA-256 of the second, and JSON with each tar's size, time of change and contents. A cache
//! that is missing, damaged, stale or unwritable costs a scan and nothing else.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use fewstep_tensor::file::write_aside;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::digest::sha256;
use crate::scan::{Scan, scan};
use crate::{Error, Result};

/// A cache larger than this is not read.
const BYTES_MAX: u64 = 2 << 30;

/// One tar, as it was when it was scanned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Shard {
    pub path: PathBuf,
    pub bytes: u64,
    /// Seconds and nanoseconds since 1970.
    changed: (u64, u32),
    pub scan: Scan,
}

fn stamp(path: &Path) -> Result<(u64, (u64, u32))> {
    let meta = std::fs::metadata(path).map_err(Error::io(path))?;
    let since = meta.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    Ok((meta.len(), (since.as_secs(), since.subsec_nanos())))
}

/// Scans one tar.
pub fn scan_file(path: &Path) -> Result<Shard> {
    let (bytes, changed) = stamp(path)?;
    let file = File::open(path).map_err(Error::io(path))?;
    // A header is one block; read-ahead of payloads would be thrown away by the next seek.
    let scan = scan(BufReader::with_capacity(1024, file), bytes);
    Ok(Shard { path: path.to_path_buf(), bytes, changed, scan })
}

/// The contents of every tar, from the cache where that still holds.
pub fn index(files: &[PathBuf], cache: Option<&Path>) -> Result<Vec<Shard>> {
    let mut known: HashMap<PathBuf, Shard> = cache.and_then(read).unwrap_or_default();
    let fresh = |path: &PathBuf, known: &HashMap<PathBuf, Shard>| {
        let shard = known.get(path)?;
        (stamp(path).ok()? == (shard.bytes, shard.changed)).then_some(())
    };
    let stale: Vec<_> = files.iter().filter(|path| fresh(path, &known).is_none()).collect();
    let scanned = stale.par_iter().map(|path| scan_file(path)).collect::<Result<Vec<_>>>()?;
    let changed = !scanned.is_empty();
    known.extend(scanned.into_iter().map(|shard| (shard.path.clone(), shard)));
    let shards: Vec<_> = files.iter().filter_map(|path| known.remove(path)).collect();
    if let (true, Some(cache)) = (changed, cache) {
        write(cache, &shards);
    }
    Ok(shards)
}

fn read(cache: &Path) -> Option<HashMap<PathBuf, Shard>> {
    if std::fs::metadata(cache).ok()?.len() > BYTES_MAX {
        return None;
    }
    let text = std::fs::read_to_string(cache).ok()?;
    let (sum, json) = text.split_once('\n')?;
    if sha256(json.as_bytes()) != sum {
        return None;
    }
    let shards: Vec<Shard> = serde_json::from_str(json).ok()?;
    Some(shards.into_iter().map(|shard| (shard.path.clone(), shard)).collect())
}

fn write(cache: &Path, shards: &[Shard]) {
    // A cache that cannot be written is done without.
    let Ok(json) = serde_json::to_string(shards) else { return };
    let sum = sha256(json.as_bytes());
    let _ = write_aside(cache, |f| f.write_all(format!("{sum}\n{json}").as_bytes()));
}
