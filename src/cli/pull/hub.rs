//! A hub as Hugging Face's speaks: what a repository holds, and its files' bytes.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use ureq::http::{HeaderMap, Response};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use crate::cli::Failure;

/// Time for a connection, and the longest silence of one that is there.
const CONNECT: Duration = Duration::from_secs(15);
const SILENCE: Duration = Duration::from_secs(60);

/// Bytes of the list of a repository's files.
const LIST_LEN_MAX: u64 = 16 << 20;

/// Redirects within the hub before a file's facts are given, as after a repository was renamed.
const RENAMES_MAX: usize = 5;

pub struct Hub {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
}

/// Why the hub did not give what was asked for.
#[derive(Debug)]
pub enum HubError {
    /// The network or the hub is in a bad state: it may work the next time.
    Passing(String),
    /// It will not work the next time either.
    Lasting(String),
}

impl From<HubError> for Failure {
    fn from(error: HubError) -> Failure {
        let (HubError::Passing(text) | HubError::Lasting(text)) = error;
        Failure::Failed(text)
    }
}

/// What a repository holds at one commit.
pub struct Listing {
    /// 40 hexadecimal digits.
    pub commit: String,
    pub files: Vec<String>,
}

/// A file's facts.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    pub len: u64,
    /// SHA-256 of a large file, or the id that git gives a small one (SHA-1); also its name in the cache.
    pub digest: String,
}

impl Hub {
    /// # Errors
    ///
    /// When `SSL_CERT_FILE` is set and cannot be used.
    pub fn new(endpoint: &str) -> Result<Hub, Failure> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let roots = match variable("SSL_CERT_FILE") {
            None => RootCerts::WebPki,
            Some(path) => RootCerts::from(certificates(&path)?),
        };
        let tls = TlsConfig::builder()
            .unversioned_rustls_crypto_provider(Arc::new(rustls_graviola::default_provider()))
            .root_certs(roots)
            .build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .user_agent(concat!("orchestratord/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .build()
            .new_agent();
        Ok(Hub { agent, endpoint: endpoint.trim_end_matches('/').to_owned(), token: variable("HF_TOKEN") })
    }

    /// What a repository holds at a branch, a tag or a commit.
    pub fn list(&self, repository: &str, revision: &str) -> Result<Listing, HubError> {
        #[derive(Deserialize)]
        struct Wire {
            sha: String,
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        let url = format!("{}/api/models/{repository}/revision/{revision}", self.endpoint);
        let what = format!("{repository} at {revision}");
        let answer = self.checked(self.ask("GET", &url, &[]), &what)?;
        let mut text = String::new();
        let mut reader = answer.into_body().into_reader().take(LIST_LEN_MAX);
        reader.read_to_string(&mut text).map_err(|e| HubError::Passing(format!("{what}: {e}")))?;
        let wire: Wire = serde_json::from_str(&text)
            .map_err(|e| HubError::Lasting(format!("{what}: this is no hub's list of files: {e}")))?;
        if !is_hex(&wire.sha, 40) {
            return Err(HubError::Lasting(format!("{what}: the hub names no commit")));
        }
        let files = wire.siblings.into_iter().map(|s| s.rfilename).filter(|name| super::is_inside(name)).collect();
        Ok(Listing { commit: wire.sha, files })
    }

    /// A file's length and digest.
    pub fn facts(&self, repository: &str, commit: &str, file: &str) -> Result<Facts, HubError> {
        let mut url = self.url_of(repository, commit, file);
        for _ in 0..RENAMES_MAX {
            let answer = self.ask_once("HEAD", &url);
            let answer = answer.and_then(|a| if is_redirect(&a) { Ok(a) } else { self.checked(Ok(a), file) })?;
            let headers = answer.headers();
            // A redirect to where the bytes lie has the facts; one to the repository's new name has not.
            if let Some(facts) = facts_in(headers) {
                return Ok(facts);
            }
            match text(headers, "location").filter(|to| is_redirect(&answer) && to.starts_with('/')) {
                Some(to) => url = format!("{}{to}", self.endpoint),
                None => break,
            }
        }
        Err(HubError::Lasting(format!("{file}: the hub names no length or no digest, so it could not be checked")))
    }

    /// A file's bytes from a place on, and whether they begin there or at the file's beginning.
    pub fn read(
        &self,
        repository: &str,
        commit: &str,
        file: &str,
        from: u64,
    ) -> Result<(impl Read + use<>, bool), HubError> {
        let range = format!("bytes={from}-");
        let headers: &[(&str, &str)] = if from > 0 { &[("range", &range)] } else { &[] };
        let answer = self.checked(self.ask("GET", &self.url_of(repository, commit, file), headers), file)?;
        let begins = format!("bytes {from}-");
        let goes_on =
            answer.status() == 206 && text(answer.headers(), "content-range").is_some_and(|r| r.starts_with(&begins));
        if answer.status() == 206 && !goes_on {
            return Err(HubError::Passing(format!("{file}: another part came than the one that was asked for")));
        }
        Ok((answer.into_body().into_reader(), goes_on))
    }

    fn url_of(&self, repository: &str, commit: &str, file: &str) -> String {
        let mut path = String::new();
        for byte in file.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => path.push(byte as char),
                _ => path.push_str(&format!("%{byte:02X}")),
            }
        }
        format!("{}/{repository}/resolve/{commit}/{path}", self.endpoint)
    }

    fn ask(&self, method: &str, url: &str, headers: &[(&str, &str)]) -> Result<Response<Body>, HubError> {
        self.send(method, url, headers, 10)
    }

    /// Without following redirects.
    fn ask_once(&self, method: &str, url: &str) -> Result<Response<Body>, HubError> {
        self.send(method, url, &[], 0)
    }

    fn send(
        &self,
        method: &str,
        url: &str,
        headers: &[(&str, &str)],
        redirects: u32,
    ) -> Result<Response<Body>, HubError> {
        let mut request = ureq::http::Request::builder().method(method).uri(url).header("accept-encoding", "identity");
        // Is left out by the client when a redirect leads to another host.
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {}", token.trim()));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(()).map_err(|e| HubError::Lasting(format!("{url}: {e}")))?;
        let request =
            self.agent.configure_request(request).max_redirects(redirects).max_redirects_will_error(false).build();
        self.agent.run(request).map_err(|error| match error {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::Tls(_) | ureq::Error::Rustls(_) => {
                HubError::Lasting(format!("{url}: {error}"))
            }
            // A certificate that is not trusted will not be the next time.
            ureq::Error::Io(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                HubError::Lasting(format!("{url}: {error}"))
            }
            error => HubError::Passing(format!("{url}: {error}")),
        })
    }

    /// The answer, if it is a good one.
    fn checked(&self, answer: Result<Response<Body>, HubError>, what: &str) -> Result<Response<Body>, HubError> {
        let answer = answer?;
        let hub = &self.endpoint;
        match answer.status().as_u16() {
            200 | 206 => Ok(answer),
            401 | 403 => {
                let help = match self.token {
                    None => "it may be private or gated: set HF_TOKEN to a token that may read it",
                    Some(_) => "the token in HF_TOKEN may not read it",
                };
                Err(HubError::Lasting(format!("{what}: {hub} refuses it; {help}")))
            }
            404 => Err(HubError::Lasting(format!("{what}: {hub} does not have it"))),
            status @ (408 | 429 | 500..=599) => Err(HubError::Passing(format!("{what}: {hub} answers {status}"))),
            status => Err(HubError::Lasting(format!("{what}: {hub} answers {status}"))),
        }
    }
}

fn certificates(path: &str) -> Result<Vec<ureq::tls::Certificate<'static>>, Failure> {
    let wrong = |why: String| Failure::Failed(format!("SSL_CERT_FILE {path}: {why}"));
    let bytes = std::fs::read(path).map_err(|e| wrong(e.to_string()))?;
    let items = parse_pem(&bytes).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    });
    let found: Vec<_> = items.collect();
    if found.is_empty() { Err(wrong("it has no certificate in PEM".to_owned())) } else { Ok(found) }
}

fn is_redirect(answer: &Response<Body>) -> bool {
    answer.status().is_redirection()
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn facts_in(headers: &HeaderMap) -> Option<Facts> {
    let tag = text(headers, "x-linked-etag").or_else(|| text(headers, "etag"))?;
    let digest = tag.trim_start_matches("W/").trim_matches('"').to_owned();
    let len = text(headers, "x-linked-size").or_else(|| text(headers, "content-length"))?.parse().ok()?;
    (is_hex(&digest, 40) || is_hex(&digest, 64)).then_some(Facts { len, digest })
}

fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}
