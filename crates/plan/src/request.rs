//! What is asked: a network, a video, a method, a machine.

use fewstep_nn::wan::WanConfig;
use fewstep_ops::Recompute;
use fewstep_tensor::DType;
use serde::Serialize;

use crate::{Error, Result};

/// Pixels along one latent's edge (Wan VAE).
pub(crate) const VAE_EDGE: usize = 8;
/// Frames of video for each latent frame after the first (Wan VAE).
pub(crate) const VAE_FRAMES: usize = 4;
/// Latent channels of the Wan VAE; networks with others read pixels.
pub(crate) const VAE_CHANNELS: usize = 16;
/// More tokens than this are refused: twice those of any published video, and far from where byte counts overflow.
const MAX_TOKENS: usize = 1 << 19;
/// More samples, devices or steps than this are a slip of the keyboard.
const MAX_COUNT: usize = 1 << 20;
/// Tokens that CLIP gives an image.
const IMAGE_TOKENS: usize = 257;

/// Dtypes of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// f32 throughout; the weights are their own masters.
    F32,
    /// bf16 weights and activations, f32 masters.
    Bf16,
}

impl Precision {
    /// The dtype that networks compute in.
    pub fn dtype(self) -> DType {
        match self {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::Bf16,
        }
    }

    /// Whether it is that of a CPU, where nothing computes in bf16.
    pub(crate) fn is_of_cpu(self) -> bool {
        self == Precision::F32
    }
}

/// What is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Sampling alone.
    Sample {
        /// Steps.
        steps: usize,
        /// Whether each step also asks for the unconditional prediction.
        guided: bool,
    },
    /// Continuous-time consistency.
    Scm,
    /// Discrete-time consistency, one teacher step between its points.
    Dcm,
    /// Distribution matching with its critic.
    Dmd,
    /// Consistency regularised by distribution matching.
    Rcm,
}

/// Extents of a latent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Latent {
    /// Frames.
    pub frames: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl Latent {
    /// The latent of a video of `[width, height]` pixels: an eighth of each edge and 1 + (frames − 1)/4 frames, or the
    /// pixels themselves for a network without a VAE.
    ///
    /// # Errors
    /// If the VAE or the patches do not divide the video.
    pub fn of(config: &WanConfig, [width, height]: [usize; 2], frames: usize) -> Result<Self> {
        let coded = config.out_channels == VAE_CHANNELS;
        let (edge, step) = if coded { (VAE_EDGE, VAE_FRAMES) } else { (1, 1) };
        if frames == 0 || !(frames - 1).is_multiple_of(step) {
            let below = frames.saturating_sub(1) / step * step + 1;
            let remedy = format!("choose {below} or {}", below + step);
            return Err(Error::request("--frames", format!("{frames} frames are not 1 + {step}·k"), remedy));
        }
        let [pt, ph, pw] = config.patch;
        for (axis, pixels, patch) in [("width", width, pw), ("height", height, ph)] {
            let unit = edge * patch;
            if pixels == 0 || pixels % unit != 0 {
                let (below, above) =
                    ((pixels / unit).max(1) * unit, (pixels / unit).saturating_add(1).saturating_mul(unit));
                let problem = format!("a {axis} of {pixels} is no multiple of {unit}");
                return Err(Error::request("--size", problem, format!("choose {below} or {above}")));
            }
        }
        let latent = Latent { frames: (frames - 1) / step + 1, height: height / edge, width: width / edge };
        if !latent.frames.is_multiple_of(pt) {
            let problem = format!("{} latent frames are no multiple of the patch's {pt}", latent.frames);
            return Err(Error::request("--frames", problem, "choose another number of frames"));
        }
        Ok(latent)
    }
}

/// All that a plan depends on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Request {
    /// The network.
    pub network: WanConfig,
    /// Networks that take turns in sampling: two where experts share the noise levels, of which one is trained at a time.
    pub experts: usize,
    /// The latent, all of it, whatever the number of devices.
    pub latent: Latent,
    /// Text tokens.
    pub text_tokens: usize,
    /// Samples on a device in one pass.
    pub batch: usize,
    /// Dtypes.
    pub precision: Precision,
    /// What the backward pass computes again.
    #[serde(serialize_with = "recompute_name")]
    pub recompute: Recompute,
    /// Devices that weights, optimiser state and gradients are sharded over.
    pub devices: usize,
    /// Devices that share the tokens of one sample.
    pub context: usize,
    /// What is run.
    pub work: Work,
    /// Rank of trained adapters on every matrix of the blocks; none trains all weights.
    pub lora: Option<usize>,
    /// Whether the optimiser keeps a first moment; with β₁ = 0, as published, it need not.
    pub first_moment: bool,
    /// N_max of backward simulations.
    pub simulation_steps: usize,
    /// F: one of so many iterations trains the student.
    pub student_every: usize,
}

fn recompute_name<S: serde::Serializer>(r: &Recompute, s: S) -> std::result::Result<S::Ok, S::Error> {
    s.serialize_str(match r {
        Recompute::Nothing => "nothing",
        Recompute::AllButAttention => "all_but_attention",
        Recompute::Everything => "everything",
    })
}

impl Request {
    /// A distillation by rCM with the published schedule, on one device.
    pub fn new(network: WanConfig, latent: Latent) -> Self {
        Request {
            network,
            experts: 1,
            latent,
            text_tokens: 512,
            batch: 1,
            precision: Precision::F32,
            recompute: Recompute::AllButAttention,
            devices: 1,
            context: 1,
            work: Work::Rcm,
            lora: None,
            first_moment: false,
            simulation_steps: 4,
            student_every: 5,
        }
    }

    /// Tokens of a sample.
    pub fn tokens(&self) -> usize {
        let [pt, ph, pw] = self.network.patch;
        (self.latent.frames / pt) * (self.latent.height / ph) * (self.latent.width / pw)
    }

    /// Image tokens that the network is conditioned on.
    pub fn image_tokens(&self) -> usize {
        self.network.image_positions.unwrap_or(IMAGE_TOKENS)
    }

    /// Refuses what cannot run, before anything is computed.
    ///
    /// # Errors
    /// The first such part.
    pub fn validate(&self) -> Result<()> {
        self.network.validate()?;
        let counts = [
            ("--batch", self.batch),
            ("experts", self.experts),
            ("--devices", self.devices),
            ("--context-parallel", self.context),
            ("--text-tokens", self.text_tokens),
            ("--rank", self.lora.unwrap_or(1)),
            ("--steps", if let Work::Sample { steps, .. } = self.work { steps } else { 1 }),
            ("simulation steps", self.simulation_steps),
            ("student updates", self.student_every),
        ];
        if let Some((what, n)) = counts.into_iter().find(|(_, n)| *n == 0 || *n > MAX_COUNT) {
            return Err(Error::request(what, n.to_string(), format!("give a number from 1 to {MAX_COUNT}")));
        }
        let Latent { frames, height, width } = self.latent;
        let tokens = frames.checked_mul(height).and_then(|n| n.checked_mul(width));
        let tokens = tokens.map(|n| n / self.network.patch.iter().product::<usize>().max(1));
        if tokens.is_none_or(|n| n == 0 || n > MAX_TOKENS) {
            let problem = format!("{frames} x {height} x {width} latents are not 1 to {MAX_TOKENS} tokens");
            return Err(Error::request(
                "--size, --frames",
                problem,
                "choose a smaller video, such as 832x480 of 81 frames",
            ));
        }
        self.validate_extents()?;
        self.validate_devices()
    }

    /// Widths beyond any network would overflow the byte counts.
    fn validate_extents(&self) -> Result<()> {
        let c = &self.network;
        let widths = [("dim", c.dim), ("ffn_dim", c.ffn_dim), ("text_dim", c.text_dim), ("in_channels", c.in_channels)];
        match widths.into_iter().find(|(_, n)| *n > MAX_COUNT) {
            Some((name, n)) => {
                let remedy = format!("no network is wider than {MAX_COUNT}");
                Err(Error::request("the network", format!("{name} is {n}"), remedy))
            }
            None => Ok(()),
        }
    }

    fn validate_devices(&self) -> Result<()> {
        let (devices, context) = (self.devices, self.context);
        if !devices.is_multiple_of(context) {
            let problem = format!("groups of {context} do not divide {devices} devices");
            return Err(Error::request("--context-parallel", problem, "choose a divisor of --devices"));
        }
        for (what, n) in [("heads", self.network.heads), ("tokens", self.tokens())] {
            if !n.is_multiple_of(context) {
                let problem = format!("{context} devices do not divide {n} {what}");
                return Err(Error::request("--context-parallel", problem, "choose a divisor of both heads and tokens"));
            }
        }
        Ok(())
    }
}
