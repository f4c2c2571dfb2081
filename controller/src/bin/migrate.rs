//! The command `migrate`: `tranship migrate` under the name an operator thinks of.

fn main() -> std::process::ExitCode {
    tranship::main()
}
