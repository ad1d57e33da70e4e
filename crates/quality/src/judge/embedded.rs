//! Mini's judge and its prompts, compiled into the program.

use super::prompts::{self, ScoredPrompt};
use super::{Error, JudgeFiles, classifier};
use std::borrow::Cow;

/// Names of the files in errors.
const GRAPH: &str = "judge.onnx";
const DESCRIPTION: &str = "judge.json";
const PROMPTS: &str = "prompts.json";

#[cfg(feature = "embed-mini")]
fn file(name: &str) -> Option<&'static [u8]> {
    static FOLDER: include_dir::Dir<'_> =
        include_dir::include_dir!("$CARGO_MANIFEST_DIR/../../models/mini/judge");
    FOLDER.get_file(name).map(include_dir::File::contents)
}

#[cfg(not(feature = "embed-mini"))]
fn file(_name: &str) -> Option<&'static [u8]> {
    None
}

/// Returns the judge.
///
/// # Errors
/// The program was built without it.
pub fn judge() -> Result<JudgeFiles, Error> {
    let (Some(graph), Some(description)) = (file(GRAPH), file(DESCRIPTION)) else {
        return Err(Error::NotEmbedded);
    };
    let attributes = classifier::attributes(description, DESCRIPTION)?;
    Ok(JudgeFiles { name: GRAPH.into(), graph: Cow::Borrowed(graph), attributes })
}

/// Returns the prompts: half English, half Chinese, of scenes that mini was not trained on.
///
/// # Errors
/// The program was built without them.
pub fn prompts() -> Result<Vec<ScoredPrompt>, Error> {
    prompts::parse(file(PROMPTS).ok_or(Error::NotEmbedded)?, PROMPTS)
}
