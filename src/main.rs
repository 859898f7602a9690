//! The `refrain` program; everything stands in [`refrain::cli`].

use std::process::ExitCode;

/// A request is many small allocations that end with it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    refrain::cli::main(std::env::args_os(), std::env::vars_os())
}
