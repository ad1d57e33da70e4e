//! Rebuilds the crate when mini's judge changes; `include_dir!` does not track its files.

fn main() {
    println!("cargo::rerun-if-changed=../../models/mini/judge");
}
