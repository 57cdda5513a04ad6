//! Media out and in: one program, so that what the tests share is built once.

mod common;
mod foreign;
mod frames;
mod hostile;
mod images;
mod mp4;
