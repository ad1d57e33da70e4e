//! Rebuilds the crate when the embedded checkpoint changes, which the macro that embeds it does not ask for.

fn main() {
    println!("cargo::rerun-if-changed=../../models/mini/checkpoint");
}
