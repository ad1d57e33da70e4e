//! Rebuilds the crate when mini's judge changes, which the macro that embeds it does not ask for.

fn main() {
    println!("cargo::rerun-if-changed=../../models/mini/judge");
}
