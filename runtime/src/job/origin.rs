//! The folder that a fork of another job goes on from.

use super::folder::{self, JobFolder, SPEC};
use super::snapshot_files::NEWEST;
use super::spec::JobSpec;
use super::stored_snapshot::StoredSnapshot;
use super::stored_text;
use crate::Error;
use bundle::atomic;
use std::fs::File;
use std::io;
use std::path::Path;

/// The name of a snapshot while it is being checked. `JobFolder::open` removes it.
const PART: &str = ".rushes-origin.part";
/// Attempts to read a snapshot that a running job replaces.
const ATTEMPTS: usize = 10;

impl JobFolder {
    /// Makes the folder of a job that a fork goes on from: the spec of the job in `folder` with the forks that the
    /// snapshot contains, the snapshot after `steps` steps as the newest one, and its text states. `to` must not exist or
    /// be empty. Everything is on disk when this returns.
    ///
    /// The job may be running in another process. Files are shared with it by hard links, where the file system has
    /// them; no file of a job is changed after it has its name.
    ///
    /// # Errors
    /// The job has no whole snapshot of the step, its spec is damaged, or files cannot be written. `to` is no job folder
    /// then.
    pub fn make_origin(folder: &Path, steps: usize, to: &Path) -> Result<(), Error> {
        let path = folder.join(SPEC);
        let json = std::fs::read_to_string(&path).map_err(bundle::Error::file("read", &path))?;
        let mut spec = JobSpec::from_json(&json)?;
        Self::check_new(to)?;
        std::fs::create_dir_all(to).map_err(bundle::Error::file("create", to))?;
        let lock = folder::lock(to)?;
        let made = (|| {
            let mut snapshot = take_snapshot(folder, steps, to)?;
            let text = stored_text::file_name(&snapshot.identity.text);
            // A fork without text states encodes its prompts again.
            if folder.join(&text).exists() {
                share(&folder.join(&text), &to.join(&text))
                    .map_err(bundle::Error::file("copy", &to.join(&text)))?;
            }
            if snapshot.forks_applied < spec.forks.len() {
                spec.forks.truncate(snapshot.forks_applied);
                snapshot.identity.settings = spec.digest();
                atomic::write_atomic(&to.join(NEWEST), &snapshot.to_bytes())?;
                std::fs::remove_file(to.join(PART)).map_err(bundle::Error::file("remove", to))?;
            } else {
                let named = std::fs::rename(to.join(PART), to.join(NEWEST));
                named.map_err(bundle::Error::file("rename", to))?;
            }
            spec.stop_after = None;
            let json = serde_json::to_vec_pretty(&spec).unwrap_or_else(|_| unreachable!("keys are strings"));
            // Last, because it makes the folder that of a job.
            folder::sync_new(to).map_err(bundle::Error::file("write", to))?;
            atomic::write_atomic(&to.join(SPEC), &json)?;
            Ok(folder::sync_new(to).map_err(bundle::Error::file("write", to))?)
        })();
        if made.is_err() {
            drop(std::fs::remove_dir_all(to));
        }
        drop(lock);
        made
    }
}

/// Takes the snapshot after `steps` steps to [`PART`] in another folder.
fn take_snapshot(folder: &Path, steps: usize, to: &Path) -> Result<StoredSnapshot, Error> {
    let mut damage = None;
    for _ in 0..ATTEMPTS {
        let mut was_replaced = false;
        for name in folder::files_after(folder, steps) {
            let from = folder.join(&name);
            // Links what is there, and then looks what it is: a running job may replace it at any time.
            match share(&from, &to.join(PART)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    was_replaced = true;
                    continue;
                }
                shared => shared.map_err(bundle::Error::file("copy", &from))?,
            }
            match folder::read(to, PART) {
                Ok(snapshot) if snapshot.steps_done() == steps => return Ok(snapshot),
                Ok(_) => was_replaced = true,
                Err(Error::Snapshot { why }) => {
                    damage = Some(why.replace(&*to.join(PART).to_string_lossy(), &from.to_string_lossy()));
                }
                Err(error) => return Err(error),
            }
        }
        if !was_replaced {
            break;
        }
    }
    Err(folder::no_step(folder, steps, damage))
}

/// Gives a file a second name in another folder, or copies it there; on disk when this returns.
fn share(from: &Path, to: &Path) -> io::Result<()> {
    match std::fs::remove_file(to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    if std::fs::hard_link(from, to).is_err() {
        // Another file system, or one without hard links.
        std::fs::copy(from, to)?;
    }
    File::open(to)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::super::resume_from::ResumeFrom;
    use super::super::snapshot_files::kept_name;
    use super::super::snapshot_writer::ToWrite;
    use super::super::spec::tests::spec;
    use super::super::stored_snapshot::tests::stored;
    use super::*;
    use bundle::settings::SolverKind;
    use std::os::unix::fs::MetadataExt;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn snapshot(steps: usize, forks_applied: usize) -> StoredSnapshot {
        let mut snapshot = stored(SolverKind::UniPc, 5, steps);
        snapshot.identity.settings = spec().digest();
        StoredSnapshot { forks_applied, ..snapshot }
    }

    #[test]
    fn an_origin_has_the_snapshot_and_the_forks_in_it_while_the_job_runs() {
        let parent = tempfile::tempdir().unwrap();
        let at = |name: &str| parent.path().join(name);
        let job = JobFolder::create(&at("job"), &spec()).unwrap();
        let mut writer = job.writer();
        for (steps, forks) in [(2, 0), (3, 1), (4, 1)] {
            let names = if steps < 4 { vec![kept_name(steps)] } else { Vec::new() };
            writer.write(ToWrite { snapshot: snapshot(steps, forks), names }, || false);
        }
        writer.write_again(|| false);
        std::fs::write(job.path().join(stored_text::file_name(&"b".repeat(64))), "text").unwrap();
        for (steps, forks) in [(2, 0), (3, 1), (4, 1)] {
            let to = at(&format!("origin-{steps}"));
            JobFolder::make_origin(job.path(), steps, &to).unwrap();
            let origin = JobFolder::open(&to).unwrap();
            assert_eq!((origin.spec().forks.len(), origin.spec().stop_after), (forks, None));
            let found = origin.snapshot(ResumeFrom::Newest).unwrap().snapshot;
            assert_eq!(found.identity.settings, origin.spec().digest());
            let mut expected = snapshot(steps, forks);
            expected.identity.settings.clone_from(&found.identity.settings);
            assert_eq!(found, expected);
            let mut names: Vec<_> =
                std::fs::read_dir(&to).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            let text = stored_text::file_name(&"b".repeat(64));
            assert_eq!(names, ["job.json", "newest.safetensors", &*text]);
        }
        let file = |path: &Path| std::fs::metadata(path).unwrap().ino();
        assert_eq!(file(&at("origin-3").join(NEWEST)), file(&job.path().join(kept_name(3))), "it is shared");
        let error = JobFolder::make_origin(job.path(), 1, &at("none")).unwrap_err().to_string();
        assert!(error.contains("after step 1") && error.contains("2, 3, 4"), "{error}");
        assert!(!at("none").exists());
        let error = JobFolder::make_origin(job.path(), 2, &at("origin-2")).unwrap_err().to_string();
        assert!(error.contains("a job already"), "{error}");
        // The snapshot that is known to be on disk may be that of step 2 until the writer has ended.
        drop(writer);
        std::fs::remove_file(job.path().join(kept_name(2))).unwrap();
        std::fs::write(job.path().join(kept_name(2)), "damaged").unwrap();
        let error = JobFolder::make_origin(job.path(), 2, &at("none")).unwrap_err().to_string();
        assert!(error.contains(&kept_name(2)) && error.contains("3, 4") && !error.contains(PART), "{error}");
    }

    /// Either the snapshot was there when it was linked, or the error says that it is not.
    #[test]
    fn a_newest_snapshot_that_is_replaced_meanwhile_is_whole_or_missing() {
        let parent = tempfile::tempdir().unwrap();
        let job = JobFolder::create(&parent.path().join("job"), &spec()).unwrap();
        let all: Vec<_> = (1..=5).map(|steps| snapshot(steps, 1)).collect();
        let has_ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut writer = job.writer();
                for index in (0..5).cycle() {
                    writer.write(ToWrite { snapshot: all[index].clone(), names: Vec::new() }, || false);
                    if has_ended.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
            let mut made = 0;
            for attempt in 0..200 {
                let to = parent.path().join(format!("origin-{attempt}"));
                match JobFolder::make_origin(job.path(), 3, &to) {
                    Ok(()) => {
                        let origin = JobFolder::open(&to).unwrap();
                        assert_eq!(origin.snapshot(ResumeFrom::Newest).unwrap().snapshot, all[2]);
                        made += 1;
                    }
                    Err(Error::NoStep { damage, .. }) => {
                        assert_eq!(damage, None);
                        assert!(!to.exists());
                    }
                    Err(error) => panic!("{error}"),
                }
                if made == 5 {
                    break;
                }
            }
            has_ended.store(true, Ordering::Relaxed);
            assert!(made > 0);
        });
    }
}
