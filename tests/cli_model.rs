//! The commands that run a model without a server, through the real binary, against what `transformers` says about wren.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use orchestratord_engine::testing::TinyModel;
use serde_json::Value;

fn reference() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/engine/models/reference.json");
    serde_json::from_str(&std::fs::read_to_string(path).expect("reference.json is there")).expect("it is JSON")
}

fn run(arguments: &[&str]) -> Output {
    run_with_input(arguments, b"")
}

fn run_with_input(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_orchestratord"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    // A command that does not read its input may have gone before all of it is written.
    let _ = child.stdin.take().expect("it is piped").write_all(input);
    child.wait_with_output().expect("it ends")
}

fn json(arguments: &[&str], input: &str) -> Value {
    let output = run_with_input(arguments, input.as_bytes());
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("it printed JSON")
}

fn ids(value: &Value) -> String {
    let ids: Vec<String> = value.as_array().expect("a list").iter().map(Value::to_string).collect();
    ids.join(",")
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|x| x.as_f64().expect("a number")).collect()
}

#[test]
fn logits_are_those_of_the_reference() {
    for case in reference()["prompts"].as_array().expect("a list") {
        let got = json(&["logits", "--json", "--tokens", &ids(&case["ids"])], "");
        assert_eq!(got["tokens"], case["ids"], "{}", case["name"]);
        let (got, wanted) = (floats(&got["logits"]), floats(&case["last_logits"]));
        assert_eq!(got.len(), wanted.len());
        let worst = got.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(worst < 1e-3, "{}: {worst}", case["name"]);
    }
}

#[test]
fn the_last_of_all_positions_is_the_last_position() {
    let reference = reference();
    for case in reference["prompts"].as_array().expect("a list").iter().take(5) {
        let tokens = ids(&case["ids"]);
        let last = json(&["logits", "--json", "--tokens", &tokens], "");
        let all = json(&["logits", "--json", "--all-positions", "--threads", "2", "--tokens", &tokens], "");
        let rows = all["logits"].as_array().expect("a list");
        assert_eq!(rows.len(), case["ids"].as_array().expect("a list").len());
        assert_eq!(rows.last(), Some(&last["logits"]), "{}", case["name"]);
        let best = |row: &Value| {
            let row = floats(row);
            (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
        };
        let margins = floats(&case["argmax_margin"]);
        for (position, row) in rows.iter().enumerate().filter(|(p, _)| margins[*p] > 1e-3) {
            assert_eq!(best(row), case["argmax"][position].as_u64().expect("an id") as usize, "{}", case["name"]);
        }
    }
}

#[test]
fn greedy_completions_are_those_of_the_reference() {
    for case in reference()["prompts"].as_array().expect("a list") {
        let got = json(&["complete", "--json", "--max-tokens", "32", "--tokens", &ids(&case["ids"])], "");
        let mut wanted = case["greedy"].as_array().expect("a list").clone();
        if wanted.len() < 32 {
            wanted.pop();
            assert_eq!(got["finish_reason"], "stop", "{}", case["name"]);
        }
        let margins = floats(&case["greedy_margin"]);
        // Where two tokens are as good as equal, rounding may decide otherwise, and what follows says nothing.
        let sure = margins.iter().position(|m| *m < 1e-3).unwrap_or(wanted.len()).min(wanted.len());
        assert!(sure >= wanted.len().min(8), "{}: the reference is of no use", case["name"]);
        assert_eq!(got["tokens"].as_array().expect("a list")[..sure], wanted[..sure], "{}", case["name"]);
    }
}

#[test]
fn text_becomes_the_references_tokens_and_comes_back() {
    for case in reference()["tokenizer"].as_array().expect("a list") {
        let text = case["text"].as_str().expect("a string");
        let got = json(&["tokenize", "--json", "--no-bos"], text);
        assert_eq!(got["tokens"], case["ids"], "{text:?}");
        let tokens = ids(&case["ids"]);
        let back = run_with_input(&["detokenize", "--special"], tokens.as_bytes());
        assert_eq!(String::from_utf8_lossy(&back.stdout), case["decoded"].as_str().expect("a string"), "{text:?}");
    }
}

#[test]
fn conversations_are_rendered_as_the_reference_renders_them() {
    for case in reference()["chats"].as_array().expect("a list") {
        let got = json(&["tokenize", "--json", "--messages", &case["messages"].to_string()], "");
        assert_eq!((&got["text"], &got["tokens"]), (&case["rendered"], &case["ids"]));
    }
}

#[test]
fn a_completion_is_the_same_from_an_argument_and_from_standard_input() {
    let settings = ["complete", "--max-tokens", "12", "--temperature", "0.8", "--seed", "7"];
    let with_argument = run(&[&settings[..], &["--prompt", "Once upon a time"]].concat());
    let with_input = run_with_input(&settings, b"Once upon a time");
    assert!(with_argument.status.success() && !with_argument.stdout.is_empty());
    assert_eq!(with_argument.stdout, with_input.stdout);
    let as_json = json(&[&settings[..], &["--json"]].concat(), "Once upon a time");
    let text = format!("{}\n", as_json["text"].as_str().expect("a string"));
    assert_eq!(text.as_bytes(), with_input.stdout);
}

#[test]
fn what_makes_no_sense_is_refused_with_exit_code_2_and_a_reason() {
    let cases: [(&[&str], &str); 10] = [
        (&["logits", "--tokens", "1,999999"], "token 999999"),
        (&["logits", "--tokens", "1,x"], "\"x\""),
        (&["logits", "--tokens", ""], "no token"),
        (&["logits", "--tokens", "1", "--text", "a"], "cannot be used with"),
        (&["detokenize", "--tokens", "-1"], "-1"),
        (&["complete", "--prompt", "a", "--max-tokens", "0"], "--max-tokens"),
        (&["complete", "--prompt", "a", "--max-tokens", "1000000"], "context"),
        (&["complete", "--prompt", "a", "--temperature", "-1"], "temperature"),
        (&["tokenize", "--messages", "{}"], "messages"),
        (&["complete", "--prompt", "a", "--top-p", "nan"], "top-p"),
    ];
    for (arguments, reason) in cases {
        let output = run(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(reason), "{arguments:?}: {said}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
    let output = run_with_input(&["tokenize"], b"\xff\xfe");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("UTF-8"));
}

#[test]
fn a_model_that_cannot_be_loaded_is_named_with_exit_code_1() {
    let here = env!("CARGO_MANIFEST_DIR");
    for path in ["/nowhere/at-all.gguf", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"), here] {
        for command in ["logits", "tokenize", "detokenize", "complete"] {
            let output = run_with_input(&[command, "--model", path], b"1");
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{command} {path}: {said}");
            assert!(said.contains(path) && said.trim_end().lines().count() == 1, "{command} {path}: {said}");
        }
    }
}

#[test]
fn a_folder_is_a_model_as_a_file_is() {
    let references = concat!(env!("CARGO_MANIFEST_DIR"), "/engine/tests/references");
    for name in ["llama2", "gemma3", "phi3"] {
        let path = format!("{references}/{name}");
        let reference = std::fs::read_to_string(format!("{path}.json")).expect("the reference is there");
        let reference: Value = serde_json::from_str(&reference).expect("it is JSON");
        for case in reference["cases"].as_array().expect("a list") {
            let arguments = ["logits", "--json", "--model", &path, "--tokens", &ids(&case["ids"])];
            let (got, wanted) = (floats(&json(&arguments, "")["logits"]), floats(&case["last_logits"]));
            let worst = got.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(got.len() == wanted.len() && worst < 1e-3, "{name}, {}: {worst}", case["name"]);
        }
    }
}

#[test]
fn what_is_not_supported_is_named_in_one_line() {
    let folder = std::env::temp_dir().join(format!("orchestratord-cli-model-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder can be made");
    let tiny = |architecture| TinyModel { architecture, ..TinyModel::default() }.to_bytes();
    let mut strange_type = tiny("llama");
    // The first tensor's name, its number of dimensions, two of those, then its type: 29 is IQ1_M.
    let name = b"token_embd.weight";
    let at = strange_type.windows(name.len()).position(|w| w == name).expect("the tensor is there");
    strange_type[at + name.len() + 4 + 16..][..4].copy_from_slice(&29u32.to_le_bytes());
    let config = |text: &str| text.as_bytes().to_vec();
    let files = [
        ("architecture.gguf", tiny("rwkv7"), "\"rwkv7\""),
        ("type.gguf", strange_type, "IQ1_M"),
        ("mamba/config.json", config(r#"{"model_type": "mamba"}"#), "model.safetensors"),
        ("no-model/config.json", config("{}"), "model.safetensors"),
        ("broken/config.json", config("{"), "config.json"),
    ];
    for (name, bytes, wanted) in files {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder can be made");
        std::fs::write(&path, bytes).expect("it can be written");
        let model = if name.ends_with(".json") { path.parent().expect("a folder").to_owned() } else { path };
        let output = run(&["logits", "--tokens", "1", "--model", model.to_str().expect("it is text")]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{name}: {said}");
        assert!(said.contains(wanted) && said.trim_end().lines().count() == 1, "{name}: {said}");
    }
    // An architecture is named before its weights are looked for.
    let llama = concat!(env!("CARGO_MANIFEST_DIR"), "/engine/tests/references/llama3");
    std::fs::copy(format!("{llama}/model.safetensors"), folder.join("mamba/model.safetensors")).expect("copied");
    let output = run(&["logits", "--tokens", "1", "--model", folder.join("mamba").to_str().expect("it is text")]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("\"mamba\""));
    std::fs::remove_dir_all(&folder).expect("it can be removed");
}

#[test]
fn a_completion_takes_the_form_that_is_asked_for() {
    let complete = |format: &[&str]| {
        json(&[&["complete", "--json", "--prompt", "Once upon a time", "--max-tokens", "60"], format].concat(), "")
    };
    let got = complete(&["--regex", "[A-Z][a-z]{2,5} [0-9]{2}"]);
    let text = got["text"].as_str().expect("text");
    let (word, number) = text.split_once(' ').expect("a space");
    assert!((3..=6).contains(&word.len()) && number.len() == 2 && got["finish_reason"] == "stop", "{text}");
    let got = complete(&["--json-schema", r#"{"enum": ["fox", "owl"]}"#, "--temperature", "2"]);
    assert!(["\"fox\"", "\"owl\""].contains(&got["text"].as_str().expect("text")), "{got}");
    let output = run(&["complete", "--prompt", "a", "--regex", "("]);
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A list that is written from the right, with letters that two rules know: its masks soon take longer than they may.
#[test]
fn a_grammar_that_cannot_be_followed_any_further_is_said_with_exit_code_1_in_a_line_of_its_own() {
    let grammar = "start: list \"~\"\nlist: one list | one\none: few | /[a-z ]/\nfew: /[a-d]/";
    let output = run(&["complete", "--prompt", "Once", "--max-tokens", "40", "--grammar", grammar]);
    let (said, why) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{said}{why}");
    assert!(said.len() > 1 && said.find('\n') == Some(said.len() - 1), "{said:?}");
    assert!(why.contains("grammar") && why.contains("simpler"), "{why}");
}

#[test]
fn bench_measures_each_shape_and_says_what_it_needs() {
    let shapes = ["bench", "--json", "--prompt", "16", "--decode", "4", "--rounds", "1", "--sequences", "1,3"];
    let rows = json(&shapes, "");
    let rows = rows.as_array().expect("a list");
    assert_eq!(rows.iter().map(|r| r["sequences"].as_u64()).collect::<Vec<_>>(), [Some(1), Some(3)]);
    for row in rows {
        let number = |name: &str| row[name].as_f64().unwrap_or_else(|| panic!("{name} in {row}"));
        assert!(number("prefill_tokens_per_s") > 0.0 && number("decode_tokens_per_s") > 0.0, "{row}");
        let share =
            number("decode_tokens_per_s") / number("sequences") * number("step_bytes") / number("read_bytes_per_s");
        assert!((share / number("bandwidth_share") - 1.0).abs() < 1e-9, "{row}");
    }
    for (arguments, named) in [
        (&["bench", "--prompt", "999999"][..], "context"),
        (&["bench", "--llama"], "--model"),
        (&["bench", "--threads", "0"], "--threads"),
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(named), "{arguments:?}");
    }
    // A model of its own has a table for the output and one for look-ups; a step reads the first.
    let folder = std::env::temp_dir().join(format!("orchestratord-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let bytes = |untied: bool| {
        let path = folder.join("model.gguf");
        std::fs::write(&path, TinyModel { untied, ..TinyModel::default() }.to_bytes()).expect("a file");
        let path = path.to_str().expect("UTF-8");
        let row = json(&["bench", "--json", "--prompt", "4", "--decode", "2", "--rounds", "1", "--model", path], "");
        let no_python = run(&[
            "bench",
            "--llama",
            "--python",
            "/nonexistent/python",
            "--rounds",
            "1",
            "--model",
            path,
            "--prompt",
            "4",
            "--decode",
            "2",
        ]);
        assert_eq!(no_python.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&no_python.stderr).contains("--python"));
        row[0]["step_bytes"].as_u64().expect("bytes")
    };
    assert_eq!(bytes(false), bytes(true));
    std::fs::remove_dir_all(&folder).expect("it was there");
}
