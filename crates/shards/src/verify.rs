//! Every member of a set checked, each bad one named.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use serde::Serialize;

use crate::Result;
use crate::codec::count_non_finite;
use crate::digest::sha256_file;
use crate::index::{Shard, scan_file};
use crate::layout::Part;
use crate::manifest::Manifest;
use crate::reader::{read_prompt, read_tensor, shard_files};
use crate::scan::Entry;

/// What a set must be, beyond being sound.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// The shape of each latent; the commonest one of the set if none is given.
    pub latent: Option<Vec<usize>>,
    /// The shape of each embedding; the commonest one of the set if none is given.
    pub embed: Option<Vec<usize>>,
    /// The number of samples; what the set's manifest says, if it has one, or any.
    pub samples: Option<u64>,
}

/// How far a verification has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifyProgress {
    /// Bytes of finished samples, over all shards.
    pub bytes: u64,
    /// Bytes of all shards.
    pub total_bytes: u64,
}

/// Something wrong in a set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// The shard's file name; empty if it is the set itself.
    pub shard: String,
    /// The member's name or the sample's key; empty if it is the shard itself.
    pub member: String,
    /// What is wrong.
    pub reason: String,
}

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The number of tars.
    pub shards: u64,
    /// The number of samples of which every part is there and sound.
    pub samples: u64,
    /// The size of all tars.
    pub bytes: u64,
    /// Tars whose SHA-256 was compared with the manifest's.
    pub checksums: u64,
    /// Members that are no part of a sample, which readers ignore.
    pub ignored: u64,
    /// The shape that latents must have, or mostly have.
    pub latent: Option<Vec<usize>>,
    /// The shape that embeddings must have, or mostly have.
    pub embed: Option<Vec<usize>>,
    /// What is wrong, by shard and member.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.findings.is_empty()
    }
}

/// A sample's key and the shapes of its tensors.
struct Seen {
    key: String,
    latent: Option<Vec<usize>>,
    embed: Option<Vec<usize>>,
    sound: bool,
}

#[derive(Default)]
struct Checked {
    name: String,
    bytes: u64,
    ignored: u64,
    summed: bool,
    seen: Vec<Seen>,
    findings: Vec<Finding>,
}

impl Checked {
    fn find(&mut self, member: &str, reason: impl Into<String>) {
        self.findings.push(Finding { shard: self.name.clone(), member: member.into(), reason: reason.into() });
    }
}

/// Verifies a folder of tars or one merged tar, with or without a manifest, shards in parallel.
///
/// Checked are: the structure of each tar, that every sample has its three parts once, that keys are unique in the set,
/// that tensors decode, are finite and of one shape, that prompts are UTF-8, and size, number of samples and SHA-256 where a
/// `dataset.json` says them.
///
/// # Errors
/// If the folder holds no tar, or its manifest is damaged. What is wrong within shards is in the report.
pub fn verify(path: &Path, expected: &Expected, progress: &(dyn Fn(VerifyProgress) + Sync)) -> Result<Report> {
    let files = shard_files(path)?;
    let manifest = if path.is_dir() { Manifest::read(path)? } else { None };
    let total_bytes = files.iter().filter_map(|f| f.metadata().ok()).map(|m| m.len()).sum();
    let bytes = AtomicU64::new(0);
    let step = |n: u64| progress(VerifyProgress { bytes: bytes.fetch_add(n, Ordering::Relaxed) + n, total_bytes });
    let checked: Vec<_> = files.par_iter().map(|file| check_shard(file, manifest.as_ref(), &step)).collect();
    let mut report = Report { shards: checked.len() as u64, ..Report::default() };
    shapes(&mut report, &checked, expected, manifest.as_ref());
    duplicates(&mut report, &checked);
    for shard in checked {
        report.bytes += shard.bytes;
        report.ignored += shard.ignored;
        report.checksums += u64::from(shard.summed);
        report.samples += shard.seen.iter().filter(|s| s.sound).count() as u64;
        report.findings.extend(shard.findings);
    }
    counts(&mut report, path, expected, manifest.as_ref());
    report.findings.sort();
    Ok(report)
}

fn check_shard(path: &PathBuf, manifest: Option<&Manifest>, step: &(dyn Fn(u64) + Sync)) -> Checked {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let mut checked = Checked { name, ..Checked::default() };
    let (shard, mut file) =
        match scan_file(path).and_then(|s| Ok((s, File::open(path).map_err(crate::Error::io(path))?))) {
            Ok(opened) => opened,
            Err(e) => {
                checked.find("", e.to_string());
                return checked;
            }
        };
    (checked.bytes, checked.ignored) = (shard.bytes, shard.scan.ignored);
    for problem in &shard.scan.problems {
        checked.find(&problem.member, &problem.reason);
    }
    if shard.scan.problems.is_empty() && !shard.scan.ended {
        checked.find("", "its end is not marked: its writer may have been cut off between members");
    }
    for entry in &shard.scan.entries {
        check_entry(&mut checked, &mut file, entry);
        step(entry.parts.iter().flatten().map(|s| s.size).sum());
    }
    check_record(&mut checked, &shard, manifest);
    checked
}

fn check_entry(checked: &mut Checked, file: &mut File, entry: &Entry) {
    let before = checked.findings.len();
    if let Some(missing) = entry.missing() {
        checked.find(&entry.key, format!("no {missing}"));
    }
    let mut shape = |part: Part| {
        let tensor = match read_tensor(file, entry.parts[part as usize]?, part) {
            Ok(tensor) => tensor,
            Err(reason) => {
                checked.find(&entry.key, reason);
                return None;
            }
        };
        let bad = count_non_finite(&tensor);
        if bad > 0 {
            let reason = format!("{}: {bad} of {} elements are NaN or infinite", part.name(), tensor.len());
            checked.find(&entry.key, reason);
        }
        Some(tensor.shape().to_vec())
    };
    let (latent, embed) = (shape(Part::Latent), shape(Part::Embed));
    if let Some(Err(reason)) = entry.parts[Part::Prompt as usize].map(|span| read_prompt(file, span)) {
        checked.find(&entry.key, reason);
    }
    let sound = checked.findings.len() == before;
    checked.seen.push(Seen { key: entry.key.clone(), latent, embed, sound });
}

fn check_record(checked: &mut Checked, shard: &Shard, manifest: Option<&Manifest>) {
    let Some(manifest) = manifest else { return };
    let Some(record) = manifest.shards.get(&checked.name) else {
        return checked.find("", "not in dataset.json: it is no finished shard of this set");
    };
    if record.bytes != shard.bytes {
        checked.find("", format!("{} bytes, dataset.json says {}", shard.bytes, record.bytes));
    }
    if record.samples != checked.seen.len() as u64 {
        checked.find("", format!("{} samples, dataset.json says {}", checked.seen.len(), record.samples));
    }
    match sha256_file(&shard.path) {
        Ok(sum) => {
            checked.summed = true;
            if sum != record.sha256 {
                checked.find("", format!("SHA-256 is {sum}, dataset.json says {}", record.sha256));
            }
        }
        Err(e) => checked.find("", e.to_string()),
    }
}

fn commonest<'a>(shapes: impl Iterator<Item = &'a Vec<usize>>) -> Option<Vec<usize>> {
    let mut counts: BTreeMap<&Vec<usize>, usize> = BTreeMap::new();
    shapes.for_each(|s| *counts.entry(s).or_default() += 1);
    counts.into_iter().max_by_key(|(_, n)| *n).map(|(s, _)| s.clone())
}

fn shapes(report: &mut Report, checked: &[Checked], expected: &Expected, manifest: Option<&Manifest>) {
    let seen = || checked.iter().flat_map(|c| c.seen.iter().map(move |s| (c, s)));
    let said = |asked: &Option<Vec<usize>>, had: Option<&Option<Vec<usize>>>| asked.clone().or(had.cloned().flatten());
    report.latent = said(&expected.latent, manifest.map(|m| &m.latent))
        .or_else(|| commonest(seen().filter_map(|(_, s)| s.latent.as_ref())));
    report.embed = said(&expected.embed, manifest.map(|m| &m.embed))
        .or_else(|| commonest(seen().filter_map(|(_, s)| s.embed.as_ref())));
    for (shard, sample) in seen() {
        for (what, got, want) in [("latent", &sample.latent, &report.latent), ("embed", &sample.embed, &report.embed)] {
            if let (Some(got), Some(want)) = (got, want)
                && got != want
            {
                let reason = format!("{what} of shape {got:?}, expected {want:?}");
                report.findings.push(Finding { shard: shard.name.clone(), member: sample.key.clone(), reason });
            }
        }
    }
}

fn duplicates(report: &mut Report, checked: &[Checked]) {
    let mut first: HashMap<&str, &str> = HashMap::new();
    for shard in checked {
        for sample in &shard.seen {
            if let Some(other) = first.insert(&sample.key, &shard.name) {
                let reason = format!("duplicate key: {other} has a sample of this name too");
                report.findings.push(Finding { shard: shard.name.clone(), member: sample.key.clone(), reason });
            }
        }
    }
}

fn counts(report: &mut Report, path: &Path, expected: &Expected, manifest: Option<&Manifest>) {
    let mut find = |shard: &str, reason: String| {
        report.findings.push(Finding { shard: shard.to_string(), member: String::new(), reason });
    };
    for name in manifest.iter().flat_map(|m| m.shards.keys()) {
        if !path.join(name).exists() {
            find(name, "missing: dataset.json lists it".into());
        }
    }
    let planned = manifest.and_then(|m| m.settings.get("build.total")).and_then(|v| v.as_u64());
    if let Some(want) = expected.samples.or(planned)
        && want != report.samples
    {
        let reason = format!("{} sound samples, expected {want}", report.samples);
        report.findings.push(Finding { shard: String::new(), member: String::new(), reason });
    }
}
