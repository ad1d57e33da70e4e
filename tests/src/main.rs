//! The program `rushes` again: for a test, cargo builds only the binaries of its own package.

fn main() -> std::process::ExitCode {
    rushes::cli::run(std::env::args_os())
}
