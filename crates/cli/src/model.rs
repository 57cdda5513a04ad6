//! A model file: weights that say themselves what network they are of and how it is sampled.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use fewstep_diffusion::{Denoiser, Guidance, Predictor, Sampler, Shift, Sigma, Wrapper};
use fewstep_distill::digest;
use fewstep_distill::distiller::TeacherReference;
use fewstep_nn::wan::{Wan, WanConfig, WanLayout};
use fewstep_ops::Params;
use fewstep_tensor::DType;
use fewstep_tensor::file::TensorFile;
use serde::{Deserialize, Serialize};

use crate::digits::suits_clips;
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
/// Patch extents of every published Wan.
const PATCH: [usize; 3] = [1, 2, 2];
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
    /// The weights, in the compute dtype.
    pub params: Params,
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
    pub fn load(source: &str, dtype: DType) -> Result<Self> {
        let (file, sha256) = read(source)?;
        Self::described(source, (&file, sha256), dtype)
    }

    /// Reads a teacher: a model file, or bare weights in any published layout, which show their extents themselves but for
    /// the heads (128 wide if not given).
    ///
    /// # Errors
    /// As [`Model::load`], or if the extents do not show.
    pub fn load_teacher(source: &str, heads: Option<usize>, dtype: DType) -> Result<Self> {
        let (file, sha256) = read(source)?;
        if file.metadata.contains_key(DESCRIPTION_KEY) {
            return Self::described(source, (&file, sha256), dtype);
        }
        let wan = Wan::new(WanConfig::of_weights(&file, heads, PATCH)?)?;
        let params = wan.load_from(&file, &PathBuf::from(source), dtype)?;
        let reference = TeacherReference { path: source.into(), sha256 };
        let sampling = TeacherSampling {
            sampler: Sampler::UniPc,
            steps: 50,
            shift: Shift::new(5.0)?,
            sigma_max: Sigma::new(5000.0)?,
            guidance: Guidance::new(5.0)?,
        };
        let denoiser = Denoiser::new(wan, Wrapper::Rf1000);
        Ok(Model { denoiser, params, role: Role::Teacher(sampling), reference })
    }

    fn described(source: &str, (file, sha256): (&TensorFile, String), dtype: DType) -> Result<Self> {
        let path = PathBuf::from(source);
        let Description { network, role } = description(source, file)?.ok_or_else(|| {
            Error::Argument(format!(
                "{source}: the file does not say what network it is (no '{DESCRIPTION_KEY}' in its header); {WRITTEN}, \
                 or `fewstep apply` for bare weights"
            ))
        })?;
        refuse_other_than_clips(source, &network, file.tensors.len())?;
        let wan = Wan::new(network)?;
        let params = wan.load_from(file, &path, dtype)?;
        let reference = TeacherReference { path: source.into(), sha256 };
        Ok(Model { denoiser: Denoiser::new(wan, Wrapper::Rf1000), params, role, reference })
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
        let told = match description(source, &file)? {
            Some(description) => Some(description.network),
            None => folder_config(&path)?,
        };
        let network = match told {
            Some(told) => WanConfig::of_weights_with(&file, WanConfig { heads: heads.unwrap_or(told.heads), ..told })?,
            None => WanConfig::of_weights(&file, heads, PATCH)?,
        };
        Ok(Weights { file, network })
    }
}

/// What a file says of itself, if anything.
fn description(source: &str, file: &TensorFile) -> Result<Option<Description>> {
    let parsed = file.metadata.get(DESCRIPTION_KEY).map(|text| serde_json::from_str(text)).transpose();
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

fn read(source: &str) -> Result<(TensorFile, String)> {
    let path = PathBuf::from(source);
    match source.strip_prefix(BUILTIN) {
        Some(name) => {
            let bytes = builtin(name)?;
            Ok((TensorFile::parse(bytes, &path)?, digest::sha256(bytes)))
        }
        None => Ok((TensorFile::read(&path).map_err(unreadable)?, digest::sha256_file(&path)?)),
    }
}

fn unreadable(e: fewstep_tensor::Error) -> Error {
    match e {
        fewstep_tensor::Error::Io { path, source } => {
            Error::Argument(format!("cannot read the model '{path}': {source}; {WRITTEN}, or {BUILTIN}digits-teacher"))
        }
        other => other.into(),
    }
}

/// A description may promise a network of any extents: it is held against the clips and the file before it is built.
fn refuse_other_than_clips(source: &str, network: &WanConfig, tensors: usize) -> Result<()> {
    if let Err((key, problem)) = suits_clips(network) {
        return Err(Error::Argument(format!(
            "{source}: its network does not suit the clips: {key}: {problem}; {WRITTEN}"
        )));
    }
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
