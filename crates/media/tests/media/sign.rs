//! Content credentials, read back by the C2PA reader.

use crate::clip::{claim, finish, format, names, options};
use crate::tools::{ffprobe, run, run_silent};
use c2pa::{Context, Reader, ValidationState};
use media::{Error, OutputOptions, Outputs, Remainder, SharedFrame, SigningKey};
use ndarray::Array3;
use std::path::Path;
use std::process::Command;

/// A root certificate and a leaf that may sign content, made with the `openssl` tool.
fn keys(folder: &Path) -> SigningKey {
    std::fs::write(
        folder.join("leaf.ext"),
        "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=emailProtection\n\
         subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n",
    )
    .unwrap();
    for command in [
        "ecparam -name prime256v1 -genkey -noout -out root.key",
        "req -x509 -new -key root.key -sha256 -days 30 -subj /O=Test/CN=Root -out root.pem",
        "ecparam -name prime256v1 -genkey -noout -out sec1.key",
        "pkcs8 -topk8 -nocrypt -in sec1.key -out leaf.key",
        "req -new -key leaf.key -subj /O=Test/CN=Leaf -out leaf.csr",
        "x509 -req -in leaf.csr -CA root.pem -CAkey root.key -CAcreateserial -days 30 -sha256 -extfile leaf.ext -out leaf.pem",
    ] {
        run(Command::new("openssl").args(command.split(' ')).current_dir(folder));
    }
    let chain = ["leaf.pem", "root.pem"].map(|name| std::fs::read_to_string(folder.join(name)).unwrap());
    std::fs::write(folder.join("chain.pem"), chain.concat()).unwrap();
    SigningKey { certificate: folder.join("chain.pem"), key: folder.join("leaf.key") }
}

#[test]
fn a_signed_mp4_states_that_a_model_made_it_and_plays() {
    let folder = tempfile::tempdir().unwrap();
    let sign = keys(folder.path());
    sign.check().unwrap();
    let mut options = OutputOptions { sign: Some(sign), ..options(format("96x64", 16, 12)) };
    options.tags.record = Some(r#"{"seed":7}"#.into());
    let frame = |n: usize| SharedFrame::new(Array3::from_elem((3, 64, 96), n as f32 / 12.0)).unwrap();
    let targets = claim(folder.path(), &["clip.mp4", "clip.mkv"]);
    let mut outputs = Outputs::start(&targets, &options).unwrap();
    (0..12).for_each(|number| outputs.push(&frame(number)).unwrap());
    let written = finish(outputs);
    assert_eq!(written.len(), 2);

    let clip = folder.path().join("clip.mp4");
    assert_eq!(written[0].bytes, Some(clip.metadata().unwrap().len()));
    let stream = std::fs::File::open(&clip).unwrap();
    let reader = Reader::from_context(Context::new()).with_stream("video/mp4", stream).unwrap();
    assert_ne!(reader.validation_state(), ValidationState::Invalid, "{}", reader.json());
    let statement = reader.json();
    assert!(
        statement.contains("trainedAlgorithmicMedia") && statement.contains("c2pa.created"),
        "{statement}"
    );
    let probed: serde_json::Value = serde_json::from_slice(&run_silent(&mut ffprobe(&clip))).unwrap();
    assert_eq!(probed["streams"][0]["nb_read_frames"], "12");
    assert_eq!(media::clip_record::read(&clip).unwrap(), r#"{"seed":7}"#, "the signature covers the record");
    // No part file and no intermediate file is left.
    let names = names(folder.path());
    assert!(!names.iter().any(|name| name.contains(".part") || name.starts_with('.')), "{names:?}");
}

#[test]
fn a_clip_that_cannot_be_signed_keeps_its_part() {
    let folder = tempfile::tempdir().unwrap();
    let sign = keys(folder.path());
    let options = OutputOptions { sign: Some(sign.clone()), ..options(format("96x64", 16, 2)) };
    let mut outputs = Outputs::start(&claim(folder.path(), &["clip.mp4"]), &options).unwrap();
    (0..2).for_each(|_| outputs.push(&SharedFrame::new(Array3::zeros((3, 64, 96))).unwrap()).unwrap());
    std::fs::write(&sign.key, "no key").unwrap();
    assert!(matches!(sign.check(), Err(Error::Signing { .. })));
    let outcome = outputs.finish();
    assert!(matches!(&*outcome.failed[0].error, Error::Signing { .. }), "{:?}", outcome.failed);
    let part = folder.path().join("clip.part.mp4");
    assert_eq!(outcome.failed[0].remainder, Remainder::Whole { part, frames: 2 });
    assert!(!folder.path().join("clip.mp4").exists());
}
