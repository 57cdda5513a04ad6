//! The sample at a position.

use std::cell::RefCell;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use fewstep_tensor::Tensor;

use crate::digest::sha256;
use crate::index::{Shard, index};
use crate::layout::Part;
use crate::order::Order;
use crate::scan::{Entry, Span};
use crate::{Error, Result};

/// The longest prompt that is read, in bytes.
pub const PROMPT_MAX: u64 = 1 << 20;
/// Chunks of 256 samples that are mixed at a time: 2048 samples; the published loader mixes about 1000.
pub const WINDOW: usize = 8;
/// The name of the index cache beside a set.
const CACHE: &str = ".fewstep-index.json";

/// What becomes of samples that lack a part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Incomplete {
    /// The set is refused; the message names shard and key.
    #[default]
    Refuse,
    /// They are left out of the count, and listed in [`ShardReader::left_out`]. The order is that of the others.
    LeaveOut,
}

/// Where the index of a set is kept between runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum IndexCache {
    /// In the set's own folder.
    #[default]
    Beside,
    /// In another folder, under a name that follows from the set's files.
    Folder(PathBuf),
    /// Nowhere: every opening reads every header.
    Off,
}

/// How a set is read.
#[derive(Clone, Debug)]
pub struct ReadOptions {
    /// The seed of the order.
    pub seed: u64,
    /// How many chunks of 256 samples are mixed; see [`crate::order`].
    pub window: usize,
    /// What becomes of samples that lack a part.
    pub incomplete: Incomplete,
    /// Where the index is kept.
    pub cache: IndexCache,
    /// The shape that every latent must have, such as [16, 21, 60, 104]; any if none is given.
    pub latent: Option<Vec<usize>>,
    /// The shape that every embedding must have, such as [512, 4096]; any if none is given.
    pub embed: Option<Vec<usize>>,
}

impl Default for ReadOptions {
    fn default() -> Self {
        ReadOptions {
            seed: 0,
            window: WINDOW,
            incomplete: Incomplete::Refuse,
            cache: IndexCache::Beside,
            latent: None,
            embed: None,
        }
    }
}

/// A sample of a set.
#[derive(Clone, Debug)]
pub struct Example {
    /// The sample's key.
    pub key: String,
    /// The latent video, [C, F, H, W], in the dtype stored.
    pub latent: Tensor,
    /// The text embedding, [S, D], in the dtype stored.
    pub embed: Tensor,
    /// The prompt.
    pub prompt: String,
}

/// A set of shards, open for reading by any number of threads.
#[derive(Debug)]
pub struct ShardReader {
    shards: Vec<Shard>,
    /// (shard, entry) of each whole sample.
    samples: Vec<(u32, u32)>,
    left_out: Vec<String>,
    order: Order,
    options: ReadOptions,
}

/// The tars of a set: the file itself, or all `*.tar` in a folder, by name. Hidden files are no part of a set.
///
/// # Errors
/// If the path does not exist, or the folder holds none.
pub fn shard_files(path: &Path) -> Result<Vec<PathBuf>> {
    if std::fs::metadata(path).map_err(Error::io(path))?.is_file() {
        return Ok(vec![path.to_path_buf()]);
    }
    let entries = std::fs::read_dir(path).map_err(Error::io(path))?;
    let paths = entries.map(|e| e.map(|e| e.path())).collect::<std::io::Result<Vec<_>>>().map_err(Error::io(path))?;
    let is_shard = |p: &PathBuf| {
        let name = p.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        name.ends_with(".tar") && !name.starts_with('.') && p.is_file()
    };
    let mut files: Vec<_> = paths.into_iter().filter(is_shard).collect();
    files.sort_unstable();
    if files.is_empty() {
        let reason = "no *.tar in this folder: give the folder that holds shard_000000.tar, or one merged tar".into();
        return Err(Error::NoSet { path: path.to_path_buf(), reason });
    }
    Ok(files)
}

impl ShardReader {
    /// Opens a folder of tars, or one merged tar.
    ///
    /// # Errors
    /// If there is none, one is damaged or hostile, a sample lacks a part (unless left out), or nothing is left.
    pub fn open(path: &Path, options: ReadOptions) -> Result<Self> {
        Self::open_files(&shard_files(path)?, options)
    }

    /// Opens a list of tars, in the order given.
    ///
    /// # Errors
    /// As [`ShardReader::open`].
    pub fn open_files(files: &[PathBuf], options: ReadOptions) -> Result<Self> {
        if options.window == 0 {
            let (what, expected) = ("the window of the shuffle", "1 or more chunks".to_string());
            return Err(Error::Setting { what, expected, got: "0".into() });
        }
        let shards = index(files, cache_file(files, &options.cache).as_deref())?;
        let (mut samples, mut left_out, mut counts) = (Vec::new(), Vec::new(), Vec::new());
        for (s, shard) in shards.iter().enumerate() {
            if let Some(problem) = shard.scan.problems.first() {
                let colon = if problem.member.is_empty() { "" } else { ": " };
                let reason = format!("{}{colon}{}", problem.member, problem.reason);
                return Err(Error::Archive { path: shard.path.clone(), reason });
            }
            let before = samples.len();
            for (e, entry) in shard.scan.entries.iter().enumerate() {
                match (entry.missing(), options.incomplete) {
                    (None, _) => samples.push((s as u32, e as u32)),
                    (Some(what), Incomplete::Refuse) => return Err(bad(shard, entry, format!("no {what}"))),
                    (Some(what), Incomplete::LeaveOut) => {
                        left_out.push(bad(shard, entry, format!("no {what}")).to_string())
                    }
                }
            }
            counts.push(samples.len() - before);
        }
        if samples.is_empty() {
            let path = files.first().cloned().unwrap_or_default();
            return Err(Error::NoSet { path, reason: "no whole sample in the set".into() });
        }
        let order = Order::new(options.seed, &counts, options.window);
        Ok(ShardReader { shards, samples, left_out, order, options })
    }

    /// The number N of samples in an epoch; position p lies in epoch ⌊p / N⌋.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Whether there is no sample; an open set has at least one.
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// The samples that lack a part and were left out, one message each.
    pub fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// The key of the sample at a position (below N·2³²), without reading it.
    pub fn key(&self, position: u64) -> &str {
        &self.at(self.order.index(position)).1.key
    }

    /// The sample at a position of the shuffled, endless stream: a pure function of the files, the options and the position.
    ///
    /// # Errors
    /// If the sample cannot be read, is damaged or has another shape; the message names shard and key.
    pub fn sample(&self, position: u64) -> Result<Example> {
        if position / self.len() as u64 > u64::from(u32::MAX) {
            let expected = "within 2^32 epochs".to_string();
            return Err(Error::Setting { what: "the position", expected, got: position.to_string() });
        }
        self.in_order(self.order.index(position))
    }

    /// Sample `i < len()` in the set's own order.
    ///
    /// # Errors
    /// As [`ShardReader::sample`], or if there are not so many.
    pub fn in_order(&self, i: usize) -> Result<Example> {
        if i >= self.len() {
            let expected = format!("below {}", self.len());
            return Err(Error::Setting { what: "the sample's place in the set", expected, got: i.to_string() });
        }
        let (shard, entry) = self.at(i);
        let mut file = File::open(&shard.path).map_err(Error::io(&shard.path))?;
        let example = read_entry(&mut file, entry).map_err(|reason| bad(shard, entry, reason))?;
        let check = |what, tensor: &Tensor, want: &Option<Vec<usize>>| match want {
            Some(want) if tensor.shape() != want => {
                Err(bad(shard, entry, format!("{what} of shape {:?}, expected {want:?}", tensor.shape())))
            }
            _ => Ok(()),
        };
        check("latent", &example.latent, &self.options.latent)?;
        check("embed", &example.embed, &self.options.embed)?;
        Ok(example)
    }

    fn at(&self, i: usize) -> (&Shard, &Entry) {
        let (s, e) = self.samples[i];
        let shard = &self.shards[s as usize];
        (shard, &shard.scan.entries[e as usize])
    }
}

fn bad(shard: &Shard, entry: &Entry, reason: String) -> Error {
    Error::BadSample { path: shard.path.clone(), key: entry.key.clone(), reason }
}

fn cache_file(files: &[PathBuf], cache: &IndexCache) -> Option<PathBuf> {
    let names = files.iter().map(|p| p.to_string_lossy()).collect::<Vec<_>>().join("\n");
    match cache {
        IndexCache::Off => None,
        IndexCache::Beside => Some(files.first()?.parent()?.join(CACHE)),
        IndexCache::Folder(folder) => Some(folder.join(format!("index-{}.json", &sha256(names.as_bytes())[..16]))),
    }
}

thread_local! {
    /// A member's bytes. Kept: a fresh buffer of megabytes would cost as much in page faults as the read itself.
    static BYTES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Reads a whole entry; the error is the reason alone.
pub(crate) fn read_entry(file: &mut File, entry: &Entry) -> Result<Example, String> {
    let [Some(latent), Some(embed), Some(prompt)] = entry.parts else {
        return Err(format!("no {}", entry.missing().unwrap_or_default()));
    };
    let latent = read_tensor(file, latent, Part::Latent)?;
    let embed = read_tensor(file, embed, Part::Embed)?;
    let prompt = read_prompt(file, prompt)?;
    Ok(Example { key: entry.key.clone(), latent, embed, prompt })
}

/// Reads a tensor member; the scan has checked that the span lies in the file, so its size bounds the buffer.
pub(crate) fn read_tensor(file: &mut File, span: Span, part: Part) -> Result<Tensor, String> {
    with_bytes(file, span, |bytes| span.encoding.decode(bytes).map_err(|e| e.to_string()))
        .map_err(|e| format!("{}: {e}", part.name()))
}

/// Reads a prompt member.
pub(crate) fn read_prompt(file: &mut File, span: Span) -> Result<String, String> {
    if span.size > PROMPT_MAX {
        return Err(format!("prompt: {} bytes, at most {PROMPT_MAX} are read", span.size));
    }
    with_bytes(file, span, |bytes| match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_string()),
        Err(e) => Err(format!("prompt: not UTF-8 after byte {}", e.valid_up_to())),
    })
}

fn with_bytes<T>(file: &mut File, span: Span, use_it: impl FnOnce(&[u8]) -> Result<T, String>) -> Result<T, String> {
    let size = usize::try_from(span.size).map_err(|_| "larger than memory".to_string())?;
    let now = file.metadata().map_err(|e| e.to_string())?.len();
    if span.offset.checked_add(span.size).is_none_or(|end| end > now) {
        return Err("the archive has become shorter since it was indexed".to_string());
    }
    // Taken, not borrowed: while decoding waits for the thread pool, this thread may be given another member.
    let mut buffer = BYTES.take();
    if buffer.len() < size {
        buffer.resize(size, 0);
    }
    let read = file.seek(SeekFrom::Start(span.offset)).and_then(|_| file.read_exact(&mut buffer[..size]));
    let used = read.map_err(|e| e.to_string()).and_then(|()| use_it(&buffer[..size]));
    BYTES.set(buffer);
    used
}
