//! The commands that train nothing.

use std::process::Stdio;

use fewstep_tensor::file::TensorFile;
use fewstep_tensor::{DType, Tensor};

use crate::{PROMPT, Place, TEACHER, assert_says, refusal, text};

fn fixture(name: &str) -> String {
    crate::fixtures().join(format!("{name}.safetensors")).to_str().unwrap().to_owned()
}

fn sample<'a>(model: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["sample", "--model", model][..], more].concat()
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|w| w == text.as_bytes())
}

#[test]
fn a_picture_carries_its_prompt_and_seed_and_depends_on_them_alone() {
    let place = Place::new();
    for name in ["clip.png", "clip.gif"] {
        let draw = |seed: &str| {
            let written = place.done(&sample(TEACHER, &["--prompt", PROMPT, "--seed", seed, "-o", name]));
            assert_eq!(written, format!("{name}\n"), "stdout names the file");
            std::fs::read(place.path(name)).unwrap()
        };
        let bytes = draw("4321");
        assert!(contains(&bytes, PROMPT) && contains(&bytes, "4321"), "{name}");
        assert!(bytes == draw("4321"), "{name}: the same seed gives the same file");
        assert!(bytes != draw("4322"), "{name}: another seed gives another");
    }
}

#[test]
fn several_prompts_give_numbered_files() {
    let place = Place::new();
    place.write("prompts.txt", "a red seven\n\n  a blue two moving left  \n");
    let prompts = ["--prompt", PROMPT, "--prompts", "prompts.txt", "-o", "clip.gif"];
    let written = place.done(&sample(TEACHER, &prompts));
    assert_eq!(written, "clip-00.gif\nclip-01.gif\nclip-02.gif\n");
    for (name, prompt) in written.lines().zip([PROMPT, "a red seven", "a blue two moving left"]) {
        assert!(contains(&std::fs::read(place.path(name)).unwrap(), prompt), "{name}");
    }
}

#[test]
fn what_cannot_be_sampled_is_refused_with_a_remedy() {
    let place = Place::new();
    place.write("empty.txt", "\n");
    let refused = |more: &[&str]| place.refused_untouched(&sample(TEACHER, more));
    assert_says(&refused(&["--prompt", "a red sevn"]), &["unknown word `sevn`", "did you mean `seven`?"]);
    assert_says(&refused(&["--prompt", PROMPT, "-o", "clip.jpg"]), &["clip.jpg", "write to a .gif or .png file"]);
    assert_says(&refused(&["--prompt", PROMPT, "-o", "clip"]), &["clip", "write to a .gif or .png file"]);
    assert_says(&refused(&["--prompt", PROMPT, "--steps", "0"]), &["got 0", "choose a number in that range"]);
    assert_says(&refused(&["--prompt", PROMPT, "--scale", "0"]), &["upscale factor", "expected 1 to"]);
    assert_says(&refused(&["--prompt", PROMPT, "-o", "none/clip.gif"]), &["none/clip.gif", "existing folder"]);
    assert_says(&refused(&["--prompts", "none.txt"]), &["none.txt", "check the path"]);
    assert_says(&refused(&["--prompts", "empty.txt"]), &["no prompts", "--prompt"]);
    assert_says(&refused(&[]), &["no prompts", "--prompt"]);
}

#[test]
fn evaluation_refuses_what_measures_nothing() {
    let place = Place::new();
    let refused = |more: &[&str]| place.refused(&[&["evaluate", "--model", TEACHER][..], more].concat());
    assert_says(&refused(&["--samples", "99"]), &["99 samples measure nothing", "at least 100"]);
    assert_says(&refused(&["--samples", "100", "--steps", "4,0"]), &["got 0", "choose a number in that range"]);
}

#[test]
fn a_device_that_is_none_is_refused_with_the_list_and_one_that_is_not_there_with_a_remedy() {
    let place = Place::new();
    let on = |device| sample(TEACHER, &["--prompt", PROMPT, "--device", device]);
    place.done(&on("cpu"));
    for device in ["gpu", "", "cuda:", "cuda:x"] {
        assert_says(&place.misused(&on(device)), &["--device", "a device is cpu, cuda, or cuda:N"]);
    }
    // No machine has so many; most that run tests have no driver.
    assert_says(&place.refused(&on("cuda:99")), &["driver"]);
}

#[test]
fn verify_proves_an_op_on_the_cpu_and_refuses_what_it_cannot() {
    let place = Place::empty();
    let table = place.done(&["verify", "--device", "cpu", "--only", "linear"]);
    assert_says(&table, &["linear", "f64", "f32", "ok", "all hold"]);
    let json = place.done(&["verify", "--only", "upsample", "--json"]);
    let rows: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(rows.as_array().is_some_and(|rows| !rows.is_empty() && rows.iter().all(|r| r["ok"] == true)), "{rows}");
    let fixtures = crate::fixtures();
    let published = place.done(&["verify", "--only", "attention_jvp", "--fixtures", fixtures.to_str().unwrap()]);
    assert_says(&published, &["attention_jvp", "all hold"]);
    let started = place.done(&["verify", "--only", "upsample", "--only", "coefficient", "--launch"]);
    assert_says(&started, &["the kernels of 15 checks ran: nothing was proven"]);
    assert_says(&place.misused(&["verify", "--launch", "--json"]), &["--launch", "--json"]);
    assert_says(&place.refused(&["verify", "--only", "no such op"]), &["'no such op'", "--only"]);
    assert_says(&place.refused(&["verify", "--fixtures", "none"]), &["none", "check the path"]);
    assert_says(&place.refused(&["verify", "--device", "cuda:99"]), &["driver"]);
    assert_says(&place.misused(&["verify", "--device", "gpu"]), &["a device is cpu, cuda, or cuda:N"]);
}

/// Asserts closeness relative to the largest reference.
fn assert_near(name: &str, got: &Tensor, reference: &Tensor, tolerance: f64) {
    let values = |t: &Tensor| t.to_dtype(DType::F64).as_slice::<f64>().unwrap().to_vec();
    let (got, reference) = (values(got), values(reference));
    assert_eq!(got.len(), reference.len(), "{name}");
    let largest = reference.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    let error = got.iter().zip(&reference).fold(0.0f64, |m, (a, b)| m.max((a - b).abs()));
    assert!(largest > 0.0 && error <= tolerance * largest, "{name}: {error:e} of {largest:e}");
}

#[test]
fn apply_reproduces_the_published_network_in_f64() {
    let (weights, inputs) = (fixture("wan_t2v_weights_diffusers_f32"), fixture("wan_t2v_io"));
    let reference = TensorFile::read(inputs.as_ref()).unwrap();
    let header: serde_json::Value = serde_json::from_str(&reference.metadata["json"]).unwrap();
    let heads = header["config"]["num_heads"].to_string();
    let place = Place::new();
    let files = ["apply", "wan", "--weights", &weights, "--inputs", &inputs, "-o", "results.safetensors"];
    let written = place.done(&[&files[..], &["--heads", &heads, "--dtype", "f64", "--jvp", "--grad"]].concat());
    assert_eq!(written, "results.safetensors\n");
    let results = TensorFile::read(&place.path("results.safetensors")).unwrap();
    // The reference is f64 throughout; sums in another order differ by a few ulps of the largest term.
    let exact =
        [("out", "out_f64"), ("jvp", "jvp_f64"), ("grad_x", "grad_x"), ("grad_t", "grad_t"), ("grad_ctx", "grad_ctx")];
    for (name, stored) in exact {
        assert_near(name, &results.tensors[name], &reference.tensors[stored], 1e-9);
    }
    // Stored in f32, whose half ulp is 6e-8.
    let grads: Vec<_> = reference.tensors.iter().filter(|(name, _)| name.starts_with("grad.")).collect();
    assert!(grads.len() > 60);
    for (name, stored) in grads {
        assert_near(name, &results.tensors[name], stored, 1e-6);
    }
}

#[test]
fn apply_encodes_and_decodes_as_the_published_autoencoder_in_f64() {
    let inputs = fixture("vae_io");
    let reference = TensorFile::read(inputs.as_ref()).unwrap();
    for layout in ["orig_bf16", "diffusers_f32"] {
        let weights = fixture(&format!("vae_weights_{layout}"));
        for (network, made) in [("vae-encode", ["enc_video", "enc_image"]), ("vae-decode", ["dec_video", "dec_image"])]
        {
            let place = Place::new();
            let files = ["apply", network, "--weights", &weights, "--inputs", &inputs, "-o", "out.safetensors"];
            assert_eq!(place.done(&[&files[..], &["--dtype", "f64"]].concat()), "out.safetensors\n");
            let results = TensorFile::read(&place.path("out.safetensors")).unwrap();
            assert_eq!(results.tensors.len(), 2);
            for name in made {
                assert_near(name, &results.tensors[name], &reference.tensors[&format!("{name}.f64")], 1e-9);
            }
        }
    }
}

#[test]
fn apply_refuses_what_no_autoencoder_takes() {
    let (weights, inputs) = (fixture("vae_weights_diffusers_f32"), fixture("vae_io"));
    let place = Place::new();
    let put = |name: &str, shape: &[usize]| {
        let mut file = TensorFile::default();
        file.tensors.insert(name.into(), Tensor::zeros(shape, DType::F32, Default::default()));
        file.write(&place.path("inputs.safetensors")).unwrap();
    };
    let apply = |network: &str, weights: &str, inputs: &str, more: &[&str]| {
        let files = ["apply", network, "--weights", weights, "--inputs", inputs, "-o", "out.safetensors"];
        place.refused_untouched(&[&files[..], more].concat())
    };
    let encode = |shape: &[usize]| {
        put("video", shape);
        apply("vae-encode", &weights, "inputs.safetensors", &[])
    };
    assert_says(&encode(&[1, 3, 4, 8, 8]), &["1 + 4k frames", "1 or 5 frames are nearest"]);
    assert_says(&encode(&[1, 3, 1, 12, 8]), &["8 divides", "crop to 8 x 8"]);
    assert_says(&encode(&[1, 4, 1, 8, 8]), &["a video [B, 3, F, H, W]"]);
    put("other", &[1]);
    assert_says(&apply("vae-decode", &weights, "inputs.safetensors", &[]), &["neither 'z' nor 'z1'", "hold other"]);
    assert_says(&apply("vae-decode", &weights, &inputs, &["--budget-mb", "1"]), &["a budget of at least"]);
    assert_says(&apply("vae-decode", &weights, &inputs, &["--grad"]), &["--grad are for wan"]);
    let wan = fixture("wan_t2v_weights_diffusers_f32");
    assert_says(&apply("vae-decode", &wan, &inputs, &[]), &["no known layout of wan vae", "a Wan autoencoder"]);
}

#[test]
fn apply_names_what_is_missing() {
    let (weights, inputs) = (fixture("wan_t2v_weights_diffusers_f32"), fixture("wan_t2v_io"));
    let place = Place::new();
    let mut file = TensorFile::read(inputs.as_ref()).unwrap();
    file.tensors.retain(|name, _| matches!(name.as_str(), "x" | "t" | "ctx"));
    file.write(&place.path("inputs.safetensors")).unwrap();
    let apply = |weights: &str, inputs: &str, more: &[&str]| {
        let files = ["apply", "wan", "--weights", weights, "--inputs", inputs, "-o", "out.safetensors"];
        place.refused_untouched(&[&files[..], more].concat())
    };
    assert_says(
        &apply(&weights, "inputs.safetensors", &["--jvp", "--heads", "2"]),
        &["no tensor 'dx'", "they hold ctx, t, x"],
    );
    assert_says(
        &apply(&weights, "inputs.safetensors", &["--grad", "--heads", "2"]),
        &["no tensor 'loss_w'", "they hold ctx, t, x"],
    );
    assert_says(&apply(&weights, "none.safetensors", &["--heads", "2"]), &["none.safetensors", "check the path"]);
    assert_says(&apply(&fixture("wan_tables"), &inputs, &[]), &["no known layout of wan", "give the weights of a Wan"]);
    assert_says(&apply(&weights, &inputs, &[]), &["weights do not show their heads", "--heads"]);
    assert_says(&apply(&weights, &inputs, &["--heads", "5"]), &["5 heads do not divide dim 64", "choose dim"]);
}

#[test]
fn apply_reproduces_the_published_text_encoders() {
    let place = Place::new();
    let cases = [
        ("umt5", "umt5_weights_orig_bf16", "umt5_io"),
        ("umt5", "umt5_weights_hf_f32", "umt5_io"),
        ("t5", "t5_weights_hf_f32", "t5_io_hf"),
    ];
    for (network, weights, io) in cases {
        let (weights, inputs) = (fixture(weights), fixture(io));
        let files = ["apply", network, "--weights", &weights, "--inputs", &inputs, "-o", "results.safetensors"];
        let reference = TensorFile::read(inputs.as_ref()).unwrap();
        for (dtype, tolerance) in [("f64", 1e-9), ("f32", 1e-5)] {
            place.done(&[&files[..], &["--dtype", dtype]].concat());
            let results = TensorFile::read(&place.path("results.safetensors")).unwrap();
            for (name, stored) in [("out", "out_f64"), ("out_zeroed", "out_f64_zeroed")] {
                assert_near(name, &results.tensors[name], &reference.tensors[stored], tolerance);
            }
        }
    }
}

#[test]
fn apply_refuses_what_is_no_input_of_a_text_encoder() {
    let place = Place::new();
    let (weights, inputs) = (fixture("umt5_weights_hf_f32"), fixture("umt5_io"));
    let apply = |network: &str, weights: &str, inputs: &str, more: &[&str]| {
        let files = ["apply", network, "--weights", weights, "--inputs", inputs, "-o", "out.safetensors"];
        place.refused_untouched(&[&files[..], more].concat())
    };
    assert_says(&apply("t5", &weights, &inputs, &[]), &["holds another encoder", "`umt5`"]);
    assert_says(&apply("umt5", &weights, &inputs, &["--jvp"]), &["--jvp"]);
    assert_says(&apply("umt5", &weights, &fixture("wan_t2v_io"), &[]), &["no tensor 'ids'"]);
    assert_says(&apply("umt5", &fixture("wan_tables"), &inputs, &[]), &["no known layout of umT5 or T5"]);
    let changed = |change: fn(&mut Vec<f64>, &mut Vec<f64>)| {
        let mut file = TensorFile::read(inputs.as_ref()).unwrap();
        let [mut ids, mut mask] = ["ids", "mask"].map(|n| file.tensors[n].to_vec_f64());
        change(&mut ids, &mut mask);
        for (name, values) in [("ids", ids), ("mask", mask)] {
            let shape = file.tensors[name].shape().to_vec();
            file.tensors.insert(name.into(), Tensor::from_vec(values, &shape).unwrap());
        }
        file.write(&place.path("changed.safetensors")).unwrap();
        apply("umt5", &weights, "changed.safetensors", &[])
    };
    assert_says(&changed(|ids, _| ids[3] = 64.0), &["below the 64 rows", "64"]);
    assert_says(&changed(|ids, _| ids[3] = -1.0), &["-1", "no token"]);
    assert_says(&changed(|_, mask| mask[3] = 0.0), &["ones, then zeros"]);
}

#[test]
fn check_jvp_gives_a_verdict_on_models_and_on_bare_weights() {
    let (weights, inputs) = (fixture("wan_t2v_weights_diffusers_f32"), fixture("wan_t2v_io"));
    let place = Place::new();
    let bare = ["check-jvp", "--weights", &weights, "--inputs", &inputs, "--heads", "2"];
    for args in [&["check-jvp", "--model", TEACHER][..], &bare] {
        let report = place.done(args);
        assert_says(&report, &["rms dF/dt", "f64", "f32", "verdict: every tangent is the derivative"]);
    }
    assert_says(&place.misused(&["check-jvp", "--weights", &weights]), &["--inputs"]);
    assert_says(&place.misused(&["check-jvp"]), &["--model"]);
}

#[test]
fn completions_are_printed_for_every_shell() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish"] {
        assert_says(&place.done(&["completions", shell]), &["fewstep", "distill", "check-jvp"]);
    }
}

#[test]
fn a_reader_that_leaves_ends_the_program_quietly() {
    let place = Place::new();
    for args in [&["completions", "bash"][..], &["config", "teach"], &["config", "distill", "--list"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = place.command(args).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(141), ""), "{args:?}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn results_that_the_system_does_not_take_are_an_error() {
    let place = Place::new();
    for args in [&["completions", "bash"][..], &["config", "teach"]] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let output = place.command(args).stdout(full).stderr(Stdio::piped()).output().unwrap();
        assert_says(&refusal(&output, 1), &["standard output", "No space left", "free some space"]);
    }
}
