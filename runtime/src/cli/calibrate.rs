//! `rushes calibrate`: what is measured on a model and kept in its bundle.

use super::args::{CalibrateArgs, Everywhere};
use super::preview;
use crate::Error;
use std::process::ExitCode;

/// Runs the command.
pub(super) fn run(args: &CalibrateArgs, everywhere: &Everywhere) -> Result<ExitCode, Error> {
    preview::fit(&args.bundle, &args.preview, everywhere)
}
