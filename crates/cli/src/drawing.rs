//! Clips drawn from a model for a list of prompts.

use fewstep_diffusion::{Draw, Expert, Experts, FewStepGrid, Guidance, Predictor, Schedule};
use fewstep_nn::wan::Wan;
use fewstep_ops::Compute;
use fewstep_tensor::{DType, Device};

use crate::digits::{CLIP, conditions};
use crate::error::Result;
use crate::model::Role;
use crate::settings::{StudentSampling, TeacherSampling};

/// Clips of one pass through the network.
const BATCH: usize = 32;

/// Draws one clip [C, F, H, W] a prompt; sample i depends on (seed, i) and its prompt alone. `done` counts clips.
///
/// # Errors
/// If a prompt or the number of steps is refused, or the model gives values that are not finite.
pub fn draw(
    (model, compute): (Predictor<'_, Wan>, Compute),
    role: Role,
    prompts: &[String],
    seed: u64,
    mut done: impl FnMut(usize),
) -> Result<Vec<Vec<f32>>> {
    let mut clips = Vec::with_capacity(prompts.len());
    for (i, part) in prompts.chunks(BATCH).enumerate() {
        let [c, f, h, w] = CLIP;
        let draw = Draw { seed, first: (i * BATCH) as u64, shape: &[part.len(), c, f, h, w] };
        let text = compute.conditions(&conditions(part)?)?;
        let samples = match role {
            Role::Student(s) => {
                let grid = few_step_grid(&s)?;
                let expert = Expert { predictor: model, guidance: Guidance::NONE };
                Experts::one(expert).generate_few_step(&grid, draw, &text, |_, _| {})?
            }
            Role::Teacher(t) => {
                let empty = compute.conditions(&conditions(&vec![String::new(); part.len()])?)?;
                let schedule = schedule(&t)?;
                let expert = Expert { predictor: model, guidance: t.guidance };
                Experts::one(expert).generate((t.sampler, &schedule), draw, (&text, &empty), |_, _| {})?
            }
        };
        let samples = samples.to_device(Device::Cpu)?.to_dtype(DType::F32);
        clips.extend(samples.as_slice::<f32>()?.chunks(c * f * h * w).map(<[f32]>::to_vec));
        done(part.len());
    }
    Ok(clips)
}

fn few_step_grid(s: &StudentSampling) -> Result<FewStepGrid> {
    Ok(FewStepGrid::published(s.steps, s.sigma_max, s.grid)?)
}

fn schedule(t: &TeacherSampling) -> Result<Schedule> {
    Ok(Schedule::rcm_teacher(t.steps, t.shift, t.sigma_max)?)
}

impl Role {
    /// Refuses steps and noise levels that nothing can be sampled with.
    ///
    /// # Errors
    /// The first such setting.
    pub fn validate(&self) -> Result<()> {
        match self {
            Role::Teacher(t) => schedule(t).map(drop),
            Role::Student(s) => few_step_grid(s).map(drop),
        }
    }

    /// The same model with another number of steps.
    pub fn with_steps(self, steps: usize) -> Self {
        match self {
            Role::Teacher(t) => Role::Teacher(TeacherSampling { steps, ..t }),
            Role::Student(s) => Role::Student(StudentSampling { steps, ..s }),
        }
    }
}
