//! A model file: weights that say themselves what network they are of and how it is sampled.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use fewstep_diffusion::{Denoiser, Guidance, Predictor, Sampler, Shift, Sigma, Wrapper};
use fewstep_distill::digest;
use fewstep_distill::distiller::TeacherReference;
use fewstep_formats::read_weights;
use fewstep_nn::wan::{Wan, WanConfig, WanLayout};
use fewstep_ops::{Compute, Params};
use fewstep_pipeline::{Parts, Transformer, locate};
use fewstep_tensor::DType;
use fewstep_tensor::file::TensorFile;
use fewstep_text::Identity;
use serde::{Deserialize, Serialize};

use crate::digits::{CLIP, suits_clips};
use crate::error::{Error, Result};
use crate::settings::{StudentSampling, TeacherSampling};

/// The metadata key of a safetensors file under which a model describes itself.
const DESCRIPTION_KEY: &str = "fewstep";
/// How a model inside the program is named.
const BUILTIN: &str = "builtin:";
/// Where diffusers keeps the network in the folder of a pipeline.
const TRANSFORMER: &str = "transformer";
/// A config.json is a few hundred bytes.
const MAX_CONFIG: u64 = 1 << 20;
/// What to do about a file that is no model.
const WRITTEN: &str = "use a model.safetensors that teach or distill wrote";

/// What a model file says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// The network's extents.
    pub network: WanConfig,
    /// How it is sampled.
    pub role: Role,
}

/// What a model is, and how it is sampled.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Many guided steps.
    Teacher(TeacherSampling),
    /// Few steps without guidance.
    Student(StudentSampling),
}

/// A network with weights, ready to sample.
pub struct Model {
    /// The network and its preconditioning.
    pub denoiser: Denoiser<Wan>,
    /// The weights, as the network computes with them.
    pub params: Params,
    /// Where and in what it computes.
    pub compute: Compute,
    /// What it is and how it is sampled.
    pub role: Role,
    /// Where it came from, with its hash.
    pub reference: TeacherReference,
}

impl Model {
    /// Reads a model file, or one inside the program by `builtin:NAME`.
    ///
    /// # Errors
    /// If it cannot be read, does not describe itself, or its weights are not those of its network.
    pub fn load(source: &str, compute: Compute) -> Result<Self> {
        let (file, sha256, _) = read(source)?;
        let model = Self::described(source, (&file, sha256), compute)?;
        refuse_other_than_clips(source, model.network().config())?;
        Ok(model)
    }

    /// Reads a teacher: a model file, or bare weights in any published layout, which show their extents themselves but for
    /// the heads (those of a `config.json` beside them, or 128 wide, if not given). Bf16 matrices of bare weights stay mapped.
    ///
    /// # Errors
    /// As [`Model::load`], or if the extents do not show.
    pub fn load_teacher(source: &str, heads: Option<usize>, compute: Compute) -> Result<Self> {
        let (file, sha256, path) = read(source)?;
        if file.metadata.contains_key(DESCRIPTION_KEY) {
            return Self::described(source, (&file, sha256), compute);
        }
        let Transformer { denoiser, params, .. } =
            Transformer::of_file(file, &path, heads, compute.dtype.wide())?.on(compute)?;
        let reference = TeacherReference { path: source.into(), sha256 };
        let sampling = TeacherSampling {
            sampler: Sampler::UniPc,
            steps: 50,
            shift: Shift::new(5.0)?,
            sigma_max: Sigma::new(5000.0)?,
            guidance: Guidance::new(5.0)?,
        };
        Ok(Model { denoiser, params, compute, role: Role::Teacher(sampling), reference })
    }

    fn described(source: &str, (file, sha256): (&TensorFile, String), compute: Compute) -> Result<Self> {
        let path = PathBuf::from(source);
        let Description { network, role } = description(source, &file.metadata)?.ok_or_else(|| {
            Error::Argument(format!(
                "{source}: the file does not say what network it is (no '{DESCRIPTION_KEY}' in its header); {WRITTEN}, \
                 or `fewstep apply` for bare weights"
            ))
        })?;
        if is_of_clips(&network) {
            refuse_other_than_clips(source, &network)?;
        }
        refuse_absurd(source, &network, file.tensors.len())?;
        let wan = Wan::new(network)?;
        let params = compute.weights(&wan.load_from(file, &path, compute.dtype.wide())?)?;
        let reference = TeacherReference { path: source.into(), sha256 };
        Ok(Model { denoiser: Denoiser::new(wan, Wrapper::Rf1000), params, compute, role, reference })
    }

    /// Writes a model file of bf16 weights under the original names.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(path: &Path, network: &Wan, params: &Params, role: Role) -> Result<()> {
        let description = Description { network: network.config().clone(), role };
        let mut file = network.store(params, WanLayout::Rcm, DType::Bf16)?;
        let text = serde_json::to_string(&description).map_err(|e| Error::Argument(e.to_string()))?;
        file.metadata.insert(DESCRIPTION_KEY.into(), text);
        Ok(file.write(path)?)
    }

    /// The model as what answers for predictions.
    pub fn predictor(&self) -> Predictor<'_, Wan> {
        Predictor { denoiser: &self.denoiser, params: &self.params }
    }

    /// The network.
    pub fn network(&self) -> &Wan {
        self.denoiser.network()
    }
}

/// Weights as they are stored, with the extents of their network.
pub struct Weights {
    /// The tensors.
    pub file: TensorFile,
    /// The extents.
    pub network: WanConfig,
}

impl Weights {
    /// Reads a model file, published weights of any layout (a file, a folder, or a folder with one in `transformer`), or
    /// `builtin:NAME`. What the weights do not show is taken from the model's description or the folder's config.json;
    /// `heads` goes before both, and is 128 wide without all three.
    ///
    /// # Errors
    /// If they cannot be read, or are not the weights of what describes them.
    pub fn read(source: &str, heads: Option<usize>) -> Result<Self> {
        let inner = Path::new(source).join(TRANSFORMER);
        let path = if inner.is_dir() { inner } else { PathBuf::from(source) };
        let file = match source.strip_prefix(BUILTIN) {
            Some(name) => TensorFile::parse(builtin(name)?, &path)?,
            None => fewstep_formats::read_weights(&path)?,
        };
        let told = match description(source, &file.metadata)? {
            Some(description) => Some(description.network),
            None => folder_config(&path)?,
        };
        let network = match told {
            Some(told) => WanConfig::of_weights_with(&file, WanConfig { heads: heads.unwrap_or(told.heads), ..told })?,
            None => WanConfig::of_weights(&file, heads, [1, 2, 2])?,
        };
        Ok(Weights { file, network })
    }
}

/// What a file's header says of itself, if this program wrote it.
///
/// # Errors
/// If the description cannot be read.
pub fn description(source: &str, metadata: &HashMap<String, String>) -> Result<Option<Description>> {
    let parsed = metadata.get(DESCRIPTION_KEY).map(|text| serde_json::from_str(text)).transpose();
    parsed.map_err(|e| Error::Argument(format!("{source}: cannot read its description ({e}); {WRITTEN}")))
}

/// The extents in the config.json of a folder, if it has one.
fn folder_config(folder: &Path) -> Result<Option<WanConfig>> {
    let path = folder.join("config.json");
    if !path.is_file() {
        return Ok(None);
    }
    let mut text = String::new();
    File::open(&path).and_then(|f| f.take(MAX_CONFIG).read_to_string(&mut text)).map_err(Error::io(&path))?;
    let json = serde_json::from_str(&text).map_err(|e| {
        Error::Argument(format!("{}: not JSON ({e}); fetch it again, or give the file of weights", path.display()))
    })?;
    Ok(Some(WanConfig::from_json(&json)?))
}

/// Whether a model is one of the moving digits: inside the program, or described as a network of such clips.
///
/// # Errors
/// If a safetensors file that is there cannot be read.
pub fn is_of_digits(source: &str) -> Result<bool> {
    if source.starts_with(BUILTIN) {
        return Ok(true);
    }
    let path = Path::new(source);
    if !path.is_file() || path.extension().is_none_or(|e| e != "safetensors") {
        return Ok(false);
    }
    let file = TensorFile::read(path)?;
    let description = file.metadata.get(DESCRIPTION_KEY).map(|t| serde_json::from_str::<Description>(t));
    // A description that cannot be read is refused where digits are read.
    Ok(description.is_some_and(|d| d.map_or(true, |d| is_of_clips(&d.network))))
}

/// Reads a model's file, or what is published as a folder or in PyTorch's format, with the hash of what was read.
fn read(source: &str) -> Result<(TensorFile, String, PathBuf)> {
    let path = PathBuf::from(source);
    match source.strip_prefix(BUILTIN) {
        Some(name) => {
            let bytes = builtin(name)?;
            Ok((TensorFile::parse(bytes, &path)?, digest::sha256(bytes), path))
        }
        None => published(path),
    }
}

fn published(path: PathBuf) -> Result<(TensorFile, String, PathBuf)> {
    if path.is_file() {
        let file = read_weights(&path).map_err(|e| match e {
            fewstep_formats::Error::Tensor(e) => unreadable(e),
            other => other.into(),
        })?;
        let sha256 = digest::sha256_file(&path)?;
        return Ok((file, sha256, path));
    }
    let path = located(&path.to_string_lossy())?;
    let parts = Parts::find(&path)?;
    match parts.transformers.as_slice() {
        [] => Err(no_transformer(&path.to_string_lossy())),
        [one] => Ok((read_weights(one)?, Identity::of_weights(one)?.to_string(), one.clone())),
        several => Err(Error::Argument(format!(
            "{}: a teacher is one network, here are {}: give the file or folder of one",
            path.display(),
            several.len()
        ))),
    }
}

/// The path of a model, or of a released one by its name.
///
/// # Errors
/// If there is none.
pub fn located(source: &str) -> Result<PathBuf> {
    locate(source).map_err(|e| match e {
        fewstep_pipeline::Error::Missing { what, remedy, .. } => Error::Argument(format!(
            "cannot read the model '{source}': {what}; {remedy}, or {BUILTIN}digits-teacher, or {WRITTEN}"
        )),
        other => other.into(),
    })
}

/// A folder without a network.
pub fn no_transformer(source: &str) -> Error {
    Error::Argument(format!(
        "cannot read the model '{source}': the folder holds no diffusion transformer; give the folder of a released model as \
         it was downloaded, or its file, or {WRITTEN}"
    ))
}

fn unreadable(e: fewstep_tensor::Error) -> Error {
    match e {
        fewstep_tensor::Error::Io { path, source } => {
            Error::Argument(format!("cannot read the model '{path}': {source}; {WRITTEN}, or {BUILTIN}digits-teacher"))
        }
        other => other.into(),
    }
}

/// Whether a network makes frames of colours, as the clips are, and not latents.
fn is_of_clips(network: &WanConfig) -> bool {
    network.out_channels == CLIP[0]
}

fn refuse_other_than_clips(source: &str, network: &WanConfig) -> Result<()> {
    suits_clips(network).map_err(|(key, problem)| {
        Error::Argument(format!("{source}: its network does not suit the clips: {key}: {problem}; {WRITTEN}"))
    })
}

/// A description may promise a network of any extents: it is held against the file before it is built.
fn refuse_absurd(source: &str, network: &WanConfig, tensors: usize) -> Result<()> {
    match network.layers > tensors {
        true => Err(Error::Argument(format!(
            "{source}: it describes {} layers and holds {tensors} tensors; {WRITTEN}",
            network.layers
        ))),
        false => Ok(()),
    }
}

fn builtin(name: &str) -> Result<&'static [u8]> {
    match name {
        "digits-teacher" => Ok(include_bytes!("../assets/digits-teacher.safetensors")),
        _ => Err(Error::Argument(format!(
            "no model '{BUILTIN}{name}' is inside the program; there is {BUILTIN}digits-teacher"
        ))),
    }
}
