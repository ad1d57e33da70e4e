//! How the weights of a checkpoint differ from those that graphs were made for.

use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Names that an error lists of each kind.
const LISTED: usize = 3;

/// How the weights of a checkpoint differ from those that graphs were made for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Differences {
    /// Weights that the graphs read and no file has.
    pub missing: Vec<String>,
    /// Weights that the graphs do not know, each with its file.
    pub extra: Vec<(String, PathBuf)>,
    /// Weights that have another number format, shape or value, each with its file and what differs.
    pub different: Vec<(String, PathBuf, String)>,
    /// Number of weights that the graphs read.
    pub bound: usize,
}

impl Differences {
    /// Returns true if the graphs can read the weights.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.extra.is_empty() && self.different.is_empty()
    }
}

impl std::fmt::Display for Differences {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = |path: &Path| path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let missing = listed(&self.missing, Clone::clone);
        let extra = listed(&self.extra, |(weight, path)| format!("{weight} in {}", name(path)));
        let different =
            listed(&self.different, |(weight, path, why)| format!("{weight} in {} {why}", name(path)));
        let parts = [("missing", missing), ("not of this model", extra), ("different", different)];
        let mut text = String::new();
        for (what, list) in parts {
            let Some((count, list)) = list else { continue };
            let separator = if text.is_empty() { "" } else { "; " };
            // Writing into a String cannot fail.
            let _ = write!(text, "{separator}{count} {what} ({list})");
        }
        write!(f, "of {} weights, {text}", self.bound)
    }
}

/// Returns the number of items and the first ones as text; none if there are none.
fn listed<T>(all: &[T], show: impl Fn(&T) -> String) -> Option<(usize, String)> {
    let shown: Vec<String> = all.iter().take(LISTED).map(show).collect();
    let rest = all.len().saturating_sub(LISTED);
    let rest = if rest == 0 { String::new() } else { format!(" and {rest} more") };
    (!all.is_empty()).then(|| (all.len(), shown.join(", ") + &rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_counted_and_the_first_names_are_listed() {
        let file = || PathBuf::from("transformer/1.safetensors");
        let mut found = Differences { bound: 1095, ..Differences::default() };
        assert!(found.is_empty());
        found.missing = ["a", "b"].map(str::to_owned).into();
        assert!(!found.is_empty());
        insta::assert_snapshot!(found, @"of 1095 weights, 2 missing (a, b)");
        found.extra = vec![("c".into(), file())];
        let other = |name: &str| (name.to_owned(), file(), "has other values".to_owned());
        found.different = ["d", "e", "f", "g", "h"].map(other).into();
        insta::assert_snapshot!(found, @"of 1095 weights, 2 missing (a, b); 1 not of this model (c in 1.safetensors); 5 different (d in 1.safetensors has other values, e in 1.safetensors has other values, f in 1.safetensors has other values and 2 more)");
    }
}
