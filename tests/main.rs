//! The tests of the whole: the real binary, started against real servers. One target, so that it is linked once.

// Helpers of tests fail by panicking as the tests do; their threads may block, and a failing test prints what it saw.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, clippy::disallowed_types)]

mod architecture;
mod audit;
mod auth;
mod aws;
mod aws_login;
mod batches;
mod bounds;
mod bridge;
mod cache;
mod carry;
mod clients;
mod conformance;
mod database;
mod database_logins;
mod directory;
mod drift;
mod examples;
mod faithful;
mod faults;
mod following;
mod groups;
mod hooks;
mod http;
mod kept;
mod leaks;
mod leases;
mod logs;
mod mcp;
mod memory;
mod metrics;
mod oauth;
mod operation;
mod policy;
mod process;
mod recovery;
mod render;
mod rotation;
mod sealed;
mod sealed_values;
mod serve;
mod services;
mod sources;
mod spool;
mod storage;
mod stress;
mod support;
mod swap;
mod telemetry;
mod upstreams;
mod volume;
