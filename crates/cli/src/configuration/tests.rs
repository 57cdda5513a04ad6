use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use serde::Deserialize;

use super::*;

mod merging;
mod messages;

const PRESETS: &[Preset<'_>] = &[
    Preset {
        name: "demo",
        text: "seed = 7\nbetas = [0.9, 0.99]\n\n[student]\nlearning_rate = 1e-3\nwidth = 64\n\n\
               [method.rcm]\ntangent_warmup = 100\nweight = 0.5\n",
    },
    Preset { name: "demo-large", text: "base = \"demo\"\n[student]\nwidth = 256\n[method.rcm.critic]\nsteps = 5\n" },
    Preset { name: "loop-a", text: "base = \"loop-b\"\n" },
    Preset { name: "loop-b", text: "base = \"loop-a\"\n" },
    Preset { name: "orphan", text: "seed = 1\nbase = \"dema\"\n" },
];

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    seed: u64,
    betas: [f64; 2],
    #[serde(default, skip_serializing_if = "Option::is_none")]
    output: Option<PathBuf>,
    #[serde(default)]
    log: Log,
    #[serde(default)]
    loggers: BTreeMap<String, u32>,
    #[serde(default)]
    stages: Vec<Stage>,
    student: Student,
    method: Method,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Log {
    every: NonZeroUsize,
    verbose: bool,
}

impl Default for Log {
    fn default() -> Self {
        Self { every: NonZeroUsize::MIN, verbose: false }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stage {
    steps: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Student {
    learning_rate: f64,
    width: usize,
    #[serde(default)]
    dropout: Probability,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "f32")]
struct Probability(f32);

impl TryFrom<f32> for Probability {
    type Error = String;

    fn try_from(p: f32) -> Result<Self, String> {
        if (0.0..=1.0).contains(&p) { Ok(Self(p)) } else { Err(format!("expected a number from 0 to 1, got {p}")) }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Method {
    Rcm(Rcm),
    Scm {
        #[serde(default)]
        tangent_warmup: u32,
    },
    Mean,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rcm {
    tangent_warmup: u32,
    weight: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    critic: Option<Critic>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Critic {
    steps: u32,
}

/// Layers on the disk for a test: a file `my.toml`, or none where the text is empty.
struct Case {
    folder: tempfile::TempDir,
    file: Option<PathBuf>,
    overrides: Vec<String>,
}

fn case(file: &str, overrides: &[&str]) -> Case {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("my.toml");
    std::fs::write(&path, file).unwrap();
    let overrides = overrides.iter().map(|text| text.to_string()).collect();
    Case { folder, file: (!file.is_empty()).then_some(path), overrides }
}

impl Case {
    fn resolve(&self, preset: Option<&str>) -> Result<Resolved<Settings>, ConfigurationError> {
        resolve(Layers { presets: PRESETS, preset, file: self.file.as_deref(), overrides: &self.overrides })
    }

    fn shown(&self, text: &str) -> String {
        text.replace(&format!("{}/", self.folder.path().display()), "")
    }
}

fn resolved(preset: &str, file: &str, overrides: &[&str]) -> Resolved<Settings> {
    case(file, overrides).resolve(Some(preset)).unwrap()
}
