//! `fewstep check-jvp`: is the forward-mode tangent the derivative?

use fewstep_data::Split;
use fewstep_diffusion::{Denoiser, Predictor, Wrapper};
use fewstep_distill::check_jvp::{JvpReport, Precision, check_jvp};
use fewstep_distill::examples::ExampleSource;
use fewstep_nn::wan::Wan;
use fewstep_tensor::random::{Purpose, Stream};
use fewstep_tensor::{DType, Device, arith};

use super::apply::Bare;
use crate::args::CheckJvpArgs;
use crate::device;
use crate::digits::DigitsSource;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::terminal::print;

/// Patch extents of every published Wan.
const PATCH: [usize; 3] = [1, 2, 2];

/// Checks a model on the first example, half data and half noise.
///
/// # Errors
/// If the model refuses the example.
pub fn check_model(
    model: Predictor<'_, Wan>,
    source: &dyn ExampleSource,
    seed: u64,
    precision: Precision,
) -> Result<JvpReport> {
    let examples = source.examples(0, 1)?;
    let stream = Stream::new(seed, Purpose::Check, 0);
    let noise = arith::normal(&stream, 0, examples.x_0.shape(), DType::F32, Device::Cpu)?;
    let x = arith::combine(&[(&[0.7], &examples.x_0), (&[0.7], &noise)])?;
    Ok(check_jvp(model, &x, &examples.conditions, precision)?)
}

/// Runs the command.
///
/// # Errors
/// If the model or its input refuses, or a tangent is wrong.
pub fn run(args: &CheckJvpArgs) -> Result<()> {
    let compute = device::open(args.device)?;
    let precision = Precision::of(compute.dtype);
    let report = match (&args.model, &args.weights, &args.inputs) {
        (Some(model), ..) => {
            let source = DigitsSource::new(Split::HeldOut, args.seed)?;
            check_model(Model::load(model, compute)?.predictor(), &source, args.seed, precision)?
        }
        (None, Some(weights), Some(inputs)) => {
            let bare = Bare::read(weights, inputs, args.heads, PATCH, compute)?;
            let (x, conditions) = (bare.input("x")?, bare.conditions()?);
            let denoiser = Denoiser::new(bare.wan, Wrapper::Rf1000);
            check_jvp(Predictor { denoiser: &denoiser, params: &bare.params }, &x, &conditions, precision)?
        }
        _ => return Err(Error::Argument("give --model, or --weights with --inputs".into())),
    };
    let verdict = if report.ok() { "every tangent is the derivative" } else { "WRONG" };
    print(format_args!("{report}verdict: {verdict}\n"))?;
    match report.ok() {
        true => Ok(()),
        false => Err(Error::WrongTangent),
    }
}
