//! Builds the crate anew when the embedded checkpoint or its judge changes, which the macro that embeds it does not ask for.

fn main() {
    println!("cargo::rerun-if-changed=../models/mini/checkpoint");
    println!("cargo::rerun-if-changed=../models/mini/judge");
}
