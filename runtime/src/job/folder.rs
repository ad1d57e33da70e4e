//! The folder of a job: its spec, its text states, and its snapshots.
//!
//! | file | content |
//! |---|---|
//! | `job.json` | the [`JobSpec`] |
//! | `text-DIGEST.safetensors` | text states, so that going on needs no text encoder |
//! | `newest.safetensors` | the snapshot after the last step |
//! | `synced.safetensors` | the last snapshot that is certainly on disk, at most a second or one step older |
//! | `boundary.safetensors` | the snapshot before the first step of the last expert |
//! | `step-00010.safetensors` | the snapshot after 10 steps, if it was asked for ([`KeepSteps`](super::KeepSteps)) |

use super::disk::Folder;
use super::resume_from::ResumeFrom;
use super::snapshot_files::{BOUNDARY, NEWEST, SYNCED, kept_name, kept_steps};
use super::snapshot_writer::SnapshotWriter;
use super::spec::JobSpec;
use super::stored_snapshot::{self, StoredSnapshot};
use super::stored_text;
use crate::Error;
use crate::denoise::TextConditioning;
use bundle::atomic;
use bundle::lock::{Locked, Refusal};
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(super) const SPEC: &str = "job.json";

/// A snapshot of a job folder.
#[derive(Debug)]
pub struct FoundSnapshot {
    /// The snapshot.
    pub snapshot: StoredSnapshot,
    /// The problem with the snapshot in whose place it is used.
    pub instead_of: Option<String>,
}

/// The folder of a job. No other process can write to it until this is dropped.
#[derive(Debug)]
pub struct JobFolder {
    folder: PathBuf,
    spec: JobSpec,
    _lock: Locked,
}

impl JobFolder {
    /// Creates the folder of a new job. An existing folder must be empty.
    ///
    /// # Errors
    /// The folder holds another job or other files, is in use, or cannot be written.
    pub fn create(folder: &Path, spec: &JobSpec) -> Result<Self, Error> {
        std::fs::create_dir_all(folder).map_err(bundle::Error::file("create", folder))?;
        let lock = lock(folder)?;
        Self::check_new(folder)?;
        let json = serde_json::to_vec_pretty(spec).unwrap_or_else(|_| unreachable!("keys are strings"));
        atomic::write_atomic(&folder.join(SPEC), &json)?;
        sync_new(folder).map_err(bundle::Error::file("write", folder))?;
        Ok(Self { folder: folder.to_owned(), spec: spec.clone(), _lock: lock })
    }

    /// Checks that a new job can be kept in a folder: it does not exist, or is empty.
    ///
    /// # Errors
    /// The folder holds another job or other files, or cannot be read.
    pub fn check_new(folder: &Path) -> Result<(), Error> {
        let mut entries = match std::fs::read_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(bundle::Error::file("read", folder))?,
        };
        if folder.join(SPEC).exists() {
            let why = "it holds a job already";
            let fix = "go on with it, as `resume`, or choose another folder";
            return Err(refused(folder, why, fix));
        }
        if entries.next().is_some() {
            return Err(refused(folder, "it is not empty", "choose another folder, or an empty one"));
        }
        Ok(())
    }

    /// Returns true if a folder holds a job.
    pub fn exists(folder: &Path) -> bool {
        folder.join(SPEC).exists()
    }

    /// Opens the folder of a job.
    ///
    /// # Errors
    /// It is no job folder, is in use, or its spec is damaged.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(SPEC);
        let json = match std::fs::read_to_string(&path) {
            Ok(json) => json,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let fix = "give a folder that `rushes audition`, or `rushes generate` with `job_folder`, has written";
                return Err(refused(folder, "it has no job.json", fix));
            }
            Err(error) => return Err(bundle::Error::file("read", &path)(error).into()),
        };
        let spec = JobSpec::from_json(&json)?;
        let lock = lock(folder)?;
        // Those of a run that was killed.
        atomic::remove_parts(folder);
        Ok(Self { spec, _lock: lock, folder: folder.to_owned() })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// The spec of the job.
    pub fn spec(&self) -> &JobSpec {
        &self.spec
    }

    /// Returns true if a snapshot was stored. A run that ended before its first step has none.
    pub fn has_snapshot(&self) -> bool {
        [NEWEST, SYNCED].iter().any(|name| self.folder.join(name).exists())
    }

    /// The numbers of steps after which the job can go on: those that are kept, that at the boundary, and the newest.
    /// Files whose first bytes are damaged are left out.
    pub fn kept_steps(&self) -> Vec<usize> {
        steps_in(&self.folder)
    }

    /// [`Self::kept_steps`] of a folder that another process may be using. Empty if it is not the folder of a job.
    pub fn kept_steps_in(folder: &Path) -> Vec<usize> {
        steps_in(folder)
    }

    /// Reads a snapshot. If the newest one is damaged, the last one that is certainly on disk is used.
    ///
    /// # Errors
    /// There is no snapshot, or it is damaged.
    pub fn snapshot(&self, from: ResumeFrom) -> Result<FoundSnapshot, Error> {
        match from {
            ResumeFrom::Boundary => Ok(FoundSnapshot { snapshot: self.read(BOUNDARY)?, instead_of: None }),
            ResumeFrom::Newest => match self.read(NEWEST) {
                Ok(snapshot) => Ok(FoundSnapshot { snapshot, instead_of: None }),
                Err(error) => {
                    let Ok(snapshot) = self.read(SYNCED) else { return Err(error) };
                    Ok(FoundSnapshot { snapshot, instead_of: Some(error.to_string()) })
                }
            },
            ResumeFrom::Step(steps) => {
                let mut instead_of = None;
                for name in files_after(&self.folder, steps) {
                    match self.read(&name) {
                        Ok(snapshot) if snapshot.steps_done() == steps => {
                            return Ok(FoundSnapshot { snapshot, instead_of });
                        }
                        // It was replaced by a newer one.
                        Ok(_) => {}
                        Err(error) => instead_of = Some(error.to_string()),
                    }
                }
                Err(no_step(&self.folder, steps, instead_of))
            }
        }
    }

    fn read(&self, name: &str) -> Result<StoredSnapshot, Error> {
        read(&self.folder, name)
    }

    /// Reads the text states with this digest; `None` if the folder lacks them or they are damaged.
    pub fn text(&self, digest: &str) -> Option<TextConditioning> {
        let bytes = std::fs::read(self.folder.join(stored_text::file_name(digest))).ok()?;
        stored_text::from_bytes(&bytes).ok().filter(|text| stored_text::digest(text) == digest)
    }

    /// Writes text states.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_text(&self, text: &TextConditioning) -> Result<(), Error> {
        let digest = stored_text::digest(text);
        if self.text(&digest).is_some() {
            return Ok(());
        }
        let path = self.folder.join(stored_text::file_name(&digest));
        Ok(atomic::write_atomic(&path, &stored_text::to_bytes(text))?)
    }

    /// Starts the thread that writes snapshots.
    pub(super) fn writer(&self) -> SnapshotWriter {
        SnapshotWriter::start(Arc::new(Folder(self.folder.clone())), self.folder.clone())
    }
}

/// Reads a snapshot of a folder.
pub(super) fn read(folder: &Path, name: &str) -> Result<StoredSnapshot, Error> {
    let path = folder.join(name);
    let bytes = std::fs::read(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Error::NoSnapshot { folder: folder.to_owned(), name: name.to_owned() },
        _ => bundle::Error::file("read", &path)(error).into(),
    })?;
    StoredSnapshot::from_bytes(&bytes).map_err(|error| match error {
        Error::Snapshot { why } => Error::Snapshot { why: format!("{}: {why}", path.display()) },
        other => other,
    })
}

/// The names of the files in a folder that may hold the snapshot after this many steps, best first.
pub(super) fn files_after(folder: &Path, steps: usize) -> Vec<String> {
    let kept = kept_name(steps);
    let mut files: Vec<_> = std::iter::once(kept).filter(|name| folder.join(name).exists()).collect();
    let others = [BOUNDARY, NEWEST, SYNCED].into_iter();
    files.extend(others.filter(|name| steps_of(&folder.join(name)) == Some(steps)).map(str::to_owned));
    files
}

/// The numbers of steps after which a job can go on, by the names and first bytes of the files in its folder.
pub(super) fn steps_in(folder: &Path) -> Vec<usize> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let kept = entries.filter_map(|entry| kept_steps(entry.file_name().to_str()?));
    let others = [BOUNDARY, NEWEST, SYNCED].into_iter();
    let all: BTreeSet<_> = kept.chain(others.filter_map(|name| steps_of(&folder.join(name)))).collect();
    all.into_iter().collect()
}

/// The error of a step that cannot be gone on from. `damage` is the problem with its file, if there is one.
pub(super) fn no_step(folder: &Path, steps: usize, damage: Option<String>) -> Error {
    let others = steps_in(folder).into_iter().filter(|kept| *kept != steps).collect();
    Error::NoStep { folder: folder.to_owned(), steps, damage, others }
}

/// The steps that are done in a snapshot, by the first bytes of its file.
fn steps_of(path: &Path) -> Option<usize> {
    stored_snapshot::steps_of(&mut File::open(path).ok()?)
}

/// Waits until the names in a folder, and its own name, are on disk.
pub(super) fn sync_new(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()?;
    let folder = std::path::absolute(folder)?;
    folder.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

pub(super) fn lock(folder: &Path) -> Result<Locked, Error> {
    Locked::folder(folder).map_err(|refusal| match refusal {
        Refusal::Busy => refused(folder, "another run is using it", "wait until that run has ended"),
        Refusal::Foreign(why) => refused(folder, &format!("it {why}"), "choose an ordinary folder"),
        Refusal::Io(error) => bundle::Error::file("lock", folder)(error).into(),
    })
}

pub(super) fn refused(folder: &Path, why: &str, fix: &str) -> Error {
    Error::JobFolder { folder: folder.to_owned(), why: why.to_owned(), fix: fix.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::super::snapshot_writer::ToWrite;
    use super::super::spec::tests::spec;
    use super::super::stored_snapshot::tests::stored;
    use super::*;
    use bundle::settings::SolverKind;

    #[test]
    fn only_an_empty_folder_becomes_a_job_and_one_process_has_it() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("job");
        let job = JobFolder::create(&path, &spec()).unwrap();
        assert!(JobFolder::create(&path, &spec()).unwrap_err().to_string().contains("another run"));
        assert!(JobFolder::open(&path).unwrap_err().to_string().contains("another run"));
        drop(job);
        assert!(JobFolder::create(&path, &spec()).unwrap_err().to_string().contains("a job already"));
        assert_eq!(JobFolder::open(&path).unwrap().spec(), &spec());
        std::fs::write(parent.path().join("mine.txt"), "x").unwrap();
        assert!(JobFolder::create(parent.path(), &spec()).unwrap_err().to_string().contains("not empty"));
        assert!(JobFolder::open(parent.path()).unwrap_err().to_string().contains("no job.json"));
        assert_eq!(std::fs::read(parent.path().join("mine.txt")).unwrap(), b"x");
    }

    fn write(job: &JobFolder, snapshots: &[(&StoredSnapshot, &[&str])]) {
        let mut writer = job.writer();
        for (snapshot, names) in snapshots {
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            writer.write(ToWrite { snapshot: (*snapshot).clone(), names }, || false);
        }
        writer.finish().unwrap();
    }

    #[test]
    fn the_newest_snapshot_is_used_and_a_damaged_one_is_replaced_by_the_one_on_disk() {
        let parent = tempfile::tempdir().unwrap();
        let job = JobFolder::create(&parent.path().join("job"), &spec()).unwrap();
        assert!(matches!(job.snapshot(ResumeFrom::Newest), Err(Error::NoSnapshot { .. })));
        let (first, second) = (stored(SolverKind::UniPc, 5, 1), stored(SolverKind::UniPc, 5, 2));
        write(&job, &[(&first, &[BOUNDARY])]);
        write(&job, &[(&second, &[])]);
        let found = job.snapshot(ResumeFrom::Newest).unwrap();
        assert_eq!((found.snapshot, found.instead_of), (second.clone(), None));
        assert_eq!(job.snapshot(ResumeFrom::Boundary).unwrap().snapshot, first);
        // As after a power cut between renaming and writing.
        std::fs::remove_file(job.path().join(NEWEST)).unwrap();
        std::fs::write(job.path().join(NEWEST), b"").unwrap();
        let found = job.snapshot(ResumeFrom::Newest).unwrap();
        assert_eq!(found.snapshot, second);
        assert!(found.instead_of.unwrap().contains(NEWEST));
        let left: Vec<_> = std::fs::read_dir(job.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left.len(), 4, "{left:?}");
    }

    #[test]
    fn steps_that_were_kept_are_found_and_listed_when_another_is_asked_for() {
        let parent = tempfile::tempdir().unwrap();
        let job = JobFolder::create(&parent.path().join("job"), &spec()).unwrap();
        assert_eq!(job.kept_steps(), [0; 0]);
        let error = job.snapshot(ResumeFrom::Step(2)).unwrap_err().to_string();
        assert!(error.contains("no snapshot"), "{error}");
        let all: Vec<_> = (0..=5).map(|steps| stored(SolverKind::UniPc, 5, steps)).collect();
        let (second, fourth) = (kept_name(2), kept_name(4));
        write(
            &job,
            &[
                (&all[0], &[]),
                (&all[1], &[]),
                (&all[2], &[&second]),
                (&all[3], &[BOUNDARY]),
                (&all[4], &[&fourth]),
                (&all[5], &[]),
            ],
        );
        assert_eq!(job.kept_steps(), [2, 3, 4, 5]);
        for steps in [2, 3, 4, 5] {
            let found = job.snapshot(ResumeFrom::Step(steps)).unwrap();
            assert_eq!((found.snapshot, found.instead_of), (all[steps].clone(), None));
        }
        let error = job.snapshot(ResumeFrom::Step(1)).unwrap_err().to_string();
        assert!(error.contains("after step 1") && error.contains("2, 3, 4, 5"), "{error}");
        // Damage is named, and leaves the others.
        let path = job.path().join(&second);
        let mut bytes = std::fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, bytes).unwrap();
        let error = job.snapshot(ResumeFrom::Step(2)).unwrap_err().to_string();
        assert!(error.contains(&second) && error.contains("3, 4, 5"), "{error}");
        assert_eq!(job.snapshot(ResumeFrom::Step(4)).unwrap().snapshot, all[4]);
        // The newest snapshot is also that of a step.
        std::fs::write(job.path().join(kept_name(5)), "damaged").unwrap();
        let found = job.snapshot(ResumeFrom::Step(5)).unwrap();
        assert_eq!(found.snapshot, all[5]);
        assert!(found.instead_of.unwrap().contains(&kept_name(5)));
    }
}
