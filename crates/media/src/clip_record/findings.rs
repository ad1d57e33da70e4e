//! What the tags of a file say about its record.

use crate::record_code::{KEY, LABEL, decode};

/// The most records of a file that are looked at.
const MAX_RECORDS: usize = 8;

/// The most characters of the name of a program that are shown.
const MAX_NAME: usize = 60;

/// What the tags of a file say about its record.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Encoded records in the order of the file.
    records: Vec<Vec<u8>>,
    /// A record that cannot be decoded, and why.
    unreadable: Option<&'static str>,
    /// The program that wrote the file.
    program: Option<String>,
    /// True if a tag names Rushes.
    names_rushes: bool,
}

impl Findings {
    /// A tag of the file. `value` may be cut after [`super::source::MAX_VALUE`] bytes.
    pub(super) fn tag(&mut self, name: &[u8], value: &[u8]) {
        if let Some(record) = value.strip_prefix(LABEL.as_bytes()) {
            self.encoded(record);
        } else if name.eq_ignore_ascii_case(KEY.as_bytes()) {
            self.encoded(value);
        } else {
            self.text(value);
            if name.eq_ignore_ascii_case(b"ENCODER") && self.program.is_none() {
                self.program(value);
            }
        }
    }

    /// An encoded record.
    pub(super) fn encoded(&mut self, record: &[u8]) {
        if self.records.len() < MAX_RECORDS {
            self.records.push(record.to_owned());
        }
    }

    /// A record in a form that is not read.
    pub(super) fn unreadable(&mut self, why: &'static str) {
        self.unreadable = Some(why);
    }

    /// A comment or another text that may name Rushes.
    pub(super) fn text(&mut self, text: &[u8]) {
        self.names_rushes |= text.windows(6).any(|word| word == b"Rushes");
    }

    /// The name of the program that wrote the file.
    pub(super) fn program(&mut self, name: &[u8]) {
        // It is shown in a terminal.
        let printable = |byte: &&u8| byte.is_ascii_graphic() || **byte == b' ';
        let name: String =
            name.iter().filter(printable).take(MAX_NAME).map(|byte| char::from(*byte)).collect();
        self.program = (!name.is_empty()).then_some(name);
    }

    /// True if the file names the program that wrote it.
    pub(super) fn has_program(&self) -> bool {
        self.program.is_some()
    }

    /// The first whole record. `None` if there is none.
    ///
    /// # Errors
    /// Returns the reason if all records are damaged.
    pub(super) fn record(&self) -> Result<Option<String>, String> {
        let mut damage = self.unreadable.map(str::to_owned);
        for record in &self.records {
            match decode(record) {
                Ok(json) => return Ok(Some(json)),
                Err(why) => damage = damage.or(Some(why)),
            }
        }
        damage.map_or(Ok(None), Err)
    }

    /// The reason why a file has no record.
    pub(super) fn absence(&self) -> String {
        // The muxer of GStreamer is that of rushes.
        let is_own = |program: &str| program.contains("Rushes") || program.contains("GStreamer");
        let copied = self.program.as_ref().filter(|program| !is_own(program));
        match (self.names_rushes, copied) {
            (true, Some(program)) => {
                format!("rushes made the clip, and {program} left the record out of this copy")
            }
            (true, None) => {
                "rushes wrote it without its record, or was stopped before it was complete".into()
            }
            (false, Some(program)) => {
                format!("{program} wrote it, and if it is a copy of a clip of rushes, left the record out")
            }
            (false, None) => "nothing in it says that rushes wrote it".into(),
        }
    }

    /// The reason why a PNG has no record.
    pub(super) fn absence_in_picture(&self) -> String {
        if self.names_rushes {
            "only the first picture that rushes writes to a folder carries it".into()
        } else {
            self.absence()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(tags: &[(&str, &str)]) -> Findings {
        let mut found = Findings::default();
        tags.iter().for_each(|(name, value)| found.tag(name.as_bytes(), value.as_bytes()));
        found
    }

    #[test]
    fn the_first_whole_record_counts() {
        for tags in [
            &[("RUSHES_JOB", "e30")][..],
            &[("rushes_job", "e30")],
            &[("SYNOPSIS", "RUSHES_JOB:e30")],
            &[("comment", "text"), ("RUSHES_JOB", "RUSHES_JOB:e30")],
            &[("RUSHES_JOB", "e3"), ("synopsis", "RUSHES_JOB:e30"), ("RUSHES_JOB", "MQ")],
        ] {
            assert_eq!(findings(tags).record(), Ok(Some("{}".into())), "{tags:?}");
        }
        assert!(findings(&[("RUSHES_JOB", "e3")]).record().unwrap_err().starts_with("it is not base64url"));
        assert_eq!(findings(&[("SYNOPSIS", "e30")]).record(), Ok(None));
    }

    #[test]
    fn the_reason_names_the_program_that_left_the_record_out() {
        let absence = |tags: &[(&str, &str)]| findings(tags).absence();
        let comment = ("COMMENTS", "AI-generated:Rushes/0.1.0:mini:seed_7");
        insta::assert_snapshot!(absence(&[comment, ("ENCODER", "Lavf59.27.100")]), @"rushes made the clip, and Lavf59.27.100 left the record out of this copy");
        insta::assert_snapshot!(absence(&[("ENCODER", "Rushes/0.1.0:x264enc")]), @"rushes wrote it without its record, or was stopped before it was complete");
        insta::assert_snapshot!(absence(&[comment, ("ENCODER", "GStreamer Matroska muxer")]), @"rushes wrote it without its record, or was stopped before it was complete");
        insta::assert_snapshot!(absence(&[("ENCODER", "\x1b[2JLavf\n59")]), @"[2JLavf59 wrote it, and if it is a copy of a clip of rushes, left the record out");
        insta::assert_snapshot!(absence(&[]), @"nothing in it says that rushes wrote it");
        insta::assert_snapshot!(findings(&[comment]).absence_in_picture(), @"only the first picture that rushes writes to a folder carries it");
    }
}
