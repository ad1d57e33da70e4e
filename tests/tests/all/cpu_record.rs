//! The tables of `docs/cpu.md` are those of the records in `docs/cpu`. `UPDATE_CPU_TABLES=1` writes them.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use serde_json::{Value, json};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

/// The records, by their file names.
fn records() -> Vec<(String, Value)> {
    let Ok(folder) = fs::read_dir(docs().join("cpu")) else { return Vec::new() };
    let files = folder.map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = files.filter(|path| path.extension().is_some_and(|it| it == "json")).collect();
    files.sort();
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    files.iter().map(|path| (name(path), serde_json::from_slice(&fs::read(path).unwrap()).unwrap())).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

/// Three significant digits, as many as the times are worth.
fn digits(value: &Value) -> String {
    let number = value.as_f64().unwrap();
    let whole = number.abs().max(1e-9).log10().floor();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 11")]
    let decimals = (2.0 - whole).max(0.0) as usize;
    format!("{number:.decimals$}")
}

/// A time for people.
fn duration(value: &Value) -> String {
    let seconds = value.as_f64().unwrap();
    match seconds {
        ..120.0 => format!("{seconds:.0} s"),
        120.0..7200.0 => format!("{:.0} min", seconds / 60.0),
        _ => format!("{:.1} h", seconds / 3600.0),
    }
}

fn render(record: &Value) -> String {
    let mut page = String::new();
    let mut line = |text: String| writeln!(page, "{text}").unwrap();
    let (cpu, peaks) = (&record["machine"]["cpu"], &record["machine"]["peaks"]);
    line(format!(
        "{}, {} threads, Rushes kernels on `{}`, rushes {}. Peaks: int8 {} GOP/s, bf16 {} GFLOP/s, f32 {} GFLOP/s; memory {} GB/s read.",
        text(&cpu["name"]),
        cpu["threads"],
        text(&cpu["path"]),
        text(&record["rushes"]),
        digits(&peaks["int8_gops"]),
        peaks["bf16_gflops"].as_f64().map_or("-".into(), |peak| digits(&peak.into())),
        digits(&peaks["f32_gflops"]),
        digits(&peaks["memory_read_gb_per_s"]),
    ));
    line("\n| a step | tokens | in | s | a layer, s | of the peak |\n|---|---|---|---|---|---|".into());
    for step in record["steps"].as_array().unwrap() {
        line(format!(
            "| {} {} | {} | {} | {} | {} | {:.0} % |",
            text(&step["shape"]),
            text(&step["clip"]),
            step["tokens"],
            text(&step["precision"]),
            digits(&step["whole_s"]),
            digits(&step["layer_s"]),
            100.0 * step["share_of_peak"].as_f64().unwrap(),
        ));
    }
    for peer in record["peers"].as_array().into_iter().flatten() {
        line(format!(
            "| {} {} | {} | {} | {} | {} | |",
            text(&peer["shape"]),
            text(&peer["clip"]),
            peer["tokens"],
            text(&peer["name"]),
            digits(&peer["whole_s"]),
            digits(&peer["layer_s"]),
        ));
    }
    line("\n| other parts | in | s |\n|---|---|---|".into());
    for one in record["decoder"].as_array().unwrap() {
        let precision = text(&one["precision"]);
        line(format!("| first latent frame to pixels | {precision} | {} |", digits(&one["first_s"])));
        line(format!("| each later one | {precision} | {} |", digits(&one["next_s"])));
    }
    for one in record["text"].as_array().unwrap() {
        line(format!("| 512 tokens of text | {} | {} |", text(&one["precision"]), digits(&one["whole_s"])));
    }
    line("\n| a clip | in | steps | takes |\n|---|---|---|---|".into());
    for clip in record["clips"].as_array().unwrap() {
        line(format!(
            "| {} {} | {} | {}{} | {} |",
            text(&clip["shape"]),
            text(&clip["clip"]),
            text(&clip["precision"]),
            clip["steps"],
            if clip["guided"].as_bool().unwrap() { ", guided" } else { "" },
            duration(&clip["seconds"]),
        ));
    }
    let missing = record["not_measured"].as_array().unwrap();
    if !missing.is_empty() {
        line("\nNot measured:\n".into());
        missing.iter().for_each(|why| line(format!("* {}", text(why))));
    }
    page
}

#[test]
fn the_tables_are_those_of_the_records() {
    let page = docs().join("cpu.md");
    let before = fs::read_to_string(&page).unwrap();
    let mut after = before.clone();
    for (name, record) in &records() {
        let (begin, end) = (format!("<!-- {name} -->\n"), "<!-- end -->");
        let (head, rest) = after.split_once(&begin).unwrap_or_else(|| panic!("no {begin} in docs/cpu.md"));
        let (_, tail) = rest.split_once(end).unwrap();
        after = format!("{head}{begin}\n{}\n{end}{tail}", render(record));
    }
    if std::env::var_os("UPDATE_CPU_TABLES").is_some() {
        fs::write(page, after).unwrap();
        return;
    }
    assert!(
        before == after,
        "docs/cpu.md is not what its records say; run this test with UPDATE_CPU_TABLES=1"
    );
}

#[test]
fn a_table_has_a_line_for_each_part_and_says_what_is_missing() {
    let times = json!({ "precision": "int8", "whole_s": 12.345, "layer_s": 0.4 });
    let mut step = times.clone();
    step["shape"] = json!("1.3b");
    step["clip"] = json!("480p17");
    step["tokens"] = json!(7800);
    step["share_of_peak"] = json!(0.415);
    let record = json!({
        "rushes": "1.0.0",
        "machine": {
            "cpu": { "name": "CPU", "threads": 2, "path": "amx" },
            "peaks": { "int8_gops": 6000.0, "bf16_gflops": null, "f32_gflops": 300.5, "memory_read_gb_per_s": 20.04 },
        },
        "steps": [step],
        "decoder": [{ "precision": "int8", "first_s": 0.5, "next_s": 1.25 }],
        "text": [times],
        "clips": [{ "shape": "1.3b", "clip": "480p17", "precision": "int8", "steps": 50, "guided": true, "seconds": 1260.0 }],
        "not_measured": ["480p81"],
    });
    let page = render(&record);
    let has = |line: &str| assert!(page.lines().any(|found| found == line), "{line} in {page}");
    has(
        "CPU, 2 threads, Rushes kernels on `amx`, rushes 1.0.0. Peaks: int8 6000 GOP/s, bf16 - GFLOP/s, f32 300 GFLOP/s; memory 20.0 GB/s read.",
    );
    has("| 1.3b 480p17 | 7800 | int8 | 12.3 | 0.400 | 42 % |");
    has("| each later one | int8 | 1.25 |");
    has("| 512 tokens of text | int8 | 12.3 |");
    has("| 1.3b 480p17 | int8 | 50, guided | 21 min |");
    has("* 480p81");
}

/// The sums in a record are those of its parts, so that nobody edits one without the other.
#[test]
fn whole_steps_are_those_of_their_layers() {
    for (name, record) in records() {
        for step in record["steps"].as_array().unwrap().iter().chain(record["text"].as_array().unwrap()) {
            let shortest = |key: &str| {
                let runs = step[key].as_array().unwrap().iter().map(|run| run.as_f64().unwrap());
                runs.reduce(f64::min).unwrap()
            };
            let (one, two) = (shortest("seconds_of_one"), shortest("seconds_of_two"));
            let whole = one + (step["layers"].as_f64().unwrap() - 1.0) * (two - one);
            assert!((step["whole_s"].as_f64().unwrap() / whole - 1.0).abs() < 1e-6, "{name}: {step}");
        }
    }
}
