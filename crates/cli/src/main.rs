//! The binary `rushes`.

fn main() -> std::process::ExitCode {
    rushes::cli::run(std::env::args_os())
}
