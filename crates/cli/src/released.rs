//! Released models: what is loaded, and how it is sampled where the command line does not say.

use std::path::PathBuf;

use fewstep_diffusion::{
    Draw, Expert, Experts, FewStepGrid, FewStepPreset, Guidance, RfTime, Sampler, Schedule, Shift, Sigma,
};
use fewstep_formats::read_weights;
use fewstep_nn::vae::{Tile, VaeOptions};
use fewstep_nn::wan::{Wan, WanConfig};
use fewstep_ops::{Compute, Conditions};
use fewstep_pipeline::{Autoencoder, Parts, Prompts, Transformer};
use fewstep_tensor::{DType, Device, Tensor};
use fewstep_text::{EmbeddingCache, WAN_NEGATIVE_PROMPT};

use crate::args::{ModelParts, SamplerArg, SamplingArgs};
use crate::device::{self, Passes};
use crate::error::{Error, Result};
use crate::model::{Role, description, located, no_transformer};
use crate::settings::{StudentSampling, TeacherSampling};

/// What states and embeddings are in on the host, and what a CPU computes in; released matrices stay as they are stored.
pub const COMPUTE: DType = DType::F32;
/// τ at which Wan2.2's second network takes over: image to video, text to video.
const BOUNDARIES: [f64; 2] = [0.9, 0.875];

/// Where the parts of a model are: those given, then those in its own folder, then those of its base.
///
/// # Errors
/// If the model or its base is nowhere.
pub fn parts(model: &str, given: &ModelParts) -> Result<Parts> {
    let own = Parts::find(&located(model)?)?;
    let base = match &given.base {
        Some(base) => Parts { transformers: Vec::new(), ..Parts::find(&located(base)?)? },
        None => Parts::default(),
    };
    let given = Parts {
        vae: given.vae.clone(),
        text_encoder: given.text_encoder.clone(),
        tokenizer: given.tokenizer.clone(),
        image_encoder: given.image_encoder.clone(),
        ..Parts::default()
    };
    Ok(given.or(own).or(base))
}

/// One network or two, with how they are sampled.
pub struct Released {
    first: Transformer,
    second: Option<Transformer>,
    /// How it is sampled.
    pub role: Role,
    guidance_2: Guidance,
    boundary: RfTime,
    compute: Compute,
}

impl Released {
    /// Reads the networks.
    ///
    /// # Errors
    /// If there is none, one is refused, or an argument cannot be.
    pub fn load(
        model: &str,
        parts: &Parts,
        given: &ModelParts,
        sampling: &SamplingArgs,
        compute: Compute,
    ) -> Result<Self> {
        let load = |path: &PathBuf| -> Result<(Transformer, Option<Role>)> {
            let file = read_weights(path)?;
            let own = description(model, &file.metadata)?;
            let heads = given.heads.or(own.as_ref().map(|d| d.network.heads));
            Ok((Transformer::of_file(file, path, heads, COMPUTE)?.on(compute)?, own.map(|d| d.role)))
        };
        let (Some(first), second) = (parts.transformers.first(), parts.transformers.get(1)) else {
            return Err(no_transformer(model));
        };
        let (first, own) = load(first)?;
        let second = second.map(load).transpose()?.map(|(second, _)| second);
        if let Some(second) = second.as_ref().filter(|second| second.config() != first.config()) {
            let (a, b) = (first.config().dim, second.config().dim);
            return Err(Error::Argument(format!(
                "the model's two networks differ in their extents (widths {a} and {b})"
            )));
        }
        let conditioned = first.config().in_channels != first.config().out_channels;
        let default = parts.boundary.unwrap_or(BOUNDARIES[usize::from(!conditioned)]);
        let role = role(&first, own, second.is_some(), sampling)?;
        role.validate()?;
        let guidance_2 = match (sampling.guidance_2.or(sampling.guidance), role) {
            (Some(w), _) => Guidance::new(w)?,
            // Wan2.2-T2V-A14B guides its second network less.
            (None, Role::Teacher(_)) if second.is_some() && !conditioned => Guidance::new(3.0)?,
            (None, Role::Teacher(t)) => t.guidance,
            (None, Role::Student(_)) => Guidance::NONE,
        };
        let boundary = RfTime::new(sampling.boundary.unwrap_or(default))?;
        Ok(Released { first, second, role, guidance_2, boundary, compute })
    }

    /// Where and in what the networks compute.
    pub fn compute(&self) -> Compute {
        self.compute
    }

    /// The extents of the network, or of both.
    pub fn config(&self) -> &WanConfig {
        self.first.config()
    }

    /// What weights these are.
    pub fn identity(&self) -> String {
        let all = std::iter::once(&self.first).chain(&self.second);
        all.map(|n| n.identity.to_string()).collect::<Vec<_>>().join("+")
    }

    /// Whether sampling takes the negative prompt.
    pub fn needs_negative(&self) -> bool {
        let guided = |w: Guidance| w.needs_unconditional();
        match self.role {
            Role::Teacher(t) => guided(t.guidance) || guided(self.guidance_2),
            Role::Student(_) => false,
        }
    }

    fn experts(&self, guidance: Guidance) -> Experts<'_, Wan> {
        let noisy = expert_of(&self.first, guidance);
        match &self.second {
            None => Experts::one(noisy),
            Some(rest) => Experts::two(noisy, self.boundary, expert_of(rest, self.guidance_2)),
        }
    }

    /// Compiles what samples of a shape launch.
    ///
    /// # Errors
    /// If the network refuses the shape.
    pub fn prepare(&self, shape: &[usize], conditions: &Conditions) -> Result<()> {
        device::prepare_network(self.first.predictor(), shape, conditions, (self.compute, Passes::Forward))
    }

    /// Draws samples `[B, C, F, H, W]`, f32. `step` is told each finished step.
    ///
    /// # Errors
    /// If shapes do not fit the network, or a prediction is not finite.
    pub fn draw(
        &self,
        draw: Draw,
        (conditions, unconditional): (&Conditions, &Conditions),
        mut step: impl FnMut(usize),
    ) -> Result<Tensor> {
        let conditions = &self.compute.conditions(conditions)?;
        let unconditional = &self.compute.conditions(unconditional)?;
        let sample = match self.role {
            Role::Student(s) => {
                let grid = FewStepGrid::published(s.steps, s.sigma_max, s.grid)?;
                self.experts(Guidance::NONE).generate_few_step(&grid, draw, conditions, |i, _| step(i))?
            }
            Role::Teacher(t) => {
                let schedule = Schedule::rcm_teacher(t.steps, t.shift, t.sigma_max)?;
                let experts = self.experts(t.guidance);
                experts.generate((t.sampler, &schedule), draw, (conditions, unconditional), |s, _| step(s.index))?
            }
        };
        Ok(sample.to_device(Device::Cpu)?.to_dtype(COMPUTE))
    }
}

fn expert_of(network: &Transformer, guidance: Guidance) -> Expert<'_, Wan> {
    Expert { predictor: network.predictor(), guidance }
}

/// How a model is sampled: by its own description, or as it was published, with what the command line says.
fn role(first: &Transformer, own: Option<Role>, two: bool, args: &SamplingArgs) -> Result<Role> {
    let few = match (args.sampler, own) {
        (Some(sampler), _) => sampler == SamplerArg::FewStep,
        (None, Some(own)) => matches!(own, Role::Student(_)),
        (None, None) => first.distilled_layout,
    };
    let sigma = |default: f64| Sigma::new(args.sigma_max.unwrap_or(default));
    if few {
        let published = StudentSampling { steps: 4, sigma_max: Sigma::new(80.0)?, grid: FewStepPreset::Reference };
        let own = if let Some(Role::Student(own)) = own { own } else { published };
        return Ok(Role::Student(StudentSampling {
            steps: args.steps.unwrap_or(own.steps),
            sigma_max: sigma(own.sigma_max.get())?,
            grid: args.grid.map_or(own.grid, Into::into),
        }));
    }
    let own = match own {
        Some(Role::Teacher(own)) => own,
        _ => published(first.config(), two)?,
    };
    Ok(Role::Teacher(TeacherSampling {
        sampler: match args.sampler {
            Some(SamplerArg::Euler) => Sampler::Euler,
            Some(_) => Sampler::UniPc,
            None => own.sampler,
        },
        steps: args.steps.unwrap_or(own.steps),
        shift: args.shift.map_or(Ok(own.shift), Shift::new)?,
        sigma_max: sigma(own.sigma_max.get())?,
        guidance: args.guidance.map_or(Ok(own.guidance), Guidance::new)?,
    }))
}

/// The settings of the released sampling scripts: Wan2.1 text to video 50 steps, shift 5, w 5; image to video 40, 5, 5;
/// Wan2.2 text to video 40, 12, w 4 (3 for the second network); image to video 40, 5, 3.5.
fn published(config: &WanConfig, two: bool) -> Result<TeacherSampling> {
    let conditioned = config.in_channels != config.out_channels;
    let (steps, shift, guidance) = match (two, conditioned) {
        (false, false) => (50, 5.0, 5.0),
        (false, true) => (40, 5.0, 5.0),
        (true, false) => (40, 12.0, 4.0),
        (true, true) => (40, 5.0, 3.5),
    };
    Ok(TeacherSampling {
        sampler: Sampler::UniPc,
        steps,
        shift: Shift::new(shift)?,
        sigma_max: Sigma::new(5000.0)?,
        guidance: Guidance::new(guidance)?,
    })
}

/// The latent's shape of a video, in the network's channels.
///
/// # Errors
/// If the frames are not 1 + 4k.
pub fn latent_shape(config: &WanConfig, frames: usize, [width, height]: [usize; 2]) -> Result<[usize; 4]> {
    let (step, side) = (Autoencoder::FRAMES, Autoencoder::SCALE);
    if frames % step != 1 {
        let below = frames.saturating_sub(1) / step * step + 1;
        return Err(Error::Argument(format!(
            "--frames {frames}: a video has 1 + 4k frames, {below} or {} are nearest",
            below + step
        )));
    }
    Ok([config.out_channels, 1 + (frames - 1) / step, height / side, width / side])
}

/// The autoencoder of a model.
///
/// # Errors
/// If the model has none, or it is refused.
pub fn autoencoder(parts: &Parts, given: &ModelParts, compute: Compute) -> Result<Autoencoder> {
    let missing = || {
        Error::Argument(
            "the model's folder holds no autoencoder: give --base DIR of the released model, or --vae FILE; or write latents \
             to a .safetensors file"
                .into(),
        )
    };
    let path = parts.vae.as_ref().ok_or_else(missing)?;
    let tile = given.vae_memory.map_or(Tile::default(), |mb| Tile::Auto { budget_bytes: mb.saturating_mul(1_000_000) });
    Ok(Autoencoder::load(path, VaeOptions { tile }, compute)?)
}

/// The text encoder of a model, with the cache of embeddings.
///
/// # Errors
/// If a part is missing or refused, or the cache cannot be written.
pub fn prompts(parts: &Parts, given: &ModelParts, compute: Compute) -> Result<Prompts> {
    let folder: Option<PathBuf> = if given.no_cache { None } else { EmbeddingCache::default_folder() };
    Ok(Prompts::load(parts, folder.as_deref(), compute)?)
}

/// The negative prompt: that of the release where none is given.
pub fn negative(sampling: &SamplingArgs) -> String {
    sampling.negative.clone().unwrap_or_else(|| WAN_NEGATIVE_PROMPT.to_string())
}
