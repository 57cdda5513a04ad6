//! The program `fewstep`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use fewstep_cli::args::Cli;
use fewstep_cli::{commands, interrupt};

fn main() -> ExitCode {
    fewstep_tensor::keep_freed_memory();
    let cli = Cli::parse();
    // On a thread of the pool every parallel loop starts where it is; from outside each would wake the pool and wait.
    match rayon::scope(|_| commands::run(cli)) {
        Ok(false) => ExitCode::SUCCESS,
        Ok(true) => ExitCode::from(interrupt::EXIT_STATUS as u8),
        Err(e) => {
            eprintln!("{:?}", miette::Report::new(e));
            ExitCode::FAILURE
        }
    }
}
