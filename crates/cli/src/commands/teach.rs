//! `fewstep teach`: a teacher from data alone.

use fewstep_data::Split;
use fewstep_diffusion::{Denoiser, Wrapper};
use fewstep_distill::teaching::Teaching;
use fewstep_distill::training::Training;
use fewstep_nn::wan::Wan;
use fewstep_ops::{Network, Params};
use fewstep_tensor::{DType, Device};

use super::training::{Run, settings};
use crate::args::TrainArgs;
use crate::device;
use crate::digits::DigitsSource;
use crate::error::Result;
use crate::model::{Model, Role};
use crate::settings::{TEACH_PRESETS, TeachSettings};
use crate::status;
use crate::terminal::print;

/// The model that a training writes.
pub const MODEL_FILE: &str = "model.safetensors";

/// Runs the command; true if it was interrupted after saving.
///
/// # Errors
/// If the settings, the folder or the training refuse.
pub fn run(args: &TrainArgs) -> Result<bool> {
    let resolved = settings::<TeachSettings>(TEACH_PRESETS, &args.config, "teach.run.seed")?;
    if args.dry_run {
        return print(&resolved).map(|()| false);
    }
    let s = &resolved.value;
    let wan = Wan::new(s.network.clone())?;
    let weights = Params::init(wan.specs(), s.teach.run.seed, DType::F32, Device::Cpu)?;
    status!("Network", "{} parameters", weights.count());
    let denoiser = Denoiser::new(wan, Wrapper::Rf1000);
    let source = DigitsSource::new(Split::Train, s.data.seed)?;
    let compute = device::open(args.device)?;
    let mut teaching = Teaching::new(s.teach.clone(), &denoiser, &source, weights, compute)?;
    let role = Role::Teacher(s.sampling);
    if !Run::new("Teaching", "teach", args, role).train(&mut teaching, &denoiser, &resolved)? {
        return Ok(true);
    }
    let path = args.output.join(MODEL_FILE);
    Model::write(&path, denoiser.network(), &teaching.sampling_weights()?, role)?;
    status!("Wrote", "{}", path.display());
    Ok(false)
}
