//! mcpeg, the sidecar beside an LLM agent.
//!
//! The map: `cli` reads the command line, `app` composes the domains (`secrets`, `render`, `services`, `mcp`, `process`, `storage`, `telemetry`, `admin`),
//! `supervisor` runs their parts. Domains import only leaves (`secret`, `memory`, `child`, `environment`, `guard`, `lifecycle`,
//! `output`, `ports`, `sealed`, `tls`, `local_socket`); `config` imports the domains' checked
//! settings. docs/ARCHITECTURE.md shows how a secret, a message and a record travel through them.

#![deny(unsafe_code)]

pub mod admin;
pub mod app;
pub mod child;
pub mod cli;
pub mod config;
pub mod environment;
pub mod guard;
pub mod lifecycle;
pub mod local_socket;
pub mod mcp;
pub mod memory;
pub mod output;
pub mod ports;
pub mod process;
pub mod reload;
pub mod render;
pub mod sealed;
pub mod secret;
pub mod secrets;
pub mod services;
pub mod storage;
pub mod supervisor;
pub mod telemetry;
pub mod tls;
