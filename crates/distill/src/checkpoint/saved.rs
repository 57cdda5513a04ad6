//! A checkpoint that stands on disk: its manifest, its checksums, its parts.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use fewstep_tensor::file::TensorFile;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Checkpoint, iteration_of};
use crate::configuration::Configuration;
use crate::digest::{sha256, sha256_file};
use crate::{Error, Result};

pub(super) const MANIFEST: &str = "manifest.json";
pub(super) const MANIFEST_SUM: &str = "manifest.sha256";
pub(super) const FORMAT: &str = "fewstep-checkpoint";
pub(super) const VERSION: u32 = 1;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    pub format: String,
    pub version: u32,
    pub iteration: u64,
    pub fingerprint: String,
    pub configuration: BTreeMap<String, Value>,
    pub state: Value,
    pub files: BTreeMap<String, FileEntry>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileEntry {
    pub bytes: u64,
    pub sha256: String,
}

/// What tells an older or newer format before the rest is parsed.
#[derive(Deserialize)]
struct Version {
    format: String,
    version: u32,
}

pub(super) fn file_name(name: &str) -> String {
    format!("{name}.safetensors")
}

/// A complete checkpoint on disk whose manifest is verified; its tensors are verified as they are read.
#[derive(Clone, Debug)]
pub struct SavedCheckpoint {
    folder: PathBuf,
    manifest: Manifest,
}

fn damaged(folder: &Path, reason: impl Into<String>) -> Error {
    let remedy = "restore it from a copy, or use another checkpoint".to_string();
    Error::Damaged { path: folder.to_path_buf(), reason: reason.into(), remedy }
}

/// A missing file is damage; a refusal of the system (permissions, a failing disk) is itself.
fn unreadable(folder: &Path, path: &Path, e: std::io::Error) -> Error {
    match e.kind() {
        ErrorKind::NotFound => damaged(folder, format!("{} is missing", path.display())),
        _ => Error::io(path)(e),
    }
}

impl SavedCheckpoint {
    /// Reads and verifies a checkpoint's manifest.
    ///
    /// # Errors
    /// If the folder is no checkpoint, the manifest is damaged, or another version of the format wrote it.
    pub fn open(folder: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = folder.join(name);
            fs::read(&path).map_err(|e| unreadable(folder, &path, e))
        };
        let (bytes, sum) = (read(MANIFEST)?, read(MANIFEST_SUM)?);
        if sum != format!("{}  {MANIFEST}\n", sha256(&bytes)).as_bytes() {
            return Err(damaged(folder, format!("{MANIFEST} does not match {MANIFEST_SUM}")));
        }
        let malformed = |e: serde_json::Error| damaged(folder, format!("{MANIFEST}: {e}"));
        let version: Version = serde_json::from_slice(&bytes).map_err(malformed)?;
        if (version.format.as_str(), version.version) != (FORMAT, VERSION) {
            let (what, expected) = (format!("{}", folder.join(MANIFEST).display()), format!("{FORMAT} {VERSION}"));
            return Err(Error::parameters(what, expected, format!("{} {}", version.format, version.version)));
        }
        let manifest: Manifest = serde_json::from_slice(&bytes).map_err(malformed)?;
        let named = folder.file_name().and_then(|n| iteration_of(n.to_str()?));
        if named.is_some_and(|n| n != manifest.iteration) {
            let reason = format!("{MANIFEST} is that of iteration {}, not of the folder's name", manifest.iteration);
            return Err(damaged(folder, reason));
        }
        Ok(SavedCheckpoint { folder: folder.to_path_buf(), manifest })
    }

    /// The training iterations done.
    pub fn iteration(&self) -> u64 {
        self.manifest.iteration
    }

    /// The trainer's own state.
    pub fn state(&self) -> &Value {
        &self.manifest.state
    }

    /// The run's configuration.
    pub fn configuration(&self) -> Configuration {
        Configuration::from_flat(self.manifest.configuration.clone())
    }

    /// The names of the files of tensors, without ending.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.manifest.files.keys().map(String::as_str)
    }

    /// Refuses a run whose configuration differs in a key that may not.
    ///
    /// # Errors
    /// If there is such a key; the error lists them all with both values.
    pub fn check_configuration(&self, current: &Configuration) -> Result<()> {
        let differences = current.differences_from(&self.configuration());
        match differences.is_empty() {
            true => Ok(()),
            false => Err(Error::ConfigurationDiffers { path: self.folder.clone(), differences }),
        }
    }

    /// Verifies the checksum of every file.
    ///
    /// # Errors
    /// If a file is missing, unreadable or not what the manifest promises.
    pub fn verify(&self) -> Result<()> {
        self.manifest.files.par_iter().try_for_each(|(name, entry)| self.verify_file(name, entry))
    }

    fn verify_file(&self, name: &str, entry: &FileEntry) -> Result<()> {
        let path = self.folder.join(file_name(name));
        let bytes = fs::metadata(&path).map_err(|e| unreadable(&self.folder, &path, e))?.len();
        if bytes != entry.bytes {
            let reason = format!("{} has {bytes} bytes, {} were written", file_name(name), entry.bytes);
            return Err(damaged(&self.folder, reason));
        }
        if sha256_file(&path)? != entry.sha256 {
            return Err(damaged(&self.folder, format!("{} has another checksum than when written", file_name(name))));
        }
        Ok(())
    }

    /// One file of tensors, verified first.
    ///
    /// # Errors
    /// If there is none of the name, or it is damaged.
    pub fn tensors(&self, name: &str) -> Result<TensorFile> {
        let Some(entry) = self.manifest.files.get(name) else {
            let what = format!("'{name}' in checkpoint {}", self.folder.display());
            return Err(Error::parameters(what, self.files().collect::<Vec<_>>().join(", "), "no such file"));
        };
        self.verify_file(name, entry)?;
        Ok(TensorFile::read(&self.folder.join(file_name(name)))?)
    }

    /// Everything, all of it verified before any of it is read.
    ///
    /// # Errors
    /// If any file is damaged.
    pub fn read(&self) -> Result<Checkpoint> {
        self.verify()?;
        let read = |name: &str| Ok((name.to_string(), TensorFile::read(&self.folder.join(file_name(name)))?));
        Ok(Checkpoint {
            iteration: self.iteration(),
            files: self.files().map(read).collect::<Result<_>>()?,
            state: self.state().clone(),
            configuration: self.configuration(),
        })
    }
}
