//! `export`: the layouts and files of other programs, and back.

use fewstep_nn::wan::WanConfig;
use fewstep_tensor::DType;
use fewstep_tensor::file::TensorFile;

use crate::{Place, TEACHER, assert_says};

const WAN: &str = "wan_t2v_weights_orig_bf16.safetensors";
const DIFFUSERS: &str = "wan_t2v_weights_diffusers_f32.safetensors";

fn place() -> Place {
    let place = Place::new();
    for name in [WAN, DIFFUSERS] {
        std::fs::copy(crate::fixtures().join(name), place.path(name)).unwrap();
    }
    place
}

/// Exports the fixture's network or what came of it.
fn export(place: &Place, model: &str, layout: &str, output: &str, more: &[&str]) {
    let args = ["export", "--model", model, "--layout", layout, "-o", output, "--heads", "2"];
    assert_eq!(place.done(&[&args[..], more].concat()), format!("{output}\n"));
}

/// Names, dtypes, shapes and bytes.
fn content(file: &TensorFile) -> Vec<(&String, DType, &[usize], Vec<u8>)> {
    assert!(!file.tensors.is_empty());
    file.tensors.iter().map(|(n, t)| (n, t.dtype(), t.shape(), t.le_bytes().into_owned())).collect()
}

fn read(place: &Place, name: &str) -> TensorFile {
    fewstep_formats::read_weights(&place.path(name)).unwrap()
}

#[test]
fn weights_come_back_bit_for_bit_over_every_pair_of_layouts_and_kinds_of_file() {
    let place = place();
    let kinds = [
        ("original", "a"),
        ("original", "a.pth"),
        ("rcm", "a.safetensors"),
        ("diffusers", "d"),
        ("diffusers", "d.pth"),
    ];
    let start = read(&place, WAN);
    for (first, one) in kinds {
        export(&place, WAN, first, one, &["--force"]);
        for (second, two) in kinds {
            let two = format!("second-{two}");
            export(&place, one, second, &two, &["--force", "--shard-size", "100000"]);
            export(&place, &two, "rcm", "back.safetensors", &["--force"]);
            assert_eq!(content(&read(&place, "back.safetensors")), content(&start), "{first} {second}");
        }
    }
}

#[test]
fn a_folder_for_diffusers_has_its_names_shapes_and_configuration() {
    let place = place();
    export(&place, WAN, "diffusers", "out", &["--dtype", "f32"]);
    assert_eq!(content(&read(&place, "out")), content(&read(&place, DIFFUSERS)));
    let json = serde_json::from_slice(&std::fs::read(place.path("out/config.json")).unwrap()).unwrap();
    let shown = WanConfig::of_weights(&read(&place, WAN), Some(2), [1, 2, 2]).unwrap();
    assert_eq!(WanConfig::from_json(&json).unwrap(), shown);
    // The folder says itself how many heads there are.
    assert_eq!(place.done(&["export", "--model", "out", "--layout", "original", "-o", "w.pth"]), "w.pth\n");
}

#[test]
fn a_model_trained_here_is_exported_with_what_it_says_of_itself() {
    let place = place();
    place.done(&["export", "--model", TEACHER, "--layout", "diffusers", "-o", "out"]);
    place.done(&["export", "--model", "out", "--layout", "rcm", "-o", "back.safetensors"]);
    let (start, back) = (read(&place, TEACHER), read(&place, "back.safetensors"));
    assert_eq!(content(&back), content(&start));
    assert_eq!(back.metadata["fewstep"], start.metadata["fewstep"]);
    place.done(&["export", "--model", "builtin:digits-teacher", "--layout", "original", "-o", "digits"]);
}

#[test]
fn nothing_is_written_over_without_force_and_nothing_else_with_it() {
    let place = place();
    let to = |output: &'static str| ["export", "--model", WAN, "--heads", "2", "--layout", "diffusers", "-o", output];
    place.done(&to("out"));
    place.done(&to("w.pth"));
    assert_says(&place.refused_untouched(&to("out")), &["out", "there already", "--force"]);
    assert_says(&place.refused_untouched(&to("w.pth")), &["w.pth", "there already", "--force"]);
    place.done(&[&to("out")[..], &["--force"]].concat());
    place.write("out/notes.txt", "mine");
    let message = place.refused_untouched(&[&to("out")[..], &["--force"]].concat());
    assert_says(&message, &["'notes.txt'", "choose another name"]);
    std::fs::create_dir(place.path("folder.pth")).unwrap();
    assert_says(&place.refused_untouched(&to("folder.pth")), &["is a folder"]);
    assert_says(&place.refused_untouched(&to("none/out")), &["none", "No such file"]);
}

#[test]
fn what_cannot_be_exported_is_refused_with_a_remedy() {
    let place = place();
    let refused = |args: &[&str]| place.refused_untouched(&[&["export"][..], args].concat());
    let wan = ["--model", WAN, "--layout", "rcm"];
    assert_says(&refused(&[&wan[..], &["-o", "w.pth"]].concat()), &["do not show their heads", "--heads"]);
    assert_says(&refused(&[&wan[..], &["-o", "out"]].concat()), &["one file", ".safetensors"]);
    assert_says(&refused(&[&wan[..], &["-o", "w.pth", "--format", "safetensors"]].concat()), &["another format"]);
    let args = ["--model", WAN, "--layout", "diffusers", "-o", "out", "--format", "pth"];
    assert_says(&refused(&args), &["hold safetensors"]);
    let args = ["--model", "none", "--layout", "diffusers", "-o", "out"];
    assert_says(&refused(&args), &["none", "No such file"]);
    place.write("text.pth", "no weights at all");
    let args = ["--model", "text.pth", "--layout", "diffusers", "-o", "out"];
    assert_says(&refused(&args), &["text.pth", "no PyTorch file"]);
}

#[test]
fn a_configuration_of_another_network_is_refused_before_anything_is_written() {
    let place = place();
    export(&place, WAN, "original", "a", &[]);
    let path = place.path("a/config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let changed = |from: &str, to: &str| {
        let changed = text.replace(from, to);
        assert_ne!(changed, text);
        std::fs::write(&path, changed).unwrap();
        place.refused_untouched(&["export", "--model", "a", "--layout", "rcm", "-o", "w.pth"])
    };
    assert_says(&changed("\"num_layers\": 2", "\"num_layers\": 3"), &["another network", "same place"]);
    assert_says(&changed("\"num_layers\": 2", "\"num_layers\": 99999999999"), &["num_layers"]);
    assert_says(&changed("\"num_heads\": 2", "\"num_heads\": \"two\""), &["num_heads"]);
    assert_says(&changed("{", "["), &["not JSON", "fetch it again"]);
}
