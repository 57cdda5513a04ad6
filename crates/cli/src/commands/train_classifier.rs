//! `fewstep train-classifier`: the classifier whose features `evaluate` measures in.

use fewstep_evaluate::classifier;
use fewstep_evaluate::{TrainConfig, train};

use crate::args::TrainClassifierArgs;
use crate::error::Result;
use crate::status;
use crate::terminal::Progress;

/// Runs the command.
///
/// # Errors
/// If training or the output file refuses.
pub fn run(args: &TrainClassifierArgs) -> Result<()> {
    let config = TrainConfig::default();
    let mut progress = Progress::new("Training", config.steps);
    let params = train(&config, |p| {
        progress.advance(1);
        progress.note(format_args!("loss {:.3}, right {:.1}%", p.loss, 100.0 * p.accuracy));
    })?;
    drop(progress);
    classifier::write(&params, &args.output)?;
    status!("Wrote", "{}", args.output.display());
    Ok(())
}
