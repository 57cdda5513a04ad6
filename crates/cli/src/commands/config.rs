//! `fewstep config`: a configuration resolved, with sources.

use super::training::settings;
use crate::args::{ConfigCommand, ConfigKind};
use crate::error::Result;
use crate::settings::{DISTILL_PRESETS, DistillSettings, TEACH_PRESETS, TeachSettings};
use crate::terminal::print;

/// Runs the command.
///
/// # Errors
/// If a layer is refused.
pub fn run(args: &ConfigCommand) -> Result<()> {
    let presets = match args.kind {
        ConfigKind::Teach => TEACH_PRESETS,
        ConfigKind::Distill => DISTILL_PRESETS,
    };
    if args.list {
        for preset in presets {
            print(format_args!("{}\n", preset.name))?;
        }
        return Ok(());
    }
    match args.kind {
        ConfigKind::Teach => print(settings::<TeachSettings>(presets, &args.config, "teach.run.seed")?),
        ConfigKind::Distill => print(settings::<DistillSettings>(presets, &args.config, "distill.run.seed")?),
    }
}
