//! Sounds that clients upload, in the files of clips, read back with ffmpeg.

use super::uploads::post_file;
use super::{id_of, short};
use serde_json::{Value, json};
use std::process::Command;
use tests::served::{Server, token};

/// Samples per second of the tone, and of what is read back.
const RATE: u32 = 44_100;
const DECODED: usize = 48_000;
/// What the sound of an mp4 is, depending on the installed encoders.
const MP4: &[&str] = &["aac", "mp3"];

/// A second of a tone of 440 Hz in one channel of 16 bits, with a chunk of odd length in front, as ffmpeg writes one.
fn tone() -> Vec<u8> {
    let level = |moment: u32| (f64::from(moment) / f64::from(RATE) * 440.0 * std::f64::consts::TAU).sin();
    let data: Vec<u8> =
        (0..RATE).flat_map(|moment| ((level(moment) * 16_000.0) as i16).to_le_bytes()).collect();
    let chunks = [
        &b"WAVEfmt \x10\0\0\0\x01\0\x01\0"[..],
        &RATE.to_le_bytes(),
        &(2 * RATE).to_le_bytes(),
        b"\x02\0\x10\0LIST\x07\0\0\0INFOabc\0data",
        &(2 * RATE).to_le_bytes(),
        &data,
    ]
    .concat();
    [b"RIFF", &u32::try_from(chunks.len()).unwrap().to_le_bytes()[..], &chunks].concat()
}

fn uploaded(server: &Server, file: &[u8]) -> Value {
    post_file(server, "/v1/uploads", None, &[], "tone.wav", file).with(200).json()
}

/// A clip of two seconds with this post-processing.
fn clip(format: &str, post: &Value) -> Value {
    let mut clip = short("a red ball");
    for (name, value) in [("num_frames", json!(33)), ("fps", json!(16)), ("output_format", json!(format))] {
        clip[name] = value;
    }
    clip["post"] = post.clone();
    clip
}

fn ran(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    output.stdout
}

/// Downloads a clip and checks that it has the tone from its beginning to its end, with a fade at both ends.
fn assert_has_tone(server: &Server, id: &str, codecs: &[&str]) {
    assert_eq!(server.ended(id)["status"], "completed", "{}", server.log());
    let file = server.data.join("read-back");
    std::fs::write(&file, server.get(&format!("/v1/videos/{id}/content")).with(200).body).unwrap();
    let mut probe = Command::new("ffprobe");
    probe.args(["-v", "error", "-show_streams", "-show_format", "-of", "json"]).arg(&file);
    let found: Value = serde_json::from_slice(&ran(&mut probe)).unwrap();
    let streams = found["streams"].as_array().unwrap();
    assert_eq!(streams.len(), 2, "{found}");
    let sound = streams.iter().find(|stream| stream["codec_type"] == "audio").unwrap();
    assert!(codecs.iter().any(|codec| sound["codec_name"] == *codec), "{sound}");
    assert_eq!(sound["sample_rate"], "48000", "{sound}");
    let length: f64 = found["format"]["duration"].as_str().unwrap().parse().unwrap();
    assert!((length - 33.0 / 16.0).abs() < 0.1, "{length} s");
    let mut decode = Command::new("ffmpeg");
    decode.args(["-v", "error", "-i"]).arg(&file);
    decode.args(["-f", "s16le", "-ac", "1", "-ar", &DECODED.to_string(), "-"]);
    let bytes = ran(&mut decode);
    let samples: Vec<i16> = bytes.as_chunks::<2>().0.iter().map(|pair| i16::from_le_bytes(*pair)).collect();
    assert!(samples.len().abs_diff(DECODED * 33 / 16) < DECODED / 10, "{} samples", samples.len());
    // Where the tone begins again is in the middle.
    let middle = &samples[DECODED / 2..DECODED * 3 / 2];
    let rises = middle.windows(2).filter(|pair| pair[0] < 0 && pair[1] >= 0).count();
    assert!(rises.abs_diff(440) <= 4, "{rises} Hz");
    let loudest = |part: &[i16]| part.iter().map(|sample| sample.unsigned_abs()).max().unwrap();
    assert!((13_000..20_000).contains(&loudest(middle)), "{}", loudest(middle));
    assert!(loudest(&samples[..DECODED / 50]) < 3000, "{}", loudest(&samples[..DECODED / 50]));
}

#[test]
fn a_sound_is_in_clips_and_survives_its_upload_and_a_kill() {
    let data = tempfile::tempdir().unwrap();
    let mut server = Server::start(data.path(), &[]);
    let upload = uploaded(&server, &tone());
    assert_eq!(
        (
            &upload["kind"],
            &upload["filename"],
            &upload["duration"],
            &upload["sample_rate"],
            &upload["channels"]
        ),
        (&json!("sound"), &json!("tone.wav"), &json!(1.0), &json!(RATE), &json!(1))
    );
    assert_eq!((upload["bytes"].as_u64(), upload.get("width")), (Some(44 + 2 * u64::from(RATE)), None));
    let name = upload["id"].as_str().unwrap();
    let post = json!({"sound": {"upload": name}});
    let mp4 = server.post("/v1/videos", &clip("mp4", &post)).with(200).json();
    let webm = server.post("/v1/videos", &clip("webm", &post)).with(200).json();
    server.send("DELETE", &format!("/v1/uploads/{name}"), &[], &[]).with(200);
    server.kill();
    let server = Server::start(data.path(), &[]);
    assert_has_tone(&server, id_of(&mp4), MP4);
    assert_has_tone(&server, id_of(&webm), &["opus"]);
    // A remix has a sound of its own, also when the first clip is deleted before it is made.
    let remix = format!("/v1/videos/{}/remix", id_of(&mp4));
    let remix = server.post(&remix, &json!({"prompt": "a blue ball"})).with(200).json();
    server.send("DELETE", &format!("/v1/videos/{}", id_of(&mp4)), &[], &[]).with(200);
    assert_has_tone(&server, id_of(&remix), MP4);
}

#[test]
fn what_cannot_be_heard_is_refused_by_name() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let sound = uploaded(&server, &tone())["id"].as_str().unwrap().to_owned();
    let picture = image::RgbImage::new(8, 8);
    let mut png = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut png, image::ImageFormat::Png).unwrap();
    let picture = uploaded(&server, png.get_ref())["id"].as_str().unwrap().to_owned();
    for (format, post, param, word) in [
        ("gif", json!({"sound": {"upload": sound}}), "post.sound", "gif clips carry no sound, ask for mp4"),
        ("webp", json!({"sound": {"upload": sound}}), "post.sound", "webp clips carry no sound"),
        ("mp4", json!({"sound": {"upload": picture}}), "post.sound", "the upload is a picture"),
        ("mp4", json!({"logo": {"upload": sound}}), "post.logo", "the upload is a sound"),
        ("mp4", json!({"sound": {"upload": "/etc/passwd"}}), "post.sound", "no such upload"),
        ("mp4", json!({"sound": {"path": "/etc/passwd"}}), "path", "path"),
        ("mp4", json!({"sound": "/etc/passwd"}), "sound", "sound"),
        ("mp4", json!({"sound": {}}), "post.sound", "name an upload"),
        ("mp4", json!({"audio": sound}), "audio", "`post.sound`"),
    ] {
        let error = server.post("/v1/videos", &clip(format, &post)).with(400).json()["error"].clone();
        assert_eq!(error["param"], param, "{post}: {error}");
        assert!(error["message"].as_str().unwrap().contains(word), "{post}: {error}");
    }
    let cut = &tone()[..5000];
    let mut loud = tone();
    loud[22] = 6;
    for (file, status, word) in [
        (&b"ID3\x04\0\0\0\0\0\0\xFF\xFB\x90\x44"[..], 415, "convert it to WAV"),
        (cut, 400, "`RIFF` is cut short"),
        (&loud, 415, "`channels` is 6"),
    ] {
        let error = post_file(&server, "/v1/uploads", None, &[], "a.wav", file).with(status).json();
        assert!(error["error"]["message"].as_str().unwrap().contains(word), "{error}");
    }
    let able = server.get("/v1/capabilities").with(200).json();
    assert_eq!(able["sound_formats"], json!(["mp4", "webm", "mkv"]));
    assert_eq!(able["uploads"]["sounds"], json!(["wav"]));
}

#[test]
fn sounds_belong_to_their_token_and_can_be_sent_with_a_policy() {
    let data = tempfile::tempdir().unwrap();
    let [alice, bob] = ["alice", "bob"].map(|name| token(data.path(), name, &[]));
    let server = Server::start(data.path(), &[]);
    let bearer = |token: &str| format!("Bearer {token}");
    let policy = "/api/v1/uploads?action=getPolicy&model=mini";
    let given = server.send("GET", policy, &[("authorization", &*bearer(&alice))], &[]).with(200).json();
    let text = |name: &str| given["data"][name].as_str().unwrap();
    let key = format!("{}/tone.wav", text("upload_dir"));
    let texts = [
        ("OSSAccessKeyId", text("oss_access_key_id")),
        ("Signature", text("signature")),
        ("policy", text("policy")),
        ("key", &key),
    ];
    let made = post_file(&server, "/uploads", None, &texts, "tone.wav", &tone()).with(200).json();
    assert_eq!(made["kind"], "sound");
    let body = clip("mkv", &json!({"sound": {"upload": format!("oss://{key}")}})).to_string();
    let create = |token: &str| {
        let bearer = bearer(token);
        let headers = [("content-type", "application/json"), ("authorization", &*bearer)];
        server.send("POST", "/v1/videos", &headers, body.as_bytes())
    };
    let refused = create(&bob).with(400).json();
    assert_eq!(refused["error"]["param"], "post.sound", "{refused}");
    create(&alice).with(200);
}
