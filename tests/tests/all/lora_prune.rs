//! `rushes lora prune`: the bundles with LoRAs that runs keep.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use super::loras::file;
use bundle::lock::ReadLock;
use export::ExportRequest;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tests::golden::case;
use tests::program::{event, rushes};

/// A bundle in `FOLDER/bundle`.
struct World(tempfile::TempDir);

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = case("two-experts").checkpoint();
        let request = ExportRequest::new(&checkpoint, &folder.path().join("bundle"));
        export::export(&request, &mut |_| ()).unwrap();
        Self(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Plans a clip with a LoRA, which keeps a bundle.
    fn plan(&self, strength: &str) {
        let lora = format!("high={}@{strength}", file("lightning.safetensors").display());
        let arguments =
            ["plan", "a boat", "--bundle", "bundle", "--size", "32x32", "--frames", "5", "--lora", &lora];
        let output = rushes(self.path()).args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    fn kept(&self) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(self.path().join("bundle/loras")) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    /// The numbers of removed, busy and kept bundles.
    fn prune(&self, more: &[&str]) -> (Value, [usize; 3]) {
        let arguments = ["lora", "prune", "--bundle", "bundle", "--cache-dir", "cache", "--json"];
        let output = rushes(self.path()).args(arguments).args(more).output().unwrap();
        assert!(output.status.success(), "{more:?}: {output:?}");
        let value = event(&output, "pruned");
        let count = |name: &str| value[name].as_array().unwrap().len();
        let counts = [count("removed"), count("busy"), value["kept"].as_u64().unwrap() as usize];
        (value, counts)
    }
}

#[test]
fn kept_bundles_are_removed_when_asked_for_or_of_no_use_and_never_while_they_are_read() {
    let world = World::new();
    assert_eq!(world.prune(&["--all"]).1, [0, 0, 0]);
    world.plan("1");
    world.plan("0.5");
    world.plan("1");
    assert_eq!(world.kept().len(), 2);
    assert_eq!(world.prune(&[]).1, [0, 0, 2]);
    // One was not used for ten days.
    let old = world.kept().remove(0);
    let record = std::fs::File::options().write(true).open(old.join("branches.json")).unwrap();
    record.set_modified(SystemTime::now() - Duration::from_secs(10 * 24 * 60 * 60)).unwrap();
    assert_eq!(world.prune(&["--older-than", "11"]).1, [0, 0, 2]);
    let (value, counts) = world.prune(&["--older-than", "9", "--dry-run"]);
    assert_eq!(counts, [1, 0, 1]);
    assert!(value["bytes"].as_u64().unwrap() > 0 && world.kept().len() == 2, "{value}");
    let lock = ReadLock::acquire(&old);
    assert_eq!(world.prune(&["--older-than", "9"]).1, [0, 1, 1]);
    drop(lock);
    assert_eq!(world.prune(&["--older-than", "9"]).1, [1, 0, 1]);
    assert!(!old.exists() && world.kept().len() == 1);
    // What an ended run has left, and a damaged bundle.
    world.plan("2");
    world.plan("3");
    let kept = world.kept();
    std::fs::remove_file(kept[0].join("tokenizer.json")).unwrap();
    std::fs::write(kept[1].join("bundle.json"), "{").unwrap();
    let (value, counts) = world.prune(&[]);
    assert_eq!(counts, [2, 0, 1], "{value}");
    assert!(value["removed"][0]["why"].as_str().unwrap().contains("damaged"), "{value}");
    // The base gets another manifest.
    let manifest = world.path().join("bundle/bundle.json");
    let text = std::fs::read_to_string(&manifest).unwrap();
    let mut changed: Value = serde_json::from_str(&text).unwrap();
    changed["rushes"] = "0.0.0".into();
    std::fs::write(&manifest, changed.to_string()).unwrap();
    let (value, counts) = world.prune(&[]);
    assert_eq!(counts, [1, 0, 0], "{value}");
    assert_eq!(value["removed"][0]["why"], "its base bundle has changed");
    assert!(world.kept().is_empty());
}
