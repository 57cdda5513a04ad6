//! What of a network is trained: all its weights, or low-rank adapters of some.

use fewstep_ops::{Compute, ParamId, ParamSpec, Params};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The target that stands for every linear layer.
const EVERY: &str = "*";
/// The end of a linear layer's weight.
const WEIGHT: &str = ".weight";

/// What student and fake score train.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Train {
    /// Every parameter.
    #[default]
    Full,
    /// Adapters of linear layers; the weights themselves are frozen, and shared with the teacher.
    Lora(Lora),
}

/// Low-rank adapters (LoRA): W + (alpha/rank)·B·A.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lora {
    /// r, the inner extent of B·A.
    pub rank: usize,
    /// The factor of B·A is alpha/rank.
    pub alpha: f64,
    /// Linear layers by the end of their names, such as `self_attn.q` or `ffn.0`, or `*` for all.
    pub targets: Vec<String>,
    /// Seed of A; B begins at zero.
    #[serde(default)]
    pub seed: u64,
}

impl Train {
    /// Refuses settings that no network could train by.
    ///
    /// # Errors
    /// The first such setting.
    pub fn validate(&self) -> Result<()> {
        let Train::Lora(lora) = self else { return Ok(()) };
        let checks = [
            ("train.lora.rank", lora.rank > 0, "at least 1", lora.rank.to_string()),
            (
                "train.lora.alpha",
                lora.alpha > 0.0 && lora.alpha.is_finite(),
                "a positive number",
                lora.alpha.to_string(),
            ),
            ("train.lora.targets", !lora.targets.is_empty(), "names of linear layers, or \"*\"", "none".into()),
        ];
        match checks.into_iter().find(|c| !c.1) {
            Some((key, _, expected, got)) => Err(Error::Setting { key, expected, got }),
            None => Ok(()),
        }
    }

    /// The weights from which student and fake score start, on the device: those of the teacher in the masters' dtype, f32, or
    /// the teacher's own, shared and in their own dtype, with adapters in the masters' dtype. (f64 where proofs compute so.)
    ///
    /// # Errors
    /// If a setting is refused, a target is no linear layer of the network (the message lists them), or a GPU has no memory.
    pub fn start(&self, teacher: &Params, compute: Compute) -> Result<Params> {
        self.validate()?;
        let masters = compute.dtype.wide();
        match self {
            Train::Full => Ok(teacher.to(compute.device, masters)?),
            Train::Lora(lora) => {
                let targets = lora.targets(teacher.specs())?;
                Ok(compute.weights(teacher)?.adapted(&targets, lora.rank, lora.scale(), lora.seed, masters)?)
            }
        }
    }
}

impl Lora {
    /// alpha/rank.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }

    /// The weights that the targets name, in the order of the network.
    ///
    /// # Errors
    /// If a target names none; the message lists the names that there are.
    pub fn targets(&self, specs: &[ParamSpec]) -> Result<Vec<ParamId>> {
        let layers: Vec<(usize, &str)> = specs.iter().enumerate().filter_map(|(i, s)| Some((i, linear(s)?))).collect();
        let matches = |target: &str, layer: &str| {
            target == EVERY || layer.strip_suffix(target).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        if let Some(idle) = self.targets.iter().find(|t| !layers.iter().any(|(_, layer)| matches(t, layer))) {
            let mut names: Vec<&str> = layers.iter().map(|(_, layer)| in_block(layer)).collect();
            names.sort_unstable();
            names.dedup();
            let expected = format!("\"*\" or the end of a linear layer's name: {}", names.join(", "));
            return Err(Error::parameters("train.lora.targets", expected, format!("'{idle}', which none has")));
        }
        let chosen = layers.iter().filter(|(_, layer)| self.targets.iter().any(|t| matches(t, layer)));
        Ok(chosen.map(|(i, _)| ParamId(*i)).collect())
    }
}

/// The name of a linear layer, from the spec of its weight.
fn linear(spec: &ParamSpec) -> Option<&str> {
    spec.name.strip_suffix(WEIGHT).filter(|_| spec.shape.len() == 2)
}

/// A layer's name without `blocks.N.`, so that a list of names stays short.
fn in_block(layer: &str) -> &str {
    let rest = layer.strip_prefix("blocks.").and_then(|rest| rest.split_once('.'));
    rest.filter(|(index, _)| index.parse::<usize>().is_ok()).map_or(layer, |(_, rest)| rest)
}
