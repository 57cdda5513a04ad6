//! `fewstep check-jvp`: is the forward-mode tangent the derivative?

use fewstep_data::Split;
use fewstep_diffusion::{Denoiser, Predictor, Wrapper};
use fewstep_distill::check_jvp::{JvpReport, Precision, check_jvp};
use fewstep_distill::examples::{ExampleSource, Examples};
use fewstep_nn::wan::Wan;
use fewstep_ops::{Compute, Op, Slice};
use fewstep_tensor::cuda::gpu;
use fewstep_tensor::random::{Purpose, Stream};
use fewstep_tensor::{DType, Device, Tensor, arith};

use super::apply::Bare;
use crate::args::CheckJvpArgs;
use crate::device;
use crate::digits::DigitsSource;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::terminal::print;

/// Patch extents of every published Wan.
const PATCH: [usize; 3] = [1, 2, 2];
/// Positions of a latent beyond which only a part of it is checked, and the most frames, rows and columns of that part.
const POSITIONS: usize = 1 << 16;
const CROP: [usize; 3] = [4, 32, 32];

/// Checks a model on one example, half data and half noise.
///
/// # Errors
/// If the model refuses the example.
pub fn check_model(
    model: Predictor<'_, Wan>,
    examples: &Examples,
    seed: u64,
    precision: Precision,
) -> Result<JvpReport> {
    let stream = Stream::new(seed, Purpose::Check, 0);
    let noise = arith::normal(&stream, 0, examples.x_0.shape(), DType::F32, Device::Cpu)?;
    let x = cropped(&arith::combine(&[(&[0.7], &examples.x_0), (&[0.7], &noise)])?)?;
    Ok(check_jvp(model, &x, &examples.conditions, precision)?)
}

/// What is checked of a large example: a rule that is wrong is wrong there, too.
fn cropped(x: &Tensor) -> Result<Tensor> {
    let [_, _, f, h, w] = x.dims()?;
    if f * h * w <= POSITIONS {
        return Ok(x.clone());
    }
    let parts = [(2, f), (3, h), (4, w)].into_iter().zip(CROP);
    parts.into_iter().try_fold(x.clone(), |x, ((axis, extent), most)| {
        Ok(Slice { axis, start: 0, len: extent.min(most) }.forward(&[&x])?.y)
    })
}

/// A compute dtype, with what a copy of the weights in f64 may take of the device.
///
/// # Errors
/// If a GPU cannot be opened.
pub fn precision(compute: Compute) -> Result<Precision> {
    let usual = Precision::of(compute.dtype);
    Ok(match compute.device {
        Device::Cpu => usual,
        Device::Cuda(_) => Precision { budget: gpu(compute.device)?.properties().memory / 3, ..usual },
    })
}

/// Runs the command.
///
/// # Errors
/// If the model or its input refuses, or a tangent is wrong.
pub fn run(args: &CheckJvpArgs) -> Result<()> {
    let compute = device::open(args.device)?;
    let precision = precision(compute)?;
    let report = match (&args.model, &args.weights, &args.inputs) {
        (Some(model), ..) => {
            let source = DigitsSource::new(Split::HeldOut, args.seed)?;
            check_model(Model::load(model, compute)?.predictor(), &source.examples(0, 1)?, args.seed, precision)?
        }
        (None, Some(weights), Some(inputs)) => {
            let bare = Bare::read(weights, inputs, args.heads, PATCH, compute)?;
            let (x, conditions) = (bare.input("x")?, bare.conditions()?);
            let denoiser = Denoiser::new(bare.wan, Wrapper::Rf1000);
            check_jvp(Predictor { denoiser: &denoiser, params: &bare.params }, &x, &conditions, precision)?
        }
        _ => return Err(Error::Argument("give --model, or --weights with --inputs".into())),
    };
    if report.is_empty() {
        let problem = "the weights in f64, which the check needs, would not fit on the device; give --device cpu";
        return Err(Error::Argument(problem.into()));
    }
    let verdict = if report.ok() { "every tangent is the derivative" } else { "WRONG" };
    print(format_args!("{report}verdict: {verdict}\n"))?;
    match report.ok() {
        true => Ok(()),
        false => Err(Error::WrongTangent),
    }
}
