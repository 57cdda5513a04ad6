//! Building a set: restartable, idempotent, and never less than it was.
//!
//! Sample i lies in shard ⌊i / shard_size⌋, whatever happens meanwhile. A shard grows in `.shard_NNNNNN.tar.part`, flushed
//! to disk after each sample; when it is full it is closed, flushed, renamed, and recorded in `dataset.json`. A restart
//! keeps finished shards untouched and goes on after the last whole sample of the unfinished one. The bytes are a function
//! of the samples alone: headers hold no time, user or machine.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use fewstep_tensor::{DType, Tensor};
use serde_json::Value;

use crate::codec::{Encoding, count_non_finite};
use crate::digest::sha256_file;
use crate::index::scan_file;
use crate::layout::{Part, SHARD_SIZE, member_name, sample_key, shard_name, shard_number};
use crate::lock::lock;
use crate::manifest::{Manifest, ShardRecord};
use crate::reader::{PROMPT_MAX, read_entry, shard_files};
use crate::scan::{BLOCK, Entry, scan};
use crate::{Error, Example, Result};

/// One sample to be stored.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The latent video, [C, F, H, W]; stored as bf16.
    pub latent: Tensor,
    /// The text embedding, [S, D], zero-padded; stored as bf16.
    pub embed: Tensor,
    /// The prompt.
    pub prompt: String,
}

/// What a set is to be.
#[derive(Clone, Debug)]
pub struct BuildPlan {
    /// The number of samples.
    pub total: u64,
    /// Samples in a shard; 256 as published.
    pub shard_size: u64,
    /// How tensors are encoded; `.pt` as published.
    pub encoding: Encoding,
    /// What decides the samples, such as `seed`, `teacher.sha256`, `prompts.sha256`: a folder that was begun with others is
    /// refused, key by key. Keys that begin with `build.` are this crate's own.
    pub settings: BTreeMap<String, Value>,
}

impl BuildPlan {
    /// The published layout, with these settings.
    pub fn new(total: u64, settings: BTreeMap<String, Value>) -> Self {
        BuildPlan { total, shard_size: SHARD_SIZE, encoding: Encoding::Torch, settings }
    }

    fn all_settings(&self) -> BTreeMap<String, Value> {
        let mut all = self.settings.clone();
        all.insert("build.total".into(), self.total.into());
        all.insert("build.shard_size".into(), self.shard_size.into());
        all.insert("build.encoding".into(), self.encoding.extension().into());
        all
    }
}

/// How far a build has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuildProgress {
    /// Samples that are safe on disk.
    pub finished: u64,
    /// Samples that the plan asks for.
    pub total: u64,
    /// Of the finished ones, those that were there when the build began.
    pub kept: u64,
}

/// How a build ended without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BuildOutcome {
    /// The set is whole.
    Complete(BuildProgress),
    /// It was asked to stop; the same call goes on from here.
    Stopped(BuildProgress),
}

/// Builds a set in `folder`, or goes on with it.
///
/// `source(i)` gives sample i, and must give the same one whenever it is asked; it is asked for what is missing alone, in
/// order. `stop` is asked before each sample, `progress` told at the start and after each.
///
/// # Errors
/// If the folder belongs to another process or to other settings, holds a damaged shard, or cannot be written; if the
/// source fails, or gives a sample that is not finite or of another shape than the first. Finished samples are kept.
pub fn build<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    folder: &Path,
    plan: &BuildPlan,
    mut source: impl FnMut(u64) -> Result<Sample, E>,
    mut stop: impl FnMut() -> bool,
    mut progress: impl FnMut(BuildProgress),
) -> Result<BuildOutcome> {
    let mut set = Set::open(folder, plan)?;
    let mut at = BuildProgress { finished: 0, total: plan.total, kept: 0 };
    for number in 0..plan.total.div_ceil(plan.shard_size) {
        let samples = plan.shard_size.min(plan.total - number * plan.shard_size);
        if set.is_finished(number, samples)? {
            at.finished += samples;
            at.kept += samples;
            continue;
        }
        let mut part = Unfinished::resume(&set, number, samples)?;
        at.finished += part.done;
        at.kept += part.done;
        progress(at);
        while part.done < samples {
            if stop() {
                return Ok(BuildOutcome::Stopped(at));
            }
            let index = number * plan.shard_size + part.done;
            let sample = source(index).map_err(|e| Error::Source { index, source: e.into() })?;
            let bytes = set.encode(index, sample)?;
            let not_written = |source| Error::NotWritten { path: part.path.clone(), finished: at.finished, source };
            part.file.write_all(&bytes).and_then(|()| part.file.sync_data()).map_err(not_written)?;
            part.done += 1;
            at.finished += 1;
            progress(at);
        }
        set.finish(part, number, samples).map_err(|e| full(e, at.finished))?;
    }
    progress(at);
    Ok(BuildOutcome::Complete(at))
}

/// Says with an error of the system what is safe.
fn full(e: Error, finished: u64) -> Error {
    match e {
        Error::Io { path, source } => Error::NotWritten { path, finished, source },
        other => other,
    }
}

/// A set's folder, owned until dropped.
struct Set<'a> {
    folder: &'a Path,
    plan: &'a BuildPlan,
    manifest: Manifest,
    _lock: File,
}

impl<'a> Set<'a> {
    fn open(folder: &'a Path, plan: &'a BuildPlan) -> Result<Self> {
        let positive = |what, n: u64| match n {
            0 => Err(Error::Setting { what, expected: "1 or more".into(), got: "0".into() }),
            _ => Ok(()),
        };
        positive("samples in the set", plan.total)?;
        positive("samples in a shard", plan.shard_size)?;
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let lock = lock(folder)?;
        let manifest = match Manifest::read(folder)? {
            Some(manifest) => {
                let differences = manifest.differences(&plan.all_settings());
                if !differences.is_empty() {
                    return Err(Error::OtherSettings { path: folder.to_path_buf(), differences });
                }
                manifest
            }
            None => {
                if shard_files(folder).is_ok() {
                    let reason =
                        "holds shards without a dataset.json, so they are not of this set: choose another folder";
                    return Err(Error::NoSet { path: folder.to_path_buf(), reason: reason.into() });
                }
                let manifest = Manifest::new(plan.all_settings());
                manifest.write(folder).map_err(|e| full(e, 0))?;
                manifest
            }
        };
        Ok(Set { folder, plan, manifest, _lock: lock })
    }

    fn shard(&self, number: u64) -> PathBuf {
        self.folder.join(shard_name(number))
    }

    /// Whether a shard stands. One that was renamed just before a crash is recorded now.
    fn is_finished(&mut self, number: u64, samples: u64) -> Result<bool> {
        let (path, name) = (self.shard(number), shard_name(number));
        let bytes = match std::fs::metadata(&path) {
            Ok(meta) => meta.len(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                self.manifest.shards.remove(&name);
                return Ok(false);
            }
            Err(e) => return Err(Error::io(&path)(e)),
        };
        let damaged = |reason: String| {
            let reason = format!("{reason}; remove it, and the build makes it again");
            Error::Archive { path: path.clone(), reason }
        };
        match self.manifest.shards.get(&name) {
            Some(record) if record.bytes == bytes => return Ok(true),
            Some(record) => return Err(damaged(format!("{bytes} bytes, finished with {}", record.bytes))),
            None => {}
        }
        let scan = scan_file(&path)?.scan;
        let first = number * self.plan.shard_size;
        let keys = (first..first + samples).map(sample_key);
        let whole = scan.entries.iter().all(|e| e.missing().is_none()) && scan.problems.is_empty() && scan.ended;
        if !whole || !scan.entries.iter().map(|e| e.key.clone()).eq(keys) {
            return Err(damaged("not a shard of this set, or damaged".into()));
        }
        self.record(number, samples)?;
        Ok(true)
    }

    fn record(&mut self, number: u64, samples: u64) -> Result<()> {
        let path = self.shard(number);
        let bytes = std::fs::metadata(&path).map_err(Error::io(&path))?.len();
        let sha256 = sha256_file(&path).map_err(Error::io(&path))?;
        self.manifest.shards.insert(shard_name(number), ShardRecord { samples, bytes, sha256 });
        self.manifest.write(self.folder)
    }

    fn finish(&mut self, mut part: Unfinished, number: u64, samples: u64) -> Result<()> {
        let path = self.shard(number);
        let closed = part.file.write_all(&[0; 2 * BLOCK as usize]).and_then(|()| part.file.sync_all());
        closed.map_err(Error::io(&part.path))?;
        std::fs::rename(&part.path, &path).map_err(Error::io(&path))?;
        File::open(self.folder).and_then(|d| d.sync_all()).map_err(Error::io(self.folder))?;
        self.record(number, samples)
    }

    /// The three members of a sample, with their headers.
    fn encode(&mut self, index: u64, sample: Sample) -> Result<Vec<u8>> {
        let key = sample_key(index);
        let bad = |reason| Error::BadSample { path: self.folder.to_path_buf(), key: key.clone(), reason };
        if sample.prompt.len() as u64 > PROMPT_MAX {
            return Err(bad(format!("a prompt of {} bytes, at most {PROMPT_MAX} fit", sample.prompt.len())));
        }
        let mut fixed = self.manifest.latent.is_none();
        for (what, tensor, shape) in
            [("latent", &sample.latent, &mut self.manifest.latent), ("embed", &sample.embed, &mut self.manifest.embed)]
        {
            let want = shape.get_or_insert_with(|| tensor.shape().to_vec());
            if tensor.shape() != want {
                return Err(bad(format!("{what} of shape {:?}, the set has {want:?}", tensor.shape())));
            }
        }
        let mut out = Vec::new();
        for (part, tensor) in [(Part::Latent, &sample.latent), (Part::Embed, &sample.embed)] {
            let tensor = tensor.to_dtype(DType::Bf16);
            match count_non_finite(&tensor) {
                0 => {}
                n => return Err(bad(format!("{n} elements of its {} are NaN or infinite", part.name()))),
            }
            let bytes = self.plan.encoding.encode(&tensor, part.name())?;
            append(&mut out, &member_name(&key, part, self.plan.encoding), &bytes)?;
        }
        append(&mut out, &member_name(&key, Part::Prompt, self.plan.encoding), sample.prompt.as_bytes())?;
        if std::mem::take(&mut fixed) {
            self.manifest.write(self.folder).map_err(|e| full(e, index))?;
        }
        Ok(out)
    }
}

/// One member: header, bytes, padding.
fn append(out: &mut Vec<u8>, name: &str, bytes: &[u8]) -> Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_path(name).map_err(|e| Error::Tensor(e.to_string()))?;
    header.set_entry_type(tar::EntryType::Regular);
    header.set_size(bytes.len() as u64);
    header.set_mode(0o444);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(bytes);
    out.resize(out.len().next_multiple_of(BLOCK as usize), 0);
    Ok(())
}

/// A shard that is being filled.
struct Unfinished {
    path: PathBuf,
    file: File,
    done: u64,
}

impl Unfinished {
    /// Opens the file aside and cuts it after its last whole sample.
    fn resume(set: &Set, number: u64, samples: u64) -> Result<Self> {
        let path = set.folder.join(format!(".{}.part", shard_name(number)));
        debug_assert_eq!(shard_number(&shard_name(number)), Some(number));
        let mut options = OpenOptions::new();
        let opened = options.read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = opened.map_err(Error::io(&path))?;
        let len = file.metadata().map_err(Error::io(&path))?.len();
        let found = scan(BufReader::with_capacity(1024, &file), len);
        let (mut done, mut end) = (0, 0);
        for entry in found.entries.iter().take(samples as usize) {
            let key = sample_key(number * set.plan.shard_size + done);
            match whole(&mut file, set, entry, &key, end) {
                Some(next) if next <= len => (done, end) = (done + 1, next),
                _ => break,
            }
        }
        file.set_len(end).and_then(|()| file.seek(SeekFrom::Start(end))).map_err(Error::io(&path))?;
        Ok(Unfinished { path, file, done })
    }
}

/// Where a sample ends that begins at `start`, if it is the right one and all there: after a crash of the machine, blocks
/// may be missing that were written before others.
fn whole(file: &mut File, set: &Set, entry: &Entry, key: &str, start: u64) -> Option<u64> {
    let mut end = start;
    for span in entry.parts {
        let span = span.filter(|s| s.offset == end + BLOCK)?;
        end = span.end();
    }
    let Example { latent, embed, .. } = read_entry(file, entry).ok()?;
    let shapes = Some(latent.shape()) == set.manifest.latent.as_deref()
        && Some(embed.shape()) == set.manifest.embed.as_deref()
        && count_non_finite(&latent) + count_non_finite(&embed) == 0;
    (entry.key == key && shapes).then_some(end)
}
