//! Artifacts: one document, one id, on every machine and after every restart, and never a byte of another one.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::*;
use serde_json::{Value, json};

fn keep(server: &Server, document: &Value) -> Value {
    let answer = post(server, "/v1/artifacts", document);
    assert_eq!(answer.status, 201, "{document}: {}", answer.text());
    answer.json().expect("JSON")
}

fn documents() -> Vec<Value> {
    let deep = (0..40).fold(json!({}), |inner, _| json!({ "in": inner }));
    vec![
        json!({ "kind": "plan", "content": {} }),
        json!({ "kind": "summary", "content": { "text": "é \"quoted\" \\ 🦜 \u{7f}\u{1}" }, "tags": [] }),
        json!({ "kind": "diff", "content": { "z": 1, "a": [1, 2.5, -0.0, 1e21, 1e-7, null, true] }, "tags": ["b", "a"] }),
        json!({ "kind": "trace", "content": { "€": 1, "😀": 2, "\u{fb33}": 3, "1": 4, "": 5 }, "metadata": { "n": 0.1 } }),
        json!({ "kind": "other", "content": deep, "metadata": {} }),
        json!({ "kind": "other", "content": {}, "parent": format!("sha256:{}", "ab".repeat(32)) }),
        json!({ "kind": "other", "content": { "long": "x".repeat(200_000) } }),
    ]
}

#[test]
fn an_id_is_the_hash_of_the_canonical_document() {
    let server = server();
    for document in documents() {
        let created = keep(&server, &document);
        let id = canonical::artifact_id(&document);
        assert_eq!(created["id"], id, "{document}");
        assert!(id.ends_with(created["digest"].as_str().expect("a digest").trim_start_matches("sha256:")), "{created}");
        assert_eq!(created["kind"], document["kind"]);
        assert_eq!(created["tags"], document.get("tags").cloned().unwrap_or(json!([])));
        assert!(created["created_ms"].as_u64().is_some_and(|ms| ms > 1_600_000_000_000), "{created}");
        let whole = get(&server, &format!("/v1/artifacts/{id}"));
        assert_eq!(whole.status, 200);
        assert_eq!(canonical::text(&whole.json().expect("JSON")), canonical::text(&document), "it comes back whole");
    }
}

#[test]
fn the_same_document_spelled_differently_has_the_same_id() {
    let server = server();
    let spellings = [
        r#"{"kind":"plan","content":{"a":1,"b":"é","c":[10]},"tags":["x"]}"#,
        r#"{"tags":["x"],"content":{"c":[10],"b":"é","a":1},"kind":"plan"}"#,
        "  {\n\t\"kind\" : \"plan\" ,\r\n \"content\":{\"a\":1.0,\"b\":\"\\u00e9\",\"c\":[1e1]},\"tags\":[\"\\u0078\"]}  ",
        r#"{"k\u0069nd":"plan","content":{"a":1,"b":"é","c":[10.0]},"tags":["x"]}"#,
    ];
    let ids = spellings.map(|text| {
        let answer = send(&server, &Request::new("POST", "/v1/artifacts").with_body(text));
        assert_eq!(answer.status, 201, "{text}: {}", answer.text());
        answer.json().expect("JSON")["id"].as_str().expect("an id").to_owned()
    });
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    for other in [
        json!({ "kind": "plan", "content": { "a": 1, "b": "e", "c": [10] }, "tags": ["x"] }),
        json!({ "kind": "plan", "content": { "a": 1, "b": "é", "c": [10] }, "tags": [] }),
        json!({ "kind": "plan", "content": { "a": 1, "b": "é", "c": [10] } }),
        json!({ "kind": "diff", "content": { "a": 1, "b": "é", "c": [10] }, "tags": ["x"] }),
        json!({ "kind": "plan", "content": { "a": 1, "b": "e\u{301}", "c": [10] }, "tags": ["x"] }),
    ] {
        assert_ne!(keep(&server, &other)["id"], ids[0], "{other}");
    }
}

#[test]
fn the_same_document_has_the_same_id_on_another_server_and_in_another_store() {
    let folder = Scratch::new().expect("a folder");
    let in_memory = server();
    let on_disk = server_with(Settings::default().with("artifacts_fs_root", folder.path().display()));
    for document in documents() {
        let (here, there) = (keep(&in_memory, &document), keep(&on_disk, &document));
        assert_eq!(here["id"], there["id"], "{document}");
        let path = format!("/v1/artifacts/{}", here["id"].as_str().expect("an id"));
        assert_eq!(get(&in_memory, &path).json().expect("JSON"), get(&on_disk, &path).json().expect("JSON"));
    }
}

#[test]
fn keeping_a_document_again_changes_nothing() {
    let server = server();
    let document = &documents()[1];
    let first = keep(&server, document);
    assert_eq!(keep(&server, document), first, "created_ms included");
}

#[test]
fn a_wrong_document_is_refused_by_its_field() {
    let server = server();
    for (field, document) in [
        ("kind", json!({ "content": {} })),
        ("kind", json!({ "kind": "poem", "content": {} })),
        ("kind", json!({ "kind": 1, "content": {} })),
        ("content", json!({ "kind": "plan" })),
        ("content", json!({ "kind": "plan", "content": "text" })),
        ("content", json!({ "kind": "plan", "content": [] })),
        ("content", json!({ "kind": "plan", "content": null })),
        ("tags", json!({ "kind": "plan", "content": {}, "tags": "x" })),
        ("tags", json!({ "kind": "plan", "content": {}, "tags": [1] })),
        ("parent", json!({ "kind": "plan", "content": {}, "parent": "sha256:abc" })),
        ("parent", json!({ "kind": "plan", "content": {}, "parent": 1 })),
        ("metadata", json!({ "kind": "plan", "content": {}, "metadata": "x" })),
        ("owner", json!({ "kind": "plan", "content": {}, "owner": "x" })),
    ] {
        let said = refusal(&post(&server, "/v1/artifacts", &document), 400, "INVALID_PARAMS");
        assert!(said["message"].as_str().is_some_and(|m| m.contains(field)), "{document}: {said}");
    }
    let deep = format!(r#"{{"kind":"plan","content":{{"a":{}{}}}}}"#, "[".repeat(5000), "]".repeat(5000));
    let twice = r#"{"kind":"plan","content":{},"content":{"a":1}}"#.to_owned();
    for text in [deep, twice, "{".to_owned(), String::new(), "[]".to_owned()] {
        let answer = send(&server, &Request::new("POST", "/v1/artifacts").with_body(text));
        refusal(&answer, 400, "INVALID_PARAMS");
    }
    assert_eq!(keep(&server, &json!({ "kind": "plan", "content": {} }))["kind"], "plan", "and the next one is kept");
}

#[test]
fn a_digest_that_does_not_match_is_not_trusted() {
    let server = server();
    let document = json!({ "kind": "plan", "content": { "a": 1 } });
    let id = canonical::artifact_id(&document);
    let with_digest = |digest: &str| {
        let mut document = document.clone();
        document["digest"] = json!(digest);
        post(&server, "/v1/artifacts", &document)
    };
    let right = with_digest(&id);
    assert_eq!(right.status, 201, "{}", right.text());
    assert_eq!(right.json().expect("JSON")["id"], id);
    refusal(&with_digest(&format!("sha256:{}", "0".repeat(64))), 400, "UNTRUSTED_ARTIFACT");
}

#[test]
fn an_id_that_is_no_hash_reaches_no_file() {
    let folder = Scratch::new().expect("a folder");
    let root = folder.path().join("store");
    let server = server_with(Settings::default().with("artifacts_fs_root", root.display()));
    fs::write(folder.path().join("secret.json"), r#"{"kind":"plan","content":{"secret":1}}"#).expect("a file");
    for id in [
        "..",
        "%2e%2e",
        "..%2fsecret.json",
        "sha256:..%2f..%2fsecret",
        "sha256:",
        "sha256:ab",
        "sha512:00",
        &"0".repeat(64),
        &format!("sha256:{}", "G".repeat(64)),
        &format!("sha256:{}", "A".repeat(64)),
        &format!("sha256:{}%00", "a".repeat(64)),
    ] {
        let answer = get(&server, &format!("/v1/artifacts/{id}"));
        assert!(matches!(answer.status, 400 | 404), "{id}: {} {}", answer.status, answer.text());
        assert!(!answer.text().contains("secret\":1"), "{id}");
    }
}

#[test]
fn a_store_on_disk_survives_a_restart_and_memory_does_not() {
    let folder = Scratch::new().expect("a folder");
    let settings = Settings::default().with("artifacts_fs_root", folder.path().display());
    let before = server_with(settings.clone());
    let ids: Vec<String> =
        documents().iter().map(|d| keep(&before, d)["id"].as_str().expect("an id").to_owned()).collect();
    let transcript = end_of(&run(&before, &task()))["artifact_id"].as_str().expect("an id").to_owned();
    let told = keep(&before, &documents()[0]);
    // Killed, not asked to stop: what was acknowledged must be on disk already.
    drop(before);

    let after = server_with(settings);
    for (id, document) in ids.iter().zip(documents()) {
        let answer = get(&after, &format!("/v1/artifacts/{id}"));
        assert_eq!(answer.status, 200, "{document}: {}", answer.text());
        assert_eq!(canonical::text(&answer.json().expect("JSON")), canonical::text(&document));
    }
    let kept = get(&after, &format!("/v1/artifacts/{transcript}"));
    assert_eq!(kept.status, 200, "the transcript is gone: {}", kept.text());
    assert_eq!(canonical::artifact_id(&kept.json().expect("JSON")), transcript);
    assert_eq!(keep(&after, &documents()[0])["id"], told["id"]);

    let first = server();
    let id = keep(&first, &documents()[0])["id"].as_str().expect("an id").to_owned();
    drop(first);
    refusal(&get(&server(), &format!("/v1/artifacts/{id}")), 404, "NOT_FOUND");
}

#[test]
fn a_changed_file_is_noticed_and_never_served() {
    let folder = Scratch::new().expect("a folder");
    let settings = Settings::default().with("artifacts_fs_root", folder.path().display());
    let document = json!({ "kind": "plan", "content": { "amount": 100, "to": "Ann" } });
    let spoil: [fn(&Path); 4] = [
        |path| {
            let mut bytes = fs::read(path).expect("a file");
            let place = bytes.len() / 2;
            bytes[place] ^= 1;
            fs::write(path, bytes).expect("written");
        },
        |path| {
            let bytes = fs::read(path).expect("a file");
            fs::write(path, &bytes[..bytes.len() - 1]).expect("written");
        },
        |path| {
            let text = fs::read_to_string(path).expect("a file");
            fs::write(path, text.replace("100", "900")).expect("written");
        },
        |path| fs::write(path, b"").expect("written"),
    ];
    for (number, spoil) in spoil.into_iter().enumerate() {
        let server = server_with(settings.clone());
        let id = keep(&server, &document)["id"].as_str().expect("an id").to_owned();
        let files = files_below(folder.path());
        let path = files.iter().find(|f| fs::read(f).is_ok_and(|b| b.starts_with(b"{"))).expect("a document on disk");
        spoil(path);
        let answer = get(&server, &format!("/v1/artifacts/{id}"));
        refusal(&answer, 500, "INTERNAL");
        assert!(!answer.text().contains("Ann"), "spoilt in way {number}: {}", answer.text());
        assert_eq!(get(&server, "/v1/capabilities").status, 200, "the server lives on");
        // Keeping it again mends it.
        keep(&server, &document);
        assert_eq!(get(&server, &format!("/v1/artifacts/{id}")).json().expect("JSON"), document);
    }
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

#[test]
fn no_unfinished_file_is_left_behind() {
    let folder = Scratch::new().expect("a folder");
    let server = server_with(Settings::default().with("artifacts_fs_root", folder.path().display()));
    for document in documents() {
        keep(&server, &document);
    }
    assert_eq!(files_below(folder.path()).len(), documents().len());
}

#[test]
fn canonical_numbers_are_written_as_the_rfc_writes_them() {
    for (value, text) in [
        (0.0, "0"),
        (1.0, "1"),
        (-1.5, "-1.5"),
        (1e21, "1e+21"),
        (1e20, "100000000000000000000"),
        (333333333.3333333, "333333333.3333333"),
        (1e-6, "0.000001"),
        (1e-7, "1e-7"),
        (4.5, "4.5"),
        (2e-3, "0.002"),
        (1.23e-7, "1.23e-7"),
        (0.1, "0.1"),
        (123.456, "123.456"),
    ] {
        assert_eq!(canonical::text(&json!(value)), text);
    }
}

#[test]
fn a_canonical_object_is_sorted_by_utf16_and_escaped_as_little_as_possible() {
    let value: Value =
        serde_json::from_str(r#"{"\u20ac":"€","1":"\u000a\u0007\"\\","\ufb33":1,"\ud83d\ude00":2}"#).expect("JSON");
    assert_eq!(canonical::text(&value), "{\"1\":\"\\n\\u0007\\\"\\\\\",\"€\":\"€\",\"😀\":2,\"\u{fb33}\":1}");
}
