//! The tests of the whole: the real binary, started against real servers. One target, so that it is linked once.

mod architecture;
mod examples;
mod mcp;
mod operation;
mod rotation;
mod support;
mod telemetry;
