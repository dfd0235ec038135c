//! The `gemmtune` command.

fn main() -> std::process::ExitCode {
    gemmtune::cli::main()
}
