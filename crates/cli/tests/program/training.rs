//! Runs: killed, interrupted, resumed, in each other's way, and where they cannot write.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;

use crate::{PROMPT, Place, TEACHER, TINY_DISTILLATION, assert_says, refusal, teaching, text};

/// A distillation into `folder` of so many iterations.
fn distillation<'a>(folder: &'a str, iterations: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["distill", "-o", folder][..], &TINY_DISTILLATION, &["--set", iterations], more].concat()
}

/// Settings of a run that takes long enough to be caught between two of its iterations.
const SLOW: [&str; 6] = [
    "--set",
    "distill.run.accumulation=16",
    "--set",
    "distill.run.checkpoint_every=20",
    "--set",
    "distill.run.log_every=1",
];
/// Iterations that no test waits for.
const ENDLESS: &str = "distill.run.iterations=1000000";

fn weights(place: &Place, run: &str) -> BTreeMap<String, Vec<u8>> {
    let folder = place.path(run).join("checkpoints/iter_000000040");
    let mut files = crate::files(&folder);
    files.retain(|path, _| path.extension().is_some_and(|e| e == "safetensors"));
    files.insert("model".into(), std::fs::read(place.path(run).join("model.safetensors")).unwrap());
    files.into_iter().map(|(path, bytes)| (path.file_name().unwrap().to_string_lossy().into_owned(), bytes)).collect()
}

#[test]
fn a_run_killed_between_checkpoints_and_resumed_is_the_uninterrupted_one_byte_for_byte() {
    let place = Place::new();
    let iterations = "distill.run.iterations=40";
    place.done(&distillation("whole", iterations, &SLOW));
    let mut killed = place.start(&distillation("parts", iterations, &SLOW));
    place.wait_for_iterations("parts", 22);
    killed.kill();
    assert_eq!(killed.end().status.signal(), Some(9), "it was killed before it had finished");
    assert!(place.path("parts/checkpoints/iter_000000020").exists());
    assert!(!place.path("parts/checkpoints/iter_000000040").exists());
    assert!(!place.path("parts/model.safetensors").exists());

    place.done(&distillation("parts", iterations, &[&SLOW[..], &["--resume"]].concat()));
    let (whole, parts) = (weights(&place, "whole"), weights(&place, "parts"));
    assert!(whole.len() >= 6, "student, average, fake score, two optimisers and the model: {:?}", whole.keys());
    assert!(whole.keys().eq(parts.keys()));
    for (name, bytes) in whole {
        assert!(bytes == parts[&name], "{name} differs");
    }
}

/// A training by adapters of two kinds of layers.
const LORA: [&str; 2] = ["--set", "distill.train.lora={rank=2,alpha=4.0,targets=['self_attn.q','ffn.0']}"];

#[test]
fn adapters_are_saved_alone_exported_apart_and_merged_into_the_model() {
    let place = Place::new();
    place.done(&distillation("run", "distill.run.iterations=3", &LORA));
    let read = |name: &str| fewstep_tensor::file::TensorFile::read(&place.path(name)).unwrap().tensors;
    let adapters = read("run/adapters.safetensors");
    let names: Vec<&str> = adapters.keys().map(String::as_str).collect();
    let layer = "transformer.blocks.0.attn1.to_q";
    assert!(names.contains(&format!("{layer}.lora_A.weight").as_str()) && names.len() == 6, "{names:?}");
    assert_eq!(adapters[&format!("{layer}.alpha")].to_vec_f64(), [4.0]);
    let saved = read("run/checkpoints/iter_000000003/student.safetensors");
    assert_eq!(saved.len(), 4, "{:?}", saved.keys());
    let (model, teacher) = (read("run/model.safetensors"), read(TEACHER));
    assert!(model.keys().eq(teacher.keys()));
    let changed = model.iter().filter(|(k, t)| t.to_vec_f64() != teacher[*k].to_vec_f64());
    assert!(changed.map(|(k, _)| k).all(|k| k.contains("self_attn.q.weight") || k.contains("ffn.0.weight")));
    place.done(&["sample", "--model", "run/model.safetensors", "--prompt", PROMPT, "-o", "x.gif"]);
}

#[test]
fn a_target_of_no_layer_is_refused_with_the_names_of_those_there_are() {
    let place = Place::new();
    let lora = "distill.train.lora={rank=2,alpha=4.0,targets=['attention.q']}";
    let message = place.refused_untouched(&distillation("run", "distill.run.iterations=3", &["--set", lora]));
    assert_says(&message, &["train.lora.targets", "'attention.q'", "cross_attn.q", "ffn.0", "self_attn.v"]);
}

#[test]
fn ctrl_c_saves_and_says_how_to_go_on() {
    let place = Place::new();
    let run = place.start(&distillation("run", ENDLESS, &SLOW));
    place.wait_for_iterations("run", 3);
    run.interrupt();
    let output = run.end();
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{message}");
    assert_says(&message, &["--resume", "after iteration"]);
    assert_eq!(text(&output.stdout), "");
    let done: u64 = message.split("after iteration ").nth(1).unwrap().split(';').next().unwrap().parse().unwrap();
    assert!(place.path(&format!("run/checkpoints/iter_{done:09}")).exists());

    let more = format!("distill.run.iterations={}", done + 2);
    place.done(&distillation("run", &more, &[&SLOW[..], &["--resume"]].concat()));
    assert!(place.path("run/model.safetensors").exists());
    assert!(place.path(&format!("run/checkpoints/iter_{:09}", done + 2)).exists());
}

#[test]
fn a_second_process_in_the_folder_is_refused_and_the_first_unharmed() {
    let place = Place::new();
    let first = place.start(&distillation("run", ENDLESS, &SLOW));
    place.wait_for_iterations("run", 2);
    for more in [&[][..], &["--resume"]] {
        let message = place.refused(&distillation("run", ENDLESS, &[&SLOW[..], more].concat()));
        assert_says(&message, &["run: process", &first.id().to_string(), "choose another output folder"]);
    }
    let seen = std::fs::read_to_string(place.path("run/metrics.jsonl")).unwrap().lines().count();
    place.wait_for_iterations("run", seen + 2);
    first.interrupt();
    assert_eq!(first.end().status.code(), Some(130));
    place.done(&distillation("run", "distill.run.iterations=1", &[&SLOW[..], &["--resume"]].concat()));
}

#[test]
fn a_fresh_run_does_not_touch_an_earlier_one() {
    let place = Place::new();
    let args = distillation("run", "distill.run.iterations=2", &[]);
    place.done(&args);
    assert_says(&place.refused_untouched(&args), &["run: ", "earlier run", "--resume", "another output folder"]);
}

#[test]
fn a_folder_that_cannot_be_written_is_named_and_nothing_is_touched() {
    let place = Place::new();
    place.write("plain", "a file of the user's");
    assert_says(&place.refused_untouched(&teaching("plain/run")), &["plain/run", "choose another path"]);
    assert_says(&place.refused_untouched(&teaching("plain")), &["plain", "choose another path"]);
    let distill = distillation("plain/run", ENDLESS, &[]);
    assert_says(&place.refused_untouched(&distill), &["plain/run", "choose another path"]);
    // Refuses new folders even to root, which rights do not hold back.
    #[cfg(target_os = "linux")]
    assert_says(&place.refused_untouched(&teaching("/proc/run")), &["/proc/run", "check the path"]);
}

#[test]
fn resuming_with_another_configuration_names_what_differs() {
    let place = Place::new();
    place.done(&distillation("run", "distill.run.iterations=2", &[]));
    let other = ["--resume", "--set", "distill.guidance=5.5", "--set", "distill.student.learning_rate=1e-3"];
    let message = place.refused_untouched(&distillation("run", "distill.run.iterations=4", &other));
    assert_says(&message, &["distill.guidance", "5.5", "distill.student.learning_rate", "restore these settings"]);
    assert!(!message.contains("distill.run.iterations"), "iterations may differ: {message}");
    place.done(&distillation("run", "distill.run.iterations=4", &["--resume"]));
}

#[test]
fn resuming_with_another_teacher_is_refused() {
    let place = Place::new();
    place.done(&distillation("run", "distill.run.iterations=2", &[]));
    place.done(&[&teaching("other")[..], &["--seed", "5"]].concat());
    std::fs::copy(place.path("other/model.safetensors"), place.path(TEACHER)).unwrap();
    let message = place.refused_untouched(&distillation("run", "distill.run.iterations=4", &["--resume"]));
    assert_says(&message, &["teacher"]);
}

#[test]
fn a_disk_without_space_ends_the_run_with_a_remedy() {
    // A limit on the size of files stands for a full disk: it needs no rights and no file system of its own.
    let place = Place::new();
    let limited = |args: &[&str]| {
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "trap '' XFSZ; ulimit -f 8; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_fewstep")]);
        refusal(&command.args(args).current_dir(place.0.path()).output().unwrap(), 1)
    };
    let message = limited(&distillation("run", "distill.run.iterations=2", &[]));
    assert_says(&message, &["checkpoint", "iter_000000002", "too large", "then resume"]);
    assert!(!place.path("run/model.safetensors").exists());
    let prompt = ["sample", "--model", TEACHER, "--prompt", crate::PROMPT, "-o", "clip.gif", "--scale", "32"];
    assert_says(&limited(&prompt), &["clip.gif", "too large"]);
    let names: Vec<_> = std::fs::read_dir(place.0.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "the teacher and the run, and nothing half written: {names:?}");
    // With space again the run goes on.
    place.done(&distillation("run", "distill.run.iterations=2", &["--resume"]));
}
