//! The same program as the binary `rushes`: cargo builds the binaries of a test's own package, and no others, anew.

fn main() -> std::process::ExitCode {
    rushes::cli::run(std::env::args_os())
}
