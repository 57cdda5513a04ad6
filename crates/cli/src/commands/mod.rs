//! One command, one module.

mod distill;
mod sample;
mod teach;
mod training;

use crate::args::{Cli, Command};
use crate::error::Result;

/// Runs a command; true if it was interrupted after saving.
///
/// # Errors
/// Whatever ends the command.
pub fn run(cli: Cli) -> Result<bool> {
    match cli.command {
        Command::Demo(_) => unimplemented!(),
        Command::Teach(a) => teach::run(&a),
        Command::Distill(a) => distill::run(&a),
        Command::Sample(a) => sample::run(&a).map(|()| false),
    }
}
