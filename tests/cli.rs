//! The commands that stand beside the server: replay, chat, models, doctor, completions, man.

mod common;

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use common::*;
use orchestratord_bdd::harness::binary::{Build, server_binary};
use serde_json::{Value, json};

fn binary() -> PathBuf {
    server_binary(Build::Plain).unwrap_or_else(|error| panic!("{error:#}"))
}

/// Runs the binary with an environment that has none of our settings.
fn run_with(arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(binary());
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ORCH_")) {
        command.env_remove(name);
    }
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    // A command that does not read its input may be gone already.
    let _ = child.stdin.take().expect("stdin is piped").write_all(input.as_bytes());
    child.wait_with_output().expect("it ends")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn complained(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The id of a task's transcript.
fn transcript(server: &Server, task: &Value) -> String {
    let end = end_of(&common::run(server, task));
    end["artifact_id"].as_str().expect("a transcript").to_owned()
}

fn replay(server: &Server, id: &str, more: &[&str]) -> Output {
    let url = format!("http://{}", server.address());
    let mut arguments = vec!["replay", id, "--url", &url, "--key", KEY];
    arguments.extend_from_slice(more);
    run_with(&arguments, "")
}

#[test]
fn a_transcript_replays_to_the_same_tokens_whatever_the_task_asked_for() {
    let server = server();
    for changes in [
        json!({}),
        json!({ "temperature": 1.3, "top_k": 40, "top_p": 0.9, "seed": 11, "max_tokens": 60 }),
        json!({ "logprobs": true, "frequency_penalty": 0.7, "repetition_penalty": 1.2, "max_tokens": 40 }),
        json!({ "response_format": { "type": "regex", "regex": "[a-z ]{20,60}" }, "temperature": 0.9, "max_tokens": 60 }),
        json!({ "response_format": { "type": "json_object" }, "max_tokens": 40 }),
        json!({ "stop": [" the"], "max_tokens": 60 }),
        json!({ "ignore_end": true, "logit_bias": { "5": -4.5 }, "min_tokens": 3, "max_tokens": 30 }),
        json!({ "prompt": null, "messages": [{ "role": "user", "content": "Who are you?" }], "max_tokens": 60 }),
    ] {
        let id = transcript(&server, &task_with(changes.clone()));
        let output = replay(&server, &id, &[]);
        assert!(output.status.success(), "{changes}: {}{}", said(&output), complained(&output));
        assert!(said(&output).starts_with("identical: "), "{}", said(&output));
    }
}

#[test]
fn a_canceled_stream_replays_as_far_as_it_went() {
    let server = server();
    let (task, stream) = occupy(&server);
    wait_for_tokens(&stream, 20);
    cancel(&server, &task);
    stream.wait_for_end(PATIENCE).expect("an end");
    let end = stream.events().last().expect("an end").json().expect("JSON");
    let output = replay(&server, end["artifact_id"].as_str().expect("a transcript"), &["--json"]);
    let told: Value = serde_json::from_str(&said(&output)).expect("JSON");
    assert_eq!((output.status.code(), &told["identical"]), (Some(0), &json!(true)), "{told}");
    assert!(told["tokens"].as_u64().expect("a count") >= 20);
}

#[test]
fn a_changed_transcript_is_found_out_and_the_place_is_told() {
    let scratch = Scratch::new().expect("a folder");
    let server = server_with(Settings::default().with("artifacts_fs_root", scratch.path().display()));
    let id = transcript(&server, &task_with(json!({ "max_tokens": 12, "ignore_end": true })));
    let folder = scratch.path().display().to_string();
    let from_folder = run_with(&["replay", &id, "--artifacts", &folder], "");
    assert_eq!((from_folder.status.code(), said(&from_folder).as_str()), (Some(0), "identical: 12 tokens\n"));

    let document = get(&server, &format!("/v1/artifacts/{id}")).json().expect("JSON");
    let change = |what: &dyn Fn(&mut Value)| {
        let mut changed = document.clone();
        what(&mut changed);
        let path = scratch.path().join("changed.json");
        std::fs::write(&path, changed.to_string()).expect("a file");
        run_with(&["replay", &path.display().to_string(), "--json"], "")
    };
    let events = |d: &Value| d["content"]["events"].as_array().expect("events").clone();
    let third = events(&document).iter().enumerate().filter(|(_, e)| e["type"] == "token").nth(2).expect("a token").0;
    let output = change(&|d| d["content"]["events"][third]["data"]["t"] = json!(" something else"));
    let told: Value = serde_json::from_str(&said(&output)).expect("JSON");
    assert_eq!((output.status.code(), &told["first_difference"]), (Some(1), &json!(2)), "{told}");
    assert!(told["transcript"].as_str().expect("text").contains("something else"));
    let output = change(&|d| d["metadata"]["seed"] = json!("none"));
    assert!(complained(&output).contains("not a transcript"), "{}", complained(&output));
    let output = change(&|d| d["metadata"]["model_digest"] = json!("sha256:0"));
    assert!(complained(&output).contains("give the right one with --model"), "{}", complained(&output));
}

#[test]
fn replay_says_what_is_wrong_with_its_arguments() {
    let unknown = format!("sha256:{}", "0".repeat(64));
    let server = server();
    assert!(complained(&replay(&server, &unknown, &[])).contains("refused (404)"));
    for (arguments, code, says) in [
        (vec!["replay", unknown.as_str()], 2, "--artifacts FOLDER"),
        (vec!["replay", "sha256:12"], 2, "64 hexadecimal"),
        (vec!["replay", "/nonexistent.json"], 1, "No such file"),
        (vec!["replay", unknown.as_str(), "--url", "https://a.b", "--key", "k"], 2, "http://HOST:PORT"),
    ] {
        let output = run_with(&arguments, "");
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", complained(&output));
        assert!(complained(&output).contains(says), "{arguments:?}: {}", complained(&output));
    }
}

#[test]
fn a_chat_from_a_script_answers_each_line_and_remembers() {
    let lines = "Hello! Who are you?\n/stats\n/history\n/nonsense\n/clear\n/history\n/quit\nnot said any more\n";
    let server = server();
    let url = format!("http://{}", server.address());
    let output = run_with(&["chat", "--url", &url, "--key", KEY, "--max-tokens", "40"], lines);
    let text = said(&output);
    assert!(output.status.success(), "{text}{}", complained(&output));
    let task = task_with(json!({
        "prompt": null, "messages": [{ "role": "user", "content": "Hello! Who are you?" }], "max_tokens": 40,
    }));
    let answer = sse::text(&common::run(&server, &task));
    assert!(text.starts_with(&format!("{answer}\n")), "{text}");
    for part in ["queue position 0", "tokens/s", "transcript sha256:", "user: Hello!", "assistant: ", "/nonsense is no"]
    {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    assert!(text.ends_with("nothing was said yet\n"), "{text}");
    // Without a server there is one for the chat alone.
    let alone = run_with(&["chat", "--max-tokens", "40"], "Hello! Who are you?\n");
    assert_eq!(said(&alone), format!("{answer}\n"), "{}", complained(&alone));
}

#[test]
fn an_interrupted_chat_cancels_its_answer_and_goes_on() {
    let server = server();
    let url = format!("http://{}", server.address());
    let mut child = Command::new(binary())
        .args(["chat", "--url", &url, "--key", KEY, "--max-tokens", "1500", "--temperature", "3"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut input = child.stdin.take().expect("stdin is piped");
    input.write_all(b"Tell me a long story\n").expect("it reads");
    wait_until("an answer to come", || metric(&server, "tokens_out_total", &[]) > 10.0);
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill is there");
    assert!(sent.success());
    wait_until("the task to be canceled", || metric(&server, "tasks_canceled_total", &[("reason", "client")]) == 1.0);
    input.write_all(b"/history\n").expect("it goes on");
    drop(input);
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success());
    let text = said(&output);
    assert!(text.contains("(canceled)") && text.ends_with("nothing was said yet\n"), "{text}");
}

/// A Ctrl-C that was meant for an answer may come when it has just ended.
#[test]
fn in_a_terminal_one_interrupt_at_the_prompt_does_not_cost_the_conversation() {
    const CTRL_C: &[u8] = b"\x03";
    let server = server();
    let chat = format!("{} chat --url http://{} --key {KEY} --max-tokens 8", binary().display(), server.address());
    // `script` is a terminal for its command, and hands on what is typed and printed.
    let mut child = Command::new("script")
        .args(["--quiet", "--return", "--flush", "--command", &chat, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("script, of util-linux, is there");
    let printed = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
    let mut output = child.stdout.take().expect("stdout is piped");
    let kept = printed.clone();
    let reader = std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(len @ 1..) = output.read(&mut buffer) {
            kept.lock().expect("whole").push_str(&String::from_utf8_lossy(&buffer[..len]));
        }
    });
    let times = |part: &str| printed.lock().expect("whole").matches(part).count();
    let mut keys = child.stdin.take().expect("stdin is piped");
    wait_until("the prompt", || times("> ") == 1);
    keys.write_all(b"Hello!\r").expect("it reads");
    wait_until("the prompt after an answer", || times("> ") == 2);
    keys.write_all(CTRL_C).expect("it reads");
    wait_until("the hint", || times("Ctrl-C again") == 1);
    keys.write_all(b"/history\r").expect("it goes on");
    wait_until("the history", || times("user: Hello!") == 1);
    keys.write_all(b"Hello!\r").expect("it reads");
    // What was said at the first one does not hold any more.
    wait_until("one more answer", || metric(&server, "tasks_started_total", &[]) == 2.0 && times("> ") == 5);
    for hints in [2, 2] {
        keys.write_all(CTRL_C).expect("it reads");
        wait_until("the hint", || times("Ctrl-C again") == hints);
    }
    let status = child.wait().expect("it ends");
    reader.join().expect("all was read");
    assert!(!status.success(), "it was ended by the second one: {status}");
}

#[test]
fn models_are_listed_with_what_is_wrong_with_them() {
    let scratch = Scratch::new().expect("a folder");
    std::fs::write(scratch.path().join("broken.gguf"), b"GGUF").expect("a file");
    let folder = scratch.path().display().to_string();
    let output = run_with(&["models", &folder, "--json"], "");
    let told: Value = serde_json::from_str(&said(&output)).expect("JSON");
    assert_eq!((&told[0]["name"], &told[0]["architecture"]), (&json!("wren"), &json!("llama")));
    assert_eq!(told[1]["name"], "broken");
    assert!(told[1]["error"].is_string(), "{told}");
    assert!(said(&run_with(&["models", &folder], "")).contains("cannot be served: "));
}

#[test]
fn the_doctor_finds_what_is_in_the_way() {
    let well = run_with(&["doctor", "--listen", "127.0.0.1:0"], "");
    assert!(well.status.success(), "{}{}", said(&well), complained(&well));
    let server = server();
    let taken = server.address().to_string();
    let ill = run_with(&["doctor", "--listen", &taken, "--artifacts-fs-root", "/proc/nowhere"], "");
    assert_eq!(ill.status.code(), Some(1));
    let text = said(&ill);
    assert!(text.contains("BAD  listen") && text.contains("BAD  artifacts"), "{text}");
    assert!(!text.contains('\x1b'), "colours are for terminals: {text:?}");
    let ill = run_with(&["doctor", "--listen", &taken, "--json"], "");
    let told: Value = serde_json::from_str(&said(&ill)).expect("JSON");
    let listen = told.as_array().expect("a list").iter().find(|c| c["check"] == "listen").expect("it is checked");
    assert_eq!((ill.status.code(), &listen["result"]), (Some(1), &json!("bad")));
}

#[test]
fn settings_are_told_to_scripts_with_where_they_came_from() {
    let output = run_with(&["config", "check", "--threads", "3", "--json"], "");
    let told: Value = serde_json::from_str(&said(&output)).expect("JSON");
    assert_eq!(told["threads"], json!({"value": "3", "source": "flag --threads"}));
    assert_eq!(told["slots_max"]["source"], "default");
}

#[test]
fn a_model_is_not_pulled_without_leave_or_a_client() {
    let check = |arguments: &[&str], status: i32, says: &str| {
        let output = run_with(arguments, "");
        assert_eq!(output.status.code(), Some(status), "{}", complained(&output));
        assert!(complained(&output).contains(says), "{}", complained(&output));
    };
    check(&["pull", "hf:org/repo"], 1, "pull_allow = \"org/repo\"");
    check(&["pull", "org/repo", "--pull-allow", "*"], 2, "hf:org/repo");
    // With the feature, tests/pull.rs has a hub to ask.
    if cfg!(not(feature = "pull")) {
        check(&["pull", "hf:org/repo", "--pull-allow", "org/*"], 1, "--features pull");
    }
}

#[test]
fn shells_and_manuals_get_what_they_read() {
    for (shell, has) in
        [("bash", "complete -F"), ("zsh", "#compdef orchestratord"), ("fish", "complete -c orchestratord")]
    {
        assert!(said(&run_with(&["completions", shell], "")).contains(has), "{shell}");
    }
    let page = said(&run_with(&["man"], ""));
    assert!(page.contains(".TH orchestratord") && page.contains("replay"), "{}", &page[..page.len().min(400)]);
    assert_eq!(run_with(&["completions", "tcsh"], "").status.code(), Some(2));
}
