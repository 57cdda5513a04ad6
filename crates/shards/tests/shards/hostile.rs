use std::io::Cursor;

use fewstep_shards::scan::{Scan, scan};
use fewstep_shards::{Encoding, Expected, Incomplete, IndexCache, ReadOptions, ShardReader, verify};
use fewstep_tensor::random::{Purpose, Stream};
use tar::EntryType;

use super::{sample, whole};

/// A member as anyone may write it.
fn member(name: &str, kind: EntryType, size: u64, data: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.as_mut_bytes()[..name.len().min(100)].copy_from_slice(&name.as_bytes()[..name.len().min(100)]);
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o644);
    header.set_cksum();
    let mut out = header.as_bytes().to_vec();
    out.extend(data);
    out.resize(out.len().next_multiple_of(512), 0);
    out
}

fn scanned(parts: &[Vec<u8>]) -> Scan {
    let bytes = [parts.concat(), vec![0; 1024]].concat();
    let len = bytes.len() as u64;
    scan(Cursor::new(bytes), len)
}

fn refused(parts: &[Vec<u8>], why: &str) {
    let found = scanned(parts);
    assert!(found.problems.iter().any(|p| p.reason.contains(why)), "{why}: {found:?}");
}

#[test]
fn members_that_leave_the_archive_are_refused() {
    for name in ["/etc/0.latent.pt", "../0.latent.pt", "a/../../0.latent.pt"] {
        refused(&[member(name, EntryType::Regular, 1, b"x")], "refused");
    }
}

#[test]
fn links_devices_sparse_files_and_long_names_are_refused() {
    for (kind, what) in [
        (EntryType::Symlink, "symbolic link"),
        (EntryType::Link, "hard link"),
        (EntryType::Char, "device"),
        (EntryType::Block, "device"),
        (EntryType::Fifo, "pipe"),
        (EntryType::GNULongName, "GNU long name"),
        (EntryType::GNUSparse, "sparse"),
    ] {
        refused(&[member("0.latent.pt", kind, 0, b"")], what);
    }
}

#[test]
fn sizes_beyond_the_file_are_refused_without_being_allocated() {
    refused(&[member("0.latent.pt", EntryType::Regular, 1 << 60, b"")], "cut off");
    refused(&[member("0.latent.pt", EntryType::Regular, u64::MAX - 5, b"")], "overflow");
}

#[test]
fn extension_headers_that_are_giant_repeated_or_change_the_layout_are_refused() {
    let pax = |text: &str| member("PaxHeader", EntryType::XHeader, text.len() as u64, text.as_bytes());
    let file = member("0.latent.pt", EntryType::Regular, 1, b"x");
    refused(&[pax(&"x".repeat(20_000)), file.clone()], "more than");
    refused(&[pax("9 a=bcde\n"), pax("9 a=bcde\n"), file.clone()], "two extension headers");
    refused(&[pax("12 size=999\n"), file.clone()], "changes the member's size");
    refused(&[pax("22 GNU.sparse.major=1\n"), file.clone()], "sparse");
    refused(&[pax("rubbish"), file.clone()], "malformed");
    refused(&[pax("23 path=../0.latent.pt\n"), file.clone()], "refused");
    refused(&[pax("9 a=bcde\n")], "cut off");
    let global = member("g", EntryType::XGlobalHeader, 20, b"20 path=0.latent.pt\n");
    refused(&[global, file], "names all members");
}

#[test]
fn a_time_in_an_extension_header_is_no_problem_and_a_name_there_counts() {
    let text = "30 mtime=1700000000.123456789\n23 path=7/7.prompt.txt\n";
    let pax = member("PaxHeader", EntryType::XHeader, text.len() as u64, text.as_bytes());
    let found = scanned(&[pax, member("short", EntryType::Regular, 1, b"x")]);
    assert_eq!((found.problems.len(), found.entries[0].key.as_str()), (0, "7"), "{found:?}");
}

#[test]
fn a_part_that_comes_twice_is_refused() {
    let file = |name| member(name, EntryType::Regular, 1, b"x");
    refused(&[file("0.latent.pt"), file("0.latent.pt")], "duplicate key");
    refused(&[file("0.latent.pt"), file("0.latent.safetensors")], "duplicate key");
    refused(&[file("0.latent.pt"), file("0/0.latent.pt")], "duplicate key");
}

/// The number of mutated files that the tests below try.
fn cases() -> u64 {
    std::env::var("FEWSTEP_FUZZ_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(2000)
}

/// A few random changes: bytes, fields of zeros or ones, pieces moved, ends cut.
fn mutate(bytes: &[u8], case: u64) -> Vec<u8> {
    let mut out = bytes.to_vec();
    let u = Stream::new(1, Purpose::Check, case % (1 << 32)).uniform(0, 26);
    let pick = |x: f64, n: usize| (x * n.max(1) as f64) as usize;
    for k in 0..1 + pick(u[0], 4) {
        let [kind, at, to, len] = [u[4 * k + 1], u[4 * k + 2], u[4 * k + 3], u[4 * k + 4]];
        if out.is_empty() {
            break;
        }
        let (at, to) = (pick(at, out.len()), pick(to, out.len()));
        let len = 1 + pick(len * len * len, 600.min(out.len() - at.max(to)));
        match pick(kind, 7) {
            0 => out[at] ^= 1 << (to % 8),
            1 => out[at] = to as u8,
            2 => out[at..at + len].fill(0),
            3 => out[at..at + len].fill(0xff),
            4 => out.copy_within(at..at + len, to),
            5 => out.truncate(at),
            _ => out[at] = b'0' + (to % 10) as u8,
        }
    }
    out
}

/// Makes the checksums of headers right again, so that a change gets past them.
fn mend(bytes: &mut [u8]) {
    for block in bytes.as_chunks_mut::<512>().0.iter_mut().filter(|b| &b[257..262] == b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

#[test]
fn mutated_members_are_tensors_or_errors_never_a_panic() {
    for encoding in [Encoding::Torch, Encoding::Safetensors] {
        let whole = encoding.encode(&sample(1).embed, "embed").unwrap();
        (0..cases()).for_each(|case| drop(encoding.decode(&mutate(&whole, case))));
        (0..whole.len()).for_each(|n| assert!(encoding.decode(&whole[..n]).is_err()));
    }
}

#[test]
fn mutated_archives_are_scanned_within_their_own_bounds() {
    let dir = tempfile::tempdir().unwrap();
    whole(dir.path(), 3, 3, Encoding::Torch);
    let whole = std::fs::read(dir.path().join("shard_000000.tar")).unwrap();
    for case in 0..cases() {
        let mut bytes = mutate(&whole, case);
        if case % 2 == 0 {
            mend(&mut bytes);
        }
        let len = bytes.len() as u64;
        let found = scan(Cursor::new(bytes), len);
        let spans = found.entries.iter().flat_map(|e| e.parts.iter().flatten());
        spans.for_each(|s| assert!(s.offset + s.size <= len, "case {case}: {s:?} of {len}"));
    }
}

#[test]
fn mutated_sets_are_read_and_verified_without_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    whole(dir.path(), 3, 3, Encoding::Torch);
    std::fs::remove_file(dir.path().join("dataset.json")).unwrap();
    let path = dir.path().join("shard_000000.tar");
    let whole = std::fs::read(&path).unwrap();
    for case in 0..cases() / 10 {
        let mut bytes = mutate(&whole, case);
        mend(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
        let report = verify(&path, &Expected::default(), &|_| {}).unwrap();
        let options =
            ReadOptions { incomplete: Incomplete::LeaveOut, cache: IndexCache::Off, ..ReadOptions::default() };
        if let Ok(reader) = ShardReader::open(&path, options) {
            let read = (0..reader.len()).filter(|&i| reader.in_order(i).is_ok()).count();
            assert!(read as u64 >= report.samples, "case {case}: what verifies can be read");
        }
    }
}
