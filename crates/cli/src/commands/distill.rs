//! `fewstep distill`: a few-step student of a teacher.

use fewstep_data::Split;
use fewstep_distill::distiller::Distiller;
use fewstep_distill::training::Training;
use fewstep_tensor::DType;

use super::check_jvp::check_model;
use super::teach::MODEL_FILE;
use super::training::{Run, settings};
use crate::args::DistillArgs;
use crate::digits::DigitsSource;
use crate::error::{Error, Result};
use crate::model::{Model, Role};
use crate::settings::{DISTILL_PRESETS, DistillSettings};
use crate::status;
use crate::terminal::print;

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
    let teacher = Model::load(&s.teacher, DType::F32)?;
    status!("Teacher", "{}: {} parameters", s.teacher, teacher.params.count());
    if s.distill.method.is_continuous() && !args.no_check {
        check(&teacher, s.distill.run.seed)?;
    }
    let source = DigitsSource::new(Split::Train, s.data.seed)?;
    let mut distiller = Distiller::new(
        s.distill.clone(),
        &teacher.denoiser,
        &source,
        teacher.params.clone(),
        teacher.reference.clone(),
    )?;
    let role = Role::Student(s.sampling);
    let run = Run::new("Distilling", "distill", &args.train, role);
    if !run.train(&mut distiller, &teacher.denoiser, &resolved)? {
        return Ok(true);
    }
    let path = args.train.output.join(MODEL_FILE);
    Model::write(&path, teacher.network(), &distiller.sampling_weights()?, role)?;
    status!("Wrote", "{}", path.display());
    Ok(false)
}

/// Continuous-time consistency stands on the tangent: refuses to start where it is not the derivative.
fn check(teacher: &Model, seed: u64) -> Result<()> {
    let report = check_model(teacher, seed)?;
    if report.ok() {
        status!("Checked", "forward-mode tangents are the network's derivatives at {} times", report.rows.len() / 2);
        return Ok(());
    }
    eprint!("{report}");
    Err(Error::WrongTangent)
}
