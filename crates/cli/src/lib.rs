//! What the program `fewstep` is made of: its configuration, its reports and its manners in a terminal.
//!
//! - [`configuration`]: presets, files and overrides in layers, each value with its source, each mistake with its line.
//! - [`report`]: a run as one HTML page that needs nothing but itself.
//! - [`terminal`]: progress and status on stderr.
//! - [`interrupt`]: Ctrl-C as a request to finish.

#![deny(missing_docs)]
#![forbid(unsafe_code)]

pub mod configuration;
pub mod interrupt;
pub mod report;
pub mod terminal;
pub mod args;
pub mod commands;
pub mod digits;
pub mod drawing;
pub mod error;
pub mod model;
pub mod settings;
