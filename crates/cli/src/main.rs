//! The program `fewstep`.

use std::process::ExitCode;

use clap::Parser;
use fewstep_cli::args::Cli;
use fewstep_cli::{commands, interrupt};

fn main() -> ExitCode {
    match commands::run(Cli::parse()) {
        Ok(false) => ExitCode::SUCCESS,
        Ok(true) => ExitCode::from(interrupt::EXIT_STATUS as u8),
        Err(e) => {
            eprintln!("{:?}", miette::Report::new(e));
            ExitCode::FAILURE
        }
    }
}
