//! Damaged files of every kind: an error, or other pixels, and never a panic.
//!
//! `FEWSTEP_FUZZ_CASES` is the number of mutations of each file.

use std::fs;
use std::path::Path;

use crate::common::scene;
use fewstep_media::{Image, Metadata, VideoOptions, Wanted, mp4_metadata, read_image, read_video};

const CASES: u64 = 1000;

fn cases() -> u64 {
    std::env::var("FEWSTEP_FUZZ_CASES").map_or(CASES, |n| n.parse().expect("FEWSTEP_FUZZ_CASES is a number"))
}

/// Random numbers of a seed (SplitMix64).
struct Draws(u64);

impl Draws {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

/// A file with some bytes changed, half of the time near its start, and sometimes cut, doubled in part or with a number
/// of four bytes replaced by an extreme one.
fn mutated(bytes: &[u8], seed: u64) -> Vec<u8> {
    let (mut draws, mut bytes) = (Draws(seed), bytes.to_vec());
    for _ in 0..1 + draws.below(4) {
        let reach = if draws.below(2) == 0 { bytes.len() } else { bytes.len().min(900) };
        let at = draws.below(reach.max(1));
        match draws.below(8) {
            0 => bytes.truncate(at),
            1 => drop(bytes.splice(at..at, bytes[at..(at + 40).min(bytes.len())].to_vec())),
            2 | 3 if at + 4 <= bytes.len() => {
                let extreme = [[0xff; 4], [0; 4], [0x7f, 0xff, 0xff, 0xff], [0, 0, 0, 1]][draws.below(4)];
                bytes[at..at + 4].copy_from_slice(&extreme);
            }
            4 if at < bytes.len() => bytes[at] ^= 1 << draws.below(8),
            _ if at < bytes.len() => bytes[at] = draws.below(256) as u8,
            _ => (),
        }
    }
    bytes
}

/// Reads every mutation, and says how many were refused.
fn hammer(kind: &str, bytes: &[u8], cases: u64, read: impl Fn(&Path) -> bool) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let refused = (0..cases).filter(|&seed| {
        fs::write(&path, mutated(bytes, seed)).unwrap();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| read(&path)));
        !outcome.unwrap_or_else(|_| panic!("{kind}: mutation {seed} panicked"))
    });
    let refused = refused.count();
    println!("{kind}: {refused} of {cases} refused");
    assert!(refused > 0 || cases < 100, "{kind}: no mutation was noticed");
}

fn image() -> Image {
    Image::new(40, 24, scene(40, 24, 1).frames()[0].clone()).unwrap()
}

fn hammer_image(kind: &str, bytes: &[u8]) {
    hammer(kind, bytes, cases(), |path| read_image(path).is_ok());
}

#[test]
fn damaged_pngs_never_panic() {
    hammer_image("PNG", &scene(40, 24, 1).to_apng(&Metadata::new()).unwrap());
    hammer_image("APNG", &scene(40, 24, 3).to_apng(&Metadata::new()).unwrap());
}

#[test]
fn damaged_gifs_never_panic() {
    hammer_image("GIF", &scene(40, 24, 2).to_gif(&Metadata::new()).unwrap());
}

#[test]
fn damaged_jpegs_never_panic() {
    for (kind, progressive) in [("JPEG", false), ("progressive JPEG", true)] {
        let mut bytes = Vec::new();
        let mut encoder = jpeg_encoder::Encoder::new(&mut bytes, 90);
        encoder.set_progressive(progressive);
        encoder.encode(image().rgb(), 40, 24, jpeg_encoder::ColorType::Rgb).unwrap();
        hammer_image(kind, &bytes);
    }
}

#[test]
fn damaged_webps_never_panic() {
    let mut bytes = Vec::new();
    let encoder = image_webp::WebPEncoder::new(&mut bytes);
    encoder.encode(image().rgb(), 40, 24, image_webp::ColorType::Rgb8).unwrap();
    hammer_image("WebP", &bytes);
}

#[test]
fn damaged_mp4s_never_panic() {
    let bytes = scene(48, 32, 5).to_mp4(&VideoOptions::default(), &Metadata::new().with("seed", 7)).unwrap();
    let wanted = Wanted { width: 48, height: 32, frames: 5, fps: 16.0 };
    // Without its mark the file is a stranger's, for which another program would be started each time.
    let ours = |path: &Path| mp4_metadata(path).is_ok_and(|note| !note.entries().is_empty());
    hammer("MP4", &bytes, cases(), |path| ours(path) && read_video(path, &wanted).is_ok());
}
