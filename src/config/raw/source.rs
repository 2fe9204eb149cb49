//! The written shape of the file that `--source` names.

use schemars::JsonSchema;
use serde::Deserialize;

use super::scalar::{RawDuration, RawPath, RawSize};
use super::secrets::RawTls;

/// How a source of the configuration is reached that is no folder.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawSource {
    /// The folder that the root of the tree stands for: a relative path in the configuration is a file of the tree where that has it, and else begins
    /// here. Default: the current folder.
    pub work: Option<RawPath>,
    /// Where the last good configuration is kept, readable by its owner alone. Default: `data/config` in `work`.
    pub keep: Option<RawPath>,
    /// The user at etcd or at the Git host.
    pub username: Option<String>,
    /// Its first line is the user's password. 0600 or narrower.
    pub password_file: Option<RawPath>,
    /// Its first line is Consul's token, or a bearer token of the Git host. 0600 or narrower.
    pub token_file: Option<RawPath>,
    #[serde(default)]
    pub tls: RawTls,
    /// Of one request; for Git, six times as long for all of a fetch. Default: `10s`.
    pub timeout: Option<RawDuration>,
    /// How often a Git repository is asked. etcd and Consul tell by themselves. Default: `30s`.
    pub interval: Option<RawDuration>,
    /// Of Consul.
    pub datacenter: Option<String>,
    /// Of Consul, where it has namespaces.
    pub namespace: Option<String>,
    /// Public SSH keys, one a line, as in `gpg.ssh.allowedSignersFile` or `authorized_keys`: a commit of Git that none of them has signed is refused.
    pub allowed_signers: Option<RawPath>,
    /// Of files in the tree. Default: 2000.
    #[schemars(range(min = 1, max = 20000))]
    pub max_files: Option<u32>,
    /// Of all files together. Default: `16MiB`.
    pub max_size: Option<RawSize>,
}
