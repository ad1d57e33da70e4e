//! Rebuilds the crate when the embedded checkpoint changes: the macro that embeds it does not track its files.

fn main() {
    println!("cargo::rerun-if-changed=../../models/mini/checkpoint");
}
