//! Output paths: links, mounts, folders that cannot be used, files of other programs, and full disks.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;
use tests::golden;
use tests::mounts::with_mounts;
use tests::program::{frames_of, rushes};

const QUICK: [&str; 8] = ["generate", "a boat", "--size", "64x32", "--steps", "1", "--guidance", "1"];
const FRAMES: usize = 9;
/// The user `nobody`.
const NOBODY: u32 = 65534;

static BUNDLE: LazyLock<(tempfile::TempDir, PathBuf)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("bundle");
    let checkpoint = golden::case("moving-clip").checkpoint();
    let output =
        rushes(folder.path()).arg("export").arg(checkpoint).arg("--out").arg(&bundle).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    (folder, bundle)
});

fn generate(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = rushes(folder);
    command.args(QUICK).args(["--frames", &FRAMES.to_string()]);
    command.arg("--bundle").arg(&BUNDLE.1).args(arguments);
    command
}

/// Runs a shell script with mounts, in which `run` is a short run; its arguments are the outputs.
fn script(folder: &Path, script: &str) -> Option<Output> {
    let run = format!(
        "set -e\nrun() {{ \"$RUSHES\" {} --frames \"$frames\" --bundle '{}' \"$@\"; }}\nframes={FRAMES}\n{script}",
        QUICK.map(|word| format!("'{word}'")).join(" "),
        BUNDLE.1.display()
    );
    with_mounts(folder, &run)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Checks that a run was refused by name before the first step: the plan was not printed.
fn assert_refused(output: &Output, named: &str) {
    let stderr = stderr(output);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains(named), "`{named}` in:\n{stderr}");
    assert!(!stderr.contains(" steps of "), "{stderr}");
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn foreign_files_in_an_hls_folder_are_kept_and_conflicting_ones_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let live = folder.path().join("live");
    std::fs::create_dir(&live).unwrap();
    let foreign = ["movie.mkv.part", "lecture.m4s", "master.m3u8", "1.m4s"];
    foreign.iter().for_each(|name| std::fs::write(live.join(name), "mine").unwrap());
    std::fs::create_dir(live.join("old.m4s")).unwrap();
    symlink("lecture.m4s", live.join("link.part")).unwrap();
    // A second clip replaces the first.
    for _ in 0..2 {
        let output = generate(folder.path(), &["-o", "hls:live"]).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(frames_of(&live.join("index.m3u8")), FRAMES);
        assert_eq!(names(&live).len(), foreign.len() + 2 + 3, "{:?}", names(&live));
    }
    assert!(foreign.iter().all(|name| std::fs::read(live.join(name)).unwrap() == b"mine"));

    for name in ["index.m3u8", "init.mp4", "00001.m4s", "00007.m4s.part"] {
        for kind in ["file", "folder", "link"] {
            let folder = tempfile::tempdir().unwrap();
            let live = folder.path().join("live");
            std::fs::create_dir(&live).unwrap();
            match kind {
                "file" => std::fs::write(live.join(name), "mine").unwrap(),
                "folder" => std::fs::create_dir(live.join(name)).unwrap(),
                _ => symlink("elsewhere", live.join(name)).unwrap(),
            }
            let arguments = if kind == "link" { ["--live", "hls:live"] } else { ["-o", "hls:live"] };
            assert_refused(&generate(folder.path(), &arguments).output().unwrap(), name);
            assert_eq!(names(&live), [name]);
            assert_eq!(names(folder.path()), ["live"]);
        }
    }
}

#[test]
fn foreign_files_with_the_names_of_part_files_are_kept() {
    for (part, arguments) in [
        ("clip.part.mp4", ["-o", "clip.mp4"]),
        ("clip.part.gif", ["-o", "clip.gif"]),
        ("clip.part.webp", ["-o", "clip.webp"]),
        ("clip.part.y4m", ["-o", "clip.y4m"]),
        ("t.part.safetensors", ["--trace", "t.safetensors"]),
        ("frames.part/00001.png", ["-o", "frames/"]),
        ("previews/step-001-of-001.png", ["--preview-out", "previews"]),
        ("preview.png", ["--preview", "full"]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(part);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "mine").unwrap();
        let output = generate(folder.path(), &arguments).output().unwrap();
        assert_refused(&output, Path::new(part).file_name().unwrap().to_str().unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
        assert_eq!(names(folder.path()).len(), 1, "{:?}", names(folder.path()));
    }
}

#[test]
fn links_are_kept_and_their_targets_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::create_dir_all(path("disk/frames")).unwrap();
    std::fs::write(path("disk/old.mp4"), "an older clip").unwrap();
    let links = [
        ("clip.mp4", "disk/old.mp4"),
        ("new.gif", "disk/new.gif"),
        ("frames", "disk/frames"),
        ("more", "disk/more"),
        ("live", "disk/live"),
        ("t.safetensors", "disk/t.safetensors"),
        ("now.png", "disk/now.png"),
    ];
    links.iter().for_each(|(link, target)| symlink(target, path(link)).unwrap());
    let outputs = ["-o", "clip.mp4", "-o", "new.gif", "-o", "frames/", "-o", "more/", "-o", "hls:live"];
    let others = ["--trace", "t.safetensors", "--preview-out", "now.png"];
    let output = generate(folder.path(), &outputs).args(others).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(links.iter().all(|(link, _)| path(link).is_symlink()));
    let mut written = names(&path("disk"));
    // The steps may be too short for a preview.
    written.retain(|name| name != "now.png");
    assert_eq!(written, ["frames", "live", "more", "new.gif", "old.mp4", "t.safetensors"]);
    assert_eq!((frames_of(&path("clip.mp4")), frames_of(&path("new.gif"))), (FRAMES, FRAMES));
    assert_eq!((names(&path("frames")).len(), names(&path("more")).len()), (FRAMES, FRAMES));
}

/// The working folder of a shell is not replaced by another folder.
#[test]
fn the_working_folder_can_be_the_output() {
    let folder = tempfile::tempdir().unwrap();
    for (name, arguments) in [("a", ["-o", "./"]), ("b", ["-o", "hls:."])] {
        let inner = folder.path().join(name);
        std::fs::create_dir(&inner).unwrap();
        let shell = std::fs::File::open(&inner).unwrap();
        let output = generate(&inner, &arguments).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        let identity = |found: std::fs::Metadata| std::os::unix::fs::MetadataExt::ino(&found);
        assert_eq!(identity(shell.metadata().unwrap()), identity(inner.metadata().unwrap()));
        assert_eq!(names(&inner).len(), if name == "a" { FRAMES } else { 3 }, "{:?}", names(&inner));
    }
}

#[test]
fn mounted_folders_are_written_and_mounted_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mounted = "mkdir frames live\nmount -t tmpfs none frames\nmount -t tmpfs none live\n\
                   run -o frames/ -o hls:live -o frames.mp4\nls -A frames live\n";
    let Some(output) = script(folder.path(), mounted) else { return };
    assert!(output.status.success(), "{}", stderr(&output));
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(listed.matches(".png\n").count(), FRAMES, "{listed}");
    assert!(
        listed.contains("index.m3u8") && !listed.contains("part") && !listed.contains(".rushes"),
        "{listed}"
    );

    for arguments in ["-o file.mp4", "--trace file.mp4"] {
        let script_text =
            format!("echo mine >file.mp4\necho mine >other\nmount --bind other file.mp4\nrun {arguments}\n");
        let output = script(folder.path(), &script_text).unwrap();
        assert_refused(&output, "mount its folder instead");
        assert_eq!(std::fs::read(folder.path().join("file.mp4")).unwrap(), b"mine\n");
    }
}

#[test]
fn outputs_on_a_read_only_disk_are_refused_before_the_first_step() {
    let folder = tempfile::tempdir().unwrap();
    let read_only = "mkdir disk\nmount -t tmpfs none disk\nmkdir disk/live disk/frames disk/previews\n\
                     mount -o remount,ro disk\ncode=0\n";
    let outputs = [
        "-o disk/clip.mp4",
        "-o disk/new/",
        "-o disk/frames/",
        "-o hls:disk/live",
        "-o hls:disk/new",
        "--live hls:disk/live",
        "--trace disk/t.safetensors",
        "--preview-out disk/now.png",
        "--preview-out disk/previews",
        "--preview-out disk/new",
    ];
    let mut tried = 0;
    for output_flag in outputs {
        let Some(output) = script(folder.path(), &format!("{read_only}run {output_flag}\n")) else { break };
        assert_refused(&output, "disk");
        assert!(stderr(&output).contains("Read-only file system"), "{output_flag}: {}", stderr(&output));
        std::fs::remove_dir(folder.path().join("disk")).unwrap();
        assert_eq!(names(folder.path()), Vec::<String>::new(), "{output_flag}");
        tried += 1;
    }
    assert!(tried == 0 || tried == outputs.len());
}

/// Root ignores file modes, so root runs the program as the user `nobody`.
#[test]
fn missing_permissions_are_reported_before_the_first_step() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let with_mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let is_root = std::os::unix::fs::MetadataExt::uid(&folder.path().metadata().unwrap()) == 0;
    let as_nobody = |command: &mut Command| {
        if is_root {
            command.uid(NOBODY).gid(NOBODY);
        }
    };
    let mut version = rushes("/".as_ref());
    version.arg("--version");
    as_nobody(&mut version);
    if !version.output().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: the user nobody cannot run the program in its folder");
        return;
    }
    if is_root {
        std::os::unix::fs::chown(folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let modes = [("none", 0o000), ("unreadable", 0o333), ("unwritable", 0o555)];
    for (name, _) in modes {
        std::fs::create_dir(path(name)).unwrap();
        if is_root {
            std::os::unix::fs::chown(path(name), Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }
    std::fs::write(path("old.part.mp4"), "").unwrap();
    modes.iter().for_each(|(name, mode)| with_mode(&path(name), *mode));
    with_mode(&path("old.part.mp4"), 0o444);
    let run = |arguments: &[&str]| {
        let mut command = generate(folder.path(), arguments);
        as_nobody(&mut command);
        command.output().unwrap()
    };
    for (arguments, named) in [
        (["-o", "none/clip.mp4"], "none"),
        (["-o", "none/frames/"], "none"),
        (["-o", "none/"], "none"),
        (["-o", "hls:none"], "none"),
        (["-o", "hls:none/live"], "none"),
        (["--trace", "none/t.safetensors"], "none"),
        (["--preview-out", "none"], "none"),
        (["--preview-out", "none/now.png"], "none"),
        (["-o", "unwritable/clip.gif"], "unwritable"),
        (["-o", "unwritable/"], "unwritable"),
        (["-o", "hls:unwritable"], "unwritable"),
        (["--live", "hls:unwritable"], "unwritable"),
        (["-o", "unreadable/"], "unreadable"),
        (["-o", "hls:unreadable"], "unreadable"),
        (["-o", "old.mp4"], "old.part.mp4"),
    ] {
        assert_refused(&run(&arguments), named);
    }
    // A file or a new folder in a folder needs no read permission.
    let output = run(&["-o", "unreadable/clip.mp4", "-o", "unreadable/frames/"]);
    assert!(output.status.success(), "{}", stderr(&output));
    modes.iter().for_each(|(name, _)| with_mode(&path(name), 0o755));
    assert_eq!(names(&path("unreadable")), ["clip.mp4", "frames"]);
    assert!(names(&path("none")).is_empty() && names(&path("unwritable")).is_empty());
}

/// A file of another user in a sticky folder, or an immutable file, cannot be removed or replaced.
#[test]
fn a_file_that_cannot_be_replaced_is_refused_before_the_first_step() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clip.mp4");
    std::fs::write(&path, "old").unwrap();
    let change = |flag: &str| Command::new("chattr").arg(flag).arg(&path).output();
    if !change("+i").is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: files cannot be marked as immutable here");
        return;
    }
    let output = generate(folder.path(), &["-o", "clip.mp4"]).output().unwrap();
    change("-i").unwrap();
    assert_refused(&output, "cannot be replaced");
    assert_eq!(names(folder.path()), ["clip.mp4"]);
}

/// Runs with a small disk, and copies its contents to the folder `kept` before it is unmounted.
fn on_a_full_disk(folder: &Path, kilobytes: usize, arguments: &str) -> Option<Output> {
    let text = format!(
        "mkdir disk\nmount -t tmpfs -o size={kilobytes}k none disk\nframes=161\ncode=0\nrun --seed 1 {arguments} || code=$?\n\
         umask 0\ncp -a disk/. kept\nexit $code\n"
    );
    std::fs::create_dir(folder.join("kept")).unwrap();
    script(folder, &text)
}

#[test]
fn a_playlist_on_a_full_disk_names_only_complete_segments() {
    for kilobytes in [8, 16, 32] {
        let folder = tempfile::tempdir().unwrap();
        let Some(output) = on_a_full_disk(folder.path(), kilobytes, "-o hls:disk/live -o clip.mp4") else {
            return;
        };
        let stderr = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("disk is full") && stderr.contains("complete: clip.mp4"), "{stderr}");
        assert_eq!(frames_of(&folder.path().join("clip.mp4")), 161);
        let live = folder.path().join("kept/live");
        let Ok(playlist) = std::fs::read_to_string(live.join("index.m3u8")) else {
            assert!(!live.exists() || names(&live).is_empty(), "{:?}", names(&live));
            continue;
        };
        let segments: Vec<_> = playlist.lines().filter(|line| !line.starts_with('#')).collect();
        for (number, name) in segments.iter().enumerate() {
            assert_eq!(*name, format!("{:05}.m4s", number + 1), "{playlist}");
            assert!(live.join(name).metadata().unwrap().len() > 0, "{name}");
        }
        let mut expected: Vec<_> = segments.iter().map(|name| (*name).to_owned()).collect();
        expected.extend(["index.m3u8".to_owned(), "init.mp4".to_owned()]);
        let mut remaining = names(&live);
        remaining.retain(|name| name != "index.m3u8.part");
        assert_eq!(remaining, expected);
        if !playlist.ends_with("#EXT-X-ENDLIST\n") {
            // Without this line ffprobe would wait for more segments.
            std::fs::write(live.join("index.m3u8"), playlist.clone() + "#EXT-X-ENDLIST\n").unwrap();
        }
        let frames = frames_of(&live.join("index.m3u8"));
        assert!(frames >= 16 * segments.len(), "{frames} frames in {playlist}");
    }
}

#[test]
fn pictures_on_a_full_disk_are_complete_in_a_part_folder() {
    let folder = tempfile::tempdir().unwrap();
    let Some(output) = on_a_full_disk(folder.path(), 64, "-o disk/frames/ -o clip.mp4") else { return };
    let stderr = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("disk is full") && stderr.contains("frames.part"), "{stderr}");
    assert_eq!(names(&folder.path().join("kept")), ["frames.part"]);
    let part = folder.path().join("kept/frames.part");
    let pictures: Vec<_> = names(&part).into_iter().filter(|name| name != ".rushes").collect();
    assert!((2..64).contains(&pictures.len()), "{pictures:?}");
    for (number, name) in pictures.iter().enumerate() {
        assert_eq!(*name, format!("{:05}.png", number + 1));
        assert!(std::fs::read(part.join(name)).unwrap().ends_with(b"IEND\xae\x42\x60\x82"), "{name}");
    }
}

/// No block is free: a file can be created, but not written.
#[test]
fn a_full_disk_fails_only_the_output_on_it() {
    for name in ["full.mp4", "full.webm", "full.gif", "full.y4m"] {
        let folder = tempfile::tempdir().unwrap();
        let text = format!(
            "mkdir disk\nmount -t tmpfs -o size=4k none disk\nhead -c 4096 /dev/zero >disk/fill\nframes=41\ncode=0\n\
             run -o disk/{name} -o clip.mp4 || code=$?\nls -A disk\nexit $code\n"
        );
        let Some(output) = script(folder.path(), &text) else { return };
        let stderr = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{name}: {stderr}");
        assert!(stderr.contains("disk is full") && stderr.contains("complete: clip.mp4"), "{name}: {stderr}");
        assert_eq!(String::from_utf8_lossy(&output.stdout).lines().last(), Some("fill"), "{name}");
        assert_eq!(frames_of(&folder.path().join("clip.mp4")), 41, "{name}");
    }
}
