//! Every fuzz target on its seeds and on simple mutations of them: bytes are read or refused, without a panic and
//! without large allocations.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use fuzz_targets::{TARGETS, Target};
use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use test_support::Random;
use tests::own_process;

/// Random mutations of each seed.
const MUTATIONS: usize = 400;
/// Bytes of address space that the readers may take on top of what the first reading of every seed takes.
const MEMORY_MAX: u64 = 256 << 20;

fn fuzz_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz")
}

/// The seeds of a target, by name.
fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = fuzz_folder().join("seeds").join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut seeds: Vec<_> = entries
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    seeds.sort();
    seeds
}

/// Runs a target; a panic names the input.
fn run(target: Target, bytes: &[u8], what: &dyn Fn() -> String) -> bool {
    let panicked = |_| panic!("{}: {}", what(), bytes.escape_ascii());
    catch_unwind(AssertUnwindSafe(|| target(bytes))).unwrap_or_else(panicked)
}

/// Numbers that readers multiply, add or allocate with.
const NUMBERS: [&str; 9] =
    ["0", "-1", "1e39", "1e999", "65536", "4294967295", "4294967296", "18446744073709551615", "9e18"];

/// Changes bytes in one of the ways that a file is damaged, or that its lengths are forged.
fn mutated(bytes: &[u8], random: &mut Random) -> Vec<u8> {
    let below = |random: &mut Random, end: usize| {
        usize::try_from(random.bits() >> 16).unwrap_or_default() % end.max(1)
    };
    let mut bytes = bytes.to_vec();
    let at = below(random, bytes.len());
    let rest = bytes.len() - at;
    match below(random, 8) {
        0 => bytes.truncate(at),
        1 | 2 => bytes[at] ^= 1 << below(random, 8),
        3 => bytes[at] = [0, 0x7f, 0x80, 0xff][below(random, 4)],
        // A length field, in either order of bytes.
        4 => {
            let width = [2, 4, 8][below(random, 3)].min(rest);
            let length = [0, 1, u64::MAX, u64::MAX >> 1, 1 << 31, 1 << 40, rest as u64 + 1][below(random, 7)];
            let field = if below(random, 2) == 0 { length.to_le_bytes() } else { length.to_be_bytes() };
            let field = if below(random, 2) == 0 { &field[..width] } else { &field[8 - width..] };
            bytes[at..at + width].copy_from_slice(field);
        }
        // A number of a text.
        5 | 6 => {
            let is_digit = |byte: &u8| byte.is_ascii_digit();
            let Some(start) = bytes[at..].iter().position(is_digit).map(|offset| at + offset) else {
                return bytes;
            };
            let end =
                bytes[start..].iter().position(|byte| !is_digit(byte)).map_or(bytes.len(), |n| start + n);
            bytes.splice(start..end, NUMBERS[below(random, NUMBERS.len())].bytes());
        }
        // A part twice, or left out.
        _ => {
            let part = bytes[at..at + 1 + below(random, rest.min(64))].to_vec();
            let end = if below(random, 2) == 0 { at } else { at + part.len() };
            bytes.splice(at..end, if end == at { part } else { Vec::new() });
        }
    }
    bytes
}

/// The most address space that this process has had, in bytes.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[test]
fn every_target_has_seeds_that_it_reads_and_a_fuzzer() {
    let manifest = fs::read_to_string(fuzz_folder().join("Cargo.toml")).unwrap();
    let mut names = BTreeSet::new();
    let mut size = 0;
    for (name, target) in TARGETS {
        let seeds = seeds(name);
        assert!(seeds.iter().any(|(seed, _)| !seed.starts_with("refused-")), "no seed of {name} is read");
        for (seed, bytes) in &seeds {
            size += bytes.len();
            let is_read = run(target, bytes, &|| format!("{name}/{seed}"));
            // `cargo run -p fuzz-targets --example write_seeds` writes those of a changed format.
            assert_eq!(is_read, !seed.starts_with("refused-"), "{name}/{seed}");
        }
        let source = fs::read_to_string(fuzz_folder().join(format!("fuzz_targets/{name}.rs"))).unwrap();
        assert!(source.contains(&format!("fuzz_targets::{name}(data)")), "{name}");
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
        names.insert(name.to_owned());
    }
    let listed = |folder: &str| -> BTreeSet<String> {
        let entries = fs::read_dir(fuzz_folder().join(folder)).unwrap().map(|entry| entry.unwrap().path());
        entries.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect()
    };
    assert_eq!((listed("seeds"), listed("fuzz_targets")), (names.clone(), names));
    assert!(size < 50_000, "the seeds have {size} bytes");
}

#[test]
fn damaged_and_forged_bytes_are_read_or_refused() {
    if !own_process::entered("fuzz_seeds::damaged_and_forged_bytes_are_read_or_refused") {
        return;
    }
    for (name, target) in TARGETS {
        for (_, bytes) in seeds(name) {
            target(&bytes);
        }
    }
    let before = peak();
    for (number, (name, target)) in (0..).zip(TARGETS) {
        let mut random = Random::new(7 + number);
        let (mut read, mut refused) = (0, 0);
        for (seed, bytes) in seeds(name) {
            for case in 0..MUTATIONS {
                let mut changed = mutated(&bytes, &mut random);
                for _ in 0..case % 3 {
                    changed = if changed.is_empty() { changed } else { mutated(&changed, &mut random) };
                }
                let is_read = run(target, &changed, &|| format!("{name}/{seed}, mutation {case}"));
                *if is_read { &mut read } else { &mut refused } += 1;
            }
        }
        println!("{name}: {read} read, {refused} refused");
        // Mutations that are all refused, or all read, test little.
        assert!(read > 0 && refused > 0, "{name}: {read} read, {refused} refused");
        let taken = peak() - before;
        assert!(taken < MEMORY_MAX, "{name} takes {taken} bytes");
    }
}
