//! `pull` against a hub on this machine: its cache's layout, lost connections, digests, and what it refuses.
#![cfg(feature = "pull")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A file as the hub has it.
#[derive(Clone, Default)]
struct Held {
    bytes: Vec<u8>,
    /// Lies elsewhere, as large files do: the hub redirects there.
    is_large: bool,
    /// Bytes of the body after which each answer's connection is cut, one an answer; then no more.
    cuts: Vec<usize>,
    /// The body stops after so many bytes and the connection stays.
    stalls_at: Option<usize>,
    /// Answers of 503 before the first good one.
    failures: usize,
    /// What is sent is not what the digest was made of.
    is_damaged: bool,
}

impl Held {
    fn digest(&self) -> String {
        match self.is_large {
            true => format!("{:x}", Sha256::digest(&self.bytes)),
            false => {
                let head = format!("blob {}\0", self.bytes.len());
                format!("{:x}", Sha1::new_with_prefix(head).chain_update(&self.bytes).finalize())
            }
        }
    }
}

/// A request as it came: method and path, and some of its headers.
#[derive(Clone, Debug, Default)]
struct Asked {
    line: String,
    host: String,
    range: String,
    authorization: String,
}

/// A hub with one repository, `org/repo`.
struct Hub {
    address: SocketAddr,
    files: Arc<Mutex<BTreeMap<String, Held>>>,
    asked: Arc<Mutex<Vec<Asked>>>,
    cache: PathBuf,
}

impl Hub {
    fn with(files: &[(&str, Held)]) -> Hub {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let files: BTreeMap<String, Held> =
            files.iter().map(|(name, held)| ((*name).to_owned(), held.clone())).collect();
        let (files, asked) = (Arc::new(Mutex::new(files)), Arc::<Mutex<Vec<Asked>>>::default());
        let (for_all, told) = (files.clone(), asked.clone());
        // Ends with the process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (files, asked) = (for_all.clone(), told.clone());
                // A client that goes away in the middle is part of these tests.
                std::thread::spawn(move || drop(answer(stream, address, &files, &asked)));
            }
        });
        let cache = std::env::temp_dir().join(format!("orchestratord-pull-{}", uuid::Uuid::new_v4()));
        Hub { address, files, asked, cache }
    }

    fn command(&self, name: &str, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_orchestratord"));
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy().into_owned();
            if text.starts_with("ORCH_") || text.starts_with("HF_") || text.to_lowercase().ends_with("_proxy") {
                command.env_remove(name);
            }
        }
        command
            .args(["pull", name])
            .args(more)
            .env("ORCH_PULL_ALLOW", "org/*")
            .env("ORCH_PULL_ENDPOINT", format!("http://{}", self.address))
            .env("ORCH_PULL_CACHE", &self.cache)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn pull(&self, name: &str, more: &[&str]) -> Output {
        self.command(name, more).output().expect("it runs")
    }

    /// The paths that were asked for with GET, with the ranges.
    fn gets(&self) -> Vec<(String, String)> {
        let asked = self.asked.lock().expect("no panic");
        let gets = asked.iter().filter_map(|a| Some((a.line.strip_prefix("GET ")?.to_owned(), a.range.clone())));
        gets.collect()
    }

    fn folder(&self) -> PathBuf {
        self.cache.join("models--org--repo")
    }

    /// Names in a folder of the repository in the cache.
    fn names_in(&self, folder: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.folder().join(folder)) else { return Vec::new() };
        let mut names: Vec<String> = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.cache);
    }
}

fn answer(
    stream: TcpStream,
    address: SocketAddr,
    files: &Mutex<BTreeMap<String, Held>>,
    told: &Mutex<Vec<Asked>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned());
    let mut asked = Asked { line: format!("{method} {path}"), ..Asked::default() };
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header)? == 0 || header.trim().is_empty() {
            break;
        }
        let (name, value) = header.split_once(':').unwrap_or_default();
        let value = value.trim().to_owned();
        match name.to_lowercase().as_str() {
            "host" => asked.host = value,
            "range" => asked.range = value,
            "authorization" => asked.authorization = value,
            _ => {}
        }
    }
    let (range, authorization) = (asked.range.clone(), asked.authorization.clone());
    told.lock().expect("no panic").push(asked);
    let mut say = |status: &str, headers: &str, body: &[u8]| -> std::io::Result<()> {
        stream.write_all(format!("HTTP/1.1 {status}\r\nConnection: close\r\n{headers}\r\n").as_bytes())?;
        stream.write_all(body)
    };
    let names: Vec<Value> = files.lock().expect("no panic").keys().map(|n| json!({"rfilename": n})).collect();
    if path == "/api/models/org/repo/revision/main" {
        let body = json!({"sha": COMMIT, "siblings": names}).to_string();
        return say("200 OK", &format!("Content-Length: {}\r\n", body.len()), body.as_bytes());
    }
    if path.starts_with("/api/models/org/gated/") && authorization.is_empty() {
        return say("401 Unauthorized", "Content-Length: 0\r\n", b"");
    }
    let at_hub = path.strip_prefix(&format!("/org/repo/resolve/{COMMIT}/"));
    let name = at_hub.or_else(|| path.strip_prefix("/elsewhere/")).unwrap_or_default().to_owned();
    let held = {
        let mut files = files.lock().expect("no panic");
        let Some(held) = files.get_mut(&name) else { return say("404 Not Found", "Content-Length: 0\r\n", b"") };
        if held.failures > 0 {
            held.failures -= 1;
            return say("503 Service Unavailable", "Content-Length: 0\r\n", b"");
        }
        let now = held.clone();
        let sends = method == "GET" && (at_hub.is_none() || !held.is_large);
        if sends && !held.cuts.is_empty() {
            held.cuts.remove(0);
        }
        now
    };
    let (tag, len) = (held.digest(), held.bytes.len());
    if held.is_large && at_hub.is_some() {
        // Another name of this machine is another host.
        let to = format!("http://localhost:{}/elsewhere/{name}", address.port());
        let facts =
            format!("Location: {to}\r\nX-Linked-Etag: \"{tag}\"\r\nX-Linked-Size: {len}\r\nContent-Length: 0\r\n");
        return say("302 Found", &facts, b"");
    }
    let from: usize = range.strip_prefix("bytes=").and_then(|r| r.strip_suffix('-')?.parse().ok()).unwrap_or(0);
    let mut bytes = held.bytes.clone();
    if held.is_damaged {
        bytes[len / 2] ^= 1;
    }
    let facts = format!("Etag: \"{tag}\"\r\nContent-Length: {}\r\n", len - from);
    let (status, facts) = match from {
        0 => ("200 OK", facts),
        _ => ("206 Partial Content", format!("{facts}Content-Range: bytes {from}-{}/{len}\r\n", len - 1)),
    };
    if method == "HEAD" {
        return say(status, &facts, b"");
    }
    let rest = &bytes[from..];
    let most = held.cuts.first().copied().or(held.stalls_at).unwrap_or(rest.len()).min(rest.len());
    say(status, &facts, &rest[..most])?;
    if held.stalls_at.is_some() {
        // Until the client has gone.
        let _ = reader.read(&mut [0; 1]);
    }
    Ok(())
}

fn small(text: &str) -> Held {
    Held { bytes: text.as_bytes().to_vec(), ..Held::default() }
}

/// Bytes that do not repeat.
fn large(len: usize) -> Held {
    let bytes = (0..len as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect();
    Held { bytes, is_large: true, ..Held::default() }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn complained(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn check_done(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", complained(output));
    said(output)
}

/// Refused or given up, saying this.
fn check_failed(output: &Output, says: &str) {
    let complaint = complained(output);
    assert!(output.status.code() == Some(1) && complaint.contains(says), "{:?}: {complaint}", output.status);
    assert!(output.stdout.is_empty(), "{}", said(output));
}

#[test]
fn a_folder_lies_in_the_cache_as_other_tools_expect_it() {
    let hub = Hub::with(&[
        ("README.md", small("not loaded")),
        ("config.json", small("{}")),
        ("1_Pooling/config.json", small("{\"a\": 1}")),
        ("model.safetensors", large(700_000)),
        ("../../evil.json", small("never")),
    ]);
    let told: Value = serde_json::from_str(&check_done(&hub.pull("hf:org/repo", &["--json"]))).expect("JSON");
    let snapshot = hub.folder().join("snapshots").join(COMMIT);
    assert_eq!((told["path"].as_str(), told["revision"].as_str()), (snapshot.to_str(), Some(COMMIT)));
    let names: Vec<&str> = told["files"].as_array().expect("files").iter().filter_map(|f| f["name"].as_str()).collect();
    assert_eq!(names, ["1_Pooling/config.json", "config.json", "model.safetensors"]);
    assert_eq!(fs::read_to_string(snapshot.join("1_Pooling/config.json")).expect("it is there"), "{\"a\": 1}");
    assert_eq!(fs::read(snapshot.join("model.safetensors")).expect("it is there"), large(700_000).bytes);
    assert_eq!(fs::read_to_string(hub.folder().join("refs/main")).expect("it is there"), COMMIT);
    let weights = fs::read_link(snapshot.join("model.safetensors")).expect("a link");
    assert_eq!(weights, Path::new("../../blobs").join(large(700_000).digest()));
    // As hf-hub finds it.
    let found = hf_hub::Cache::new(hub.cache.clone()).model("org/repo".into()).get("config.json");
    assert_eq!(found, Some(snapshot.join("config.json")));
    // Nothing is loaded twice, and a terminal's codes are only for terminals.
    let gets = hub.gets().len();
    let again = hub.pull("hf:org/repo", &["--json"]);
    let told: Value = serde_json::from_str(&check_done(&again)).expect("JSON");
    assert!(told["files"].as_array().expect("files").iter().all(|f| f["was_there"] == true), "{told}");
    assert_eq!(hub.gets().len(), gets + 1, "only the list: {:?}", hub.gets());
    assert!(!complained(&again).contains('\x1b'), "{}", complained(&again));
}

#[test]
fn a_pulled_model_can_be_used() {
    let wren = fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/engine/models/wren.gguf")).expect("it is there");
    let held = Held { bytes: wren, is_large: true, ..Held::default() };
    let hub = Hub::with(&[("README.md", small("")), ("wren.gguf", held)]);
    let path = check_done(&hub.pull("hf:org/repo", &[]));
    let model = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_orchestratord")).args(arguments).output().expect("it runs");
        check_done(&output)
    };
    let asked = ["complete", "--prompt", "Once upon a time", "--max-tokens", "5"];
    assert_eq!(model(&[&asked[..], &["--model", &path]].concat()), model(&asked));
}

#[test]
fn a_lost_connection_is_gone_on_from_where_it_was() {
    let held = Held { cuts: vec![300_000, 0, 500_000], failures: 1, ..large(1_000_000) };
    let hub = Hub::with(&[("a.gguf", held)]);
    let path = check_done(&hub.pull("hf:org/repo/a.gguf", &[]));
    assert_eq!(fs::read(path).expect("it is there"), large(1_000_000).bytes);
    let ranges: Vec<String> =
        hub.gets().into_iter().filter(|(p, _)| p.starts_with("/elsewhere/")).map(|g| g.1).collect();
    assert_eq!(ranges[0], "");
    // A cut connection may bring less than was sent, never more.
    let from = |range: &String| range.strip_prefix("bytes=").and_then(|r| r.strip_suffix('-')?.parse::<usize>().ok());
    let starts: Vec<usize> = ranges[1..].iter().map(|r| from(r).unwrap_or(0)).collect();
    assert!(starts.windows(2).all(|w| w[0] <= w[1]) && starts.iter().all(|s| *s <= 800_000), "{ranges:?}");
    assert!(*starts.last().expect("it was lost") > 0, "{ranges:?}");
}

#[test]
fn a_process_that_was_ended_leaves_a_beginning_for_the_next() {
    let hub = Hub::with(&[("a.gguf", Held { stalls_at: Some(600_000), ..large(1_000_000) })]);
    let mut first: Child = hub.command("hf:org/repo/a.gguf", &[]).spawn().expect("it starts");
    let unfinished = hub.folder().join("blobs").join(format!("{}.incomplete", large(1_000_000).digest()));
    let began = Instant::now();
    while fs::metadata(&unfinished).map_or(0, |m| m.len()) < 600_000 {
        assert!(began.elapsed() < Duration::from_secs(60), "nothing came");
        std::thread::sleep(Duration::from_millis(20));
    }
    // Two at once would write over each other.
    check_failed(&hub.pull("hf:org/repo/a.gguf", &[]), "another process");
    first.kill().expect("it runs");
    first.wait().expect("it ends");
    hub.files.lock().expect("no panic").get_mut("a.gguf").expect("it is there").stalls_at = None;
    let path = check_done(&hub.pull("hf:org/repo/a.gguf", &[]));
    assert_eq!(fs::read(path).expect("it is there"), large(1_000_000).bytes);
    assert_eq!(hub.gets().last().expect("it was asked").1, "bytes=600000-");
    assert_eq!(hub.names_in("blobs"), [large(1_000_000).digest()]);
}

#[test]
fn what_does_not_have_the_hubs_digest_is_thrown_away() {
    for held in [Held { is_damaged: true, ..large(300_000) }, Held { is_damaged: true, ..small("some text") }] {
        let hub = Hub::with(&[("a.gguf", held.clone())]);
        check_failed(&hub.pull("hf:org/repo/a.gguf", &[]), "thrown away");
        assert!(hub.names_in("blobs").is_empty() && hub.names_in("snapshots").is_empty());
        hub.files.lock().expect("no panic").get_mut("a.gguf").expect("it is there").is_damaged = false;
        assert_eq!(fs::read(check_done(&hub.pull("hf:org/repo/a.gguf", &[]))).expect("it is there"), held.bytes);
    }
}

#[test]
fn a_key_goes_to_the_hub_and_to_nobody_else() {
    let hub = Hub::with(&[("a.gguf", large(1_000))]);
    let output = hub.command("hf:org/repo/a.gguf", &[]).env("HF_TOKEN", "hf_secret").output().expect("it runs");
    check_done(&output);
    assert!(!complained(&output).contains("hf_secret"));
    let asked = hub.asked.lock().expect("no panic");
    for Asked { line, host, authorization, .. } in asked.iter() {
        let wanted = if host.starts_with("localhost") { "" } else { "Bearer hf_secret" };
        assert_eq!(authorization, wanted, "{line}");
    }
    assert!(asked.iter().any(|a| a.host.starts_with("localhost")));
}

#[test]
fn what_is_not_allowed_or_not_there_is_refused_and_says_what_to_do() {
    let hub = Hub::with(&[("a.gguf", large(10)), ("b.gguf", large(20))]);
    check_failed(&hub.pull("hf:other/repo", &[]), "pull_allow = \"other/repo\"");
    assert!(hub.asked.lock().expect("no panic").is_empty(), "nobody was asked");
    check_failed(&hub.pull("hf:org/repo", &[]), "hf:org/repo/a.gguf hf:org/repo/b.gguf");
    check_failed(&hub.pull("hf:org/repo/c.gguf", &[]), "hf:org/repo/a.gguf");
    check_failed(&hub.pull("hf:org/nothing", &[]), "does not have it");
    check_failed(&hub.pull("hf:org/gated", &[]), "HF_TOKEN");
    assert_eq!(hub.pull("org/repo", &[]).status.code(), Some(2));
}
