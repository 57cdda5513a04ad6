//! `fewstep evaluate`: quality and diversity against held-out clips.

use std::time::Instant;

use fewstep_data::{Caption, Digits, Split};
use fewstep_evaluate::{Evaluator, Measures, Reference};
use serde::{Deserialize, Serialize};

use crate::args::EvaluateArgs;
use crate::device;
use crate::drawing::draw;
use crate::error::{Error, Result};
use crate::model::{Model, Role};
use crate::terminal::{Progress, print};

/// Seed of the held-out clips that every model is held against.
const REFERENCE_SEED: u64 = 7;

/// What one model is worth at one number of steps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Sampling steps.
    pub steps: usize,
    /// Network evaluations a clip.
    pub evaluations: usize,
    /// Seconds a clip.
    pub seconds_per_clip: f64,
    /// The measures.
    pub measures: Measures,
}

/// Held-out clips, and the captions to generate for.
pub struct Judge {
    evaluator: Evaluator,
    reference: Reference,
    captions: Vec<Caption>,
}

impl Judge {
    /// With so many clips, and captions of the held-out split of a seed.
    ///
    /// # Errors
    /// If the data inside the program are damaged, or there are too few clips to measure.
    pub fn new(samples: usize, seed: u64) -> Result<Self> {
        if samples < 100 {
            return Err(Error::Argument(format!("{samples} samples measure nothing; use at least 100")));
        }
        let evaluator = Evaluator::new()?;
        let reference = evaluator.reference(Split::HeldOut, REFERENCE_SEED, samples)?;
        let digits = Digits::load()?;
        let captions = (0..samples as u64).map(|i| digits.clip(Split::HeldOut, seed, i).caption).collect();
        Ok(Judge { evaluator, reference, captions })
    }

    /// Captions to generate for.
    pub fn captions(&self) -> &[Caption] {
        &self.captions
    }

    /// The measures of held-out clips of another seed: what a perfect generator would score.
    ///
    /// # Errors
    /// If the data inside the program are damaged.
    pub fn held_out(&self) -> Result<Measures> {
        let digits = Digits::load()?;
        let clips = (0..self.captions.len() as u64).map(|i| digits.clip(Split::HeldOut, REFERENCE_SEED + 1, i));
        let clips: Vec<_> = clips.map(|c| (c.caption, c.pixels)).collect();
        Ok(self.evaluator.evaluate(&clips, &self.reference)?)
    }

    /// Generates and measures.
    ///
    /// # Errors
    /// If the model refuses or gives values that are not finite.
    pub fn measure(&self, model: &Model, role: Role, seed: u64, done: impl FnMut(usize)) -> Result<Row> {
        let prompts: Vec<String> = self.captions.iter().map(Caption::to_string).collect();
        let began = Instant::now();
        let clips = draw((model.predictor(), model.compute), role, &prompts, seed, done)?;
        let seconds_per_clip = began.elapsed().as_secs_f64() / clips.len() as f64;
        let generated: Vec<_> = self.captions.iter().copied().zip(clips).collect();
        let measures = self.evaluator.evaluate(&generated, &self.reference)?;
        let (steps, evaluations) = match role {
            Role::Teacher(t) => (t.steps, t.steps * if t.guidance.needs_unconditional() { 2 } else { 1 }),
            Role::Student(s) => (s.steps, s.steps),
        };
        Ok(Row { steps, evaluations, seconds_per_clip, measures })
    }
}

/// Runs the command.
///
/// # Errors
/// If the model refuses.
pub fn run(args: &EvaluateArgs) -> Result<()> {
    let model = Model::load(&args.model, device::open(args.device)?)?;
    let mut roles: Vec<Role> = args.steps.iter().map(|&s| model.role.with_steps(s)).collect();
    if roles.is_empty() {
        roles.push(model.role);
    }
    roles.iter().try_for_each(Role::validate)?;
    let judge = Judge::new(args.samples, args.seed)?;
    if !args.json {
        print(format_args!("steps  s/clip  {}\n", Measures::HEADING))?;
        print(format_args!("    –       –  {}  (held-out clips)\n", judge.held_out()?))?;
    }
    for role in roles {
        let mut progress = Progress::new("Sampling", args.samples as u64);
        let row = judge.measure(&model, role, args.seed, |n| progress.advance(n as u64))?;
        drop(progress);
        if args.json {
            print(format_args!("{}\n", serde_json::to_string(&row).map_err(|e| Error::Argument(e.to_string()))?))?;
        } else {
            print(format_args!("{:5}  {:6.4}  {}\n", row.steps, row.seconds_per_clip, row.measures))?;
        }
    }
    Ok(())
}
