//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

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
    /// Measure quality, diversity and caption accuracy against held-out clips
    Evaluate(EvaluateArgs),
    /// Compare forward-mode tangents with difference quotients, for any model
    CheckJvp(CheckJvpArgs),
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DeviceArg {
    /// The processor's cores
    #[default]
    Cpu,
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
    /// Where to compute
    #[arg(long, value_enum, default_value_t)]
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
    /// Where to compute
    #[arg(long, value_enum, default_value_t)]
    pub device: DeviceArg,
}

/// Arguments of `sample`.
#[derive(Debug, Args)]
pub struct SampleArgs {
    /// Model file, or builtin:digits-teacher
    #[arg(long)]
    pub model: String,
    /// Prompt; repeat for several
    #[arg(long, required_unless_present = "prompts")]
    pub prompt: Vec<String>,
    /// File with a prompt on each line
    #[arg(long, value_name = "FILE")]
    pub prompts: Option<PathBuf>,
    /// Steps, if not the model's own number
    #[arg(long)]
    pub steps: Option<usize>,
    /// Seed of the noise
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// File to write: .gif or .png (animated); several prompts are numbered
    #[arg(long, short, default_value = "sample.gif")]
    pub output: PathBuf,
    /// Enlarge every pixel so many times
    #[arg(long, default_value_t = 8)]
    pub scale: usize,
    /// Where to compute
    #[arg(long, value_enum, default_value_t)]
    pub device: DeviceArg,
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
    /// Where to compute
    #[arg(long, value_enum, default_value_t)]
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
    /// Where to compute
    #[arg(long, value_enum, default_value_t)]
    pub device: DeviceArg,
}

/// Arguments of `bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Network: mid or digits
    #[arg(long, default_value = "mid")]
    pub preset: String,
    /// Repetitions of each pass; medians are printed
    #[arg(long, default_value_t = 5)]
    pub repeat: usize,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
    /// Where to compute
    #[arg(long, value_enum, default_value_t)]
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
    /// Where to compute
    #[arg(long, value_enum, default_value_t)]
    pub device: DeviceArg,
}

/// Names and shapes that tensors are written under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LayoutArg {
    /// Those of the original Wan
    Original,
    /// Those of the rCM reference
    Rcm,
    /// Those of diffusers
    Diffusers,
}

/// Element types that tensors are written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StorageArg {
    /// bfloat16
    Bf16,
    /// Single precision
    F32,
}

/// Kinds of files of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FormatArg {
    /// safetensors
    Safetensors,
    /// What torch.save writes
    Pth,
}

/// Arguments of `export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Model file, published weights (a file or folder), or builtin:digits-teacher
    #[arg(long)]
    pub model: String,
    /// Names and shapes of the tensors
    #[arg(long, value_enum)]
    pub layout: LayoutArg,
    /// A file that ends in .safetensors or .pth, or else a folder with config.json
    #[arg(long, short)]
    pub output: PathBuf,
    /// Element type of every tensor, if not as it is
    #[arg(long, value_enum)]
    pub dtype: Option<StorageArg>,
    /// Kind of file, where its ending does not say
    #[arg(long, value_enum)]
    pub format: Option<FormatArg>,
    /// Attention heads, if not 128 wide and nothing beside the weights says
    #[arg(long)]
    pub heads: Option<usize>,
    /// Largest file of a folder; more is cut into several, with an index
    #[arg(long, value_name = "BYTES", default_value_t = 10_000_000_000)]
    pub shard_size: u64,
    /// Replace what is there
    #[arg(long)]
    pub force: bool,
}

/// Arguments of `train-classifier`.
#[derive(Debug, Args)]
pub struct TrainClassifierArgs {
    /// Where to write the weights
    #[arg(long, short)]
    pub output: PathBuf,
}
