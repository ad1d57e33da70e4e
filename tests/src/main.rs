//! The program `rushes` again: for a test, cargo builds only the binaries of its own package.

use rushes::cli::{CommandLine, Interrupts};

fn main() -> std::process::ExitCode {
    let line = CommandLine::new(std::env::args_os());
    let interrupts = Interrupts::listen(&line);
    rushes::cli::run(line, interrupts)
}
