//! The record of a compiled engine, `engine.json`.

use super::EngineSubject;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The version of the record and of the way in which engines are compiled. Engines of another version are not opened.
pub(super) const FORMAT: u32 = 1;

/// The name of the record.
pub(super) const RECORD: &str = "engine.json";

/// The record of a compiled engine. It is the last file that is written, so a folder that has it is whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EngineRecord {
    /// The version of the record.
    pub format: u32,
    /// Everything that the engine depends on, in words, see [`EngineKey::words`](super::EngineKey::words).
    pub key: BTreeMap<String, String>,
    /// What was compiled.
    pub subject: EngineSubject,
    /// The version of Rushes.
    pub made_with: String,
    /// When it was compiled, in seconds since 1970.
    pub made_at: u64,
    /// How long that took.
    pub seconds: f64,
    /// The nodes of the graph by ONNX Runtime's name of their provider, as they were when it was compiled. An open
    /// engine has one node.
    pub nodes: BTreeMap<String, usize>,
    /// The name of the compiled graph, which is one of `files`. The files that it refers to are beside it.
    pub model: String,
    /// Every other file of the folder.
    pub files: Vec<EngineFile>,
}

/// A file of an engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineFile {
    /// Its name, without folders.
    pub name: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// BLAKE3 over all its bytes, 64 hexadecimal digits.
    pub blake3: String,
}

impl EngineRecord {
    /// The length of all its files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).fold(0, u64::saturating_add)
    }

    /// A part of the key in words.
    pub fn word(&self, part: &str) -> &str {
        self.key.get(part).map_or("", String::as_str)
    }
}
