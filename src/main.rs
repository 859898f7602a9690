//! The `refrain` program; everything stands in [`refrain::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    refrain::cli::main(std::env::args_os(), std::env::vars_os())
}
