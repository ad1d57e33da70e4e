//! The content filter of `rushes serve`.

use crate::Error;
use ::server::screening::{NoScreen, Screen};
use clap::Args;
use prompt::ContentFilter;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What refuses texts.
#[derive(Debug, Clone, Args)]
pub(super) struct FilterArgs {
    /// Refuse prompts, negative prompts and captions by lists of terms: those of the program (on), those of a file, or
    /// none (off)
    #[arg(long, value_name = "on|off|FILE", default_value = "on", value_parser = source)]
    content_filter: Source,
    /// Find nothing in the phrases of this file, one per line
    #[arg(long, value_name = "FILE")]
    content_allow: Option<PathBuf>,
}

/// Where the lists of a filter are.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    BuiltIn,
    None,
    File(PathBuf),
}

#[expect(clippy::unnecessary_wraps, reason = "the form of a parser of values")]
fn source(text: &str) -> Result<Source, std::convert::Infallible> {
    Ok(match text {
        "on" => Source::BuiltIn,
        "off" => Source::None,
        path => Source::File(path.into()),
    })
}

impl FilterArgs {
    /// What refuses texts, as the arguments say.
    ///
    /// # Errors
    /// A file cannot be read.
    pub(super) fn screen(&self) -> Result<Arc<dyn Screen>, Error> {
        let filter = match &self.content_filter {
            Source::BuiltIn => ContentFilter::built_in(),
            Source::File(path) => parsed("--content-filter", path, ContentFilter::parse)?,
            Source::None => {
                return match &self.content_allow {
                    None => Ok(Arc::new(NoScreen)),
                    Some(path) => Err(Error::argument(
                        "--content-allow",
                        path.display(),
                        "the content filter is off",
                        "leave it out, or turn the filter on",
                    )),
                };
            }
        };
        let filter = match &self.content_allow {
            Some(path) => parsed("--content-allow", path, |text| filter.allowing(text))?,
            None => filter,
        };
        Ok(Arc::new(filter))
    }
}

/// What a file says.
fn parsed(
    flag: &'static str,
    path: &Path,
    parse: impl FnOnce(&str) -> Result<ContentFilter, prompt::ListError>,
) -> Result<ContentFilter, Error> {
    let refused = |rule: String, fix: &str| Error::argument(flag, path.display(), rule, fix);
    let text = std::fs::read_to_string(path)
        .map_err(|error| refused(error.to_string(), "name a text file that can be read"))?;
    parse(&text).map_err(|error| refused(error.to_string(), "docs/content-filter.md describes the format"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn screen(filter: &str, allow: Option<&Path>) -> Result<Option<String>, Error> {
        let source = source(filter).unwrap();
        let args = FilterArgs { content_filter: source, content_allow: allow.map(Path::to_owned) };
        Ok(args.screen()?.describe())
    }

    #[test]
    fn lists_are_those_of_the_program_a_file_or_none() {
        let folder = tempfile::tempdir().unwrap();
        let [lists, wrong] = ["lists", "wrong"].map(|name| folder.path().join(name));
        std::fs::write(&lists, "[ours]\nword").unwrap();
        std::fs::write(&wrong, "word").unwrap();
        let path = |path: &Path| path.display().to_string();
        assert!(screen("on", None).unwrap().unwrap().contains("violence"));
        assert_eq!(screen("off", None).unwrap(), None);
        assert_eq!(screen(&path(&lists), None).unwrap().as_deref(), Some("1 rules for ours"));
        assert!(screen("on", Some(&wrong)).is_ok());
        for (filter, allow) in [
            (&*path(&wrong), None),
            ("/nowhere", None),
            ("off", Some(&*wrong)),
            ("on", Some(Path::new("/nowhere"))),
        ] {
            assert!(screen(filter, allow).is_err(), "{filter} {allow:?}");
        }
        let message = screen(&path(&wrong), None).unwrap_err().to_string();
        assert!(message.contains("line 1") && message.contains("--content-filter"), "{message}");
    }
}
