//! Content credentials, read back by C2PA's own reader.
#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use bundle::Cancel;
use bundle::units::{FrameRate, Seed};
use c2pa::{Context, Reader, ValidationState};
use media::{ClipFormat, Error, OutputOptions, OutputSpec, OutputTarget, Outputs, Remainder, SharedFrame};
use media::{SigningKey, Tags};
use ndarray::Array3;
use std::path::Path;
use std::process::Command;

/// A root and a certificate of the kind that signs content, made by OpenSSL's own tool.
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
        let ran = Command::new("openssl").args(command.split(' ')).current_dir(folder).output();
        let ran = ran.expect("openssl (Debian package openssl)");
        assert!(ran.status.success(), "{command}: {}", String::from_utf8_lossy(&ran.stderr));
    }
    let chain = ["leaf.pem", "root.pem"].map(|name| std::fs::read_to_string(folder.join(name)).unwrap());
    std::fs::write(folder.join("chain.pem"), chain.concat()).unwrap();
    SigningKey { certificate: folder.join("chain.pem"), key: folder.join("leaf.key") }
}

#[test]
fn a_signed_mp4_says_that_a_model_made_it_and_still_plays() {
    let folder = tempfile::tempdir().unwrap();
    let sign = keys(folder.path());
    sign.check().unwrap();
    let format = ClipFormat {
        size: "96x64".parse().unwrap(),
        rate: FrameRate::try_new(16).unwrap(),
        frames: Some(12),
    };
    let plain = OutputOptions::new(format, Tags::new("a clip".to_owned(), "mini", Seed(7)), &Cancel::new());
    let options = OutputOptions { sign: Some(sign), ..plain };
    let specs =
        ["clip.mp4", "clip.mkv"].map(|name| folder.path().join(name).to_str().unwrap().parse().unwrap());
    let frame = |n: usize| SharedFrame::new(Array3::from_elem((3, 64, 96), n as f32 / 12.0)).unwrap();
    let targets = OutputTarget::claim_all(&specs).unwrap();
    let mut outputs = Outputs::start(&targets, &options).unwrap();
    (0..12).for_each(|number| outputs.push(&frame(number)).unwrap());
    let outcome = outputs.finish();
    assert_eq!(outcome.written.len(), 2, "{:?}", outcome.failed);

    let clip = folder.path().join("clip.mp4");
    assert_eq!(outcome.written[0].bytes, Some(clip.metadata().unwrap().len()));
    let stream = std::fs::File::open(&clip).unwrap();
    let reader = Reader::from_context(Context::new()).with_stream("video/mp4", stream).unwrap();
    assert_ne!(reader.validation_state(), ValidationState::Invalid, "{}", reader.json());
    let statement = reader.json();
    assert!(
        statement.contains("trainedAlgorithmicMedia") && statement.contains("c2pa.created"),
        "{statement}"
    );
    let probed = Command::new("ffprobe")
        .args(["-v", "error", "-count_frames", "-show_entries", "stream=nb_read_frames", "-of", "csv=p=0"])
        .arg(&clip)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(probed.stdout).unwrap().trim(), "12");
    assert!(probed.stderr.is_empty(), "{}", String::from_utf8_lossy(&probed.stderr));
    // No part and nothing that was only in between is left.
    let left = std::fs::read_dir(folder.path())
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    let left: Vec<_> = left.filter(|name| name.contains(".part") || name.starts_with('.')).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_clip_that_cannot_be_signed_keeps_its_part() {
    let folder = tempfile::tempdir().unwrap();
    let sign = keys(folder.path());
    let format =
        ClipFormat { size: "96x64".parse().unwrap(), rate: FrameRate::try_new(16).unwrap(), frames: Some(2) };
    let plain = OutputOptions::new(format, Tags::new(None, "mini", Seed(7)), &Cancel::new());
    let options = OutputOptions { sign: Some(sign.clone()), ..plain };
    let spec: OutputSpec = folder.path().join("clip.mp4").to_str().unwrap().parse().unwrap();
    let mut outputs = Outputs::start(&OutputTarget::claim_all(&[spec]).unwrap(), &options).unwrap();
    (0..2).for_each(|_| outputs.push(&SharedFrame::new(Array3::zeros((3, 64, 96))).unwrap()).unwrap());
    std::fs::write(&sign.key, "no key").unwrap();
    assert!(matches!(sign.check(), Err(Error::Signing { .. })));
    let outcome = outputs.finish();
    assert!(matches!(&*outcome.failed[0].error, Error::Signing { .. }), "{:?}", outcome.failed);
    let part = folder.path().join("clip.part.mp4");
    assert_eq!(outcome.failed[0].remainder, Remainder::Whole { part, frames: 2 });
    assert!(!folder.path().join("clip.mp4").exists());
}
