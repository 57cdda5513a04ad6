//! The configurations of the program, each resolved from presets, a file and overrides.

use fewstep_diffusion::{FewStepPreset, Guidance, Sampler, Shift, Sigma};
use fewstep_distill::distiller::DistillConfig;
use fewstep_distill::teaching::TeachConfig;
use fewstep_nn::wan::WanConfig;
use serde::{Deserialize, Serialize};

use crate::configuration::Preset;

/// What `teach` is configured by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeachSettings {
    /// The network's extents.
    pub network: WanConfig,
    /// The clips.
    pub data: DataSettings,
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
    /// The clips.
    pub data: DataSettings,
    /// The distillation.
    pub distill: DistillConfig,
    /// How the student is sampled.
    pub sampling: StudentSampling,
}

/// The moving-digits clips of a training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSettings {
    /// Seed of the endless list of clips.
    pub seed: u64,
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
pub const TEACH_PRESETS: &[Preset<'static>] = &[Preset { name: "digits", text: include_str!("../presets/teach-digits.toml") }];

/// Presets of `distill`; the first is the default.
pub const DISTILL_PRESETS: &[Preset<'static>] = &[
    Preset { name: "digits-rcm", text: include_str!("../presets/distill-digits-rcm.toml") },
    Preset { name: "digits-scm", text: include_str!("../presets/distill-digits-scm.toml") },
    Preset { name: "digits-dmd", text: include_str!("../presets/distill-digits-dmd.toml") },
    Preset { name: "digits-dcm", text: include_str!("../presets/distill-digits-dcm.toml") },
];
