//! Released models, in folders as they are downloaded, with tiny networks inside.

use std::path::Path;

use fewstep_nn::clip::{ClipConfig, ClipVision};
use fewstep_nn::t5::{T5Config, T5Encoder, T5Layout};
use fewstep_nn::vae::{VaeConfig, VaeLayout, WanVae};
use fewstep_nn::wan::{Wan, WanConfig, WanLayout};
use fewstep_ops::{Network, Params};
use fewstep_tensor::file::TensorFile;
use fewstep_tensor::{DType, Device};

use crate::{Place, assert_says, refusal, text};

const PATCH: [usize; 3] = [1, 2, 2];
const TEXT_DIM: usize = 16;
const IMAGE_DIM: usize = 80;
/// What keeps a sample small.
const SMALL: [&str; 4] = ["--size", "32x48", "--frames", "9"];

fn config() -> WanConfig {
    WanConfig { dim: 24, ffn_dim: 32, heads: 2, layers: 2, text_dim: TEXT_DIM, freq_dim: 16, ..WanConfig::t2v_1_3b() }
}

fn drawn(specs: &std::sync::Arc<[fewstep_ops::ParamSpec]>, seed: u64) -> Params {
    Params::init(specs, seed, DType::F32, Device::Cpu).unwrap()
}

/// A network's file, nothing in it zero: the head, which training would start from zero, is drawn as well.
fn transformer(config: WanConfig, layout: WanLayout, seed: u64) -> TensorFile {
    let wan = Wan::new(config).unwrap();
    let specs: Vec<_> = wan.specs().iter().cloned().collect();
    let drawn_head = specs.into_iter().map(|s| match s.name.as_str() {
        "head.head.weight" => fewstep_ops::ParamSpec { init: fewstep_ops::Init::Normal(0.2), ..s },
        _ => s,
    });
    let drawn = drawn(&drawn_head.collect::<Vec<_>>().into(), seed);
    let params = Params::new(wan.specs(), drawn.tensors().to_vec()).unwrap();
    wan.store(&params, layout, DType::Bf16).unwrap()
}

fn original() -> WanLayout {
    WanLayout::Original { patch: PATCH }
}

/// The autoencoder, the text encoder and the tokenizer under the names of the original release.
fn shared_parts(folder: &Path) {
    let fixtures = crate::fixtures();
    std::fs::create_dir_all(folder.join("google/umt5-xxl")).unwrap();
    std::fs::copy(fixtures.join("text/tokenizer.json"), folder.join("google/umt5-xxl/tokenizer.json")).unwrap();
    let vae = WanVae::new(VaeConfig { base: 4, ..VaeConfig::wan21() }).unwrap();
    let weights = vae.store(&drawn(vae.specs(), 3), VaeLayout::Original, DType::Bf16).unwrap();
    fewstep_formats::torch::write(&folder.join("Wan2.1_VAE.pth"), &weights).unwrap();
    let t5 = T5Encoder::new(T5Config {
        vocab: 256,
        dim: TEXT_DIM,
        heads: 2,
        head_dim: 8,
        ffn_dim: 24,
        layers: 2,
        ..T5Config::umt5_xxl()
    })
    .unwrap();
    let weights = t5.store(&drawn(t5.specs(), 4), T5Layout::Original, DType::Bf16).unwrap();
    fewstep_formats::torch::write(&folder.join("models_t5_umt5-xxl-enc-bf16.pth"), &weights).unwrap();
}

fn write_config(folder: &Path) {
    std::fs::write(folder.join("config.json"), "{\"num_heads\": 2}").unwrap();
}

impl Place {
    /// A place with a released text-to-video model in the folder `model`.
    fn released() -> Self {
        let place = Place::empty();
        let folder = place.path("model");
        shared_parts(&folder);
        write_config(&folder);
        transformer(config(), original(), 1).write(&folder.join("diffusion_pytorch_model.safetensors")).unwrap();
        place
    }

    /// Runs with the cache of embeddings in the place.
    fn sampled(&self, args: &[&str]) -> String {
        let output = self.command(args).env("FEWSTEP_CACHE", self.path("cache")).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}\n{}", text(&output.stderr));
        text(&output.stdout)
    }

    fn latent(&self, name: &str) -> Vec<f64> {
        TensorFile::read(&self.path(name)).unwrap().get("latent").unwrap().to_vec_f64()
    }
}

fn sample<'a>(model: &'a str, output: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["sample", "--model", model, "--prompt", "a cat", "-o", output][..], &SMALL, more].concat()
}

#[test]
fn a_folder_of_the_original_release_becomes_a_video_that_says_how_it_was_made() {
    let place = Place::released();
    for (file, start) in [("a.mp4", &b"ftyp"[..]), ("a.gif", b"GIF8"), ("a.png", b"PNG")] {
        place.sampled(&sample("model", file, &["--steps", "2", "--negative", "fog"]));
        let bytes = std::fs::read(place.path(file)).unwrap();
        assert!(bytes[..8].windows(start.len()).any(|w| w == start), "{file}");
        let contains = |what: &[u8]| bytes.windows(what.len()).any(|w| w == what);
        assert!(contains(b"a cat") && contains(b"fog"), "{file} holds its prompts");
    }
    place.sampled(&sample("model", "frames", &["--steps", "2"]));
    assert_eq!(std::fs::read_dir(place.path("frames")).unwrap().count(), 9);
}

#[test]
fn a_sample_is_the_same_with_embeddings_from_the_cache_and_without_it() {
    let place = Place::released();
    let once = |file: &str, more: &[&str]| {
        place.sampled(&sample("model", file, &[&["--steps", "2"], more].concat()));
        place.latent(file)
    };
    let (first, second) = (once("1.safetensors", &[]), once("2.safetensors", &[]));
    assert!(place.path("cache").is_dir(), "embeddings are kept");
    assert_eq!(first.len(), 16 * 3 * 6 * 4);
    assert!(first == second && first == once("3.safetensors", &["--no-cache"]));
    assert!(first != once("4.safetensors", &["--seed", "1"]) && first != once("5.safetensors", &["--guidance", "1"]));
}

#[test]
fn a_distilled_file_takes_its_other_parts_from_the_base_and_samples_in_four_steps() {
    let place = Place::released();
    let file = transformer(config(), WanLayout::Rcm, 1);
    fewstep_formats::torch::write(&place.path("rCM_Wan.pt"), &file).unwrap();
    let more = ["--base", "model", "--heads", "2"];
    place.sampled(&sample("rCM_Wan.pt", "default.safetensors", &more));
    let explicit = ["--steps", "4", "--sampler", "few-step", "--sigma-max", "80", "--grid", "reference"];
    place.sampled(&sample("model", "explicit.safetensors", &explicit));
    assert_eq!(place.latent("default.safetensors"), place.latent("explicit.safetensors"));
}

#[test]
fn two_experts_take_turns_at_the_boundary() {
    let place = Place::released();
    for (name, seed) in [("high_noise_model", 1), ("low_noise_model", 2)] {
        let folder = place.path("two").join(name);
        std::fs::create_dir_all(&folder).unwrap();
        write_config(&folder);
        transformer(config(), original(), seed).write(&folder.join("diffusion_pytorch_model.safetensors")).unwrap();
    }
    let drawn = |file: &str, model: &str, more: &[&str]| {
        let all = [&["--steps", "3", "--guidance", "2", "--shift", "5", "--base", "model"], more].concat();
        place.sampled(&sample(model, file, &all));
        place.latent(file)
    };
    let noisy = drawn("noisy.safetensors", "two/high_noise_model", &[]);
    let rest = drawn("rest.safetensors", "two/low_noise_model", &[]);
    assert!(noisy == drawn("0.safetensors", "two", &["--boundary", "0"]), "always above");
    assert!(rest == drawn("1.safetensors", "two", &["--boundary", "1"]), "always below");
    let mixed = drawn("m.safetensors", "two", &[]);
    assert!(mixed != noisy && mixed != rest, "0.875 lies between the steps");
}

#[test]
fn an_image_is_the_condition_of_image_to_video() {
    let place = Place::released();
    let folder = place.path("i2v");
    shared_parts(&folder);
    write_config(&folder);
    let config = WanConfig { in_channels: 36, image_dim: Some(IMAGE_DIM), ..config() };
    transformer(config, original(), 5).write(&folder.join("diffusion_pytorch_model.safetensors")).unwrap();
    let tower = ClipConfig { image: 28, patch: 14, dim: IMAGE_DIM, mlp_dim: 96, heads: 1, layers: 2 };
    let tower = ClipVision::new(tower).unwrap();
    let mut weights = TensorFile::default();
    for (name, t) in drawn(tower.specs(), 6).iter() {
        let is_patch = name == "visual.patch_embedding.weight";
        let shape = if is_patch { vec![IMAGE_DIM, 3, 14, 14] } else { t.shape().to_vec() };
        weights.tensors.insert(name.into(), t.reshape(&shape).unwrap());
    }
    // The last block, which is not run, shows that there is one.
    let last = weights.tensors["visual.transformer.0.norm1.weight"].clone();
    weights.tensors.insert("visual.transformer.1.norm1.weight".into(), last);
    let clip = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.safetensors";
    weights.write(&folder.join(clip)).unwrap();
    for (name, level) in [("dark.png", 10u8), ("bright.png", 240)] {
        let frames = fewstep_media::Frames::new(40, 60, vec![vec![level; 40 * 60 * 3]]).unwrap();
        frames.write_apng(place.path(name), &fewstep_media::Metadata::new()).unwrap();
    }
    let drawn = |file: &str, image: &str| {
        place.sampled(&sample("i2v", file, &["--steps", "2", "--image", image]));
        place.latent(file)
    };
    assert_ne!(drawn("d.safetensors", "dark.png"), drawn("b.safetensors", "bright.png"));

    assert_says(&place.refused(&sample("i2v", "x.mp4", &[])), &["image-to-video", "--image"]);
    assert_says(&place.refused(&sample("model", "x.mp4", &["--image", "dark.png"])), &["takes no image"]);
    std::fs::remove_file(folder.join(clip)).unwrap();
    assert_says(&place.refused(&sample("i2v", "x.mp4", &["--image", "dark.png"])), &["--image-encoder"]);
}

#[test]
fn what_is_missing_or_cannot_be_is_refused_with_its_remedy() {
    let place = Place::released();
    std::fs::remove_file(place.path("model/Wan2.1_VAE.pth")).unwrap();
    assert_says(&place.refused(&sample("model", "x.mp4", &["--steps", "1"])), &["no autoencoder", "--vae"]);
    assert_says(&place.refused(&sample("nowhere", "x.mp4", &[])), &["nowhere", "wan2.1-t2v-1.3b"]);
    assert_says(
        &place.refused(&sample("wan2.1-t2v-1.3b", "x.mp4", &[])),
        &["FEWSTEP_MODELS", "Wan-AI/Wan2.1-T2V-1.3B"],
    );
    assert_says(&place.refused(&sample("model", "x.avi", &[])), &["x.avi", ".mp4"]);
    assert_says(&place.refused(&["sample", "--model", "model", "--prompt", "a", "--frames", "10"]), &["9 or 13"]);
    assert_says(&place.misused(&["sample", "--model", "model", "--prompt", "a", "--size", "30x30"]), &["16x16"]);
    std::fs::remove_file(place.path("model/models_t5_umt5-xxl-enc-bf16.pth")).unwrap();
    assert_says(&place.refused(&sample("model", "x.safetensors", &[])), &["no text encoder", "--embeddings"]);
}

/// A distillation of the model from its shards, re-encoded, in parts of one sample.
fn distillation<'a>(folder: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let settings = [
        "teacher=model",
        "data.shards.path=shards",
        "data.shards.latent_frames=2",
        "data.shards.reencode=model/Wan2.1_VAE.pth",
        "distill.run.iterations=8",
        "distill.run.checkpoint_every=3",
        "distill.run.log_every=1",
        "distill.method.rcm.dmd.start=1",
        "distill.method.rcm.dmd.student_update_freq=2",
    ];
    let mut args = vec!["distill", "--no-check", "--preset", "wan2.1-t2v-1.3b", "-o", folder];
    args.extend(settings.iter().flat_map(|s| ["--set", s]));
    args.extend(more);
    args
}

#[test]
fn a_teacher_is_sampled_into_shards_and_distilled_from_them_with_a_resume_inside_an_epoch() {
    let place = Place::released();
    place.write("prompts.txt", "a cat\na dog\nthe sea\n");
    let build =
        ["dataset", "build", "--model", "model", "--prompts", "prompts.txt", "--count", "5", "--shard-size", "3"];
    let build = [&build[..], &SMALL, &["--steps", "2", "-o", "shards"]].concat();
    place.sampled(&build);
    let before = crate::files(&place.path("shards"));
    assert!(before.len() >= 3, "two tars and a manifest: {:?}", before.keys());
    place.sampled(&build);
    let after = crate::files(&place.path("shards"));
    let changed: Vec<_> =
        before.iter().filter(|(path, bytes)| after.get(*path) != Some(bytes)).map(|(p, _)| p).collect();
    assert!(changed.is_empty() && before.len() == after.len(), "a finished set is left alone: {changed:?}");
    let report = place.done(&["dataset", "verify", "shards", "--samples", "5", "--latent", "16,3,6,4"]);
    assert_says(&report, &["2 shards", "5 sound samples", "0 findings"]);

    // Eight positions of five samples: the resume at iteration 3 or 6 is inside an epoch.
    place.sampled(&distillation("whole", &[]));
    let mut killed = place.start(&distillation("parts", &[]));
    place.wait_for_iterations("parts", 5);
    killed.kill();
    drop(killed);
    place.sampled(&distillation("parts", &["--resume"]));
    let model = |run: &str| std::fs::read(place.path(run).join("model.safetensors")).unwrap();
    assert!(model("whole") == model("parts"), "resumed is uninterrupted");

    let student = sample("whole/model.safetensors", "student.mp4", &["--base", "model", "--steps", "2"]);
    place.sampled(&student);
}

#[test]
fn a_set_that_is_not_sound_is_reported_member_by_member() {
    let place = Place::released();
    place.write("prompts.txt", "a cat\n");
    let build = ["dataset", "build", "--model", "model", "--prompts", "prompts.txt", "--steps", "1", "-o", "shards"];
    place.sampled(&[&build[..], &SMALL].concat());
    let shard = place.path("shards/shard_000000.tar");
    let mut bytes = std::fs::read(&shard).unwrap();
    let at = bytes.len() / 3;
    bytes[at] ^= 0x10;
    std::fs::write(&shard, bytes).unwrap();
    let output = place.command(&["dataset", "verify", "shards"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_says(&text(&output.stdout), &["shard_000000.tar"]);
    assert_says(&text(&output.stderr), &["not sound"]);
    assert_says(&refusal(&place.command(&["dataset", "verify", "nothing"]).output().unwrap(), 1), &["nothing"]);
}

#[test]
fn a_folder_of_images_with_captions_becomes_shards() {
    let place = Place::released();
    std::fs::create_dir(place.path("in")).unwrap();
    for (i, level) in [30u8, 200].into_iter().enumerate() {
        let frames = fewstep_media::Frames::new(50, 50, vec![vec![level; 50 * 50 * 3]]).unwrap();
        frames.write_apng(place.path(&format!("in/{i}.png")), &fewstep_media::Metadata::new()).unwrap();
        place.write(&format!("in/{i}.txt"), "the sea");
    }
    let encode = ["dataset", "encode", "--input", "in", "--model", "model", "--size", "32x32", "-o", "shards"];
    place.sampled(&encode);
    assert_says(&place.done(&["dataset", "verify", "shards"]), &["2 sound samples", "[16, 1, 4, 4]"]);
    std::fs::remove_file(place.path("in/1.txt")).unwrap();
    let message = place.refused(&["dataset", "encode", "--input", "in", "--model", "model", "-o", "more"]);
    assert_says(&message, &["1.png", "caption"]);
}
