//! Mutated files: no panic, and no more memory than the file's length explains.
//!
//! `FEWSTEP_FUZZ_CASES` says how many mutations of each kind; a failure prints its case, which repeats by its number.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Mutex;

use common::{archive, view};
use fewstep_formats::torch::{self, Select};
use fewstep_formats::{FileKind, read_weights, write_folder, write_weights};
use fewstep_tensor::file::TensorFile;
use fewstep_tensor::{Tensor, bf16};
use peak_alloc::PeakAlloc;

/// Counts what is allocated.
#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;
/// One at a time, since memory is counted for all threads.
static TURN: Mutex<()> = Mutex::new(());

const DEFAULT_CASES: u64 = 3000;
/// Bytes of memory a byte of a file may cost: sixteen for copies of tensors as documented, and some forty for the values of
/// a pickle, whose lists double as they grow.
const FACTOR: usize = 128;
/// What even an empty file may cost: the copies that are always allowed, messages, and the shelf's own lists.
const FLOOR: usize = 4 << 20;

fn cases() -> u64 {
    std::env::var("FEWSTEP_FUZZ_CASES").map_or(DEFAULT_CASES, |n| n.parse().unwrap())
}

/// Files on disk take ten times as long as those in memory.
fn cases_on_disk() -> u64 {
    cases() / 4
}

/// SplitMix64 (Steele, Lea and Flood 2014): a case's numbers are a function of the case alone.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// Numbers at which readers break.
const EDGES: [u64; 10] = [0, 1, 0x7f, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 1 << 40, i64::MAX as u64, u64::MAX];
/// Parts of headers and pickles that mean something.
const WORDS: [&[u8]; 14] = [
    b"]",
    b"}",
    b"(",
    b"t",
    b"e",
    b"u",
    b"s",
    b"2",
    b"0",
    b"q\0h\0",
    b"\"shape\":[1e9]",
    b"[[[[[[[[",
    b"99999999999999",
    b"\"a\":",
];

/// A seed with one to four changes.
fn mutated(seeds: &[Vec<u8>], case: u64) -> Vec<u8> {
    let mut n = Numbers(case);
    let mut b = seeds[n.below(seeds.len())].clone();
    for _ in 0..1 + n.below(4) {
        let at = n.below(b.len());
        match n.below(8) {
            _ if b.is_empty() => b.push(n.next() as u8),
            0 => b[at] ^= 1 << n.below(8),
            1 => b[at] = n.next() as u8,
            2 => b.truncate(at),
            3 => drop(b.drain(at..(at + n.below(40)).min(b.len()))),
            4 => drop(b.splice(at..at, WORDS[n.below(WORDS.len())].iter().copied())),
            5 => {
                let (edge, width) = (EDGES[n.below(EDGES.len())].to_le_bytes(), 1 << n.below(4));
                b.iter_mut().skip(at).zip(&edge[..width]).for_each(|(b, e)| *b = *e);
            }
            6 => {
                let from = at..(at + n.below(200)).min(b.len());
                let part = b[from].to_vec();
                let to = n.below(b.len());
                drop(b.splice(to..to, part));
            }
            _ => {
                let other = &seeds[n.below(seeds.len())];
                let from = n.below(other.len());
                b.truncate(at);
                b.extend(&other[from..]);
            }
        }
    }
    b
}

/// Reads every mutation and holds the memory it took against its length.
fn survive(cases: u64, seeds: &[Vec<u8>], read: impl Fn(&[u8])) {
    let _turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    for case in 0..cases {
        let bytes = mutated(seeds, case);
        let before = MEMORY.current_usage();
        MEMORY.reset_peak_usage();
        let outcome = catch_unwind(AssertUnwindSafe(|| read(&bytes)));
        assert!(outcome.is_ok(), "case {case} panics");
        let took = MEMORY.peak_usage().saturating_sub(before);
        assert!(took <= FACTOR * bytes.len() + FLOOR, "case {case}: {took} bytes of memory for {}", bytes.len());
    }
}

fn sample() -> TensorFile {
    let mut f = TensorFile::default();
    f.tensors.insert("a.weight".into(), Tensor::from_vec(vec![1.5f32; 40], &[5, 8]).unwrap());
    f.tensors.insert("b".into(), Tensor::from_vec(vec![bf16::ONE; 12], &[3, 4]).unwrap());
    f.tensors.insert("c".into(), Tensor::from_vec(vec![0.1f64], &[]).unwrap());
    f.metadata.insert("k".into(), "v".into());
    f
}

/// A file of the kind with the sample inside.
fn written(kind: FileKind) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w");
    write_weights(&path, kind, &sample(), None).unwrap();
    std::fs::read(&path).unwrap()
}

/// What came out can be used.
fn touch(file: &TensorFile) {
    assert!(file.tensors.values().all(|t| t.to_vec_f64().len() == t.len()));
}

#[test]
fn mutated_safetensors_are_errors_or_files() {
    let integers = br#"{"i":{"dtype":"I64","shape":[2],"data_offsets":[0,16]},"h":{"dtype":"F16","shape":[1,2],"data_offsets":[16,20]}}"#;
    let by_hand = [&(integers.len() as u64).to_le_bytes()[..], integers, &[7; 20]].concat();
    survive(cases(), &[written(FileKind::Safetensors), by_hand], |bytes| {
        if let Ok(file) = TensorFile::parse(bytes, Path::new("w.safetensors")) {
            touch(&file);
        }
    });
}

#[test]
fn mutated_archives_are_errors_or_files() {
    survive(cases(), &[written(FileKind::Torch), archive(b"\x80\x02N.")], |bytes| {
        if let Ok(file) = torch::parse(bytes, Path::new("w.pth"), Select::Auto) {
            touch(&file);
        }
    });
}

/// Pickles inside an archive whose sums are right, so that they reach the machine.
#[test]
fn mutated_pickles_are_errors_or_files() {
    let (a, b) = (view(b"K\0", b"K\x03K\x02", b"K\x01K\x03"), view(b"K\x04", b"K\x02", b"K\0"));
    let list = [b"\x80\x02](", &a[..], &b, b"e."].concat();
    let dict = [b"\x80\x02}(U\x05model}(U\x01a", &a[..], b"U\x01b", &b, b"uU\x04iterK\x05u."].concat();
    survive(cases(), &[list, dict], |pickle| {
        if let Ok(file) = torch::parse(&archive(pickle), Path::new("w.pth"), Select::Auto) {
            touch(&file);
        }
    });
}

#[test]
fn mutated_indices_are_errors_or_files() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("w");
    write_folder(&folder, &serde_json::json!({}), &sample(), None, 1).unwrap();
    let index = folder.join("diffusion_pytorch_model.safetensors.index.json");
    let seed = std::fs::read(&index).unwrap();
    survive(cases_on_disk(), &[seed], |bytes| {
        std::fs::write(&index, bytes).unwrap();
        if let Ok(file) = read_weights(&folder) {
            touch(&file);
        }
    });
}
