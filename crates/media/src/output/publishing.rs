//! The last changes of a closed file before it gets its name: record, XMP, index, audio delay and signature.

use super::Output;
use crate::record_code::{EncodedRecord, KEY};
use crate::sound::RATE;
use crate::{Error, FileFormat, OutputSpec, matroska, mp4, xmp_box};
use bundle::part_file::PartFile;

impl Output {
    pub(super) fn is_mp4(&self) -> bool {
        matches!(self.target.spec, OutputSpec::File { format: FileFormat::Mp4, .. })
    }

    /// Adds the record to a closed mkv or webm. The collectors of other formats have already written it.
    pub(super) fn add_record(&self, file: &PartFile) -> Result<(), Error> {
        let is_matroska =
            matches!(self.target.spec, OutputSpec::File { format: FileFormat::Mkv | FileFormat::WebM, .. });
        let Some(record) = self.record.as_ref().filter(|_| is_matroska) else { return Ok(()) };
        file.ensure_ours()?;
        // A copy as mp4 keeps the synopsis, and drops tags that mp4 does not know.
        let tags = [(KEY, record.as_str()), ("SYNOPSIS", &record.labelled())];
        if let Err(error) = matroska::add_tags(file.part(), &tags) {
            tracing::warn!(%error, "{} does not contain the record that repeats it", self.target.spec);
        }
        Ok(())
    }

    /// Adds XMP and the record, moves the index before the frames, signs the file and publishes it. Returns its bytes.
    pub(super) fn publish_mp4(&self, file: &PartFile) -> Result<u64, Error> {
        file.ensure_ours()?;
        self.align_sound(file);
        let xmp = xmp_box::xmp_box(&self.tags.xmp()).unwrap_or_default();
        let record = self.record.as_ref().map(EncodedRecord::labelled);
        let copy = match mp4::with_index_first(file.part(), &xmp, record.as_deref()) {
            Ok(copy) => Some(copy),
            Err(error) => {
                tracing::warn!(%error, "{} keeps its index after its frames", self.target.spec);
                if let Err(error) = xmp_box::append(file.part(), &xmp) {
                    // The comment contains the same information.
                    tracing::warn!(%error, "the clip has no XMP");
                }
                None
            }
        };
        match (&self.sign, copy) {
            (None, None) => {
                file.publish()?;
                Ok(file.bytes())
            }
            (None, Some(copy)) => Ok(file.publish_instead(copy)?),
            (Some(keys), copy) => {
                let signed = keys.sign(copy.as_deref().unwrap_or(file.part()), &self.tags)?;
                Ok(file.publish_instead(signed)?)
            }
        }
    }

    /// Corrects the encoder delay of the audio in a closed mp4.
    pub(super) fn align_sound(&self, file: &PartFile) {
        let delay = self.sound.as_ref().map_or(0, |track| track.encoder.delay);
        if delay == 0 || !self.is_mp4() {
            return;
        }
        if let Err(error) = mp4::align(file.part(), delay) {
            tracing::warn!(%error, "the audio is {} ms late", delay * 1000 / RATE);
        }
    }
}
