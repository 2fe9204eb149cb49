//! An HTTP request: one connection, which ends with it, because it may have carried a secret.

use std::error::Error;

use futures_util::StreamExt;
use http::HeaderMap;
use http::header::{CONTENT_TYPE, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Client, Response};
use tokio::time::timeout;

use crate::memory::with_wiped_stack;
use crate::ports::SecretReader;
use crate::tls;

use super::super::settings::HttpHook;
use super::output::{Captured, LARGEST, Seen};
use super::{HookError, resolve};

/// Sends it and judges the answer by its status. No redirect is followed and no proxy used.
pub(super) async fn send(hook: &HttpHook, secrets: &dyn SecretReader, mut seen: Seen) -> Result<(), HookError> {
    let url = hook.url.to_string();
    let failed = |reason: String| HookError::Request { url: url.clone(), reason };
    let client = client(hook).map_err(failed)?;
    let headers = with_wiped_stack(|| headers(hook, secrets, &mut seen))?;
    let mut request = client.request(hook.method.clone(), hook.url.clone()).headers(headers);
    if let Some(body) = &hook.body {
        request = request.body(body.clone());
    }
    let exchange = async {
        let response = request.send().await.map_err(|error| failed(in_words(&error)))?;
        let status = response.status();
        let is_good = hook.status.map_or(status.is_success(), |wanted| status.as_u16() == wanted);
        if is_good {
            return Ok(());
        }
        let expected = hook.status.map_or_else(|| "2xx".to_owned(), |status| status.to_string());
        let output = beginning(response).await.without_secrets(&seen);
        Err(HookError::Status { url: url.clone(), status: status.as_u16(), expected, output })
    };
    match timeout(hook.timeout, exchange).await {
        Ok(outcome) => outcome,
        Err(_) => Err(HookError::NoAnswer { url: url.clone(), timeout: hook.timeout }),
    }
}

fn client(hook: &HttpHook) -> Result<Client, String> {
    let files = tls::Files { ca_file: hook.ca_file.clone(), client: None };
    let config = files.client_config(hook.url.scheme()).map_err(|error| error.to_string())?;
    let mut builder = Client::builder()
        .tls_backend_preconfigured(config)
        .http1_only()
        .redirect(Policy::none())
        .no_proxy()
        .referer(false)
        .pool_max_idle_per_host(0)
        .user_agent(concat!("mcpeg/", env!("CARGO_PKG_VERSION")));
    if let Some(socket) = &hook.socket {
        builder = builder.unix_socket(socket.as_path());
    }
    builder.build().map_err(|error| in_words(&error))
}

fn headers(hook: &HttpHook, secrets: &dyn SecretReader, seen: &mut Seen) -> Result<HeaderMap, HookError> {
    let mut headers = HeaderMap::new();
    if hook.body.as_ref().is_some_and(|body| serde_json::from_str::<serde_json::Value>(body).is_ok()) {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    for (name, text) in &hook.headers {
        let secret = resolve(text, || format!("header {name}"), secrets, seen)?;
        let mut value =
            HeaderValue::from_bytes(secret.expose()).map_err(|_| HookError::NotAHeader { name: name.to_string() })?;
        value.set_sensitive(true);
        headers.insert(name.clone(), value);
    }
    Ok(headers)
}

/// As much of the body as is worth showing.
async fn beginning(response: Response) -> Captured {
    let (mut captured, mut left, mut body) = (Captured::default(), LARGEST, response.bytes_stream());
    while let Some(Ok(chunk)) = body.next().await {
        captured.push(&chunk);
        left = left.saturating_sub(chunk.len());
        if left == 0 {
            break;
        }
    }
    captured
}

/// The innermost cause; the URL is said by the error around it.
fn in_words(error: &reqwest::Error) -> String {
    let mut cause: &dyn Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, SystemTime};

    use http::{HeaderName, Method};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;
    use tokio::sync::watch;

    use super::super::super::template::Reads;
    use super::*;
    use crate::ports::SecretUnavailable;
    use crate::secret::{Part, Secret, SecretRef, SecretText, SecretVersion};

    struct One(Arc<SecretVersion>);

    impl SecretReader for One {
        fn current(&self, _: &str) -> Result<Arc<SecretVersion>, SecretUnavailable> {
            Ok(self.0.clone())
        }

        fn subscribe(&self, _: &str) -> Option<watch::Receiver<u64>> {
            None
        }
    }

    fn one(value: &str) -> One {
        let fields = [("token".to_owned(), Secret::copy_from(value.as_bytes()))].into();
        One(Arc::new(SecretVersion { version: 1, provider_version: None, fields, fetched_at: SystemTime::now() }))
    }

    fn hook(socket: &std::path::Path, status: Option<u16>) -> HttpHook {
        let reference = SecretRef::parse("api.token").unwrap();
        HttpHook {
            method: Method::POST,
            url: "http://localhost/reload".parse().unwrap(),
            socket: Some(socket.to_owned()),
            headers: vec![(HeaderName::from_static("x-token"), SecretText::new(vec![Part::Reference(reference)]))],
            body: Some("{}".to_owned()),
            status,
            ca_file: None,
            timeout: Duration::from_secs(5),
        }
    }

    /// Answers one request with `answer`; gives what it was sent. No answer: it hangs.
    async fn served(listener: &UnixListener, answer: Option<&str>) -> String {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut asked = String::new();
        while !asked.ends_with("\r\n\r\n{}") {
            let mut buffer = [0; 1024];
            let count = stream.read(&mut buffer).await.unwrap();
            asked.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
        }
        match answer {
            Some(answer) => stream.write_all(answer.as_bytes()).await.unwrap(),
            None => std::future::pending().await,
        }
        asked
    }

    #[tokio::test]
    async fn a_request_carries_secrets_and_an_unwelcome_answer_is_shown_without_them() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let secrets = one("hunter2");
        let run = async |status, answer| {
            let hook = hook(&path, status);
            tokio::join!(send(&hook, &secrets, Seen::of(&Reads::default())), served(&listener, answer))
        };
        let (sent, asked) = run(None, Some("HTTP/1.1 204 No Content\r\n\r\n")).await;
        sent.unwrap();
        assert!(asked.starts_with("POST /reload HTTP/1.1\r\n") && asked.contains("x-token: hunter2\r\n"), "{asked}");
        assert!(asked.contains("content-type: application/json\r\n"), "{asked}");
        let echo = "HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\nwith hunter2 ok";
        let error = run(Some(202), Some(echo)).await.0.unwrap_err();
        assert_eq!(error.to_string(), "http://localhost/reload answered 200, expected 202");
        assert_eq!(error.output(), Some("with [REDACTED] ok"));
        let moved = "HTTP/1.1 302 Found\r\nlocation: http://elsewhere/\r\ncontent-length: 0\r\n\r\n";
        let error = run(None, Some(moved)).await.0.unwrap_err().to_string();
        assert_eq!(error, "http://localhost/reload answered 302, expected 2xx");
    }

    #[tokio::test]
    async fn a_server_that_hangs_or_is_not_there_is_an_error() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let secrets = one("x");
        let hook = HttpHook { timeout: Duration::from_millis(200), ..hook(&path, None) };
        let error = tokio::select! {
            sent = send(&hook, &secrets, Seen::of(&Reads::default())) => sent.unwrap_err().to_string(),
            _ = served(&listener, None) => unreachable!("it hangs"),
        };
        assert_eq!(error, "http://localhost/reload did not answer within 0.2 s");
        drop(listener);
        let error = send(&hook, &secrets, Seen::of(&Reads::default())).await.unwrap_err().to_string();
        assert!(error.starts_with("http://localhost/reload: Connection refused"), "{error}");
    }
}
