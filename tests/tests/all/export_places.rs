//! Folders that a bundle can be exported to; others are refused before any weight is read.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::process::{Command, Output};
use tests::folder::names;
use tests::golden;
use tests::program::{path, rushes};

fn export(folder: &Path, out: &str) -> Output {
    rushes(folder)
        .arg("export")
        .arg(golden::case("moving-clip").checkpoint())
        .args(["--out", out])
        .output()
        .unwrap()
}

fn assert_complete(folder: &Path, out: &str) {
    let output = rushes(folder).args(["inspect", out]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(names(&folder.join(out)).iter().all(|name| !name.contains(".part")));
}

#[test]
fn a_bundle_is_exported_to_empty_folders_links_and_the_working_folder() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for name in ["empty", "linked", "work", "elsewhere"] {
        fs::create_dir(folder.join(name)).unwrap();
    }
    symlink("linked", folder.join("link")).unwrap();
    symlink("link", folder.join("link-to-link")).unwrap();
    symlink("elsewhere/made", folder.join("dangling")).unwrap();
    for out in ["new", "a/b/c", "empty/", "link-to-link", "dangling"] {
        let output = export(folder, out);
        assert!(output.status.success(), "{out}: {output:?}");
        assert_complete(folder, out);
    }
    assert!(folder.join("link").symlink_metadata().unwrap().is_symlink());
    assert_complete(folder, "linked");
    assert_complete(folder, "elsewhere/made");
    let inode = fs::metadata(folder.join("work")).unwrap().ino();
    let output = export(&folder.join("work"), ".");
    assert!(output.status.success(), "{output:?}");
    assert_complete(folder, "work");
    assert_eq!(fs::metadata(folder.join("work")).unwrap().ino(), inode, "the folder was replaced");
}

#[test]
fn a_bundle_is_exported_to_a_mount_point() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("mount")).unwrap();
    // On another file system weights are copied. A new file system may contain `lost+found`.
    let script = "mount -t tmpfs none mount && mkdir mount/lost+found && \"$1\" export \"$2\" --out mount && \
                  \"$1\" inspect mount && test -z \"$(find . -name '*.part*')\"";
    let output = Command::new("unshare")
        .args(["-Urm", "sh", "-c", script, "sh"])
        .arg(path())
        .arg(golden::case("moving-clip").checkpoint())
        .current_dir(folder.path())
        .output();
    match output {
        Ok(output) if output.status.success() => {}
        Ok(output)
            if ["unshare:", "mount:"]
                .iter()
                .any(|tool| String::from_utf8_lossy(&output.stderr).contains(tool)) =>
        {
            eprintln!("skipped: this system does not allow mounts");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_folder_that_cannot_be_written_is_refused_before_a_weight_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("file"), "").unwrap();
    fs::create_dir(folder.join("full")).unwrap();
    fs::write(folder.join("full/mine"), "").unwrap();
    symlink("full", folder.join("link")).unwrap();
    symlink("circle", folder.join("circle")).unwrap();
    fs::create_dir(folder.join("way.part")).unwrap();
    let before = names(folder);
    // Not even root can create files in the last one.
    for out in ["file", "file/below", "full", "link", "circle", "way", "", "no/../..", "/proc/self/bundle"] {
        let output = export(folder, out);
        assert_eq!(output.status.code(), Some(2), "{out}: {output:?}");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!stderr.contains("reading") && stderr.contains("fix:"), "{out}: {stderr}");
        assert_eq!(names(folder), before, "{out}");
        assert_eq!(names(&folder.join("full")), ["mine"]);
    }
}
