//! What the program `fewstep` is made of.
//!
//! - [`args`], [`commands`]: the command line, and a module for each command.
//! - [`settings`], [`model`], [`digits`], [`drawing`]: what is configured, model files, the clips, drawing from a model.
//! - [`device`]: the CPU or GPU that a command computes on.
//! - [`error`]: what ends a command.
//! - [`configuration`]: presets, files and overrides in layers, each value with its source, each mistake with its line.
//! - [`report`]: a run as one HTML page that needs nothing but itself.
//! - [`terminal`]: progress and status on stderr.
//! - [`interrupt`]: Ctrl-C as a request to finish.

#![deny(missing_docs)]
#![forbid(unsafe_code)]

pub mod args;
pub mod commands;
pub mod configuration;
pub mod device;
pub mod digits;
pub mod drawing;
pub mod error;
pub mod interrupt;
pub mod model;
pub mod released;
pub mod report;
pub mod settings;
pub mod source;
pub mod terminal;
