//! `mcpeg connect [SERVICE]`: stdio in, socket out.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::{bad_configuration, block_on, failed};
use crate::config::{self, Sources};
use crate::mcp::connect::bridge_stdio;

#[derive(Debug, Args)]
pub struct ConnectArgs {
    /// One service, as it is; left out: all of them, with tools named SERVICE__TOOL
    service: Option<String>,
    /// The sidecar's MCP socket [default: as the configuration says]
    #[arg(long, value_name = "PATH", env = "MCPEG_SOCKET")]
    socket: Option<PathBuf>,
}

pub fn connect(sources: &Sources, args: &ConnectArgs) -> ExitCode {
    let aggregate = match &args.socket {
        Some(path) => path.clone(),
        None => match config::sockets(sources) {
            Ok(sockets) => sockets.mcp,
            Err(problems) => return bad_configuration(&problems),
        },
    };
    let socket = match &args.service {
        None => aggregate,
        Some(service) => match service_socket(&aggregate, service) {
            Ok(path) => path,
            Err(message) => return failed(&message),
        },
    };
    block_on(1, async {
        match bridge_stdio(&socket).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&error.to_string()),
        }
    })
}

/// The service's own socket beside the aggregate's. Where there is none although others are there, they are named.
fn service_socket(aggregate: &Path, service: &str) -> Result<PathBuf, String> {
    if !crate::secret::is_name(service) {
        return Err(format!("`{service}` is not a service's name"));
    }
    let folder = aggregate.parent().unwrap_or(Path::new("/")).join("services");
    let socket = folder.join(format!("{service}.sock"));
    if socket.exists() {
        return Ok(socket);
    }
    let mut known: Vec<String> = std::fs::read_dir(&folder)
        .map(|entries| entries.flatten().filter_map(|entry| socket_name(&entry.path())).collect())
        .unwrap_or_default();
    known.sort();
    Err(match known.as_slice() {
        [] => format!("{} does not exist: is `mcpeg run` running with this configuration?", socket.display()),
        known => format!("there is no service `{service}`; there are: {}", known.join(", ")),
    })
}

fn socket_name(path: &Path) -> Option<String> {
    let named = path.extension().is_some_and(|extension| extension == "sock");
    named.then(|| path.file_stem()?.to_str().map(str::to_owned)).flatten()
}
