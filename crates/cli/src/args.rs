//! The command line.

mod export;
mod released;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};
use fewstep_tensor::Device;

pub use export::{ExportArgs, FormatArg, LayoutArg, StorageArg};
pub use released::{GridArg, ModelParts, SamplerArg, SamplingArgs};

/// Distils diffusion and flow models into generators of one to four steps.
#[derive(Debug, Parser)]
#[command(name = "fewstep", version, about, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Distil a tiny video teacher by rCM in minutes and write a report with moving pictures
    Demo(DemoArgs),
    /// Train a flow-matching teacher from data alone
    Teach(TrainArgs),
    /// Distil a teacher into a few-step student
    Distill(DistillArgs),
    /// Draw clips from a model for prompts
    Sample(SampleArgs),
    /// Build, encode and verify training shards
    Dataset(DatasetCommand),
    /// Measure quality, diversity and caption accuracy against held-out clips
    Evaluate(EvaluateArgs),
    /// Compare forward-mode tangents with difference quotients, for any model
    CheckJvp(CheckJvpArgs),
    /// Prove every op and the published networks on a device
    Verify(VerifyArgs),
    /// Time the network's passes and measure their memory
    Bench(BenchArgs),
    /// Tell memory, work and time of a sampling or distillation before anything is loaded
    Plan(crate::commands::plan::PlanArgs),
    /// Print a preset resolved, with the source of each value
    Config(ConfigCommand),
    /// Run a network on tensors from a safetensors file
    Apply(ApplyArgs),
    /// Write a model's weights as other programs load them
    Export(ExportArgs),
    /// Train the classifier whose features `evaluate` measures in
    TrainClassifier(TrainClassifierArgs),
    /// Print shell completions
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Where computation happens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceArg(pub Device);

impl FromStr for DeviceArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ordinal = text.strip_prefix("cuda:").map_or((text == "cuda").then_some(0), |n| n.parse().ok());
        match (text, ordinal) {
            ("cpu", _) => Ok(DeviceArg(Device::Cpu)),
            (_, Some(ordinal)) => Ok(DeviceArg(Device::Cuda(ordinal))),
            _ => Err("a device is cpu, cuda, or cuda:N for GPU N".into()),
        }
    }
}

impl fmt::Display for DeviceArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a configuration comes from.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// Preset to start from
    #[arg(long)]
    pub preset: Option<String>,
    /// TOML file on top of the preset
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Override one setting, such as --set distill.run.batch=16
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Seed of every draw
    #[arg(long)]
    pub seed: Option<u64>,
}

/// Arguments of a training.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// Shared arguments.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Folder for checkpoints, metrics and the model
    #[arg(long, short)]
    pub output: PathBuf,
    /// Go on from the folder's newest checkpoint
    #[arg(long)]
    pub resume: bool,
    /// Print the resolved configuration and stop
    #[arg(long)]
    pub dry_run: bool,
    /// Where to compute: cpu, cuda, or cuda:N
    #[arg(long, default_value_t)]
    pub device: DeviceArg,
}

/// Arguments of `distill`.
#[derive(Debug, Args)]
pub struct DistillArgs {
    /// Shared arguments.
    #[command(flatten)]
    pub train: TrainArgs,
    /// Skip the check of the Jacobian-vector product at the start
    #[arg(long)]
    pub no_check: bool,
}

/// Arguments of `demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Folder for the run and the report
    #[arg(long, short, default_value = "runs/demo")]
    pub output: PathBuf,
    /// Distillation preset, such as digits-scm or digits-dmd
    #[arg(long)]
    pub preset: Option<String>,
    /// Override one setting, such as --set distill.run.iterations=800
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Seed of every draw of the distillation
    #[arg(long)]
    pub seed: Option<u64>,
    /// Clips that each model is measured on
    #[arg(long, default_value_t = 300)]
    pub samples: usize,
    /// Go on with an interrupted demo
    #[arg(long)]
    pub resume: bool,
    /// A few iterations and clips: runs every part, shows nothing of quality
    #[arg(long)]
    pub quick: bool,
    /// Where to compute: cpu, cuda, or cuda:N
    #[arg(long, default_value_t)]
    pub device: DeviceArg,
}

/// Arguments of `sample`.
#[derive(Debug, Args)]
#[command(
    after_help = "Models:\n  A model.safetensors of this program, builtin:digits-teacher, or a released model: the folder as it was downloaded\n  \
    (the original release's or diffusers'), a file of weights, or a name such as wan2.1-t2v-1.3b, which is looked for in\n  \
    $FEWSTEP_MODELS and in the Hugging Face cache.\n\
    Outputs, by the end of the name:\n  .mp4 (H.264), .gif, .png (animated), .safetensors (latents), or a folder of PNG frames."
)]
pub struct SampleArgs {
    /// Model: a file, a folder or a released model's name
    #[arg(long)]
    pub model: String,
    /// Prompt; repeat for several
    #[arg(long)]
    pub prompt: Vec<String>,
    /// File with a prompt on each line
    #[arg(long, value_name = "FILE")]
    pub prompts: Option<PathBuf>,
    /// File with the prompts' embeddings [B, 512, D] in place of prompts; a tensor `negative` [512, D] may be beside them
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "prompts"])]
    pub embeddings: Option<PathBuf>,
    /// First frame, for image to video
    #[arg(long, value_name = "FILE")]
    pub image: Option<PathBuf>,
    /// How it is drawn.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Where its parts are.
    #[command(flatten)]
    pub parts: ModelParts,
    /// Seed of the noise
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Where to write; several prompts are numbered [default: sample.mp4, or sample.gif for digits]
    #[arg(long, short)]
    pub output: Option<PathBuf>,
    /// Frames a second
    #[arg(long, default_value_t = 16.0)]
    pub fps: f64,
    /// Enlarge every pixel so many times (digits)
    #[arg(long, default_value_t = 8)]
    pub scale: usize,
    /// Where to compute: cpu, cuda, or cuda:N
    #[arg(long, default_value_t)]
    pub device: DeviceArg,
}

/// Arguments of `dataset`.
#[derive(Debug, Args)]
pub struct DatasetCommand {
    /// What to do.
    #[command(subcommand)]
    pub command: DatasetArgs,
}

/// What `dataset` does.
#[derive(Debug, Subcommand)]
pub enum DatasetArgs {
    /// Sample a teacher into shards; goes on where it was interrupted
    Build(DatasetBuildArgs),
    /// Turn a folder of videos or images with captions into shards
    Encode(DatasetEncodeArgs),
    /// Check every member of a set of shards
    Verify(DatasetVerifyArgs),
}

/// Arguments of `dataset build`.
#[derive(Debug, Args)]
pub struct DatasetBuildArgs {
    /// Teacher: a file, a folder or a released model's name
    #[arg(long)]
    pub model: String,
    /// File with a prompt on each line
    #[arg(long, value_name = "FILE")]
    pub prompts: PathBuf,
    /// Samples in all; the prompts are taken in turn [default: one for each prompt]
    #[arg(long)]
    pub count: Option<u64>,
    /// How samples are drawn.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Where the teacher's parts are.
    #[command(flatten)]
    pub parts: ModelParts,
    /// Seed of the noise
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Samples in a shard
    #[arg(long, default_value_t = 256)]
    pub shard_size: u64,
    /// Folder of the shards
    #[arg(long, short)]
    pub output: PathBuf,
    /// Where to compute: cpu, cuda, or cuda:N
    #[arg(long, default_value_t)]
    pub device: DeviceArg,
}

/// Arguments of `dataset encode`.
#[derive(Debug, Args)]
#[command(after_help = "The caption of NAME.mp4 (or .png, .jpg, .webp, .gif) is the text of NAME.txt beside it.")]
pub struct DatasetEncodeArgs {
    /// Where to compute: cpu, cuda, or cuda:N
    #[arg(long, default_value_t)]
    pub device: DeviceArg,
    /// Folder of videos or images, each with a caption beside it
    #[arg(long, value_name = "DIR")]
    pub input: PathBuf,
    /// Released model whose autoencoder and text encoder are used
    #[arg(long)]
    pub model: String,
    /// Where the parts are.
    #[command(flatten)]
    pub parts: ModelParts,
    /// Frames taken of each video, 1 + 4k; images give one
    #[arg(long, default_value_t = 81)]
    pub frames: usize,
    /// Size to which frames are brought, in pixels
    #[arg(long, value_name = "WIDTHxHEIGHT", value_parser = released::size, default_value = "832x480")]
    pub size: [usize; 2],
    /// Frames a second to which videos are brought
    #[arg(long, default_value_t = 16.0)]
    pub fps: f64,
    /// Samples in a shard
    #[arg(long, default_value_t = 256)]
    pub shard_size: u64,
    /// Folder of the shards
    #[arg(long, short)]
    pub output: PathBuf,
}

/// Arguments of `dataset verify`.
#[derive(Debug, Args)]
pub struct DatasetVerifyArgs {
    /// Folder of shards, or one merged tar
    pub path: PathBuf,
    /// Samples that there must be
    #[arg(long)]
    pub samples: Option<u64>,
    /// Shape that every latent must have, such as 16,21,60,104
    #[arg(long, value_delimiter = ',')]
    pub latent: Vec<usize>,
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `evaluate`.
#[derive(Debug, Args)]
pub struct EvaluateArgs {
    /// Model file, or builtin:digits-teacher
    #[arg(long)]
    pub model: String,
    /// Numbers of steps to measure at, if not the model's own
    #[arg(long, value_delimiter = ',')]
    pub steps: Vec<usize>,
    /// Generated clips, and held-out clips they are held against
    #[arg(long, default_value_t = 1000)]
    pub samples: usize,
    /// Seed of the noise and the captions
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Print JSON lines instead of a table
    #[arg(long)]
    pub json: bool,
    /// Where to compute: cpu, cuda, or cuda:N
    #[arg(long, default_value_t)]
    pub device: DeviceArg,
}

/// Arguments of `check-jvp`.
#[derive(Debug, Args)]
pub struct CheckJvpArgs {
    /// Model file, or builtin:digits-teacher
    #[arg(long, required_unless_present = "weights")]
    pub model: Option<String>,
    /// Bare Wan weights of any published layout
    #[arg(long, conflicts_with = "model", requires = "inputs")]
    pub weights: Option<PathBuf>,
    /// Inputs for bare weights: x and ctx (and clip, y) in a safetensors file
    #[arg(long)]
    pub inputs: Option<PathBuf>,
    /// Attention heads of bare weights, if not 128 wide
    #[arg(long)]
    pub heads: Option<usize>,
    /// Seed of the input drawn for a model
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Where to compute: cpu, cuda, or cuda:N
    #[arg(long, default_value_t)]
    pub device: DeviceArg,
}

/// Arguments of `verify`.
#[derive(Debug, Args)]
#[command(
    after_help = "Every op is held against difference quotients and its own adjoint in f64, against f64 in f32 and, on a GPU, in \
    bf16; networks, tangents, gradients and losses against the published implementations' own numbers."
)]
pub struct VerifyArgs {
    /// Folder of the published numbers [default: fixtures, if there is one]
    #[arg(long, value_name = "DIR")]
    pub fixtures: Option<PathBuf>,
    /// Only checks whose op, fixture or case contains this; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub only: Vec<String>,
    /// Start the kernels of every check once and prove nothing, as for a tool that watches memory accesses
    #[arg(long, conflicts_with = "json")]
    pub launch: bool,
    /// Print every check as JSON instead of a table
    #[arg(long)]
    pub json: bool,
    /// Where to compute: cpu, cuda, or cuda:N
    #[arg(long, default_value_t)]
    pub device: DeviceArg,
}

/// Arguments of `bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Network of the passes on a CPU [default: mid], or with --cycle a preset of `distill`
    #[arg(long)]
    pub preset: Option<String>,
    /// Time whole cycles of a distillation, by phase, with random weights and data
    #[arg(long)]
    pub cycle: bool,
    /// Frames of the videos of a cycle, 480 by 832
    #[arg(long, default_value_t = 77, requires = "cycle")]
    pub frames: usize,
    /// Repetitions; medians are printed
    #[arg(long, default_value_t = 5)]
    pub repeat: usize,
    /// Only measurements whose name contains this; on a GPU, without --cycle; may be given several times
    #[arg(long, value_name = "TEXT", conflicts_with = "cycle")]
    pub only: Vec<String>,
    /// On a GPU, time several plans of each matrix product, and keep the fastest for this and all later runs on such a GPU
    #[arg(long)]
    pub tune: bool,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
    /// Where to compute: cpu, cuda, or cuda:N
    #[arg(long, default_value_t)]
    pub device: DeviceArg,
}

/// Which training a configuration is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ConfigKind {
    /// A teacher's training
    Teach,
    /// A distillation
    Distill,
}

/// Arguments of `config`.
#[derive(Debug, Args)]
pub struct ConfigCommand {
    /// Which command's configuration
    #[arg(value_enum)]
    pub kind: ConfigKind,
    /// Shared arguments.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// List the presets instead
    #[arg(long)]
    pub list: bool,
}

/// Networks that `apply` runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum NetworkArg {
    /// A Wan diffusion transformer
    Wan,
    /// The encoder of the Wan autoencoder
    VaeEncode,
    /// Its decoder
    VaeDecode,
    /// A umT5 text encoder
    Umt5,
    /// A T5 text encoder
    T5,
}

/// Precisions that `apply` computes in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DTypeArg {
    /// Single precision
    #[default]
    F32,
    /// Double precision
    F64,
    /// bfloat16, on GPUs
    Bf16,
}

/// Arguments of `apply`.
#[derive(Debug, Args)]
#[command(
    after_help = "Tensors read by wan:\n  x [B, C, F, H, W], t [B] in the network's own unit, ctx [B, S, text_dim],\n  \
    clip [B, I, image_dim] and y [B, C', F, H, W] for image to video;\n  \
    dx and dt, the tangents of x and t, for --jvp; loss_w, the cotangent of the output, for --grad.\n\
    Tensors written:\n  out; jvp; grad_x, grad_t, grad_ctx and grad.NAME for every parameter.\n\
    vae-encode: video [B, 3, 1 + 4k, H, W] in [-1, 1] gives enc_video [B, 16, 1 + k, H/8, W/8], normalised; image gives enc_image.\n\
    vae-decode: z [B, 16, 1 + k, h, w] gives dec_video [B, 3, 1 + 4k, 8h, 8w], not clamped; z1 gives dec_image.\n\
    For umt5 and t5: ids and mask [B, L] are read, out and out_zeroed [B, L, D] written."
)]
pub struct ApplyArgs {
    /// Which network
    #[arg(value_enum)]
    pub network: NetworkArg,
    /// Its weights, in any published layout
    #[arg(long)]
    pub weights: PathBuf,
    /// Input tensors
    #[arg(long)]
    pub inputs: PathBuf,
    /// Where to write the results
    #[arg(long, short)]
    pub output: PathBuf,
    /// Also the Jacobian-vector product along dx, dt
    #[arg(long)]
    pub jvp: bool,
    /// Also the gradients of sum(out * loss_w)
    #[arg(long)]
    pub grad: bool,
    /// Precision to compute in
    #[arg(long, value_enum, default_value_t)]
    pub dtype: DTypeArg,
    /// Attention heads, if not 128 wide
    #[arg(long)]
    pub heads: Option<usize>,
    /// Megabytes for the autoencoder's activations; larger frames are cut into tiles [default: 3000]
    #[arg(long, value_name = "MB")]
    pub budget_mb: Option<usize>,
    /// Patch extents (frames, height, width)
    #[arg(long, num_args = 3, default_values_t = [1, 2, 2], value_names = ["F", "H", "W"])]
    pub patch: Vec<usize>,
    /// Where to compute: cpu, cuda, or cuda:N
    #[arg(long, default_value_t)]
    pub device: DeviceArg,
}

/// Arguments of `train-classifier`.
#[derive(Debug, Args)]
pub struct TrainClassifierArgs {
    /// Where to write the weights
    #[arg(long, short)]
    pub output: PathBuf,
}
