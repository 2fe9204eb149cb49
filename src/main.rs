//! Arguments to exit code; nothing else.

use mcpeg::memory::WipingAllocator;

#[global_allocator]
static ALLOCATOR: WipingAllocator = WipingAllocator::new();

fn main() {}
