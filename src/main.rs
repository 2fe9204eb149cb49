//! Arguments to exit code; nothing else.

use std::process::ExitCode;

use mcpeg::memory::WipingAllocator;

#[global_allocator]
static ALLOCATOR: WipingAllocator = WipingAllocator::new();

fn main() -> ExitCode {
    mcpeg::cli::main()
}
