//! What `--config` says of a source that is no folder:
//!
//! ```text
//! etcd://host:2379[,host:2379]/prefix/[main.yaml]        etcd+https://...
//! consul://host:8500[,host:8500]/prefix/[main.yaml]      consul+https://...
//! git+https://host/repository[#[ref][:folder/[main.yaml]]]   git+http://...  git+file:///path
//! ```
//!
//! An address has no credentials in it: it is shown in logs, in problems and to everybody who lists processes.

use url::Url;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    Etcd,
    Consul,
    Git,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub scheme: Scheme,
    /// As it is shown.
    pub name: String,
    /// `http`, `https` or `file`; of Git one. Never empty.
    pub endpoints: Vec<Url>,
    /// Of the keys or of the files: empty, or closed by `/`.
    pub prefix: String,
    /// The main file below the prefix.
    pub main: String,
    /// Of Git: a branch, a tag or a commit.
    pub reference: Option<String>,
}

impl Address {
    pub fn parse(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text.split_once("://").ok_or("it is no address")?;
        let (scheme, transport) = match scheme {
            "etcd" | "etcd+http" => (Scheme::Etcd, "http"),
            "etcd+https" => (Scheme::Etcd, "https"),
            "consul" | "consul+http" => (Scheme::Consul, "http"),
            "consul+https" => (Scheme::Consul, "https"),
            "git+https" => (Scheme::Git, "https"),
            "git+http" => (Scheme::Git, "http"),
            "git+file" => (Scheme::Git, "file"),
            other => return Err(format!("`{other}://` is none of {KNOWN}")),
        };
        if rest.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err("the address has blanks in it".to_owned());
        }
        match scheme {
            Scheme::Git => Self::git(text, transport, rest),
            _ => Self::keys(text, scheme, transport, rest),
        }
    }

    fn keys(text: &str, scheme: Scheme, transport: &str, rest: &str) -> Result<Self, String> {
        if rest.contains(['?', '#']) {
            return Err("the address has no `?` and no `#`".to_owned());
        }
        let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
        let endpoints: Vec<Url> =
            hosts.split(',').map(|host| endpoint(&format!("{transport}://{host}/"))).collect::<Result<_, _>>()?;
        let (prefix, main) = folder_and_main(path);
        Ok(Self { scheme, name: text.to_owned(), endpoints, prefix, main, reference: None })
    }

    fn git(text: &str, transport: &str, rest: &str) -> Result<Self, String> {
        let (repository, at) = rest.split_once('#').unwrap_or((rest, ""));
        let (reference, path) = at.split_once(':').unwrap_or((at, ""));
        let (prefix, main) = folder_and_main(path.trim_start_matches('/'));
        let url = endpoint(&format!("{transport}://{repository}"))?;
        let reference = (!reference.is_empty()).then(|| reference.to_owned());
        if reference.as_deref().is_some_and(|name| name.starts_with('-') || name.contains("..") || name.contains('^')) {
            return Err("the reference is no branch, tag or commit".to_owned());
        }
        Ok(Self { scheme: Scheme::Git, name: text.to_owned(), endpoints: vec![url], prefix, main, reference })
    }
}

fn endpoint(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| format!("the address: {error}"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("an address has no credentials in it: they belong into files, see docs/SOURCES.md".to_owned());
    }
    if url.scheme() != "file" && url.host_str().is_none_or(str::is_empty) {
        return Err("the address has no host".to_owned());
    }
    Ok(url)
}

/// `a/b/main.yaml` is a main file in a folder; anything else is a folder.
fn folder_and_main(path: &str) -> (String, String) {
    if path.ends_with(".yaml") || path.ends_with(".yml") {
        let at = path.rfind('/').map_or(0, |at| at + 1);
        return (path[..at].to_owned(), path[at..].to_owned());
    }
    let closed = path.is_empty() || path.ends_with('/');
    (if closed { path.to_owned() } else { format!("{path}/") }, MAIN.to_owned())
}

const MAIN: &str = "mcpeg.yaml";
const KNOWN: &str = "`etcd`, `etcd+https`, `consul`, `consul+https`, `git+https`, `git+http`, `git+file`";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms_of_an_address() {
        let etcd = Address::parse("etcd://a:2379,b:2379/mcpeg").unwrap();
        assert_eq!(etcd.endpoints.iter().map(Url::as_str).collect::<Vec<_>>(), ["http://a:2379/", "http://b:2379/"]);
        assert_eq!((etcd.prefix.as_str(), etcd.main.as_str()), ("mcpeg/", "mcpeg.yaml"));
        let consul = Address::parse("consul+https://c:8501/team/agent/side.yaml").unwrap();
        assert_eq!((consul.prefix.as_str(), consul.main.as_str()), ("team/agent/", "side.yaml"));
        assert_eq!(consul.endpoints[0].scheme(), "https");
        assert_eq!(Address::parse("etcd://a//abs/").unwrap().prefix, "/abs/");
        let git = Address::parse("git+https://host/team/repo.git#release/1:deploy/mcpeg").unwrap();
        assert_eq!(git.reference.as_deref(), Some("release/1"));
        assert_eq!((git.endpoints[0].as_str(), git.prefix.as_str()), ("https://host/team/repo.git", "deploy/mcpeg/"));
        let plain = Address::parse("git+file:///srv/config.git").unwrap();
        assert_eq!((plain.reference, plain.prefix.as_str()), (None, ""));
    }

    #[test]
    fn an_address_with_credentials_or_of_another_kind_is_refused() {
        for (text, word) in [
            ("etcd://root:hunter2@host/mcpeg/", "credentials"),
            ("git+https://token@host/repo", "credentials"),
            ("s3://bucket/", "none of"),
            ("etcd:///mcpeg/", "address"),
            ("consul://host/a?dc=b", "`?`"),
            ("git+https://host/repo#--upload-pack=x", "reference"),
        ] {
            let reason = Address::parse(text).unwrap_err();
            assert!(reason.contains(word) && !reason.contains("hunter2"), "{text}: {reason}");
        }
    }
}
