//! Metadata of clips: the AI mark, the model, the seed and the record of the run.

use super::Error;
use super::record_code::EncodedRecord;
use bundle::units::Seed;
use gstreamer as gst;
use gstreamer::prelude::*;

/// The mark of generated clips.
pub const AI_MARK: &str = "AI-generated";

/// The IPTC term for generated media.
pub(super) const SOURCE_TYPE: &str = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia";

/// The XML namespace of the record. A name without an address.
const NAMESPACE: &str = "urn:x-rushes:clip:1.0/";

/// The longest title, in characters.
const TITLE_LENGTH: usize = 200;

/// The metadata of a clip.
///
/// ```
/// use bundle::units::Seed;
/// use media::Tags;
///
/// let tags = Tags::new("A cat runs".to_owned(), "Wan2.2-T2V-A14B", Seed(42));
/// let comment = tags.comment().unwrap();
/// assert!(comment.starts_with("AI-generated: Rushes "));
/// assert!(comment.ends_with("model Wan2.2-T2V-A14B, seed 42"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tags {
    /// The title, usually the prompt; cut after 200 characters.
    pub title: Option<String>,
    /// The name of the model.
    pub model: String,
    /// The seed of the initial noise.
    pub seed: Seed,
    /// A note on post-processing, for the comment.
    pub note: Option<String>,
    /// True if the clip is marked as AI-generated.
    pub mark: bool,
    /// False if title, model, seed, note and record are left out. The mark stays.
    pub metadata: bool,
    /// Everything that repeats the clip, as JSON. Files carry it, streams and y4m do not.
    pub record: Option<String>,
}

impl Tags {
    /// Tags with the AI mark, without a record.
    pub fn new(title: impl Into<Option<String>>, model: impl Into<String>, seed: Seed) -> Self {
        Self {
            title: title.into(),
            model: model.into(),
            seed,
            note: None,
            mark: true,
            metadata: true,
            record: None,
        }
    }

    /// Checks that files can carry the record. Call it before the run: an output whose record does not fit is not
    /// started.
    ///
    /// # Errors
    /// Returns an error if the record is not JSON or has more than 64 kB in base64.
    pub fn check_record(&self) -> Result<(), Error> {
        self.encoded_record().map(drop)
    }

    /// The record as files carry it.
    pub(super) fn encoded_record(&self) -> Result<Option<EncodedRecord>, Error> {
        let record = self.record.as_deref().filter(|_| self.metadata);
        record.map(EncodedRecord::new).transpose().map_err(|why| Error::Record { why })
    }

    /// The comment: AI mark, program, model, seed and note. Without metadata, the mark.
    pub fn comment(&self) -> Option<String> {
        if !self.metadata {
            return self.mark.then(|| AI_MARK.to_owned());
        }
        let version = env!("CARGO_PKG_VERSION");
        let mark = if self.mark { format!("{AI_MARK}: ") } else { String::new() };
        let note = self.note.as_ref().map_or(String::new(), |note| format!(", {note}"));
        Some(format!("{mark}Rushes {version}, model {}, seed {}{note}", one_line(&self.model), self.seed.0))
    }

    /// The title as one line, truncated with an ellipsis.
    fn short_title(&self) -> Option<String> {
        let title = one_line(self.title.as_deref().filter(|_| self.metadata)?);
        let mut short: String = title.chars().take(TITLE_LENGTH).collect();
        if short.len() < title.len() {
            short.push('…');
        }
        (!short.is_empty()).then_some(short)
    }

    /// The comment as one word of letters, digits and `_-+/:.`. The Matroska muxer writes other characters in a way
    /// that only GStreamer reads back.
    pub fn token(&self) -> Option<String> {
        if !self.metadata {
            return self.comment();
        }
        let version = env!("CARGO_PKG_VERSION");
        let mark = if self.mark { format!("{AI_MARK}:") } else { String::new() };
        let note = self.note.as_ref().map_or(String::new(), |note| format!(":{note}"));
        let text = format!("{mark}Rushes/{version}:{}:seed_{}{note}", one_line(&self.model), self.seed.0);
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || "_-+/:.".contains(c);
        Some(text.chars().map(|c| if is_allowed(c) { c } else { '_' }).collect())
    }

    /// An XMP packet with the comment, the title, the IPTC source type and the record. A record that does not fit is
    /// left out, see [`Self::check_record`].
    pub fn xmp(&self) -> String {
        let escaped = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let title = self.short_title().map_or(String::new(), |title| {
            format!(
                "<dc:title><rdf:Alt><rdf:li xml:lang=\"x-default\">{}</rdf:li></rdf:Alt></dc:title>",
                escaped(&title)
            )
        });
        let description = self.comment().map_or(String::new(), |comment| {
            format!(
                "<dc:description><rdf:Alt><rdf:li xml:lang=\"x-default\">{}</rdf:li></rdf:Alt></dc:description>",
                escaped(&comment)
            )
        });
        let record = self.encoded_record().ok().flatten().map_or(String::new(), |record| {
            format!("<rushes:job xmlns:rushes=\"{NAMESPACE}\">{}</rushes:job>", record.as_str())
        });
        let source_type = if self.mark {
            format!("Iptc4xmpExt:DigitalSourceType=\"{SOURCE_TYPE}\"")
        } else {
            String::new()
        };
        format!(
            "<?xpacket begin=\"\u{feff}\" id=\"W5M0MpCehiHzreSzNTczkc9d\"?>\
             <x:xmpmeta xmlns:x=\"adobe:ns:meta/\"><rdf:RDF xmlns:rdf=\"http://www.w3.org/1999/02/22-rdf-syntax-ns#\">\
             <rdf:Description rdf:about=\"\" xmlns:dc=\"http://purl.org/dc/elements/1.1/\" \
             xmlns:Iptc4xmpExt=\"http://iptc.org/std/Iptc4xmpExt/2008-02-29/\" \
             {source_type}>\
             {description}{title}{record}\
             </rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end=\"w\"?>"
        )
    }

    /// Sets the tags of a muxer. They replace those of the encoder.
    pub(super) fn apply(&self, muxer: &gst::Element, encoding: TagEncoding, encoder: &str) {
        let Some(setter) = muxer.dynamic_cast_ref::<gst::TagSetter>() else { return };
        let version = env!("CARGO_PKG_VERSION");
        setter.set_tag_merge_mode(gst::TagMergeMode::Replace);
        let replace = gst::TagMergeMode::Replace;
        let comment = match encoding {
            TagEncoding::Text => self.comment(),
            TagEncoding::Token => self.token(),
        };
        if let Some(comment) = comment {
            setter.add_tag::<gst::tags::Comment>(&comment.as_str(), replace);
        }
        match encoding {
            TagEncoding::Text => {
                let name = format!("Rushes {version} ({encoder})");
                setter.add_tag::<gst::tags::Encoder>(&name.as_str(), replace);
                if let Some(title) = self.short_title() {
                    setter.add_tag::<gst::tags::Title>(&title.as_str(), replace);
                }
            }
            TagEncoding::Token => {
                let name = format!("Rushes/{version}:{encoder}");
                setter.add_tag::<gst::tags::Encoder>(&name.as_str(), replace);
            }
        }
        if self.mark {
            setter.add_tag::<gst::tags::Keywords>(&AI_MARK, replace);
        }
    }
}

/// The encoding of tags in a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TagEncoding {
    /// Unchanged text.
    Text,
    /// One word, as in [`Tags::token`].
    Token,
}

/// Replaces every run of white space and control characters with one space.
fn one_line(text: &str) -> String {
    let words: Vec<_> =
        text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(title: &str) -> Tags {
        Tags::new(title.to_owned(), "Wan2.2-T2V-A14B", Seed(42))
    }

    #[test]
    fn the_comment_contains_mark_model_and_seed() {
        let comment = tags("").comment().unwrap();
        assert!(comment.starts_with("AI-generated: Rushes "), "{comment}");
        assert!(comment.ends_with(", model Wan2.2-T2V-A14B, seed 42"), "{comment}");
    }

    #[test]
    fn the_mark_is_optional_and_the_comment_contains_the_note() {
        let tags = Tags { mark: false, note: Some("24 fps made of 16 by blending".into()), ..tags("") };
        let comment = tags.comment().unwrap();
        for text in [comment.clone(), tags.token().unwrap(), tags.xmp()] {
            assert!(!text.contains("AI-generated") && !text.contains("trained"), "{text}");
        }
        assert!(comment.ends_with("seed 42, 24 fps made of 16 by blending"), "{comment}");
    }

    #[test]
    fn without_metadata_the_mark_stays() {
        let plain = Tags {
            metadata: false,
            note: Some("a note".into()),
            record: Some("{}".into()),
            ..tags("a red fox")
        };
        assert_eq!((plain.comment(), plain.token()), (Some(AI_MARK.into()), Some(AI_MARK.into())));
        assert_eq!(plain.encoded_record().unwrap(), None);
        let xmp = plain.xmp();
        assert!(xmp.contains("trainedAlgorithmicMedia"), "{xmp}");
        for left_out in ["fox", "Wan2.2", "42", "note", "rushes:job", "Rushes"] {
            assert!(!xmp.contains(left_out), "{left_out} in {xmp}");
        }
        let unmarked = Tags { mark: false, ..plain };
        assert_eq!((unmarked.comment(), unmarked.token()), (None, None));
        assert!(!unmarked.xmp().contains("trained"));
    }

    #[test]
    fn the_record_is_encoded_and_checked() {
        let record = |json: &str| Tags { record: Some(json.to_owned()), ..tags("") };
        let xmp = record(r#"{"seed":42}"#).xmp();
        assert!(xmp.contains(">eyJzZWVkIjo0Mn0</rushes:job>"), "{xmp}");
        record("{}").check_record().unwrap();
        let long = record(&format!("\"{}\"", "x".repeat(49_151)));
        insta::assert_snapshot!(long.check_record().unwrap_err(), @"the record that repeats the clip cannot be written: it has 65538 bytes in base64, and a file carries at most 65536 (shorten the prompt, or write the clip without metadata)");
        let other = record("{");
        assert!(matches!(other.check_record(), Err(Error::Record { .. })));
        Tags { metadata: false, ..other }.check_record().unwrap();
    }

    #[test]
    fn the_token_is_one_word() {
        let mut tags = tags("");
        tags.model = "my model; 猫".into();
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(tags.token(), Some(format!("AI-generated:Rushes/{version}:my_model___:seed_42")));
    }

    #[test]
    fn xmp_is_escaped_and_contains_the_source_type() {
        let xmp = tags("a < b & c").xmp();
        assert!(xmp.contains("a &lt; b &amp; c") && xmp.contains("trainedAlgorithmicMedia"), "{xmp}");
    }

    #[test]
    fn titles_are_one_short_line() {
        assert_eq!(tags("a cat\n\truns\0").short_title().as_deref(), Some("a cat runs"));
        assert_eq!(tags(" \n ").short_title(), None);
        let long = tags(&"猫".repeat(201)).short_title().unwrap();
        assert_eq!(long, format!("{}…", "猫".repeat(200)));
    }
}
