use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use fewstep_shards::{Encoding, Expected, Report, verify};

use super::whole;

fn check(path: &Path) -> Report {
    verify(path, &Expected::default(), &|_| {}).unwrap()
}

/// A set whose shard 0 is changed by hand.
fn changed(change: impl FnOnce(&mut Vec<u8>)) -> (tempfile::TempDir, Report) {
    changed_as(Encoding::Torch, change)
}

fn changed_as(encoding: Encoding, change: impl FnOnce(&mut Vec<u8>)) -> (tempfile::TempDir, Report) {
    let dir = tempfile::tempdir().unwrap();
    whole(dir.path(), 4, 2, encoding);
    // As a set made by others: without a manifest, so that the change is found by its own kind of damage.
    std::fs::remove_file(dir.path().join("dataset.json")).unwrap();
    let path = dir.path().join("shard_000000.tar");
    let mut bytes = std::fs::read(&path).unwrap();
    change(&mut bytes);
    std::fs::write(&path, bytes).unwrap();
    let report = check(dir.path());
    (dir, report)
}

fn says(report: &Report, shard: &str, member: &str, reason: &str) {
    let found = report.findings.iter().any(|f| f.shard == shard && f.member == member && f.reason.contains(reason));
    assert!(found, "{shard} {member} {reason}: {:#?}", report.findings);
}

fn find(bytes: &[u8], what: &[u8]) -> usize {
    bytes.windows(what.len()).position(|w| w == what).unwrap()
}

#[test]
fn a_sound_set_is_sound_with_and_without_its_manifest() {
    let dir = tempfile::tempdir().unwrap();
    whole(dir.path(), 5, 2, Encoding::Torch);
    let seen = AtomicU64::new(0);
    let report = verify(dir.path(), &Expected::default(), &|p| {
        seen.fetch_max(p.bytes, Ordering::Relaxed);
        assert!(p.bytes <= p.total_bytes);
    });
    let report = report.unwrap();
    assert!(report.is_sound(), "{report:#?}");
    assert_eq!((report.shards, report.samples, report.checksums), (3, 5, 3));
    assert!(seen.into_inner() > 0);
    std::fs::remove_file(dir.path().join("dataset.json")).unwrap();
    let report = check(dir.path());
    assert!(report.is_sound() && report.checksums == 0, "{report:#?}");
}

#[test]
fn a_changed_byte_is_found_by_its_checksum_and_a_missing_shard_by_its_name() {
    let dir = tempfile::tempdir().unwrap();
    whole(dir.path(), 4, 2, Encoding::Torch);
    let path = dir.path().join("shard_000001.tar");
    let mut bytes = std::fs::read(&path).unwrap();
    let at = find(&bytes, b"prompt 3");
    bytes[at] = b'P';
    std::fs::write(path, bytes).unwrap();
    std::fs::remove_file(dir.path().join("shard_000000.tar")).unwrap();
    let report = check(dir.path());
    says(&report, "shard_000001.tar", "", "SHA-256");
    says(&report, "shard_000000.tar", "", "missing");
    says(&report, "", "", "2 sound samples, expected 4");
}

#[test]
fn a_cut_off_shard_names_the_member_that_is_cut() {
    let (_dir, report) = changed(|bytes| bytes.truncate(bytes.len() - 3500));
    let cut = report.findings.iter().any(|f| f.shard == "shard_000000.tar" && f.reason.contains("cut off"));
    assert!(cut && report.samples < 4, "{report:#?}");
    says(&report, "shard_000000.tar", "000000001", "no ");
}

#[test]
fn a_shard_without_an_end_is_found() {
    let (_dir, report) = changed(|bytes| bytes.truncate(bytes.len() - 1024));
    says(&report, "shard_000000.tar", "", "its end is not marked");
}

#[test]
fn a_flipped_header_is_found() {
    let (_dir, report) = changed(|bytes| bytes[3] ^= 1);
    says(&report, "shard_000000.tar", "", "unreadable header after byte 0");
}

#[test]
fn a_prompt_that_is_not_utf8_is_found() {
    let (_dir, report) = changed(|bytes| {
        let at = find(bytes, b"prompt 1");
        bytes[at] = 0xff;
    });
    says(&report, "shard_000000.tar", "000000001", "not UTF-8");
}

#[test]
fn a_tensor_that_is_not_finite_is_found() {
    // A form without sums, where the number itself is what is found.
    let (_dir, report) = changed_as(Encoding::Safetensors, |bytes| {
        let at = find(bytes, b"{\"latent\"");
        let header = u64::from_le_bytes(bytes[at - 8..at].try_into().unwrap()) as usize;
        bytes[at + header + 2..at + header + 4].copy_from_slice(&[0xc0, 0x7f]);
    });
    says(&report, "shard_000000.tar", "000000000", "1 of 120 elements are NaN");
}

#[test]
fn a_key_in_two_shards_and_another_shape_are_found() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    whole(one.path(), 2, 2, Encoding::Torch);
    whole(two.path(), 1, 1, Encoding::Safetensors);
    let from = two.path().join("shard_000000.tar");
    std::fs::remove_file(one.path().join("dataset.json")).unwrap();
    std::fs::copy(from, one.path().join("shard_000001.tar")).unwrap();
    let expected = Expected { latent: Some(vec![1, 2]), ..Expected::default() };
    let report = verify(one.path(), &expected, &|_| {}).unwrap();
    says(&report, "shard_000001.tar", "000000000", "duplicate key: shard_000000.tar");
    says(&report, "shard_000000.tar", "000000001", "latent of shape [4, 2, 3, 5], expected [1, 2]");
}

#[test]
fn a_flipped_bit_of_a_tensor_is_found_by_the_sum_in_its_member() {
    let (_dir, report) = changed(|bytes| bytes[1100] ^= 4);
    assert!(report.findings.iter().all(|f| (f.shard.as_str(), f.member.as_str()) == ("shard_000000.tar", "000000000")));
    assert_eq!(report.findings.len(), 1, "{report:#?}");
}
