//! The record of a clip: how it was made, and a digest of the latent after every step. It is stored in the clip.

use super::conditions::RunConditions;
use super::spec::{JobSpec, SPEC_VERSION};
use crate::Error;
use bundle::digest::Digest;
use ndarray::Array4;
use serde::{Deserialize, Serialize};

/// The largest record as JSON, in bytes: 64 kB are left for it in files, in base64.
pub const RECORD_MAX: usize = 48_000;

/// A digest of a latent: the first 64 bits of BLAKE3 over its shape and values, as 16 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LatentDigest(pub String);

impl LatentDigest {
    /// The digest of `latent [C,T,h,w]`.
    pub fn of(latent: &Array4<f32>) -> Self {
        let mut hasher = blake3::Hasher::new();
        for extent in latent.shape() {
            hasher.update(&(*extent as u64).to_le_bytes());
        }
        match latent.as_slice() {
            Some(values) => hash_values(&mut hasher, values),
            None => latent.iter().for_each(|value| hash_values(&mut hasher, &[*value])),
        }
        Self(hasher.finalize().to_hex()[..16].to_owned())
    }
}

fn hash_values(hasher: &mut blake3::Hasher, values: &[f32]) {
    let mut bytes = [0; 4096];
    for block in values.chunks(bytes.len() / 4) {
        for (four, value) in bytes.chunks_exact_mut(4).zip(block) {
            four.copy_from_slice(&value.to_le_bytes());
        }
        hasher.update(&bytes[..4 * block.len()]);
    }
}

/// How a clip was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipRecord {
    /// What determines the clip.
    pub spec: JobSpec,
    /// What else decides its bits.
    pub conditions: RunConditions,
    /// The other conditions under which steps were made, in order, if the run was resumed under other ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<RunConditions>,
    /// The digest of the latent after each step. Empty if they were too many to store.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub latents: Vec<LatentDigest>,
}

/// A record with a digest of its JSON, which detects a changed character.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    digest: String,
    record: ClipRecord,
}

impl Sealed {
    fn new(record: &ClipRecord) -> Self {
        Self { digest: Self::digest(record), record: record.clone() }
    }

    fn digest(record: &ClipRecord) -> String {
        let json = serde_json::to_vec(record).unwrap_or_else(|_| unreachable!("keys are strings"));
        Digest::of_parts([&json[..]]).short().to_owned()
    }
}

/// A record as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRecord {
    /// JSON of at most [`RECORD_MAX`] bytes; `None` if even the settings alone are longer.
    pub json: Option<String>,
    /// What was left out because the record was too long.
    pub left_out: Option<&'static str>,
}

impl ClipRecord {
    /// The record as JSON. If it is too long, the digests are left out, then everything.
    pub fn stored(&self) -> StoredRecord {
        let json = |record: &Self| {
            let json = serde_json::to_string(&Sealed::new(record))
                .unwrap_or_else(|_| unreachable!("keys are strings"));
            (json.len() <= RECORD_MAX).then_some(json)
        };
        if let Some(json) = json(self) {
            return StoredRecord { json: Some(json), left_out: None };
        }
        match json(&Self { latents: Vec::new(), ..self.clone() }) {
            Some(json) => StoredRecord { json: Some(json), left_out: Some("the digests of the latents") },
            None => StoredRecord { json: None, left_out: Some("the settings of the clip") },
        }
    }

    /// Reads a record from JSON.
    ///
    /// # Errors
    /// The text is not a record, or one of another version.
    pub fn from_json(text: &str) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Versioned {
            record: Versions,
        }
        #[derive(Deserialize)]
        struct Versions {
            spec: SpecVersion,
        }
        #[derive(Deserialize)]
        struct SpecVersion {
            version: u32,
        }
        let wrong = |why: String| Error::Spec { why };
        if text.len() > RECORD_MAX {
            return Err(wrong(format!("it has {} bytes, and a record has at most {RECORD_MAX}", text.len())));
        }
        // A record of another version may have other fields.
        let Versioned { record: Versions { spec: SpecVersion { version } } } =
            serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
        if version != SPEC_VERSION {
            return Err(wrong(format!("its version is {version}, and this program reads {SPEC_VERSION}")));
        }
        let Sealed { digest, record } =
            serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
        if digest != Sealed::digest(&record) {
            return Err(wrong("it does not have the digest that it names".into()));
        }
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use super::super::conditions::tests::conditions;
    use super::super::spec::tests::spec;
    use super::*;

    fn record(steps: usize) -> ClipRecord {
        let digest = LatentDigest("0123456789abcdef".into());
        ClipRecord {
            spec: spec(),
            conditions: conditions(),
            earlier: Vec::new(),
            latents: vec![digest; steps],
        }
    }

    #[test]
    fn a_record_survives_json() {
        let stored = record(1000).stored();
        assert_eq!(stored.left_out, None);
        assert_eq!(ClipRecord::from_json(&stored.json.unwrap()).unwrap(), record(1000));
    }

    #[test]
    fn a_changed_record_is_refused() {
        let json = record(3).stored().json.unwrap();
        let changed = json.replace("\"frames\":17", "\"frames\":19");
        assert_ne!(changed, json);
        assert!(ClipRecord::from_json(&changed).unwrap_err().to_string().contains("digest"));
    }

    #[test]
    fn a_record_that_is_too_long_is_shortened_or_left_out_and_says_so() {
        let mut long = record(1000);
        long.spec.prompt = "x".repeat(30_000);
        let stored = long.stored();
        assert_eq!(stored.left_out, Some("the digests of the latents"));
        assert_eq!(ClipRecord::from_json(&stored.json.unwrap()).unwrap().latents, []);
        long.spec.prompt = "x".repeat(50_000);
        assert_eq!(long.stored(), StoredRecord { json: None, left_out: Some("the settings of the clip") });
        assert!(ClipRecord::from_json(&" ".repeat(RECORD_MAX + 1)).is_err());
    }

    #[test]
    fn a_record_of_another_version_is_refused_by_its_version() {
        let mut json: serde_json::Value = serde_json::from_str(&record(1).stored().json.unwrap()).unwrap();
        json["record"]["spec"]["version"] = 2.into();
        json["record"]["spec"]["unknown"] = 1.into();
        let refused = ClipRecord::from_json(&json.to_string()).unwrap_err().to_string();
        assert!(refused.contains("version is 2"), "{refused}");
        json["record"]["spec"]["version"] = SPEC_VERSION.into();
        assert!(ClipRecord::from_json(&json.to_string()).unwrap_err().to_string().contains("unknown"));
    }

    #[test]
    fn a_digest_depends_on_every_value_and_on_the_shape() {
        let latent = Array4::from_shape_fn((2, 3, 10, 100), |(c, t, h, w)| (c + t + h + w) as f32);
        let digest = LatentDigest::of(&latent);
        let mut other = latent.clone();
        other[[1, 2, 9, 99]] += 1e-3;
        assert_ne!(LatentDigest::of(&other), digest);
        let flat = latent.clone().into_shape_with_order((3, 2, 10, 100)).unwrap();
        assert_ne!(LatentDigest::of(&flat), digest);
        let strided = latent.view().reversed_axes().as_standard_layout().reversed_axes().to_owned();
        assert_eq!(LatentDigest::of(&strided), digest);
    }
}
