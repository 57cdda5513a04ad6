//! Where the parts of a model are.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::{Error, Result};

/// Folders or files of each part, in the order of preference: diffusers' first, then the original release's.
const VAE: [&str; 4] = ["vae", "Wan2.1_VAE.pth", "Wan2.1_VAE.safetensors", "Wan2.1_VAE.pt"];
const TEXT_ENCODER: [&str; 3] =
    ["text_encoder", "models_t5_umt5-xxl-enc-bf16.pth", "models_t5_umt5-xxl-enc-bf16.safetensors"];
const TOKENIZER: [&str; 6] = [
    "tokenizer/tokenizer.json",
    "tokenizer/spiece.model",
    "google/umt5-xxl/tokenizer.json",
    "google/umt5-xxl/spiece.model",
    "tokenizer.json",
    "spiece.model",
];
const IMAGE_ENCODER: [&str; 3] = [
    "image_encoder",
    "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
    "models_clip_open-clip-xlm-roberta-large-vit-huge-14.safetensors",
];
/// Pairs of networks, the one for noisy states first.
const TWO_EXPERTS: [[&str; 2]; 2] = [["transformer", "transformer_2"], ["high_noise_model", "low_noise_model"]];
/// A single network.
const ONE: [&str; 3] =
    ["transformer", "diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model.safetensors"];

/// A model's configuration is a few kilobytes; what is longer than this is cut, and then no JSON.
const MAX_JSON: u64 = 1 << 20;

/// Names of published models, with the repositories that hold them: the original release's and diffusers'.
pub const PUBLISHED: [(&str, [&str; 2]); 7] = [
    ("wan2.1-t2v-1.3b", ["Wan-AI/Wan2.1-T2V-1.3B", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"]),
    ("wan2.1-t2v-14b", ["Wan-AI/Wan2.1-T2V-14B", "Wan-AI/Wan2.1-T2V-14B-Diffusers"]),
    ("wan2.1-i2v-14b-480p", ["Wan-AI/Wan2.1-I2V-14B-480P", "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers"]),
    ("wan2.1-i2v-14b-720p", ["Wan-AI/Wan2.1-I2V-14B-720P", "Wan-AI/Wan2.1-I2V-14B-720P-Diffusers"]),
    ("wan2.1-flf2v-14b-720p", ["Wan-AI/Wan2.1-FLF2V-14B-720P", "Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers"]),
    ("wan2.2-t2v-a14b", ["Wan-AI/Wan2.2-T2V-A14B", "Wan-AI/Wan2.2-T2V-A14B-Diffusers"]),
    ("wan2.2-i2v-a14b", ["Wan-AI/Wan2.2-I2V-A14B", "Wan-AI/Wan2.2-I2V-A14B-Diffusers"]),
];

/// The files and folders of a model's parts; none where the model's folder holds no such part.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parts {
    /// The diffusion transformer, or two: first the one for noisy states.
    pub transformers: Vec<PathBuf>,
    /// The video autoencoder.
    pub vae: Option<PathBuf>,
    /// The text encoder.
    pub text_encoder: Option<PathBuf>,
    /// Its tokenizer: `tokenizer.json` or a sentencepiece model.
    pub tokenizer: Option<PathBuf>,
    /// The image encoder of Wan2.1 image to video.
    pub image_encoder: Option<PathBuf>,
    /// τ at which two networks take turns, where the folder says it.
    pub boundary: Option<f64>,
}

impl Parts {
    /// Finds the parts in a folder of the original release or of diffusers; a file is a transformer alone.
    ///
    /// # Errors
    /// If there is nothing at the path, or its `model_index.json` cannot be read.
    pub fn find(path: &Path) -> Result<Self> {
        if path.is_file() {
            return Ok(Parts { transformers: vec![path.to_path_buf()], ..Parts::default() });
        }
        if !path.is_dir() {
            return Err(Error::Missing {
                place: path.to_path_buf(),
                what: "no such file or folder".into(),
                remedy: "give a file of weights, or the folder of a model as it was downloaded".into(),
            });
        }
        let first = |names: &[&str]| names.iter().map(|n| path.join(n)).find(|p| p.exists());
        let pair = TWO_EXPERTS.iter().map(|pair| pair.map(|n| path.join(n))).find(|p| p.iter().all(|p| p.exists()));
        let alone = || first(&ONE).or_else(|| only_weights(path)).into_iter().collect();
        Ok(Parts {
            transformers: pair.map_or_else(alone, |pair| pair.to_vec()),
            vae: first(&VAE),
            text_encoder: first(&TEXT_ENCODER),
            tokenizer: first(&TOKENIZER),
            image_encoder: first(&IMAGE_ENCODER),
            boundary: boundary(path)?,
        })
    }

    /// These parts, and those of `other` where there are none.
    pub fn or(self, other: Parts) -> Self {
        Parts {
            transformers: if self.transformers.is_empty() { other.transformers } else { self.transformers },
            vae: self.vae.or(other.vae),
            text_encoder: self.text_encoder.or(other.text_encoder),
            tokenizer: self.tokenizer.or(other.tokenizer),
            image_encoder: self.image_encoder.or(other.image_encoder),
            boundary: self.boundary.or(other.boundary),
        }
    }
}

/// A folder of nothing but a transformer: its index, or its only file of weights.
fn only_weights(folder: &Path) -> Option<PathBuf> {
    let names: Vec<PathBuf> = std::fs::read_dir(folder).ok()?.filter_map(|e| Some(e.ok()?.path())).collect();
    let ends = |p: &Path, end: &str| p.file_name().is_some_and(|n| n.to_string_lossy().ends_with(end));
    let weights = |p: &&PathBuf| [".safetensors", ".pth", ".pt", ".bin"].iter().any(|e| ends(p, e));
    if names.iter().any(|p| ends(p, ".index.json")) {
        return Some(folder.to_path_buf());
    }
    let found: Vec<&PathBuf> = names.iter().filter(weights).collect();
    match found.as_slice() {
        [one] => Some((*one).clone()),
        _ => None,
    }
}

/// `boundary_ratio` of a diffusers pipeline.
fn boundary(folder: &Path) -> Result<Option<f64>> {
    let path = folder.join("model_index.json");
    if !path.is_file() {
        return Ok(None);
    }
    Ok(read_json(&path)?["boundary_ratio"].as_f64())
}

/// Reads a file of JSON.
///
/// # Errors
/// If it cannot be read or is not JSON.
pub(crate) fn read_json(path: &Path) -> Result<Value> {
    let refused = |what: String| Error::Missing {
        place: path.to_path_buf(),
        what,
        remedy: "take the file from the model's folder again".into(),
    };
    let mut text = String::new();
    let read = File::open(path).and_then(|f| f.take(MAX_JSON).read_to_string(&mut text));
    read.map_err(|e| refused(e.to_string()))?;
    serde_json::from_str(&text).map_err(|e| refused(format!("not JSON ({e})")))
}

/// The path of a model: a file or folder, or a published model's name (see [`PUBLISHED`]), which is looked for in
/// `$FEWSTEP_MODELS` and in the cache of the Hugging Face programs.
///
/// # Errors
/// If there is no such file or folder, or a published model is in none of these places (the message lists them).
pub fn locate(model: &str) -> Result<PathBuf> {
    let path = PathBuf::from(model);
    if path.exists() {
        return Ok(path);
    }
    let Some((_, repositories)) = PUBLISHED.iter().find(|(name, _)| name.eq_ignore_ascii_case(model)) else {
        let names: Vec<&str> = PUBLISHED.iter().map(|(name, _)| *name).collect();
        return Err(Error::Missing {
            place: path,
            what: "no such file or folder, and no published model's name".into(),
            remedy: format!("give a path, or one of {}", names.join(", ")),
        });
    };
    let places: Vec<PathBuf> = repositories.iter().flat_map(|r| candidates(r)).collect();
    places.iter().find(|p| p.is_dir()).cloned().ok_or_else(|| Error::Missing {
        place: path,
        what: format!(
            "not in {}",
            places.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", nor in ")
        ),
        remedy: format!("download {} there, set FEWSTEP_MODELS, or give the folder's path", repositories[0]),
    })
}

/// Where a repository's files may be: `$FEWSTEP_MODELS/NAME`, and the snapshot that its `main` points to.
fn candidates(repository: &str) -> Vec<PathBuf> {
    let env = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let mut places = Vec::new();
    let name = repository.rsplit('/').next().unwrap_or(repository);
    places.extend(env("FEWSTEP_MODELS").map(|p| p.join(name)));
    let hub = env("HF_HUB_CACHE")
        .or_else(|| env("HF_HOME").map(|p| p.join("hub")))
        .or_else(|| env("HOME").map(|p| p.join(".cache/huggingface/hub")));
    if let Some(hub) = hub {
        let repo = hub.join(format!("models--{}", repository.replace('/', "--")));
        match std::fs::read_to_string(repo.join("refs/main")) {
            Ok(revision) => places.push(repo.join("snapshots").join(revision.trim())),
            Err(_) => places.push(repo),
        }
    }
    places
}
