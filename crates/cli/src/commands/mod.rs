//! One command, one module.

mod apply;

mod bench;
mod check_jvp;
mod config;
mod dataset;
mod demo;
mod distill;
mod evaluate;
mod export;
pub mod plan;
mod sample;
mod teach;
mod train_classifier;
mod training;
mod verify;

use clap::CommandFactory;

use crate::args::{Cli, Command};
use crate::error::{Error, Result};
use crate::terminal;

/// Runs a command; true if it was interrupted after saving.
///
/// # Errors
/// Whatever ends the command.
pub fn run(cli: Cli) -> Result<bool> {
    terminal::explain_errors();
    match cli.command {
        Command::Demo(a) => demo::run(&a),
        Command::Teach(a) => teach::run(&a),
        Command::Distill(a) => distill::run(&a),
        Command::Sample(a) => sample::run(&a).map(|()| false),
        Command::Dataset(a) => dataset::run(&a),
        Command::Evaluate(a) => evaluate::run(&a).map(|()| false),
        Command::CheckJvp(a) => check_jvp::run(&a).map(|()| false),
        Command::Verify(a) => verify::run(&a).map(|()| false),
        Command::Bench(a) => bench::run(&a).map(|()| false),
        Command::Plan(a) => plan::run(&a).map(|()| false),
        Command::Config(a) => config::run(&a).map(|()| false),
        Command::Apply(a) => apply::run(&a),
        Command::Export(a) => export::run(&a).map(|()| false),
        Command::TrainClassifier(a) => train_classifier::run(&a).map(|()| false),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "fewstep", &mut script);
            terminal::print(String::from_utf8_lossy(&script)).map(|()| false)
        }
    }
}

/// Whether one of the texts of `--only` is in one of these names; without any, all is wanted.
fn is_wanted(only: &[String], names: &[&str]) -> bool {
    only.is_empty() || only.iter().any(|text| names.iter().any(|name| name.contains(text.as_str())))
}

/// The error where `--only` leaves nothing.
fn none_wanted(what: &str, only: &[String]) -> Error {
    Error::Argument(format!("no {what} contains '{}'; leave out --only to see all", only.join("' or '")))
}
