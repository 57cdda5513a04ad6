//! Model files: damaged, foreign or missing.

use fewstep_tensor::Tensor;
use fewstep_tensor::file::TensorFile;

use crate::{PROMPT, Place, TEACHER, assert_says};

const PARAMETER: &str = "blocks.0.cross_attn.k.bias";

/// The tiny teacher after a change, as `model.safetensors`.
fn changed(place: &Place, change: impl FnOnce(&mut TensorFile)) {
    let mut file = TensorFile::read(&place.path(TEACHER)).unwrap();
    change(&mut file);
    file.write(&place.path("model.safetensors")).unwrap();
}

/// The refusal by every command that reads a model, which must agree.
fn refused(place: &Place, model: &str) -> String {
    let teacher = format!("teacher={model}");
    let message = place.refused_untouched(&["sample", "--model", model, "--prompt", PROMPT, "-o", "clip.gif"]);
    assert_eq!(message, place.refused(&["evaluate", "--model", model]));
    assert_eq!(message, place.refused(&["check-jvp", "--model", model]));
    assert_eq!(message, place.refused_untouched(&["distill", "-o", "run", "--set", &teacher]));
    message
}

#[test]
fn a_missing_model_is_refused_with_a_remedy() {
    let place = Place::new();
    let message = refused(&place, "none.safetensors");
    assert_says(&message, &["'none.safetensors'", "no such file", "teach or distill wrote", "builtin:digits-teacher"]);
    assert_eq!(message.matches("no such file").count(), 1, "said once: {message}");
}

#[test]
fn a_model_that_the_program_does_not_hold_is_refused_with_those_it_does() {
    let message = refused(&Place::new(), "builtin:digit-teacher");
    assert_says(&message, &["'builtin:digit-teacher'", "there is builtin:digits-teacher"]);
}

#[test]
fn a_truncated_or_foreign_file_is_refused_with_a_remedy() {
    let place = Place::new();
    let bytes = std::fs::read(place.path(TEACHER)).unwrap();
    let cases = [&bytes[..0], &bytes[..7], &bytes[..40], &bytes[..bytes.len() - 1], b"a text, and no tensors at all"];
    for bytes in cases {
        place.write("model.safetensors", bytes);
        let message = refused(&place, "model.safetensors");
        assert_says(&message, &["model.safetensors", "not a complete safetensors file", "fetch or write it again"]);
    }
}

#[test]
fn a_renamed_tensor_is_missing_under_one_name_and_unexpected_under_the_other() {
    let place = Place::new();
    changed(&place, |file| {
        let tensor = file.tensors.remove(PARAMETER).unwrap();
        file.tensors.insert("blocks.0.other".into(), tensor);
    });
    let message = refused(&place, "model.safetensors");
    assert_says(&message, &["missing", PARAMETER, "unexpected blocks.0.other", "use the file as teach"]);
}

#[test]
fn a_misshapen_tensor_is_named_with_both_shapes() {
    let place = Place::new();
    changed(&place, |file| {
        file.tensors.insert(PARAMETER.into(), Tensor::from_vec(vec![0.5f32; 25], &[25]).unwrap());
    });
    assert_says(&refused(&place, "model.safetensors"), &[PARAMETER, "expected [24], got [25]", "use the file as"]);
}

#[test]
fn a_tensor_with_nan_is_named_with_a_remedy() {
    let place = Place::new();
    changed(&place, |file| {
        file.tensors.insert(PARAMETER.into(), Tensor::from_vec(vec![f32::NAN; 24], &[24]).unwrap());
    });
    let message = refused(&place, "model.safetensors");
    assert_says(&message, &[PARAMETER, "24 non-finite values", "use an earlier checkpoint"]);
}

#[test]
fn a_file_that_does_not_describe_itself_is_refused_with_a_remedy() {
    let place = Place::new();
    changed(&place, |file| file.metadata.clear());
    let message = place.refused(&["evaluate", "--model", "model.safetensors"]);
    assert_says(&message, &["does not say what network it is", "teach or distill wrote", "fewstep apply"]);
    // Bare weights can be sampled: those of a released network.
    let sampled = place.refused(&["sample", "--model", "model.safetensors", "--prompt", PROMPT, "-o", "clip.gif"]);
    assert_says(&sampled, &["weights do not show their heads", "--heads"]);
    assert_eq!(message, place.refused(&["check-jvp", "--model", "model.safetensors"]));
    changed(&place, |file| drop(file.metadata.insert("fewstep".into(), "{}".into())));
    let message = refused(&place, "model.safetensors");
    assert_says(&message, &["cannot read its description", "missing field", "teach or distill wrote"]);
}

#[test]
fn a_teacher_of_bare_weights_shows_its_extents_but_for_heads_and_must_suit_the_data() {
    let place = Place::new();
    std::fs::copy(crate::fixtures().join("wan_t2v_weights_orig_bf16.safetensors"), place.path("wan.safetensors"))
        .unwrap();
    let args = ["distill", "-o", "run", "--set", "teacher=wan.safetensors"];
    assert_says(&place.refused_untouched(&args), &["weights do not show their heads", "the setting heads"]);
    let message = place.refused_untouched(&[&args[..], &["--set", "heads=2"]].concat());
    assert_says(&message, &["does not suit the clips of data.digits", "in_channels", "need 3, got 16"]);
}

#[test]
fn a_description_of_an_impossible_network_is_refused_before_it_is_built() {
    let place = Place::new();
    let described = |from: &str, to: &str| {
        changed(&place, |file| {
            let text = file.metadata["fewstep"].replace(from, to);
            assert_ne!(text, file.metadata["fewstep"]);
            file.metadata.insert("fewstep".into(), text);
        });
        refused(&place, "model.safetensors")
    };
    assert_says(&described("\"layers\":1", "\"layers\":1000000000000"), &["1000000000000 layers", "teach or distill"]);
    assert_says(&described("\"dim\":24", "\"dim\":24000000000"), &["misshapen", "use the file as"]);
    assert_says(&described("\"heads\":2", "\"heads\":5"), &["5 heads do not divide dim 24", "choose dim"]);
    assert_says(&described("\"text_dim\":32", "\"text_dim\":16"), &["text_dim", "need 32, got 16"]);
}

#[test]
fn a_folder_is_no_model() {
    let place = Place::new();
    std::fs::create_dir(place.path("folder")).unwrap();
    assert_says(&refused(&place, "folder"), &["'folder'", "teach or distill wrote"]);
}
