//! The binary `rushes`.

use rushes::cli::{CommandLine, Interrupts};

fn main() -> std::process::ExitCode {
    let line = CommandLine::new(std::env::args_os());
    let interrupts = Interrupts::listen(&line);
    rushes::cli::run(line, interrupts)
}
