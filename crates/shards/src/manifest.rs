//! `dataset.json`: how a set was built, and the size and SHA-256 of each finished shard.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Error, Result};

/// The manifest's file name.
pub const MANIFEST: &str = "dataset.json";
const ASIDE: &str = ".dataset.json.part";
const FORMAT: &str = "fewstep-shards";
const VERSION: u32 = 1;
/// A manifest larger than this is not read: a million shards would have about 150 MB.
const BYTES_MAX: u64 = 256 << 20;

/// What is known of a set that was built here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    format: String,
    version: u32,
    /// What decides the set's contents, such as total, shard size, seed, teacher's hash: flat keys.
    pub settings: BTreeMap<String, Value>,
    /// The shape of each latent, [C, F, H, W], once there is one.
    pub latent: Option<Vec<usize>>,
    /// The shape of each embedding, [S, D], once there is one.
    pub embed: Option<Vec<usize>>,
    /// The finished shards by file name.
    pub shards: BTreeMap<String, ShardRecord>,
}

/// A finished shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardRecord {
    /// The number of samples.
    pub samples: u64,
    /// The file's size.
    pub bytes: u64,
    /// The file's SHA-256, in hexadecimal.
    pub sha256: String,
}

impl Manifest {
    /// A set of which nothing is there yet.
    pub fn new(settings: BTreeMap<String, Value>) -> Self {
        let shards = BTreeMap::new();
        Manifest { format: FORMAT.into(), version: VERSION, settings, latent: None, embed: None, shards }
    }

    /// Where a folder's manifest is.
    pub fn path(folder: &Path) -> PathBuf {
        folder.join(MANIFEST)
    }

    /// A folder's manifest; none if there is none.
    ///
    /// # Errors
    /// If it cannot be read, is damaged, or is of another version.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = Self::path(folder);
        let damaged = |reason: String| Error::Archive {
            path: path.clone(),
            reason: format!("{reason}; restore the file, or move it away to start the set again"),
        };
        match std::fs::metadata(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(&path)(e)),
            Ok(m) if m.len() > BYTES_MAX => return Err(damaged(format!("{} bytes are no manifest", m.len()))),
            Ok(_) => {}
        }
        let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
        let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|e| damaged(format!("damaged: {e}")))?;
        if (manifest.format.as_str(), manifest.version) != (FORMAT, VERSION) {
            let got = format!("{} {}", manifest.format, manifest.version);
            return Err(damaged(format!("expected {FORMAT} {VERSION}, got {got}")));
        }
        Ok(Some(manifest))
    }

    /// Writes the manifest aside and renames it.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self).map_err(|e| Error::Tensor(e.to_string()))?;
        text.push('\n');
        // Always the same name: what a crash leaves is used again by the next build, which alone may write here.
        let aside = folder.join(ASIDE);
        let written = File::create(&aside).and_then(|mut f| {
            f.write_all(text.as_bytes())?;
            f.sync_all()
        });
        written.map_err(Error::io(&aside))?;
        std::fs::rename(&aside, Self::path(folder)).map_err(Error::io(&aside))?;
        File::open(folder).and_then(|d| d.sync_all()).map_err(Error::io(folder))
    }

    /// A line for each setting that differs from `asked`.
    pub fn differences(&self, asked: &BTreeMap<String, Value>) -> Vec<String> {
        let keys: std::collections::BTreeSet<_> = self.settings.keys().chain(asked.keys()).collect();
        let show = |v: Option<&Value>| v.map_or("absent".to_string(), Value::to_string);
        let line = |key: &&String| {
            let (had, wants) = (self.settings.get(*key), asked.get(*key));
            (had != wants).then(|| format!("  {key}: {} there, {} asked for", show(had), show(wants)))
        };
        keys.iter().filter_map(line).collect()
    }
}
