//! `fewstep distill`: a few-step student of a teacher.

use fewstep_diffusion::Predictor;
use fewstep_distill::distiller::Distiller;
use fewstep_distill::examples::ExampleSource;
use fewstep_distill::training::Training;
use fewstep_ops::Compute;
use fewstep_tensor::Device;

use super::check_jvp::{check_model, precision};
use super::teach::MODEL_FILE;
use super::training::{Run, settings};
use crate::args::DistillArgs;
use crate::device::{self, Passes};
use crate::error::{Error, Result};
use crate::model::{Model, Role};
use crate::settings::{DISTILL_PRESETS, DistillSettings};
use crate::source::example_source;
use crate::terminal::print;
use crate::{status, warning};

/// The adapters of a training by LoRA, beside the model into which they are merged.
const ADAPTERS_FILE: &str = "adapters.safetensors";

/// Runs the command; true if it was interrupted after saving.
///
/// # Errors
/// If the settings, the teacher, the folder or the training refuse.
pub fn run(args: &DistillArgs) -> Result<bool> {
    let resolved = settings::<DistillSettings>(DISTILL_PRESETS, &args.train.config, "distill.run.seed")?;
    if args.train.dry_run {
        return print(&resolved).map(|()| false);
    }
    let s = &resolved.value;
    let compute = device::open(args.train.device)?;
    let teacher = Model::load_teacher(&s.teacher, s.heads, Compute::on(Device::Cpu))?;
    status!("Teacher", "{}: {} parameters", s.teacher, teacher.params.count());
    let source = example_source(&s.data, &s.teacher, teacher.network().config(), compute)?;
    let checked = (s.distill.method.is_continuous() && !args.no_check).then_some(s.distill.run.seed);
    ready(&teacher, compute, source.as_ref(), checked)?;
    let mut distiller = Distiller::new(
        s.distill.clone(),
        &teacher.denoiser,
        source.as_ref(),
        teacher.params.clone(),
        teacher.reference.clone(),
        compute,
    )?;
    let role = Role::Student(s.sampling);
    let run = Run::new("Distilling", "distill", &args.train, role);
    if !run.train(&mut distiller, &teacher.denoiser, &resolved)? {
        return Ok(true);
    }
    let path = args.train.output.join(MODEL_FILE);
    let weights = distiller.sampling_weights()?;
    Model::write(&path, teacher.network(), &weights.merged()?, role)?;
    status!("Wrote", "{}", path.display());
    if weights.is_adapted() {
        let path = args.train.output.join(ADAPTERS_FILE);
        teacher.network().store_adapters(&weights)?.write(&path)?;
        status!("Wrote", "{}", path.display());
    }
    Ok(false)
}

/// What comes before a training, on one copy of the teacher as it will compute and one example: kernels are compiled; and
/// continuous-time consistency, which stands on the tangent, does not start where that is not the derivative.
fn ready(teacher: &Model, compute: Compute, source: &dyn ExampleSource, checked: Option<u64>) -> Result<()> {
    if compute.device == Device::Cpu && checked.is_none() {
        return Ok(());
    }
    let (examples, params) = (source.examples(0, 1)?, compute.weights(&teacher.params)?);
    let model = Predictor { denoiser: &teacher.denoiser, params: &params };
    device::prepare_network(model, examples.x_0.shape(), &examples.conditions, (compute, Passes::All))?;
    let Some(seed) = checked else { return Ok(()) };
    let report = check_model(model, &examples, seed, precision(compute)?)?;
    if report.is_empty() {
        warning!("tangents were not checked: the weights in f64 would not fit on the device");
        return Ok(());
    }
    if report.ok() {
        status!("Checked", "forward-mode tangents are the network's derivatives at {} times", report.times());
        return Ok(());
    }
    eprint!("{report}");
    Err(Error::WrongTangent)
}
