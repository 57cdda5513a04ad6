//! PyTorch files: PyTorch's own, ours, and hostile ones.

mod common;

use std::path::{Path, PathBuf};

use common::{archive, members, view};
use fewstep_formats::torch::{self, Select};
use fewstep_formats::{Error, read_weights};
use fewstep_tensor::file::TensorFile;
use fewstep_tensor::{Tensor, bf16};

fn fixture(name: &str) -> PathBuf {
    let own = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures");
    std::env::var_os("FEWSTEP_FIXTURES").map_or_else(|| own.into(), PathBuf::from).join(name)
}

fn assert_same(a: &TensorFile, b: &TensorFile) {
    assert!(!a.tensors.is_empty());
    assert_eq!(a.tensors.keys().collect::<Vec<_>>(), b.tensors.keys().collect::<Vec<_>>());
    for (name, t) in &a.tensors {
        let other = &b.tensors[name];
        assert_eq!((t.dtype(), t.le_bytes()), (other.dtype(), other.le_bytes()), "{name}");
    }
}

#[test]
fn files_of_pytorch_equal_their_safetensors_twins_bit_for_bit() {
    for name in ["wan_t2v_weights_orig_bf16", "umt5_weights_orig_bf16"] {
        let torch = read_weights(&fixture(&format!("{name}.pth"))).unwrap();
        let twin = read_weights(&fixture(&format!("{name}.safetensors"))).unwrap();
        assert_same(&torch, &twin);
        assert!(torch.tensors.values().all(Tensor::is_mapped), "nothing is copied");
        torch::verify(&fixture(&format!("{name}.pth"))).unwrap();
    }
}

fn sample() -> TensorFile {
    let mut f = TensorFile::default();
    f.tensors.insert("a.weight".into(), Tensor::from_vec(vec![1.5f32, -2.0, f32::NAN, 0.0], &[2, 2]).unwrap());
    f.tensors.insert("b".into(), Tensor::from_vec(vec![bf16::from_f32(3.0); 3], &[3]).unwrap());
    f.tensors.insert("scalar".into(), Tensor::from_vec(vec![0.1f64], &[]).unwrap());
    f.tensors.insert("empty".into(), Tensor::from_vec(Vec::<f64>::new(), &[0, 5]).unwrap());
    f
}

#[test]
fn what_is_written_comes_back_bit_for_bit_and_aligned() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.pth");
    torch::write(&path, &sample()).unwrap();
    let back = read_weights(&path).unwrap();
    assert_same(&sample(), &back);
    assert!(back.get("a.weight").unwrap().is_mapped(), "aligned");
    assert_eq!(std::fs::read(&path).unwrap(), torch::encode_state_dict(&sample()).unwrap());
    for t in sample().tensors.values() {
        let bytes = torch::encode_tensor(t).unwrap();
        let back = torch::decode_tensor(&bytes).unwrap();
        assert_eq!((back.shape(), back.le_bytes()), (t.shape(), t.le_bytes()));
    }
}

#[test]
fn every_flipped_bit_of_a_tensor_is_an_error_or_the_same_tensor() {
    let t = Tensor::from_vec(vec![1.0f32, 2.0, 3.0], &[3]).unwrap();
    let whole = torch::encode_tensor(&t).unwrap();
    for n in 0..whole.len() {
        assert!(torch::decode_tensor(&whole[..n]).is_err(), "{n} bytes");
    }
    for i in 0..whole.len() * 8 {
        let mut flipped = whole.clone();
        flipped[i / 8] ^= 1 << (i % 8);
        if let Ok(back) = torch::decode_tensor(&flipped) {
            assert_eq!((back.shape(), back.le_bytes()), (t.shape(), t.le_bytes()), "bit {i}");
        }
    }
}

fn parse(pickle: &[u8]) -> Result<TensorFile, Error> {
    torch::parse(&archive(pickle), Path::new("w.pth"), Select::Auto)
}

fn bare(view: &[u8]) -> Result<TensorFile, Error> {
    parse(&[b"\x80\x02", view, b"."].concat())
}

#[test]
fn strides_offsets_and_shared_storages_are_followed() {
    let transposed = bare(&view(b"K\0", b"K\x03K\x02", b"K\x01K\x03")).unwrap();
    assert_eq!(transposed.tensors["tensor"].to_vec_f64(), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    let (a, b) = (view(b"K\x04", b"K\x02", b"K\x01"), view(b"K\0", b"K\x02", b"K\0"));
    let list = parse(&[b"\x80\x02](", &a[..], &b, b"e."].concat()).unwrap();
    assert_eq!(list.tensors["0"].to_vec_f64(), [5.0, 6.0]);
    assert_eq!(list.tensors["1"].to_vec_f64(), [1.0, 1.0], "a stride of nothing repeats");
}

#[test]
fn averages_are_preferred_and_any_dictionary_can_be_named() {
    let (a, b) = (view(b"K\0", b"K\x01", b"K\x01"), view(b"K\x01", b"K\x01", b"K\x01"));
    let inner = |key: &[u8], v: &[u8]| [b"U", &[key.len() as u8][..], key, b"}U\x01w", v, b"s"].concat();
    let pickle = [b"\x80\x02}(", &inner(b"net", &a)[..], &inner(b"net_ema", &b), b"u."].concat();
    let bytes = archive(&pickle);
    let read = |select| torch::parse(&bytes, Path::new("w"), select);
    assert_eq!(read(Select::Auto).unwrap().tensors["w"].to_vec_f64(), [2.0]);
    assert_eq!(read(Select::Under("net")).unwrap().tensors["w"].to_vec_f64(), [1.0]);
    assert_eq!(read(Select::Whole).unwrap().tensors.len(), 2);
    assert!(read(Select::Under("ema")).unwrap_err().to_string().contains("'ema'"));
}

#[test]
fn code_in_a_pickle_is_refused_by_name() {
    let cases: [(&[u8], &str); 9] = [
        (b"\x80\x02cos\nsystem\nX\x02\0\0\0ls\x85R.", "'os.system'"),
        (b"\x80\x04\x8c\x05posix\x8c\x06system\x93X\x02\0\0\0ls\x85R.", "'posix.system'"),
        (b"\x80\x02c__builtin__\neval\n(tR.", "'__builtin__.eval'"),
        (b"\x80\x02(X\x02\0\0\0lsios\nsystem\n.", "INST"),
        (b"\x80\x02(cos\nsystem\nX\x02\0\0\0lso.", "'os.system'"),
        (b"\x80\x02(X\x02\0\0\0lso.", "OBJ"),
        (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "NEWOBJ"),
        (b"\x80\x02]}b.", "BUILD"),
        (b"\x80\x02\x82\x01.", "EXT1"),
    ];
    for (pickle, named) in cases {
        let message = parse(pickle).unwrap_err().to_string();
        assert!(message.contains(named) && message.contains("nothing was executed"), "{message}");
    }
}

#[test]
fn views_that_leave_their_storage_are_refused() {
    let big = b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f";
    let cases = [
        (view(b"K\x01", b"K\x06", b"K\x01"), "outside its storage"),
        (view(b"J\xff\xff\xff\xff", b"K\x01", b"K\x01"), "negative"),
        (view(b"K\x05", b"K\x02", b"J\xff\xff\xff\xff"), "negative"),
        (view(b"K\0", &[&big[..], big].concat(), b"K\0K\0"), "outside its storage"),
        (view(b"K\0", b"K\x02", big), "outside its storage"),
        (view(b"K\0", b"J\0\0\0\x7f", b"K\0"), "far larger than the file"),
        (view(b"K\0", b"K\x02", b""), "more extents than strides"),
    ];
    for (view, why) in cases {
        let message = bare(&view).unwrap_err().to_string();
        assert!(message.contains(why), "{message}");
    }
}

#[test]
fn deep_cyclic_and_doubling_pickles_end_in_an_error() {
    let deep = [&b"\x80\x02"[..], &b"]".repeat(1_000_000), &b"a".repeat(999_999), b"."].concat();
    assert!(parse(&deep).is_err());
    assert!(parse(b"\x80\x02]q\0h\0a.").unwrap_err().to_string().contains("deeper"));
    let mut bomb = b"\x80\x02]q\0".to_vec();
    for i in 1..=100u8 {
        bomb.extend([b']', b'q', i, b'(', b'h', i - 1, b'h', i - 1, b'e']);
    }
    bomb.push(b'.');
    assert!(parse(&bomb).unwrap_err().to_string().contains("deeper"));
}

#[test]
fn archives_that_lie_are_refused() {
    let whole = torch::encode_tensor(&Tensor::from_vec(vec![1.0f32; 4], &[4]).unwrap()).unwrap();
    let refused = |bytes: &[u8]| torch::decode_tensor(bytes).unwrap_err().to_string();
    let find = |part: &[u8]| whole.windows(part.len()).rposition(|w| w == part).unwrap();
    let central = find(b"archive/data/0") - 46;
    let changed = |at: usize, to: &[u8]| {
        let mut b = whole.clone();
        b[at..at + to.len()].copy_from_slice(to);
        refused(&b)
    };
    assert!(changed(central + 16, &[1, 2, 3, 4]).contains("its sum"));
    assert!(changed(central + 10, &[8, 0]).contains("compressed"));
    assert!(changed(central + 8, &[1, 8]).contains("encrypted"));
    assert!(changed(central + 20, &[0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff, 0x7f]).contains("outside the file"));
    assert!(changed(central + 42, &0u32.to_le_bytes()).contains("overlap"));
    assert!(refused(&members(&[("x/data.pkl", b"\x80\x02N."), ("x/data.pkl", b"")])).contains("twice"));
    assert!(refused(&members(&[("x/data", b"")])).contains("0 members data.pkl"));
    assert!(refused(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.").contains("before 1.6"));
    assert!(refused(b"GGUF").contains("GGUF"));
    assert!(refused(b"").contains("no PyTorch file"));
}

#[test]
fn an_element_type_without_counterpart_names_its_tensor_alone() {
    let f8 = b"ctorch._utils\n_rebuild_tensor_v3\n((X\x07\0\0\0storagectorch.storage\nUntypedStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x18tQK\0(K\x18t(K\x01t\x89Nctorch\nfloat8_e4m3fn\ntR";
    let good = view(b"K\0", b"K\x06", b"K\x01");
    let file = parse(&[b"\x80\x02}(U\x01a", &f8[..], b"U\x01b", &good, b"u."].concat()).unwrap();
    assert_eq!(file.get("b").unwrap().len(), 6);
    let message = file.get("a").unwrap_err().to_string();
    assert!(message.contains("'a'") && message.contains("float8_e4m3fn"), "{message}");
}

#[test]
fn shards_are_held_against_their_index() {
    let dir = tempfile::tempdir().unwrap();
    let one = |name: &str| TensorFile {
        tensors: [(name.to_string(), Tensor::from_vec(vec![1.0f32], &[1]).unwrap())].into(),
        ..TensorFile::default()
    };
    one("a").write(&dir.path().join("s-1.safetensors")).unwrap();
    torch::write(&dir.path().join("s-2.bin"), &one("b")).unwrap();
    let read = |map: &str| {
        std::fs::write(dir.path().join("model.safetensors.index.json"), format!("{{\"weight_map\":{map}}}")).unwrap();
        read_weights(dir.path()).map_err(|e| e.to_string())
    };
    assert_eq!(read(r#"{"a":"s-1.safetensors","b":"s-2.bin"}"#).unwrap().tensors.len(), 2);
    assert!(read(r#"{"a":"s-1.safetensors","c":"s-1.safetensors"}"#).unwrap_err().contains("'c' is not in"));
    assert!(read(r#"{"a":"s-2.bin","b":"s-2.bin"}"#).unwrap_err().contains("'a' is not in"));
    assert!(read(r#"{"a":"s-1.safetensors","b":"s-3.bin"}"#).unwrap_err().contains("s-3.bin"));
    assert!(read(r#"{"a":"../s-1.safetensors"}"#).unwrap_err().contains("beside the index"));
    assert!(read(r#"{"b":"s-1.safetensors"}"#).unwrap_err().contains("does not know"));
    assert!(read("3").unwrap_err().contains("weight_map"));
    std::fs::remove_file(dir.path().join("model.safetensors.index.json")).unwrap();
    assert!(read_weights(dir.path()).unwrap_err().to_string().contains("2 files of weights"));
    std::fs::remove_file(dir.path().join("s-2.bin")).unwrap();
    assert_eq!(read_weights(dir.path()).unwrap().tensors.len(), 1);
    assert!(read_weights(&dir.path().join("none")).is_err());
}
