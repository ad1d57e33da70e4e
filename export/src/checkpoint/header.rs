//! Headers of safetensors files, read and validated.
//!
//! ```text
//! 8 bytes   N, little-endian
//! N bytes   JSON: { name: { dtype, shape, data_offsets: [begin, end] }, … }, padded with spaces
//! the rest  tensor data without gaps; offsets count from here
//! ```

use crate::Error;
use bundle::dtype::ElementType;
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The longest header that is read, as in the reference implementation of the format.
const MAX_HEADER_BYTES: usize = 100_000_000;

/// A tensor of a file with a valid header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderTensor {
    /// The stored name.
    pub name: String,
    /// The number format.
    pub element: ElementType,
    /// The shape.
    pub shape: Vec<usize>,
    /// The distance of neighbours along each axis, in elements; none if it is stored row by row. Without gaps.
    pub strides: Option<Vec<usize>>,
    /// Its bytes in the file.
    pub span: Range<usize>,
}

/// Reads the header of an open file of `bytes` bytes and validates it: spans are inside the file, do not overlap, leave
/// no gap and match shapes and number formats. Returns the tensors in the order of their spans.
///
/// # Errors
/// [`Error::Truncated`] if the file ends too early, else [`Error::Header`] or [`Error::File`].
pub(crate) fn read(path: &Path, file: &File, bytes: u64) -> Result<Vec<HeaderTensor>, Error> {
    let io = || Error::file("read", path);
    let mut length = [0; 8];
    if bytes >= 8 {
        file.read_exact_at(&mut length, 0).map_err(io())?;
    }
    let claimed = u64::from_le_bytes(length).min(MAX_HEADER_BYTES as u64).saturating_add(8);
    let mut head = vec![0; usize::try_from(claimed.min(bytes)).unwrap_or_default()];
    file.read_exact_at(&mut head, 0).map_err(io())?;
    parse(path, &head, bytes)
}

/// Validates the header of a file of `bytes` bytes that begins with `head`, which contains the whole header unless the
/// file is truncated. Returns the tensors in the order of their spans. `path` is the name of the file in errors.
///
/// # Errors
/// [`Error::Truncated`] if the file ends too early, else [`Error::Header`].
pub fn parse(path: &Path, head: &[u8], bytes: u64) -> Result<Vec<HeaderTensor>, Error> {
    let truncated =
        |expected: usize| Error::Truncated { path: path.to_owned(), expected: expected as u64, found: bytes };
    let length = head.first_chunk::<8>().ok_or_else(|| truncated(8))?;
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    if length > MAX_HEADER_BYTES {
        let why = format!("its header length is {length} bytes; the maximum is {MAX_HEADER_BYTES}");
        return Err(Error::header(path, why));
    }
    let data_start = 8 + length;
    let json = head.get(8..data_start).ok_or_else(|| truncated(data_start))?;
    let entries: Entries = serde_json::from_slice(json)
        .map_err(|error| Error::header(path, format!("its header cannot be read: {error}")))?;

    let mut tensors = entries
        .0
        .into_iter()
        .map(|(name, info)| located(name, &info, data_start).map_err(|why| Error::header(path, why)))
        .collect::<Result<Vec<_>, _>>()?;
    tensors.sort_by_key(|tensor| (tensor.span.start, tensor.span.end));
    let end = check_spans(&tensors, data_start).map_err(|why| Error::header(path, why))?;
    if bytes < end as u64 {
        return Err(truncated(end));
    }
    if bytes > end as u64 {
        let why = format!("{} bytes follow the last tensor", bytes - end as u64);
        return Err(Error::header(path, why));
    }
    Ok(tensors)
}

fn located(name: String, info: &TensorInfo, data_start: usize) -> Result<HeaderTensor, String> {
    let element = element_type(info.dtype)
        .ok_or_else(|| format!("the number format {:?} of tensor {name} is not supported", info.dtype))?;
    let bytes = info
        .shape
        .iter()
        .try_fold(element.bytes(), |bytes, extent| bytes.checked_mul(*extent))
        .ok_or_else(|| format!("the shape {:?} of tensor {name} is too large", info.shape))?;
    let (begin, end) = info.data_offsets;
    if end.checked_sub(begin) != Some(bytes) {
        return Err(format!(
            "tensor {name} of shape {:?} in {element} takes {bytes} bytes, but its offsets are {begin} to {end}",
            info.shape
        ));
    }
    match (begin.checked_add(data_start), end.checked_add(data_start)) {
        (Some(begin), Some(end)) => {
            Ok(HeaderTensor { name, element, shape: info.shape.clone(), strides: None, span: begin..end })
        }
        _ => Err(format!("the offsets {begin} to {end} of tensor {name} are too large")),
    }
}

/// Checks that sorted spans follow one another; returns the end of the last one.
fn check_spans(tensors: &[HeaderTensor], data_start: usize) -> Result<usize, String> {
    let mut names = HashSet::new();
    let mut end = data_start;
    let mut previous = "the header";
    for tensor in tensors {
        if !names.insert(tensor.name.as_str()) {
            return Err(format!("its header lists tensor {} twice", tensor.name));
        }
        if tensor.span.start < end {
            return Err(format!("tensor {} overlaps {previous}", tensor.name));
        }
        if tensor.span.start > end {
            let gap = tensor.span.start - end;
            return Err(format!("{gap} bytes between {previous} and tensor {} are unused", tensor.name));
        }
        end = tensor.span.end;
        previous = &tensor.name;
    }
    Ok(end)
}

fn element_type(dtype: Dtype) -> Option<ElementType> {
    match dtype {
        Dtype::F32 => Some(ElementType::F32),
        Dtype::F16 => Some(ElementType::F16),
        Dtype::BF16 => Some(ElementType::Bf16),
        Dtype::I64 => Some(ElementType::I64),
        Dtype::I32 => Some(ElementType::I32),
        Dtype::I8 => Some(ElementType::I8),
        Dtype::U8 => Some(ElementType::U8),
        Dtype::F8_E4M3 => Some(ElementType::F8E4M3),
        Dtype::BOOL => Some(ElementType::Bool),
        _ => None,
    }
}

/// The header's JSON object in file order, with duplicate names.
struct Entries(Vec<(String, TensorInfo)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EntriesVisitor)
    }
}

struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = Entries;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
        let mut entries = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
            } else {
                entries.push((name, map.next_value()?));
            }
        }
        Ok(Entries(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::super::weight_file::parts;
    use super::*;
    use proptest::prelude::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.resize(file.len() + data, 0);
        file
    }

    fn read_all(bytes: &[u8]) -> Result<Vec<HeaderTensor>, Error> {
        parse(Path::new("x.safetensors"), bytes, bytes.len() as u64)
    }

    fn parsed(header: &str, data: usize) -> Result<Vec<HeaderTensor>, Error> {
        read_all(&file(header, data))
    }

    fn why(header: &str, data: usize) -> String {
        match parsed(header, data) {
            Err(Error::Header { why, .. }) => why,
            other => panic!("expected a damaged header, found {other:?}"),
        }
    }

    #[test]
    fn spans_are_relative_to_the_start_of_the_file() {
        let header = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"F16","shape":[2],"data_offsets":[8,12]},
            "a":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}}  "#;
        let tensors = parsed(header, 12).unwrap();
        let start = 8 + header.len();
        assert_eq!(tensors[0].name, "a");
        assert_eq!(tensors[0].shape, [1, 2]);
        assert_eq!(tensors[0].span, start..start + 8);
        assert_eq!(tensors[1].element, ElementType::F16);
        assert_eq!(tensors[1].span, start + 8..start + 12);
    }

    #[test]
    fn a_file_that_ends_too_early_is_truncated_at_any_length() {
        let whole = file(r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#, 16);
        for length in 0..whole.len() {
            let error = read_all(&whole[..length]).unwrap_err();
            assert!(matches!(error, Error::Truncated { found, .. } if found == length as u64), "{error}");
        }
        assert!(read_all(&whole).is_ok());
    }

    #[test]
    fn reading_a_file_and_parsing_its_bytes_have_the_same_result() {
        use std::io::Write;
        let whole = file(r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#, 16);
        for length in [0, 7, 8, 20, whole.len() - 1, whole.len()] {
            let mut stored = tempfile::tempfile().unwrap();
            stored.write_all(&whole[..length]).unwrap();
            let found = read(Path::new("x.safetensors"), &stored, length as u64);
            let expected = read_all(&whole[..length]);
            assert_eq!(found.map_err(|error| error.to_string()), expected.map_err(|error| error.to_string()));
        }
    }

    #[test]
    fn header_and_tensors_are_the_parts_of_a_file() {
        let header = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
            "none":{"dtype":"F32","shape":[0],"data_offsets":[4,4]},
            "b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
        let start = 8 + header.len() as u64;
        let parts = parts(&parsed(header, 8).unwrap(), start + 8);
        assert_eq!(parts, [0..start, start..start + 4, start + 4..start + 8]);
        let none = super::super::weight_file::parts(&parsed("{}", 0).unwrap(), 10);
        assert_eq!(none, Vec::from_iter(std::iter::once(0..10)));
    }

    #[test]
    fn bytes_after_the_last_tensor_are_refused() {
        let header = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
        assert_eq!(why(header, 7), "3 bytes follow the last tensor");
    }

    #[test]
    fn a_header_longer_than_the_maximum_is_refused_before_it_is_read() {
        let error = read_all(&u64::MAX.to_le_bytes()).unwrap_err();
        assert!(matches!(error, Error::Header { .. }), "{error}");
    }

    #[test]
    fn an_invalid_header_is_refused() {
        for text in ["", "[]", "{", r#"{"a":1}"#, r#"{"a":{"dtype":"F33","shape":[],"data_offsets":[0,0]}}"#]
        {
            assert!(why(text, 0).starts_with("its header cannot be read"), "{text}");
        }
        let negative = r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#;
        assert!(why(negative, 4).starts_with("its header cannot be read"));
    }

    #[test]
    fn overlapping_tensors_are_refused() {
        let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
            "b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
        assert_eq!(why(header, 12), "tensor b overlaps a");
    }

    #[test]
    fn a_gap_between_tensors_is_refused() {
        let header = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
            "b":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}}"#;
        assert_eq!(why(header, 12), "4 bytes between a and tensor b are unused");
    }

    #[test]
    fn offsets_that_do_not_match_the_shape_are_refused() {
        for offsets in ["[0,12]", "[8,0]", "[0,0]"] {
            let header = format!(r#"{{"a":{{"dtype":"F32","shape":[2],"data_offsets":{offsets}}}}}"#);
            assert!(why(&header, 12).starts_with("tensor a of shape [2] in f32 takes 8 bytes"), "{offsets}");
        }
    }

    #[test]
    fn sizes_that_overflow_are_refused() {
        let shape = r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#;
        assert!(why(shape, 0).contains("too large"));
        let offsets =
            r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[18446744073709551614,18446744073709551615]}}"#;
        assert!(why(offsets, 0).contains("too large"));
    }

    #[test]
    fn a_tensor_listed_twice_is_refused() {
        let header = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
            "a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
        assert_eq!(why(header, 8), "its header lists tensor a twice");
    }

    #[test]
    fn unsupported_number_formats_are_reported() {
        let header = r#"{"a":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}}"#;
        assert_eq!(why(header, 8), "the number format F64 of tensor a is not supported");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read_all(&bytes);
        }

        #[test]
        fn any_header_is_refused_or_consistent(
            entries in proptest::collection::vec(
                ("[ab]", prop_oneof!["F32", "F16", "U8", "F4"], prop_oneof![0_u64..5, any::<u64>()],
                 prop_oneof![0_u64..20, any::<u64>()], prop_oneof![0_u64..20, any::<u64>()]), 0..4),
            data in 0_usize..24,
        ) {
            let entries: Vec<_> = entries.iter().map(|(name, dtype, extent, begin, end)| {
                format!(r#""{name}":{{"dtype":"{dtype}","shape":[{extent}],"data_offsets":[{begin},{end}]}}"#)
            }).collect();
            let file = file(&format!("{{{}}}", entries.join(",")), data);
            if let Ok(tensors) = read_all(&file) {
                prop_assert_eq!(tensors.len(), entries.len());
                let stored: usize = tensors.iter().map(|tensor| tensor.span.len()).sum();
                prop_assert_eq!(stored, data);
                prop_assert!(tensors.iter().all(|tensor| tensor.span.end <= file.len()));
            }
        }
    }
}
