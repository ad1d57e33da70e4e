//! The binary `rushes`.

fn main() -> std::process::ExitCode {
    runtime::cli::run(std::env::args_os())
}
