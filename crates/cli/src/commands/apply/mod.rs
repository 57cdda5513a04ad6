//! `fewstep apply`: a network on tensors from a file, to compare with other programs.

mod text;
mod vae;
mod wan;

use fewstep_tensor::DType;

use crate::args::{ApplyArgs, DTypeArg, NetworkArg};
use crate::error::Result;
use crate::status;
use crate::terminal::print;
pub use wan::Bare;

impl From<DTypeArg> for DType {
    fn from(d: DTypeArg) -> DType {
        match d {
            DTypeArg::F32 => DType::F32,
            DTypeArg::F64 => DType::F64,
        }
    }
}

/// Runs the command; true if it was interrupted, with nothing written.
///
/// # Errors
/// If the weights, an input or the output file refuses.
pub fn run(args: &ApplyArgs) -> Result<bool> {
    let output = match args.network {
        NetworkArg::Wan => Some(wan::run(args)?),
        NetworkArg::VaeEncode => vae::encode(args)?,
        NetworkArg::VaeDecode => vae::decode(args)?,
        NetworkArg::Umt5 | NetworkArg::T5 => Some(text::run(args)?),
    };
    let Some(output) = output else { return Ok(true) };
    output.write(&args.output)?;
    status!("Wrote", "{}: {} tensors", args.output.display(), output.tensors.len());
    print(format_args!("{}\n", args.output.display()))?;
    Ok(false)
}
