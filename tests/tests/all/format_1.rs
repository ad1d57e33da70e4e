//! Bundles of format 1, with the words of earlier versions in `bundle.json`, are read and rewritten in format 2.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use bundle::manifest::{self, Bundle, FORMAT};
use bundle::quantization::Scheme;
use bundle::variant::Target;
use export::ExportRequest;
use quality::quantize::variant::UnquantizedLayers;
use quality::quantize::{QuantizeOptions, Quantizer};
use serde_json::{Map, Value, json};
use std::fs;
use std::path::Path;
use tests::golden;

/// Keys and values of format 2 with those of format 1.
const KEYS: [(&str, &str); 2] = [("target", "dialect"), ("kernels", "operators")];
const VALUES: [(&str, &str, &str); 7] = [
    ("target", "plain", "tensorrt"),
    ("kernels", "rushes", "own"),
    ("kernels", "onnxruntime", "stock"),
    ("part", "trunk_first", "stem_first"),
    ("part", "upsampler_first", "rise_first"),
    ("part", "trunk_next", "stem_next"),
    ("part", "upsampler_next", "rise_next"),
];

fn in_format_1(value: &Value) -> Value {
    match value {
        Value::Array(items) => items.iter().map(in_format_1).collect(),
        Value::Object(fields) => {
            let rename = |(key, value): (&String, &Value)| {
                let new = VALUES.iter().find(|(of, name, _)| of == key && value == name);
                let value = new.map_or_else(|| in_format_1(value), |(_, _, old)| json!(old));
                let key = KEYS.iter().find(|(name, _)| name == key).map_or(key.as_str(), |(_, old)| old);
                (key.to_owned(), value)
            };
            let mut fields: Map<String, Value> = fields.iter().map(rename).collect();
            fields.entry("format").and_modify(|format| *format = json!(1));
            Value::Object(fields)
        }
        other => other.clone(),
    }
}

/// Exports for all targets, with a variant for both libraries of kernels.
fn export(path: &Path) -> Bundle {
    let checkpoint = golden::case("official-names").checkpoint();
    let request = ExportRequest { targets: Target::ALL.to_vec(), ..ExportRequest::new(&checkpoint, path) };
    export::export(&request, &mut |_| ()).unwrap();
    let mut quantizer = Quantizer::open(path, Path::new("none"), QuantizeOptions::new(Scheme::Bf16)).unwrap();
    for entry in Bundle::open(path).unwrap().manifest.components {
        let numerics = quantizer.plan(&entry, &UnquantizedLayers::new()).unwrap().numerics;
        quantizer.write(numerics, None).unwrap();
    }
    quantizer.commit().unwrap();
    Bundle::open(path).unwrap()
}

#[test]
fn format_1_is_read_and_rewritten_in_format_2() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bundle");
    let original = export(&path);
    let file = path.join("bundle.json");
    let text = fs::read_to_string(&file).unwrap();
    let old = in_format_1(&serde_json::from_str(&text).unwrap()).to_string();
    for word in ["dialect", "operators", "tensorrt", "\"own\"", "stem_first", "rise_next", "\"format\":1"] {
        assert!(old.contains(word), "{word} is not tested");
    }
    for word in ["\"target\"", "\"kernels\"", "\"plain\"", "trunk_", "upsampler_"] {
        assert!(!old.contains(word), "format 1 has no {word}");
    }
    fs::write(&file, &old).unwrap();
    let read = Bundle::open(&path).unwrap();
    assert_eq!(read.manifest.format, 1);
    assert_eq!(manifest::Manifest { format: FORMAT, ..read.manifest.clone() }, original.manifest);
    manifest::write(&path, &read.manifest).unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), text);
}
