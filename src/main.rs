//! The binary: everything is in the library, so that tests and benches reach it too.

use std::process::ExitCode;

fn main() -> ExitCode {
    orchestratord::cli::main()
}
