//! The command `tranship`.

fn main() -> std::process::ExitCode {
    tranship::main()
}
