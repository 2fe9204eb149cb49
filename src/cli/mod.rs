//! The command line: one file a subcommand. Nothing here lasts longer than its command, and nobody imports it but `main`.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage (clap's own), 64 bad configuration.

mod audit;
mod check;
mod connect;
mod control;
mod demo;
mod diff;
mod metrics;
mod migrate;
mod render;
mod run;
mod seal;
mod secrets;
mod source;
mod storage;

use std::future::Future;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::app;
use crate::config::{self, Problems, Sources};
use source::Purpose;

/// The sidecar beside an LLM agent: secrets, rendered files, MCP with credentials put in, telemetry and audit.
#[derive(Debug, Parser)]
#[command(name = "mcpeg", version, propagate_version = true, disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    sources: SourceArgs,
    #[command(subcommand)]
    command: Command,
}

/// Where the configuration is. The same for every command.
#[derive(Debug, Args)]
struct SourceArgs {
    /// The configuration: a file, or etcd://, consul:// or git+https:// [default: $MCPEG_CONFIG, config/mcpeg.yaml,
    /// /opt/mcpeg/config/mcpeg.yaml, /etc/mcpeg/mcpeg.yaml]
    #[arg(long, global = true, value_name = "FILE|ADDRESS")]
    config: Option<PathBuf>,
    /// How such an address is reached: credentials, TLS, waits [default: $MCPEG_SOURCE, and $MCPEG_SOURCE__KEY for each key]
    #[arg(long, global = true, value_name = "FILE")]
    source: Option<PathBuf>,
    /// The overlay mcpeg-NAME.yaml beside it [default: $MCPEG_ENVIRONMENT, metadata.environment]
    #[arg(long, global = true, value_name = "NAME")]
    environment: Option<String>,
    /// Sets one key over everything else: --set global.log_level=debug
    #[arg(long, global = true, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the sidecar until it is told to stop; with a program, until that has ended
    Run(run::RunArgs),
    /// Say everything that is wrong with the configuration, with file, line and column
    Check(check::CheckArgs),
    /// Render the templates without staying: for an init container
    Render(render::RenderArgs),
    /// Be an MCP server on stdio, carried over the sidecar's socket: what an MCP client spawns
    Connect(connect::ConnectArgs),
    /// Say how the running sidecar is; fails when it is not ready
    Status(control::StatusArgs),
    /// Make the running sidecar read its configuration again
    Reload(control::ReloadArgs),
    /// Compare what the running sidecar has with what is written; fails when they differ
    Diff(diff::DiffArgs),
    /// What the running sidecar knows of its secrets; fetch one now
    Secrets(secrets::SecretsArgs),
    /// What the running sidecar has measured in the last hours
    Metrics(metrics::MetricsArgs),
    /// Write what is kept of services and metrics into a file, also while the sidecar runs
    Backup(storage::BackupArgs),
    /// Put a backup in the place of what is kept; the sidecar must not run
    Restore(storage::RestoreArgs),
    /// Carry what is kept from one kind of store to another, while the sidecar does not run; or the configuration (`config`) to where it can be followed
    Migrate(migrate::MigrateArgs),
    /// The audit trail: its newest events, and whether it was touched
    Audit(audit::AuditArgs),
    /// Encrypt a file in place (age), or make a key for that
    Seal(seal::SealArgs),
    /// Open a sealed file in place
    Unseal(seal::UnsealArgs),
    /// Print the JSON Schema of the configuration
    Schema(SchemaArgs),
    /// See the whole of it work in a few seconds: no server needed, nothing left behind
    Demo(demo::DemoArgs),
    /// Print a shell's completion script
    Completions { shell: clap_complete::Shell },
    /// The MCP server that the demo puts behind the sidecar
    #[command(hide = true)]
    DemoServer(demo::server::ServerArgs),
}

impl Command {
    /// `None`: it reads no configuration.
    fn purpose(&self) -> Option<Purpose> {
        match self {
            Self::Run(_) => Some(Purpose::Run),
            Self::Migrate(args) if args.is_of_config() => Some(Purpose::Look),
            Self::Check(_) | Self::Render(_) => Some(Purpose::Look),
            Self::Connect(_) | Self::Status(_) | Self::Reload(_) | Self::Diff(_) => Some(Purpose::Ask),
            Self::Secrets(_) | Self::Audit(_) => Some(Purpose::Ask),
            Self::Metrics(_) | Self::Backup(_) | Self::Restore(_) | Self::Migrate(_) => Some(Purpose::Ask),
            Self::Seal(_) | Self::Unseal(_) | Self::Schema(_) | Self::Demo(_) => None,
            Self::Completions { .. } | Self::DemoServer(_) => None,
        }
    }
}

#[derive(Debug, Args)]
struct SchemaArgs {
    /// Of a service file instead of mcpeg.yaml
    #[arg(long)]
    service: bool,
    /// Of a file for --source instead
    #[arg(long, conflicts_with_all = ["service", "markdown"])]
    source_file: bool,
    /// The reference of all keys as Markdown instead
    #[arg(long, conflicts_with = "service")]
    markdown: bool,
}

/// Reads the arguments and does what they say.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut sources = Sources::from_process(cli.sources.config, cli.sources.environment, cli.sources.set);
    sources.source = cli.sources.source;
    if let Some(purpose) = cli.command.purpose()
        && let Err(code) = source::prepare(&mut sources, purpose)
    {
        return code;
    }
    match cli.command {
        Command::Run(args) => run::run(sources, args),
        Command::Check(args) => check::check(&sources, &args),
        Command::Render(args) => render::render(sources, &args),
        Command::Connect(args) => connect::connect(&sources, &args),
        Command::Status(args) => control::status(&sources, &args),
        Command::Reload(args) => control::reload(&sources, &args),
        Command::Diff(args) => diff::diff(&sources, &args),
        Command::Secrets(args) => secrets::secrets(&sources, &args),
        Command::Metrics(args) => metrics::metrics(&sources, &args),
        Command::Backup(args) => storage::backup(&sources, &args),
        Command::Restore(args) => storage::restore(&sources, &args),
        Command::Migrate(args) => migrate::migrate(&sources, &args),
        Command::Audit(args) => audit::audit(&sources, &args),
        Command::Seal(args) => seal::seal(&args),
        Command::Unseal(args) => seal::unseal(&args),
        Command::Schema(args) => {
            say(schema(&args).trim_end());
            ExitCode::SUCCESS
        }
        Command::Demo(args) => demo::demo(&args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "mcpeg", &mut script);
            say(String::from_utf8_lossy(&script).trim_end());
            ExitCode::SUCCESS
        }
        Command::DemoServer(args) => demo::server::serve(&args),
    }
}

fn schema(args: &SchemaArgs) -> String {
    if args.markdown {
        return config::reference::markdown();
    }
    let schema = match args {
        SchemaArgs { service: true, .. } => config::schema::service_file(),
        SchemaArgs { source_file: true, .. } => config::schema::source_file(),
        _ => config::schema::main_file(),
    };
    format!("{schema:#}")
}

/// Takes what items are read from out of the process's environment, before there is a second thread.
fn take_variables(config: &config::Config) {
    for name in config.secrets.variables() {
        // What is missing is told when it is fetched.
        drop(crate::environment::take(name));
    }
}

/// Reads the configuration, and what is sealed in it, whose key may be a secret that is fetched for that.
fn load_opened(sources: &mut Sources) -> Result<config::Config, ExitCode> {
    let config = config::load(sources).map_err(|problems| bad_configuration(&problems))?;
    take_variables(&config);
    let Some(item) = &config.unopened else { return Ok(config) };
    let mut failure = None;
    block_on(1, async {
        failure = app::fetch_key(&config, sources).await.err();
        ExitCode::SUCCESS
    });
    if let Some(reason) = failure {
        return Err(failed(&format!("what is sealed in the configuration is not opened, its key is {item}: {reason}")));
    }
    config::load(sources).map_err(|problems| bad_configuration(&problems))
}

/// A line for the user. A reader that has gone away is no error.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// A line on standard error.
fn complain(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

fn failed(text: &str) -> ExitCode {
    complain(&format!("mcpeg: {text}"));
    ExitCode::FAILURE
}

/// The exit code of a bad configuration (`EX_USAGE` of sysexits.h), with every problem on standard error.
fn bad_configuration(problems: &Problems) -> ExitCode {
    complain(&problems.render());
    ExitCode::from(64)
}

/// Threads that read and write files. Each that has handled a secret keeps 200 KiB of wiped stack, and many templates would use many. Log
/// files and standard input have one each for as long as mcpeg runs.
const BLOCKING_THREADS: usize = 6;

/// Runs a command that needs the network on a runtime of its own.
fn block_on<F: Future<Output = ExitCode>>(workers: usize, command: F) -> ExitCode {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(workers).max_blocking_threads(BLOCKING_THREADS).enable_all().build();
    match runtime {
        Ok(runtime) => {
            let code = runtime.block_on(command);
            runtime.shutdown_timeout(std::time::Duration::from_millis(500));
            code
        }
        Err(error) => failed(&format!("the runtime could not be started: {error}")),
    }
}
