use fewstep_tensor::file::TensorFile;
use serde::{Deserialize, Serialize};

use super::VaeLayout;
use crate::weights::{Layout, strip_prefix};
use crate::{Error, Result};

/// More channels or blocks than this are a slip of the keyboard.
const MAX_EXTENT: usize = 4096;
/// Latent channels of Wan2.2's other autoencoder (TI2V-5B), which is another network.
const WAN22_LATENT: usize = 48;

const MEAN: [f64; 16] = [
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517, -0.3632, -0.1922,
    -0.9497, 0.2503, -0.2921,
];
const STD: [f64; 16] = [
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253,
    2.8251, 1.9160,
];

/// The extents of a Wan autoencoder and the statistics of its latents.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaeConfig {
    /// Channels at full resolution.
    pub base: usize,
    /// Multiples of them at each of the four resolutions.
    pub multipliers: [usize; 4],
    /// Residual blocks a level of the encoder; the decoder has one more.
    pub blocks: usize,
    /// Channels of the latent.
    pub latent: usize,
    /// Mean of each latent channel, which normalisation subtracts.
    pub mean: Vec<f64>,
    /// Standard deviation of each latent channel, which normalisation divides by.
    pub std: Vec<f64>,
}

impl VaeConfig {
    /// The published autoencoder of Wan2.1: 127 million parameters.
    pub fn wan21() -> Self {
        VaeConfig { base: 96, multipliers: [1, 2, 4, 4], blocks: 2, latent: 16, mean: MEAN.to_vec(), std: STD.to_vec() }
    }

    /// The extents that a file of weights in any layout shows; all but the width is as published.
    ///
    /// # Errors
    /// If the names are of no known layout, or the weights are those of Wan2.2's own autoencoder, or of another latent.
    pub fn of_weights(file: &TensorFile) -> Result<Self> {
        let layout = VaeLayout::recognise(file)?;
        let tensors = strip_prefix(file, &layout);
        let shape = |name: &str| tensors.get(layout.name_of(name).as_str()).map(|t| t.shape().to_vec());
        let refuse = |problem: String| Error::Config {
            network: "wan vae",
            problem,
            remedy:
                "give the weights of the autoencoder of Wan2.1 (Wan2.1_VAE.pth, or the folder vae), 3 channels in and \
                     16 latent channels; Wan2.2-A14B uses it too"
                    .into(),
        };
        let latent = shape("conv2.weight").and_then(|s| s.first().copied());
        if latent == Some(WAN22_LATENT) {
            return Err(refuse(format!(
                "these are the weights of the Wan2.2 autoencoder ({WAN22_LATENT} latent channels)"
            )));
        }
        let config = Self::wan21();
        if latent != Some(config.latent) {
            return Err(refuse(format!("'{}' shows {latent:?} latent channels", layout.name_of("conv2.weight"))));
        }
        match shape("encoder.conv1.weight").as_deref() {
            Some(&[base, 3, 3, 3, 3]) => {
                let config = VaeConfig { base, ..config };
                config.validate()?;
                Ok(config)
            }
            other => Err(refuse(format!("'{}' has shape {other:?}", layout.name_of("encoder.conv1.weight")))),
        }
    }

    /// Channels at each resolution, from the finest.
    pub(super) fn widths(&self) -> [usize; 4] {
        self.multipliers.map(|m| m * self.base)
    }

    /// Refuses what no network can be.
    ///
    /// # Errors
    /// If an extent is zero or absurd, widths cannot be halved, or the statistics do not fit the latent.
    pub fn validate(&self) -> Result<()> {
        let bad = |problem: String, remedy: &str| {
            Err(Error::Config { network: "wan vae", problem, remedy: remedy.to_string() })
        };
        let extents = [("base", self.base), ("blocks", self.blocks), ("latent", self.latent)];
        let multipliers = self.multipliers.map(|m| ("multipliers", m));
        if let Some((name, n)) = extents.iter().chain(&multipliers).find(|(_, n)| *n == 0 || *n > MAX_EXTENT) {
            return bad(format!("{name} is {n}"), "every extent must be at least 1 and at most 4096");
        }
        if self.widths()[1..].iter().any(|w| w % 2 == 1) {
            return bad(format!("widths {:?}", self.widths()), "the decoder halves all but the first: make them even");
        }
        if [self.mean.len(), self.std.len()] != [self.latent; 2] {
            let problem = format!("{} means and {} deviations", self.mean.len(), self.std.len());
            return bad(problem, "give one of each for every latent channel");
        }
        let usable = |s: &f64| s.is_finite() && *s > 0.0;
        if !(self.std.iter().all(usable) && self.mean.iter().all(|m| m.is_finite())) {
            return bad("statistics that are not finite, or deviations not above 0".into(), "use the published ones");
        }
        Ok(())
    }
}
