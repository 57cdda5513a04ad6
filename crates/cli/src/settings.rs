//! The configurations of the program, each resolved from presets, a file and overrides.

use std::path::PathBuf;

use fewstep_diffusion::{FewStepPreset, Guidance, Sampler, Shift, Sigma};
use fewstep_distill::distiller::DistillConfig;
use fewstep_distill::ema::PowerProfile;
use fewstep_distill::method::Method;
use fewstep_distill::teaching::TeachConfig;
use fewstep_nn::wan::WanConfig;
use serde::{Deserialize, Serialize};

use crate::configuration::Preset;
use crate::digits::suits_clips;
use crate::error::Error;
use crate::model::Role;

/// What `teach` is configured by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeachSettings {
    /// The network's extents.
    pub network: WanConfig,
    /// The clips.
    pub data: DigitsData,
    /// The training.
    pub teach: TeachConfig,
    /// How the teacher is sampled.
    pub sampling: TeacherSampling,
}

/// What `distill` is configured by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DistillSettings {
    /// The teacher: a file of weights, or `builtin:digits-teacher`.
    pub teacher: String,
    /// Attention heads of weights that do not say it, if not 128 wide.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heads: Option<usize>,
    /// The examples.
    pub data: DataSettings,
    /// The distillation.
    pub distill: DistillConfig,
    /// How the student is sampled.
    pub sampling: StudentSampling,
}

/// What a distillation reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum DataSettings {
    /// Moving digits, drawn as they are needed.
    Digits(DigitsData),
    /// Latents with text embeddings in the published layout of shards.
    Shards(ShardsData),
}

/// The moving-digits clips of a training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DigitsData {
    /// Seed of the endless list of clips.
    pub seed: u64,
}

/// Shards of a training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardsData {
    /// The folder of `shard_*.tar`.
    pub path: PathBuf,
    /// Latent frames that are kept of each example: 20 are 77 frames of a video, 21 are 81.
    pub latent_frames: usize,
    /// What guidance is taken against.
    #[serde(default)]
    pub negative: Negative,
    /// Folder of the released model whose text encoder encodes a negative prompt that is given as text; the teacher's own
    /// folder if none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// Weights of the VAE by which each latent is decoded, clamped to ±1 and encoded again, as published; without them
    /// latents are used as they are stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reencode: Option<PathBuf>,
    /// Seed of the order of examples.
    pub seed: u64,
}

/// The negative prompt.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Negative {
    /// That of the Wan release.
    #[default]
    Stock,
    /// One's own, as text.
    Prompt(String),
    /// A file that holds its embedding.
    Embedding(PathBuf),
}

impl ShardsData {
    fn validate(&self) -> Result<(), Refused> {
        let empty = |path: &PathBuf| path.as_os_str().is_empty();
        if empty(&self.path) {
            return Err(Refused::new("data.shards.path", "expected the folder of the shards, got an empty text"));
        }
        if self.latent_frames == 0 {
            return Err(Refused::new("data.shards.latent_frames", "expected at least 1, such as 20 or 21, got 0"));
        }
        if matches!(&self.negative, Negative::Embedding(path) if empty(path)) {
            return Err(Refused::new("data.shards.negative.embedding", "expected a file, got an empty text"));
        }
        match &self.reencode {
            Some(path) if empty(path) => Err(Refused::new(
                "data.shards.reencode",
                "expected the VAE's weights; leave it out to use latents as they are",
            )),
            _ => Ok(()),
        }
    }
}

/// How a teacher is sampled.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeacherSampling {
    /// The solver.
    pub sampler: Sampler,
    /// Its steps.
    pub steps: usize,
    /// Shift of its grid.
    pub shift: Shift,
    /// Noise level at which it starts.
    pub sigma_max: Sigma,
    /// Guidance.
    pub guidance: Guidance,
}

/// How a student is sampled.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StudentSampling {
    /// Steps where none are asked for.
    pub steps: usize,
    /// Noise level at which it starts.
    pub sigma_max: Sigma,
    /// The published times between.
    pub grid: FewStepPreset,
}

/// Presets of `teach`; the first is the default.
pub const TEACH_PRESETS: &[Preset<'static>] =
    &[Preset { name: "digits", text: include_str!("../presets/teach-digits.toml") }];

/// Presets of `distill`; the first is the default.
pub const DISTILL_PRESETS: &[Preset<'static>] = &[
    Preset { name: "digits-rcm", text: include_str!("../presets/distill-digits-rcm.toml") },
    Preset { name: "digits-scm", text: include_str!("../presets/distill-digits-scm.toml") },
    Preset { name: "digits-dmd", text: include_str!("../presets/distill-digits-dmd.toml") },
    Preset { name: "digits-dcm", text: include_str!("../presets/distill-digits-dcm.toml") },
    Preset { name: "wan2.1-t2v-1.3b", text: include_str!("../presets/distill-wan2.1-t2v-1.3b.toml") },
    Preset { name: "wan2.1-t2v-1.3b-paper", text: include_str!("../presets/distill-wan2.1-t2v-1.3b-paper.toml") },
    Preset { name: "wan2.1-t2v-1.3b-scm", text: include_str!("../presets/distill-wan2.1-t2v-1.3b-scm.toml") },
    Preset { name: "wan2.1-t2v-1.3b-dmd", text: include_str!("../presets/distill-wan2.1-t2v-1.3b-dmd.toml") },
    Preset { name: "wan2.1-t2v-1.3b-dcm", text: include_str!("../presets/distill-wan2.1-t2v-1.3b-dcm.toml") },
    Preset { name: "wan2.1-t2v-14b", text: include_str!("../presets/distill-wan2.1-t2v-14b.toml") },
    Preset { name: "wan2.1-t2v-14b-paper", text: include_str!("../presets/distill-wan2.1-t2v-14b-paper.toml") },
    Preset { name: "wan2.1-t2v-14b-scm", text: include_str!("../presets/distill-wan2.1-t2v-14b-scm.toml") },
    Preset { name: "wan2.1-t2v-14b-dmd", text: include_str!("../presets/distill-wan2.1-t2v-14b-dmd.toml") },
    Preset { name: "wan2.1-t2v-14b-dcm", text: include_str!("../presets/distill-wan2.1-t2v-14b-dcm.toml") },
];

/// Settings with bounds that their types do not express.
pub trait Validate {
    /// Refuses settings that contradict each other or cannot be, before anything is computed or written.
    ///
    /// # Errors
    /// The first such setting.
    fn validate(&self) -> Result<(), Refused>;
}

/// A setting that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Its key, such as `distill.run.batch`.
    pub key: String,
    /// What was expected and what came.
    pub reason: String,
}

impl Refused {
    fn new(key: &str, reason: impl ToString) -> Self {
        Refused { key: key.into(), reason: reason.to_string() }
    }

    /// Puts what a library refused below `table`.
    fn below(table: &str) -> impl Fn(fewstep_distill::Error) -> Self + '_ {
        move |e| match e {
            fewstep_distill::Error::Setting { key, expected, got } => {
                Refused::new(&format!("{table}.{key}"), format_args!("expected {expected}, got {got}"))
            }
            other => Refused::new(table, other),
        }
    }
}

impl Validate for TeachSettings {
    fn validate(&self) -> Result<(), Refused> {
        self.network.validate().map_err(|e| match e {
            fewstep_nn::Error::Config { problem, remedy, .. } => {
                Refused::new("network", format_args!("{problem}; {remedy}"))
            }
            other => Refused::new("network", other),
        })?;
        suits_clips(&self.network).map_err(|(key, problem)| Refused::new(&format!("network.{key}"), problem))?;
        let teach = &self.teach;
        teach.run.validate().map_err(Refused::below("teach"))?;
        teach.time.validate().map_err(|e| Refused::new("teach.time", e))?;
        teach.optimizer.validate().map_err(Refused::below("teach.optimizer"))?;
        validate_ema("teach.ema", teach.ema)?;
        teach.validate().map_err(Refused::below("teach"))?;
        validate_sampling(Role::Teacher(self.sampling))
    }
}

impl Validate for DistillSettings {
    fn validate(&self) -> Result<(), Refused> {
        let distill = &self.distill;
        if self.heads == Some(0) {
            return Err(Refused::new("heads", "expected at least 1, got 0"));
        }
        if let DataSettings::Shards(shards) = &self.data {
            shards.validate()?;
            if distill.run.preview_every > 0 {
                let reason =
                    "expected 0 with data.shards: a latent is no picture without the VAE; sample the model instead";
                return Err(Refused::new("distill.run.preview_every", reason));
            }
        }
        distill.run.validate().map_err(Refused::below("distill"))?;
        distill.method.validate().map_err(|e| in_method(&distill.method, e))?;
        distill.student.validate().map_err(Refused::below("distill.student"))?;
        distill.fake_score.validate().map_err(Refused::below("distill.fake_score"))?;
        validate_ema("distill.ema", distill.ema)?;
        distill.validate().map_err(Refused::below("distill"))?;
        validate_sampling(Role::Student(self.sampling))
    }
}

/// The library names a method's settings by objective, as in "method dmd.scale": where that is in the table.
fn in_method(method: &Method, e: fewstep_distill::Error) -> Refused {
    let fewstep_distill::Error::Setting { key, expected, got } = e else { return Refused::new("distill.method", e) };
    let key = key.trim_start_matches("method ");
    let table = match method {
        Method::Dmd(_) => "",
        Method::Consistency(_) => "consistency.",
        Method::Rcm { .. } if key.starts_with("dmd.") => "rcm.",
        Method::Rcm { .. } => "rcm.consistency.",
    };
    Refused::new(&format!("distill.method.{table}{key}"), format_args!("expected {expected}, got {got}"))
}

fn validate_ema(key: &str, relative_std: f64) -> Result<(), Refused> {
    PowerProfile::new(relative_std).map(drop).map_err(|e| match e {
        fewstep_distill::Error::Setting { expected, got, .. } => {
            Refused::new(key, format_args!("expected {expected}, got {got}"))
        }
        other => Refused::new(key, other),
    })
}

fn validate_sampling(role: Role) -> Result<(), Refused> {
    role.validate().map_err(|e| match e {
        Error::Diffusion(fewstep_diffusion::Error::Steps { .. }) => Refused::new("sampling.steps", e),
        _ => Refused::new("sampling.sigma_max", e),
    })
}
