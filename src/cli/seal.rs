//! `mcpeg seal` and `mcpeg unseal`: a file is replaced by its sealed form, or back; with `--path` one value in a configuration file is, and the rest of
//! the file stays as it is. It needs no configuration.
//!
//! Invariants: while sealing, only ciphertext is written; plaintext is written only where `unseal` was asked for it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{ArgGroup, Args};
use zeroize::Zeroizing;

use super::{complain, failed, say};
use crate::config::edit;
use crate::config::sealed::{from_words, in_words};
use crate::sealed::{self, Identity, Key, KeySource, Recipient, Recipients, file};

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("for").required(true).args(["recipient", "key", "passphrase_file", "generate_key"]).multiple(true)))]
pub struct SealArgs {
    /// The file to seal in place
    #[arg(required_unless_present = "generate_key", value_name = "FILE")]
    file: Option<PathBuf>,
    /// Whoever has this public key can open it (age1...); may be given more than once
    #[arg(long, value_name = "AGE1...", conflicts_with_all = ["passphrase_file", "generate_key"])]
    recipient: Vec<String>,
    /// Whoever has this identity file can open it
    #[arg(long, value_name = "IDENTITY_FILE", conflicts_with_all = ["passphrase_file", "generate_key"])]
    key: Vec<PathBuf>,
    /// Whoever knows the first line of this file can open it
    #[arg(long, value_name = "FILE", conflicts_with = "generate_key")]
    passphrase_file: Option<PathBuf>,
    /// Seal this value in a configuration file, not the file: connection.password; may be given more than once
    #[arg(long, value_name = "KEY.KEY", conflicts_with_all = ["generate_key", "armor"])]
    path: Vec<String>,
    /// Write text, not bytes
    #[arg(long, conflicts_with = "generate_key")]
    armor: bool,
    /// Make a new identity file, readable by nobody else, and print its public key
    #[arg(long, value_name = "IDENTITY_FILE", conflicts_with = "file")]
    generate_key: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("by").required(true).args(["key", "passphrase_file"])))]
pub struct UnsealArgs {
    /// The file to open in place
    file: PathBuf,
    /// The identity file that opens it
    #[arg(long, value_name = "IDENTITY_FILE")]
    key: Option<PathBuf>,
    /// Its first line is the passphrase
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Open this sealed value in a configuration file, not the file; may be given more than once
    #[arg(long, value_name = "KEY.KEY")]
    path: Vec<String>,
    /// Leave the file sealed, and write what is in it to standard output
    #[arg(long)]
    stdout: bool,
}

pub fn seal(args: &SealArgs) -> ExitCode {
    let done = match (&args.generate_key, &args.file) {
        (Some(path), _) => generate(path),
        (None, Some(path)) => seal_file(path, args),
        // clap requires one of them.
        (None, None) => Err("no file is named".to_owned()),
    };
    outcome(done)
}

pub fn unseal(args: &UnsealArgs) -> ExitCode {
    outcome(unseal_file(args))
}

fn outcome(done: Result<Option<String>, String>) -> ExitCode {
    match done {
        Ok(line) => {
            line.iter().for_each(|line| say(line));
            ExitCode::SUCCESS
        }
        Err(reason) => failed(&reason),
    }
}

/// The public key on standard output, for a script; the rest on standard error.
fn generate(path: &Path) -> Result<Option<String>, String> {
    let identity = Identity::generate().map_err(|error| error.to_string())?;
    file::create(path, identity.in_words().as_bytes()).map_err(|error| format!("{}: {error}", path.display()))?;
    complain(&format!("{} has the secret key; keep it. Its public key:", path.display()));
    Ok(Some(identity.recipient().to_string()))
}

fn seal_file(path: &Path, args: &SealArgs) -> Result<Option<String>, String> {
    let about = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let recipients = recipients(args.passphrase_file.as_deref(), &args.recipient, &args.key)?
        // clap requires one of them.
        .ok_or("nobody is named to seal it for")?;
    let original = file::Original::read(path).map_err(|error| about(&error))?;
    if !args.path.is_empty() {
        return seal_values(path, original, &args.path, &recipients).map(Some);
    }
    if sealed::is_sealed(&original.bytes) {
        return Err(about(&"it is sealed already"));
    }
    let sealed = sealed::seal(&original.bytes, &recipients).map_err(|error| about(&error))?;
    let sealed = if args.armor { sealed::armor(&sealed).into_bytes() } else { sealed };
    original.replace(&sealed, true).map_err(|error| about(&error))?;
    Ok(Some(format!("{}: sealed", path.display())))
}

/// Of a passphrase, or of public keys and the public halves of secret ones. `None`: none is named.
pub(super) fn recipients(
    passphrase_file: Option<&Path>,
    recipients: &[String],
    keys: &[PathBuf],
) -> Result<Option<Recipients>, String> {
    if let Some(path) = passphrase_file {
        let key = KeySource::PassphraseFile(path.to_owned()).read().map_err(|error| error.to_string())?;
        return Ok(Some(key.into_recipients()));
    }
    let mut all = Vec::new();
    for text in recipients {
        all.push(text.parse::<Recipient>().map_err(|error| error.to_string())?);
    }
    for path in keys {
        let key = KeySource::IdentityFile(path.clone()).read().map_err(|error| error.to_string())?;
        if let Recipients::Keys(more) = key.into_recipients() {
            all.extend(more);
        }
    }
    Ok((!all.is_empty()).then_some(Recipients::Keys(all)))
}

fn unseal_file(args: &UnsealArgs) -> Result<Option<String>, String> {
    let path = &args.file;
    let about = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let key = key(args)?;
    if !args.path.is_empty() {
        return unseal_values(args, &key);
    }
    if args.stdout {
        let sealed = std::fs::read(path).map_err(|error| about(&error))?;
        let plain = sealed::open(&sealed, &key).map_err(|error| about(&error))?;
        print(&plain).map_err(|error| format!("standard output: {error}"))?;
        return Ok(None);
    }
    let original = file::Original::read(path).map_err(|error| about(&error))?;
    let plain = sealed::open(&original.bytes, &key).map_err(|error| about(&error))?;
    original.replace(&plain, false).map_err(|error| about(&error))?;
    Ok(Some(format!("{}: opened, and readable by its owner alone", path.display())))
}

/// The file keeps its mode: what stands in it from now on may be read as before.
fn seal_values(
    path: &Path,
    original: file::Original,
    keys: &[String],
    recipients: &Recipients,
) -> Result<String, String> {
    let about = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let mode = std::fs::metadata(path).map_err(|error| about(&error))?.permissions();
    let text = std::str::from_utf8(&original.bytes).map_err(|_| about(&"it is not UTF-8"))?;
    let mut text = Zeroizing::new(text.to_owned());
    for key in keys {
        let seal =
            |value: &[u8]| sealed::seal(value, recipients).map(|value| in_words(&value)).map_err(|e| e.to_string());
        text = edit::seal(path, &text, key, seal).map_err(|error| about(&error))?;
    }
    original.replace(text.as_bytes(), true).map_err(|error| about(&error))?;
    std::fs::set_permissions(path, mode).map_err(|error| about(&error))?;
    Ok(format!("{}: sealed {}", path.display(), keys.join(", ")))
}

fn unseal_values(args: &UnsealArgs, key: &Key) -> Result<Option<String>, String> {
    let path = &args.file;
    let about = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let open = |text: &str| {
        let sealed = from_words(text).ok_or("what follows `!sealed` is not base64")?;
        let plain = sealed::open(&sealed, key).map_err(|error| error.to_string())?;
        let plain = std::str::from_utf8(&plain).map_err(|_| "what was sealed is not UTF-8")?;
        Ok::<_, String>(Zeroizing::new(plain.to_owned()))
    };
    let original = file::Original::read(path).map_err(|error| about(&error))?;
    let text = std::str::from_utf8(&original.bytes).map_err(|_| about(&"it is not UTF-8"))?;
    if args.stdout {
        for name in &args.path {
            let sealed = edit::sealed_at(path, text, name).map_err(|error| about(&error))?;
            let mut plain = Zeroizing::new(open(&sealed).map_err(|error| about(&error))?.as_bytes().to_vec());
            plain.push(b'\n');
            print(&plain).map_err(|error| format!("standard output: {error}"))?;
        }
        return Ok(None);
    }
    let mut text = Zeroizing::new(text.to_owned());
    for name in &args.path {
        text = edit::unseal(path, &text, name, open).map_err(|error| about(&error))?;
    }
    original.replace(text.as_bytes(), false).map_err(|error| about(&error))?;
    Ok(Some(format!("{}: opened {}, and readable by its owner alone", path.display(), args.path.join(", "))))
}

fn key(args: &UnsealArgs) -> Result<Key, String> {
    let source = match (&args.key, &args.passphrase_file) {
        (Some(path), _) => KeySource::IdentityFile(path.clone()),
        (None, Some(path)) => KeySource::PassphraseFile(path.clone()),
        // clap requires one of them.
        (None, None) => return Err("no key is named".to_owned()),
    };
    source.read().map_err(|error| error.to_string())
}

fn print(plain: &Zeroizing<Vec<u8>>) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(plain)?;
    out.flush()
}
