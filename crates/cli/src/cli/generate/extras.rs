//! The arguments for post-processing as they are stored in a clip: values, and files by name and digest.

use super::source::input_file;
use crate::Error;
use crate::cli::post_process::PostProcessArgs;
use runtime::job::{Extra, JobSpec};
use std::collections::BTreeMap;
use std::path::Path;

/// The arguments that change the frames after the decoder.
///
/// # Errors
/// Returns an error if a file cannot be read.
pub(in crate::cli) fn of_arguments(args: &PostProcessArgs) -> Result<BTreeMap<String, Extra>, Error> {
    let given = args.given();
    let extra = |(name, value): (&'static str, Given<'_>)| -> Result<(String, Extra), Error> {
        let extra = match value {
            Given::Text(text) => Extra::Value(text),
            Given::File(path, with) => Extra::File { file: input_file(path)?, with },
        };
        Ok((name.to_owned(), extra))
    };
    given.into_iter().map(extra).collect()
}

/// An argument for post-processing.
pub(in crate::cli) enum Given<'a> {
    /// A text.
    Text(String),
    /// A file, and how it is used.
    File(&'a Path, String),
}

/// Notes on the post-processing of a clip that `own` arguments do not repeat.
pub(in crate::cli) fn missing(own: &BTreeMap<String, Extra>, spec: Option<&JobSpec>) -> Vec<String> {
    let Some(spec) = spec else { return Vec::new() };
    let differing = spec.extras.iter().filter(|(name, extra)| own.get(*name) != Some(*extra));
    let notes = differing.map(|(name, extra)| {
        let (before, again) = match extra {
            Extra::Value(value) if value.is_empty() => (String::new(), format!("--{name}")),
            Extra::Value(value) => (format!(" `{value}`"), format!("--{name} with the same value")),
            Extra::File { file, with } => {
                let with = if with.is_empty() { String::new() } else { format!("@{with}") };
                (format!(" with the file {}{with}", file.name), format!("--{name} FILE{with}"))
            }
        };
        match own.get(name) {
            None => format!("the clip had --{name}{before}, which is not repeated; {again} would repeat it"),
            Some(_) => format!("the clip had --{name}{before}, and this one has another"),
        }
    });
    notes.collect()
}
