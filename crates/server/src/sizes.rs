//! Sizes of frames by the names that services give them.

use crate::fault::Fault;
use bundle::geometry::PixelSize;

/// Resolution, shape, width and height, as Model Studio documents them for Wan models.
const NAMED: [(&str, &str, usize, usize); 13] = [
    ("480P", "16:9", 832, 480),
    ("480P", "9:16", 480, 832),
    ("480P", "1:1", 624, 624),
    ("720P", "16:9", 1280, 720),
    ("720P", "9:16", 720, 1280),
    ("720P", "1:1", 960, 960),
    ("720P", "4:3", 1088, 832),
    ("720P", "3:4", 832, 1088),
    ("1080P", "16:9", 1920, 1088),
    ("1080P", "9:16", 1088, 1920),
    ("1080P", "1:1", 1440, 1440),
    ("1080P", "4:3", 1632, 1248),
    ("1080P", "3:4", 1248, 1632),
];

/// The size of a resolution such as `720P` in a shape such as `16:9`, or of a text such as `1280*720`.
///
/// # Errors
/// There is no such size. The fault names the parameter.
pub(crate) fn named(param: &str, text: &str, shape: Option<&str>) -> Result<PixelSize, Fault> {
    let upper = text.trim().to_ascii_uppercase();
    let shape = shape.unwrap_or("16:9");
    let found = NAMED.iter().find(|(name, of, ..)| *name == upper && *of == shape);
    match found {
        Some((_, _, width, height)) => Ok(PixelSize { width: *width, height: *height }),
        None if upper.ends_with('P') => {
            let message = format!(
                "there is no {text} in the shape {shape}: use 480P, 720P or 1080P in 16:9, 9:16 or 1:1"
            );
            Err(Fault::parameter(param, message))
        }
        None => text.parse::<PixelSize>().map_err(|error| Fault::from(error).about(param)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_names_and_numbers() {
        let of = |text: &str, shape| named("size", text, shape).map(|size| size.to_string());
        assert_eq!(of("720P", None).unwrap(), "1280x720");
        assert_eq!(of("480p", Some("9:16")).unwrap(), "480x832");
        assert_eq!(of("1280*720", None).unwrap(), "1280x720");
        assert!(of("720P", Some("2:1")).unwrap_err().message.contains("9:16"));
        assert_eq!(of("8K", None).unwrap_err().param.as_deref(), Some("size"));
    }
}
