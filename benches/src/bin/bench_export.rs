//! Times exports, and compares them with `cat`. It writes to the folder for temporary files and removes everything.
//!
//! `bench-export a14b` exports sparse checkpoints of the size of Wan2.2-T2V-A14B in both layouts to `plain` bf16,
//! without verification, and prints for each: seconds, the most anonymous memory, and the disk space of the bundle.
//!
//! `bench-export dense [ROUNDS [LAYERS]]` writes a checkpoint of random weights, 4.3 GB with the 20 layers that it has by
//! default, and for each round prints the seconds of `cat` of its weight files to /dev/null, and of the exports whose
//! weights are linked (f32) and converted (bf16). The last column is the time of writing as many bytes as the conversion
//! has written, and of flushing them to the disk, which a conversion does, too.

use bundle::catalog::wan_denoiser;
use bundle::spec::{DenoiserSpec, TextEncoderSpec};
use bundle::variant::Target;
use engines::memory::resident_anonymous;
use export::checkpoint::Checkpoint;
use export::{ExportReport, ExportRequest, export};
use serde_json::json;
use std::error::Error;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use test_support::Random;
use tests::sparse::{self, Layout};

/// Bytes that are written at a time.
const BLOCK: usize = 1 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["a14b"] => a14b(),
        ["dense"] => dense(3, 20),
        ["dense", rounds] => dense(rounds.parse()?, 20),
        ["dense", rounds, layers] => dense(rounds.parse()?, layers.parse()?),
        _ => Err("use `bench-export a14b` or `bench-export dense [ROUNDS [LAYERS]]`".into()),
    }
}

fn a14b() -> Result<(), Box<dyn Error>> {
    for layout in Layout::ALL {
        let folder = tempfile::tempdir()?;
        let request = ExportRequest {
            targets: vec![Target::Plain],
            verify: false,
            ..sparse::request(folder.path(), layout)
        };
        let (report, seconds, memory) = measured(&request)?;
        let line = json!({
            "layout": layout.name(), "seconds": seconds, "memory": memory, "linked": report.linked,
            "written": report.written, "disk": allocated(&report.folder)?,
        });
        println!("{line}");
    }
    Ok(())
}

/// Exports, and returns the seconds and the most anonymous memory.
fn measured(request: &ExportRequest) -> Result<(ExportReport, f64, u64), Box<dyn Error>> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let peak = scope.spawn(|| {
            let mut peak = 0;
            while !done.load(Ordering::Relaxed) {
                peak = peak.max(resident_anonymous().map_or(0, |memory| memory.0));
                std::thread::sleep(Duration::from_millis(2));
            }
            peak
        });
        let began = Instant::now();
        let report = export(request, &mut |_| ());
        let seconds = began.elapsed().as_secs_f64();
        done.store(true, Ordering::Relaxed);
        Ok((report?, seconds, peak.join().unwrap_or(0)))
    })
}

/// The disk space of the files in a folder that are not links.
fn allocated(folder: &Path) -> Result<u64, Box<dyn Error>> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let (path, found) = entry.and_then(|entry| Ok((entry.path(), entry.metadata()?)))?;
        bytes += match found {
            found if found.is_dir() => allocated(&path)?,
            found if found.nlink() > 1 => 0,
            found => found.blocks() * 512,
        };
    }
    Ok(bytes)
}

/// A text encoder of a few megabytes, which mini's tokenizer fits.
fn text_encoder() -> TextEncoderSpec {
    TextEncoderSpec {
        vocabulary: 8192,
        width: 512,
        heads: 8,
        head_width: 64,
        feed_forward: 1024,
        layers: 2,
        buckets: 32,
        max_distance: 128,
        epsilon: 1e-6,
    }
}

fn dense(rounds: usize, layers: usize) -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let checkpoint = folder.path().join("checkpoint");
    let denoiser = DenoiserSpec { text_width: 512, ..wan_denoiser(12, layers, 8960) };
    sparse::write_single(&checkpoint, &text_encoder(), &denoiser);
    let files = fill(&checkpoint)?;
    let bytes = files.iter().map(|file| Ok(file.metadata()?.len())).sum::<Result<u64, std::io::Error>>()?;
    let plain = ExportRequest {
        targets: vec![Target::Plain],
        ..ExportRequest::new(&checkpoint, &folder.path().join("bundle"))
    };
    let linked = ExportRequest { targets: vec![Target::Cpu], ..plain.clone() };
    // Once without a measurement, to read the files into memory.
    for round in 0..=rounds {
        let cat = cat(&files)?;
        let (mut seconds, mut written) = (Vec::new(), 0);
        for request in [&linked, &plain] {
            let (report, time, _) = measured(request)?;
            seconds.push(time);
            written = report.written.0;
            std::fs::remove_dir_all(&request.out)?;
        }
        let flushed = write(&folder.path().join("written"), written)?;
        if round > 0 {
            let line = json!({
                "bytes": bytes, "cat": cat, "linked": seconds[0], "converted": seconds[1],
                "linked_rate": cat / seconds[0], "converted_rate": cat / seconds[1], "written": written,
                "write": flushed,
            });
            println!("{line}");
        }
    }
    Ok(())
}

/// Fills the weights of a checkpoint with random small numbers, and returns its weight files.
fn fill(checkpoint: &Path) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let mut random = Random::new(7);
    let mut files = Vec::new();
    for source in Checkpoint::open(checkpoint)?.sources {
        for tensor in source.shards.tensors() {
            let file = File::options().write(true).open(tensor.file.path())?;
            for start in (0..tensor.length).step_by(BLOCK) {
                let length = (tensor.length - start).min(BLOCK);
                let words = length.div_ceil(8);
                // The exponents of f32 and of bf16 are in the odd bytes.
                let mut next = || random.bits() & 0x83ff_83ff_83ff_83ff | 0x3800_3800_3800_3800;
                let block: Vec<u8> = (0..words).flat_map(|_| next().to_le_bytes()).take(length).collect();
                file.write_all_at(&block, tensor.offset + start as u64)?;
            }
        }
        files.extend(source.shards.files().iter().map(|file| file.path().to_owned()));
    }
    for file in &files {
        File::open(file)?.sync_all()?;
    }
    Ok(files)
}

/// The seconds of writing and flushing a file of so many bytes. It is removed.
fn write(path: &Path, bytes: u64) -> Result<f64, Box<dyn Error>> {
    let block = vec![7; BLOCK];
    let began = Instant::now();
    let file = File::create(path)?;
    for start in (0..bytes).step_by(BLOCK) {
        file.write_all_at(&block, start)?;
    }
    file.sync_all()?;
    let seconds = began.elapsed().as_secs_f64();
    std::fs::remove_file(path)?;
    Ok(seconds)
}

/// The seconds of `cat` of files to /dev/null.
fn cat(files: &[PathBuf]) -> Result<f64, Box<dyn Error>> {
    let began = Instant::now();
    let status = Command::new("cat").args(files).stdout(Stdio::null()).status()?;
    if status.success() { Ok(began.elapsed().as_secs_f64()) } else { Err("cat has failed".into()) }
}
