//! Text states of prompts, which are kept for later clips.

use super::{id_of, pixels, short};
use std::path::{Path, PathBuf};
use tests::served::Server;

/// The files of text states in the data of a server, sorted.
fn texts(data: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(data.join("texts")) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Makes a clip. Returns its frames.
fn frames(server: &Server, prompt: &str) -> Vec<u8> {
    let video = server.post("/v1/videos", &short(prompt)).with(200).json();
    assert_eq!(server.ended(id_of(&video))["status"], "completed", "{}", server.log());
    pixels(server, id_of(&video))
}

#[test]
fn prompts_that_were_encoded_are_not_encoded_again() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let red = frames(&server, "a red ball");
    let of_red = texts(data.path());
    assert_eq!(of_red.len(), 2, "the prompt and the negative prompt");
    let green = frames(&server, "a green ball");
    let all = texts(data.path());
    assert_eq!(all.len(), 3, "the negative prompt is the same");
    assert_ne!(red, green);
    drop(server);

    // Which of two is the negative prompt is seen from what becomes of the clip.
    let of_green = all.iter().find(|file| !of_red.contains(file)).unwrap();
    let kept = of_red.iter().map(|file| std::fs::read(file).unwrap()).collect::<Vec<_>>();
    let mut made = Vec::new();
    for (file, bytes) in of_red.iter().zip(&kept) {
        std::fs::copy(of_green, file).unwrap();
        let server = Server::start(data.path(), &[]);
        made.push(frames(&server, "a red ball"));
        std::fs::write(file, bytes).unwrap();
    }
    assert!(made.contains(&green) && !made.contains(&red), "the states on disk are used");

    // Damaged ones are not.
    for (file, bytes) in of_red.iter().zip(&kept) {
        std::fs::write(file, &bytes[..bytes.len() - 1]).unwrap();
    }
    let server = Server::start(data.path(), &[]);
    assert_eq!(frames(&server, "a red ball"), red);
    assert!(server.log().contains("is damaged, so its text is encoded again"), "{}", server.log());
    for (file, bytes) in of_red.iter().zip(&kept) {
        assert!(std::fs::read(file).unwrap() == *bytes, "it is written again");
    }
    drop(server);

    // From the disk, as it should be.
    let server = Server::start(data.path(), &[]);
    assert_eq!(frames(&server, "a red ball"), red);
    drop(server);
    let none = tempfile::tempdir().unwrap();
    let server = Server::start(none.path(), &["--text-cache", "0"]);
    assert_eq!(frames(&server, "a red ball"), red);
    assert!(!none.path().join("texts").exists());
}
