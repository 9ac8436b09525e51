//! The command line.

pub mod probe;

/// Entry point of the `lb` binary.
pub fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
