//! `fewstep bench`: what a machine does with the networks' parts, beside what it could.

mod convolutions;
mod cycle;
mod kernels;
mod passes;

use fewstep_tensor::Device;
use fewstep_tensor::cuda::gpu;
use serde::Serialize;

use crate::args::BenchArgs;
use crate::error::{Error, Result};
use crate::terminal::print;
pub(super) use passes::gemm_rate;

/// One measured thing.
#[derive(Clone, Debug, Serialize)]
struct Row {
    name: String,
    /// Median seconds.
    seconds: f64,
    /// Operations of the matrix products; 0 where memory bounds it, and of a whole pass.
    flops: f64,
    /// Bytes that must be read and written once; 0 where products bound it, and of a whole pass.
    bytes: f64,
    /// The most memory of the device in use, in GB, in a whole pass; 0 of all else.
    peak_gb: f64,
}

/// Runs the command.
///
/// # Errors
/// If the device or the preset refuses.
pub fn run(args: &BenchArgs) -> Result<()> {
    if args.repeat == 0 {
        return Err(Error::Argument("--repeat must be at least 1".into()));
    }
    if args.tune {
        let Device::Cuda(_) = args.device.0 else {
            return Err(Error::Argument("--tune chooses among plans of a GPU's library: add --device cuda".into()));
        };
        crate::device::open(args.device)?;
        gpu(args.device.0)?.tune(true);
    }
    if !args.only.is_empty() && args.device.0 == Device::Cpu {
        return Err(Error::Argument("--only chooses among the measurements of a GPU: add --device cuda".into()));
    }
    match (args.cycle, args.device.0) {
        (true, _) => cycle::run(args),
        (false, Device::Cpu) => passes::run(args),
        (false, Device::Cuda(_)) => kernels::run(args),
    }
}

/// Prints rows as a JSON array.
fn print_json<T: Serialize>(rows: &T) -> Result<()> {
    let json = serde_json::to_string(rows).map_err(|e| Error::Argument(e.to_string()))?;
    print(format_args!("{json}\n"))
}

pub(super) fn median(mut v: Vec<f64>) -> f64 {
    v.sort_by(f64::total_cmp);
    v[v.len() / 2]
}
