//! Arguments of `export`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

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
