//! The command that compiles what a graph lacks.

use bundle::geometry::VaeStride;
use bundle::variant::Precision;
use engines::{Device, EngineShape};
use std::fmt::Write;
use std::path::Path;

/// What the command names.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EngineCommand<'a> {
    /// The folder of the bundle.
    pub(crate) bundle: &'a Path,
    /// The device whose engine is missing.
    pub(crate) device: Device,
    /// The precision of the model; `None` for the one that is chosen without being asked.
    pub(crate) precision: Option<Precision>,
    /// The shape of the clip, if engines run one.
    pub(crate) shape: Option<EngineShape>,
    /// Pixels and frames of a latent position.
    pub(crate) stride: VaeStride,
}

impl EngineCommand<'_> {
    /// The command, as it is typed in a shell.
    pub(crate) fn text(&self) -> String {
        let Self { bundle, device, precision, shape, stride } = self;
        // Writing into a String cannot fail.
        let mut text = format!("rushes build {} --ep {device}", word(bundle));
        if let Some(precision) = precision {
            let _ = write!(text, " --precision {precision}");
        }
        if let Some(EngineShape { frames, height, width, .. }) = shape {
            let pixels = |extent: &u32| u64::from(*extent).saturating_mul(stride.space as u64);
            let frames = u64::from(*frames).saturating_sub(1).saturating_mul(stride.time as u64) + 1;
            let _ = write!(text, " --shape {}x{}x{frames}", pixels(width), pixels(height));
        }
        text
    }
}

/// A path as a word of a shell command.
fn word(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain =
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+:@%".contains(c));
    if is_plain { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_names_everything_that_the_engine_depends_on() {
        let shape = EngineShape { frames: 21, height: 60, width: 104, batch: 1 };
        let whole = EngineCommand {
            bundle: Path::new("a14b"),
            device: "tensorrt:1".parse().unwrap(),
            precision: Some(Precision::Bf16),
            shape: Some(shape),
            stride: VaeStride { time: 4, space: 8 },
        };
        assert_eq!(whole.text(), "rushes build a14b --ep tensorrt:1 --precision bf16 --shape 832x480x81");
        let any =
            EngineCommand { bundle: Path::new("my bundles/a14b"), precision: None, shape: None, ..whole };
        assert_eq!(any.text(), "rushes build 'my bundles/a14b' --ep tensorrt:1");
        let one = EngineCommand { shape: Some(EngineShape { frames: 1, ..shape }), ..any };
        assert!(one.text().ends_with("--shape 832x480x1"));
    }
}
