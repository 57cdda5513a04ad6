//! Hostile headers of safetensors files, and folders written as other programs load them.

use std::path::Path;

use fewstep_formats::{FileKind, read_weights, write_folder, write_weights};
use fewstep_tensor::file::TensorFile;
use fewstep_tensor::{DType, Tensor, bf16};
use serde_json::json;

/// A file of this header and so many bytes of data.
fn parse(header: &str, data: usize) -> Result<TensorFile, String> {
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat();
    TensorFile::parse(&bytes, Path::new("w.safetensors")).map_err(|e| e.to_string())
}

fn entry(name: &str, shape: &str, offsets: &str) -> String {
    format!(r#""{name}":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}"#)
}

#[test]
fn a_header_that_lies_about_its_data_is_refused() {
    let cases = [
        // Two tensors share bytes.
        (format!("{{{},{}}}", entry("a", "[2]", "[0,8]"), entry("b", "[2]", "[4,12]")), 12),
        // Bytes between tensors belong to none.
        (format!("{{{},{}}}", entry("a", "[1]", "[0,4]"), entry("b", "[1]", "[8,12]")), 12),
        // Bytes after the last.
        (format!("{{{}}}", entry("a", "[1]", "[0,4]")), 8),
        // A hundred gigabytes in a file of none.
        (format!("{{{}}}", entry("a", "[25000000000]", "[0,100000000000]")), 0),
        (format!("{{{}}}", entry("a", "[25000000000]", "[0,4]")), 4),
        // Extents whose product wraps to the right size.
        (format!("{{{}}}", entry("a", "[4294967296,4294967296]", "[0,0]")), 0),
        (format!("{{{}}}", entry("a", "[18446744073709551615,3]", "[0,4]")), 4),
        // Backwards, negative and beyond 64 bits.
        (format!("{{{}}}", entry("a", "[1]", "[4,0]")), 4),
        (format!("{{{}}}", entry("a", "[-1]", "[0,4]")), 4),
        (format!("{{{}}}", entry("a", "[1]", "[0,99999999999999999999999]")), 4),
        // One name with two places.
        (format!("{{{},{}}}", entry("a", "[1]", "[0,4]"), entry("a", "[2]", "[4,12]")), 12),
        // Not tensors at all.
        ("[]".to_string(), 0),
        (r#"{"a":3}"#.to_string(), 0),
        ("[".repeat(100_000), 0),
    ];
    for (header, data) in cases {
        let message = parse(&header, data).map(|_| header.clone()).unwrap_err();
        assert!(message.contains("w.safetensors") && message.contains(';'), "{message}");
    }
}

#[test]
fn a_length_beyond_the_file_is_refused_before_it_is_believed() {
    for length in [u64::MAX, i64::MAX as u64, 1 << 40, 100, 3] {
        let bytes = [&length.to_le_bytes()[..], b"{}"].concat();
        assert!(TensorFile::parse(&bytes, Path::new("w")).is_err(), "{length}");
    }
}

fn sample() -> TensorFile {
    let mut f = TensorFile::default();
    for (i, name) in ["a", "b", "c"].into_iter().enumerate() {
        let elements = (0..6).map(|k| bf16::from_f32((10 * i + k) as f32)).collect();
        f.tensors.insert(name.into(), Tensor::from_vec(elements, &[2, 3]).unwrap());
    }
    f.tensors.insert("d".into(), Tensor::from_vec(vec![0.1f32, 1e-40], &[2]).unwrap());
    f
}

fn assert_same(got: &TensorFile, want: &TensorFile) {
    assert_eq!(got.tensors.keys().collect::<Vec<_>>(), want.tensors.keys().collect::<Vec<_>>());
    for (name, t) in &want.tensors {
        let other = &got.tensors[name];
        assert_eq!((other.dtype(), other.shape(), other.le_bytes()), (t.dtype(), t.shape(), t.le_bytes()), "{name}");
    }
}

fn names(folder: &Path) -> Vec<String> {
    let mut all: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    all.sort();
    all
}

#[test]
fn a_folder_is_cut_into_shards_above_their_size_and_comes_back_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("w");
    // The four tensors take 12, 12, 12 and 8 bytes.
    for (size, shards) in [(44, 1), (43, 2), (24, 2), (23, 3), (12, 4), (0, 4)] {
        write_folder(&folder, &json!({ "k": 1 }), &sample(), None, size).unwrap();
        let files = names(&folder);
        assert_eq!(files.iter().filter(|n| n.ends_with(".safetensors")).count(), shards, "{files:?}");
        assert_eq!(files.iter().any(|n| n.ends_with(".index.json")), shards > 1);
        assert_same(&read_weights(&folder).unwrap(), &sample());
        assert_eq!(names(dir.path()), ["w"], "nothing is left beside it");
    }
}

#[test]
fn a_folder_that_cannot_be_written_leaves_the_one_that_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("w");
    write_folder(&folder, &json!({}), &sample(), None, 100).unwrap();
    let mut lossy = sample();
    lossy.unreadable.insert("e".into(), "dtype F8".into());
    assert!(write_folder(&folder, &json!({}), &lossy, None, 100).unwrap_err().to_string().contains("'e'"));
    assert_same(&read_weights(&folder).unwrap(), &sample());
    assert_eq!(names(dir.path()), ["w"]);
    assert!(write_folder(&dir.path().join("none/w"), &json!({}), &sample(), None, 100).is_err());
}

#[test]
fn a_dtype_asked_for_is_that_of_every_tensor_in_both_kinds_of_file() {
    let dir = tempfile::tempdir().unwrap();
    for (kind, name) in [(FileKind::Safetensors, "w.safetensors"), (FileKind::Torch, "w.pth")] {
        let path = dir.path().join(name);
        for dtype in [DType::F32, DType::Bf16] {
            write_weights(&path, kind, &sample(), Some(dtype)).unwrap();
            let mut want = sample();
            want.tensors.values_mut().for_each(|t| *t = t.to_dtype(dtype));
            assert_same(&read_weights(&path).unwrap(), &want);
        }
        write_weights(&path, kind, &sample(), None).unwrap();
        assert_same(&read_weights(&path).unwrap(), &sample());
        assert_eq!(FileKind::of_name(&path), Some(kind));
    }
    assert_eq!(FileKind::of_name(Path::new("Wan2.1-T2V-1.3B")), None);
}
