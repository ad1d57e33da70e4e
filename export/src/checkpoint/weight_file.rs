//! The weight files that are read: safetensors, and dictionaries of tensors that PyTorch has saved.

use super::header::{self, HeaderTensor};
use super::torch_file;
use crate::Error;
use std::fs::File;
use std::ops::Range;
use std::path::Path;

/// Returns true if a file has the name of a weight file.
pub(crate) fn is_named(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "safetensors") || torch_file::is_named(path)
}

/// Reads names and places of the tensors of an open file of `bytes` bytes, in the order of their spans. A file is a
/// PyTorch file if it is named like one, else a safetensors file.
///
/// # Errors
/// Those of [`torch_file`] and [`header`].
pub(crate) fn read(path: &Path, file: &File, bytes: u64) -> Result<Vec<HeaderTensor>, Error> {
    if torch_file::is_named(path) {
        torch_file::read(path, file, bytes)
    } else {
        header::read(path, file, bytes)
    }
}

/// Returns the parts of the digest of a file ([`bundle::file_digest::of_pieces`]): its tensors, and what is before,
/// between and behind them.
pub(crate) fn parts(tensors: &[HeaderTensor], bytes: u64) -> Vec<Range<u64>> {
    let mut parts = Vec::with_capacity(tensors.len() + 1);
    let mut end = 0;
    for tensor in tensors.iter().filter(|tensor| !tensor.span.is_empty()) {
        let span = tensor.span.start as u64..tensor.span.end as u64;
        // Several names of the same bytes are one part.
        if span.end <= end {
            continue;
        }
        parts.extend([end..span.start, span.clone()]);
        end = span.end;
    }
    parts.push(end..bytes.max(end));
    parts.retain(|part| !part.is_empty());
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle::dtype::ElementType;

    fn tensor(name: &str, span: Range<usize>) -> HeaderTensor {
        HeaderTensor {
            name: name.into(),
            element: ElementType::U8,
            shape: vec![span.len()],
            strides: None,
            span,
        }
    }

    #[test]
    fn parts_cover_the_file_and_name_no_byte_twice() {
        let tensors = [
            tensor("none", 0..0),
            tensor("a", 4..6),
            tensor("b", 4..6),
            tensor("c", 6..9),
            tensor("d", 12..13),
        ];
        assert_eq!(parts(&tensors, 20), [0..4, 4..6, 6..9, 9..12, 12..13, 13..20]);
        assert_eq!(parts(&tensors[1..2], 6), [0..4, 4..6]);
        assert_eq!(parts(&[], 10), Vec::from_iter(std::iter::once(0..10)));
        assert!(parts(&[], 0).is_empty());
    }
}
