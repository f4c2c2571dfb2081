//! `tranship-lab`: see the library of the same name.

use std::process::ExitCode;

fn main() -> ExitCode {
    tranship_lab::cli::main()
}
