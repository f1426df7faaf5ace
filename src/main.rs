use std::process::ExitCode;

fn main() -> ExitCode {
    vidur::cli::run()
}
