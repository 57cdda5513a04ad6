//! Training state on disk. A crash at any point leaves the old state or the new one, and what is read back was checked.
//!
//! ```text
//! checkpoints/iter_000000040/student.safetensors, …   one file of tensors each
//!                            manifest.sha256          the manifest's checksum, as sha256sum prints it
//!                            manifest.json            iteration, trainer state, configuration, checksum of every file
//! ```
//!
//! A checkpoint is filled under another name beside its place, flushed to disk and renamed. Older ones go only after
//! that. A folder without a manifest is no checkpoint.

mod saved;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use fewstep_tensor::file::{TensorFile, write_aside};
use serde_json::Value;

use crate::configuration::Configuration;
use crate::digest::{sha256, sha256_file};
use crate::{Error, Result};

pub use saved::SavedCheckpoint;
use saved::{FORMAT, FileEntry, MANIFEST, MANIFEST_SUM, Manifest, VERSION, file_name};

/// Names that a crash can leave behind: being filled, being deleted, and set aside for a new one of the same iteration.
const WRITING: &str = ".writing-";
const REMOVING: &str = ".removing-";
const REPLACED: &str = ".replaced-";

/// Everything from which training goes on as if it had not stopped.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The training iterations done.
    pub iteration: u64,
    /// Files of tensors by name without ending, such as `student`, `student_ema`, `fake_score`, `optim_student`.
    pub files: BTreeMap<String, TensorFile>,
    /// The trainer's own state: data position, seconds, the teacher's path and hash, the ledger of non-finite values.
    pub state: Value,
    /// The run's configuration.
    pub configuration: Configuration,
}

/// A folder of checkpoints, of which the newest few are kept.
#[derive(Clone, Debug)]
pub struct CheckpointStore {
    folder: PathBuf,
    keep: usize,
}

impl CheckpointStore {
    /// The checkpoints of a folder, which need not exist yet; saving keeps the newest `keep`.
    ///
    /// # Errors
    /// If `keep` is 0.
    pub fn new(folder: &Path, keep: usize) -> Result<Self> {
        if keep == 0 {
            let (key, expected) = ("the number of checkpoints kept", "1 or more");
            return Err(Error::Setting { key, expected, got: keep.to_string() });
        }
        Ok(CheckpointStore { folder: folder.to_path_buf(), keep })
    }

    /// The folders of all complete checkpoints with their iterations, oldest first.
    ///
    /// # Errors
    /// If the folder exists and cannot be read.
    pub fn list(&self) -> Result<Vec<(u64, PathBuf)>> {
        let mut found: Vec<(u64, PathBuf)> = self
            .entries()?
            .into_iter()
            .filter_map(|name| Some((iteration_of(&name)?, self.folder.join(name))))
            .filter(|(_, path)| path.join(MANIFEST).is_file())
            .collect();
        found.sort_unstable();
        Ok(found)
    }

    fn entries(&self) -> Result<Vec<String>> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::io(&self.folder)(e)),
        };
        // A name that is not UTF-8 is none of ours.
        let names = entries.map(|e| e.map(|e| e.file_name().into_string().ok()));
        let names = names.collect::<std::io::Result<Vec<_>>>().map_err(Error::io(&self.folder))?;
        Ok(names.into_iter().flatten().collect())
    }

    /// Clears away what a crash has left, and undoes a replacement that was cut short. Only the folder's owner may.
    ///
    /// # Errors
    /// If something can neither be removed nor renamed.
    pub fn repair(&self) -> Result<()> {
        for entry in self.entries()? {
            let path = self.folder.join(&entry);
            let replaced = entry.strip_prefix(REPLACED).filter(|name| iteration_of(name).is_some());
            match replaced.map(|name| self.folder.join(name)) {
                Some(place) if !place.exists() => fs::rename(&path, place).map_err(Error::io(&path))?,
                Some(_) => remove_folder(&path)?,
                None if [WRITING, REMOVING].iter().any(|p| is_ours(&entry, p)) => remove_folder(&path)?,
                None => {}
            }
        }
        Ok(())
    }

    /// Writes a checkpoint, and removes the oldest beyond the number kept once the new one is safely on disk. One of
    /// the same iteration is replaced. Returns the checkpoint's folder.
    ///
    /// # Errors
    /// If the folder cannot be written or the disk is full: earlier checkpoints are then intact. Also if an older one
    /// cannot be removed: the new one is then safe.
    pub fn save(&self, checkpoint: &Checkpoint) -> Result<PathBuf> {
        let place = self.folder.join(name_of(checkpoint.iteration));
        let not_written = |e| Error::NotWritten { path: place.clone(), source: Box::new(e) };
        self.write(checkpoint, &place).map_err(not_written)?;
        let others = self.list()?.into_iter().filter(|(i, _)| *i != checkpoint.iteration).rev();
        for (iteration, path) in others.skip(self.keep - 1) {
            // Renamed first: half a checkpoint must never stand under a checkpoint's name.
            let aside = self.folder.join(format!("{REMOVING}{}", name_of(iteration)));
            remove_folder(&aside)?;
            fs::rename(&path, &aside).map_err(Error::io(&path))?;
            remove_folder(&aside)?;
        }
        Ok(place)
    }

    fn write(&self, checkpoint: &Checkpoint, place: &Path) -> Result<()> {
        let name = name_of(checkpoint.iteration);
        let (aside, replaced) =
            (self.folder.join(format!("{WRITING}{name}")), self.folder.join(format!("{REPLACED}{name}")));
        fs::create_dir_all(&self.folder).map_err(Error::io(&self.folder))?;
        remove_folder(&aside)?;
        fs::create_dir(&aside).map_err(Error::io(&aside))?;
        let written = fill(&aside, checkpoint).and_then(|()| {
            if place.exists() {
                remove_folder(&replaced)?;
                fs::rename(place, &replaced).map_err(Error::io(place))?;
            }
            fs::rename(&aside, place).map_err(Error::io(place))
        });
        if let Err(e) = written {
            // Best effort: what stays is ignored, and the next repair undoes or removes it. The first error counts.
            let _ = self.repair();
            return Err(e);
        }
        File::open(&self.folder).and_then(|d| d.sync_all()).map_err(Error::io(&self.folder))?;
        remove_folder(&replaced)
    }

    /// Reads the newest checkpoint, every checksum verified before anything is used; none if there is none.
    ///
    /// # Errors
    /// If it is damaged (the message names the newest older one that is intact), or belongs to another configuration
    /// (the message lists the keys).
    pub fn load_latest(&self, configuration: &Configuration) -> Result<Option<Checkpoint>> {
        let all = self.list()?;
        let Some((_, newest)) = all.last() else {
            return Ok(None);
        };
        let loaded = SavedCheckpoint::open(newest).and_then(|saved| {
            saved.check_configuration(configuration)?;
            saved.read()
        });
        match loaded {
            Err(Error::Damaged { path, reason, .. }) => {
                Err(Error::Damaged { path, reason, remedy: remedy(&all[..all.len() - 1]) })
            }
            other => other.map(Some),
        }
    }
}

fn remedy(older: &[(u64, PathBuf)]) -> String {
    let intact = |path: &Path| SavedCheckpoint::open(path).and_then(|saved| saved.verify()).is_ok();
    match older.iter().rev().find(|(_, path)| intact(path)) {
        Some((iteration, path)) => format!(
            "move it away and resume again: training then goes on from {} (iteration {iteration}), which is intact",
            path.display()
        ),
        None => "no older checkpoint is intact: restore one from a copy, or start again in an empty folder".to_string(),
    }
}

fn name_of(iteration: u64) -> String {
    format!("iter_{iteration:09}")
}

fn iteration_of(name: &str) -> Option<u64> {
    let iteration = name.strip_prefix("iter_")?.parse().ok()?;
    // Only the name we would give: "iter_+5" and "iter_5" are someone else's.
    (name == name_of(iteration)).then_some(iteration)
}

fn is_ours(entry: &str, prefix: &str) -> bool {
    entry.strip_prefix(prefix).is_some_and(|name| iteration_of(name).is_some())
}

fn remove_folder(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path)(e)),
        _ => Ok(()),
    }
}

/// Writes every file of a checkpoint into an empty folder, the manifest last, each flushed to disk.
fn fill(folder: &Path, checkpoint: &Checkpoint) -> Result<()> {
    let mut files = BTreeMap::new();
    for (name, tensors) in &checkpoint.files {
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            let what = format!("checkpoint file '{name}'");
            return Err(Error::parameters(what, "a name of letters, digits and _", "another one"));
        }
        let path = folder.join(file_name(name));
        tensors.write(&path)?;
        let bytes = fs::metadata(&path).map_err(Error::io(&path))?.len();
        files.insert(name.clone(), FileEntry { bytes, sha256: sha256_file(&path)? });
    }
    let manifest = Manifest {
        format: FORMAT.to_string(),
        version: VERSION,
        iteration: checkpoint.iteration,
        fingerprint: checkpoint.configuration.fingerprint(),
        configuration: checkpoint.configuration.values().clone(),
        state: checkpoint.state.clone(),
        files,
    };
    let unwritable = |e: serde_json::Error| Error::parameters("the trainer's state", "JSON", e.to_string());
    let mut text = serde_json::to_string_pretty(&manifest).map_err(unwritable)?;
    text.push('\n');
    let sum = format!("{}  {MANIFEST}\n", sha256(text.as_bytes()));
    let write = |name, text: &str| write_aside(&folder.join(name), |f| std::io::Write::write_all(f, text.as_bytes()));
    write(MANIFEST_SUM, &sum)?;
    Ok(write(MANIFEST, &text)?)
}

#[cfg(test)]
mod tests;
