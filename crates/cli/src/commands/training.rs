//! What the training commands share: resolving settings, showing progress, previews.

use std::path::Path;

use fewstep_diffusion::{Denoiser, Predictor};
use fewstep_distill::run_folder::Start;
use fewstep_distill::training::{Ending, Hooks, LoopConfig, Training};
use fewstep_media::{Frames, Metadata, contact_sheet};
use fewstep_nn::wan::Wan;
use fewstep_ops::{Compute, Params};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::args::{ConfigArgs, TrainArgs};
use crate::configuration::{Layers, Preset, Resolved, resolve};
use crate::digits::{CLIP, suits_clips};
use crate::drawing::draw;
use crate::error::{Error, Result};
use crate::interrupt::{self, Interrupted};
use crate::model::Role;
use crate::settings::{Refused, Validate};
use crate::status;
use crate::terminal::Progress;

/// Prompts of preview images.
const PREVIEW_PROMPTS: [&str; 4] = [
    "a red seven moving up and left",
    "a blue zero moving right",
    "a green four moving down",
    "a yellow eight moving up and right",
];
const PREVIEW_SCALE: usize = 4;

/// Resolves settings from the layers of the command line; `seed_key` is where --seed goes.
///
/// # Errors
/// If a layer is refused, or a value that its type allows makes no training.
pub fn settings<T: Validate + Serialize + DeserializeOwned>(
    presets: &[Preset<'_>],
    args: &ConfigArgs,
    seed_key: &str,
) -> Result<Resolved<T>> {
    let mut overrides = args.overrides.clone();
    overrides.extend(args.seed.map(|s| format!("{seed_key}={s}")));
    let layers =
        Layers { presets, preset: args.preset.as_deref(), file: args.config.as_deref(), overrides: &overrides };
    let resolved: Resolved<T> = resolve(layers)?;
    match resolved.value.validate() {
        Ok(()) => Ok(resolved),
        Err(Refused { key, reason }) => Err(resolved.refuse(&key, reason).into()),
    }
}

/// The terminal and the previews of a training.
pub struct Terminal<'a> {
    progress: Progress,
    interrupted: Interrupted,
    denoiser: &'a Denoiser<Wan>,
    role: Role,
    compute: Compute,
    curve: Option<f64>,
}

impl<'a> Terminal<'a> {
    fn new(run: &Run<'_>, config: &LoopConfig, denoiser: &'a Denoiser<Wan>, interrupted: Interrupted) -> Self {
        let progress = Progress::new(run.verb, config.iterations);
        Terminal { progress, interrupted, denoiser, role: run.role, compute: run.compute, curve: None }
    }
}

impl Hooks for Terminal<'_> {
    fn iteration(&mut self, done: u64, _of: u64, phase: &str, values: &[(String, f64)]) {
        let behind = done.saturating_sub(self.progress.done());
        self.progress.advance(behind);
        let shown = values.iter().filter(|(k, _)| k.starts_with("loss/") || k.starts_with("grad_norm/"));
        let shown: Vec<String> = shown.map(|(k, v)| format!("{k} {v:.3}")).collect();
        self.progress.note(format_args!("{phase}: {}", shown.join(", ")));
        self.curve = values.iter().find(|(k, _)| k.starts_with("loss/")).map(|(_, v)| *v);
    }

    fn preview(&mut self, _iteration: u64, weights: &Params) -> fewstep_distill::Result<Vec<(String, Vec<u8>)>> {
        // Only the clips of digits are small enough, and their prompts known.
        if suits_clips(self.denoiser.network().config()).is_err() {
            return Ok(Vec::new());
        }
        let prompts = PREVIEW_PROMPTS.map(String::from).to_vec();
        let params = self.compute.weights(weights)?;
        let model = Predictor { denoiser: self.denoiser, params: &params };
        let failed = |e: Error| fewstep_distill::Error::Examples(e.into());
        let clips = draw((model, self.compute), self.role, &prompts, 0, |_| ()).map_err(failed)?;
        let sheet = || -> Result<Vec<u8>> {
            let frames =
                clips.iter().map(|c| Frames::from_pixels(c, CLIP)).collect::<std::result::Result<Vec<_>, _>>()?;
            Ok(contact_sheet(&frames)?.upscale(PREVIEW_SCALE)?.to_apng(&Metadata::new())?)
        };
        Ok(vec![("samples".into(), sheet().map_err(failed)?)])
    }

    fn say(&mut self, message: &str) {
        status!("Note", "{message}");
    }

    fn stop_requested(&self) -> bool {
        self.interrupted.requested()
    }
}

/// A resolved training and where it goes.
pub struct Run<'a> {
    /// The verb of the progress bar.
    pub verb: &'a str,
    /// The table of the configuration that holds the training's own settings.
    pub table: &'a str,
    /// The output folder.
    pub output: &'a Path,
    /// Whether to go on from its newest checkpoint.
    pub resume: bool,
    /// How previews are drawn.
    pub role: Role,
    /// Where.
    pub compute: Compute,
}

impl<'a> Run<'a> {
    /// A training as the command line asks for it.
    pub fn new(verb: &'a str, table: &'a str, args: &'a TrainArgs, role: Role) -> Self {
        Run { verb, table, output: &args.output, resume: args.resume, role, compute: Compute::on(args.device.0) }
    }

    /// Trains to the end, or until Ctrl-C; true if finished.
    ///
    /// # Errors
    /// If the folder or the training refuses.
    pub fn train<T: Serialize>(
        &self,
        training: &mut dyn Training,
        denoiser: &Denoiser<Wan>,
        settings: &Resolved<T>,
    ) -> Result<bool> {
        let interrupted = interrupt::install().map_err(Error::io(self.output))?;
        let start = if self.resume { Start::Resume } else { Start::Fresh };
        let own = fewstep_distill::training::MAY_DIFFER.iter().map(|k| format!("{}.{k}", self.table));
        // How samples are drawn changes nothing that is trained.
        let may_differ: Vec<String> = own.chain(["sampling".to_string()]).collect();
        let may_differ: Vec<&str> = may_differ.iter().map(String::as_str).collect();
        let configuration = fewstep_distill::configuration::Configuration::flatten(&settings.value, &may_differ)?;
        let mut terminal = Terminal::new(self, training.config(), denoiser, interrupted);
        let text = settings.to_string();
        let ending =
            fewstep_distill::training::run(training, self.output, start, (configuration, &text), &mut terminal)?;
        drop(terminal);
        if let Ending::Stopped { iteration } = ending {
            status!("Stopped", "after iteration {iteration}; go on with the same command and --resume");
            return Ok(false);
        }
        Ok(true)
    }
}
