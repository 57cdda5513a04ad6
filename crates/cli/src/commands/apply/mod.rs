//! `fewstep apply`: a network on tensors from a file, to compare with other programs.

mod text;
mod vae;
mod wan;

use fewstep_ops::Compute;
use fewstep_tensor::{DType, Device};

use crate::args::{ApplyArgs, DTypeArg, NetworkArg};
use crate::device;
use crate::error::{Error, Result};
use crate::status;
use crate::terminal::print;
pub use wan::Bare;

impl From<DTypeArg> for DType {
    fn from(d: DTypeArg) -> DType {
        match d {
            DTypeArg::F32 => DType::F32,
            DTypeArg::F64 => DType::F64,
            DTypeArg::Bf16 => DType::Bf16,
        }
    }
}

/// Where and in what the command computes.
fn compute(args: &ApplyArgs) -> Result<Compute> {
    let dtype = DType::from(args.dtype);
    if dtype == DType::Bf16 && args.device.0 == Device::Cpu {
        return Err(Error::Argument("--dtype bf16 is for GPUs: give --device cuda, or f32".into()));
    }
    Ok(Compute { dtype, ..device::open(args.device)? })
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
