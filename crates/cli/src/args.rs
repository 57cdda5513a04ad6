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
