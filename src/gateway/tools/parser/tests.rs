use serde_json::json;

use super::super::family::by_name;
use super::*;

/// Text, and calls with their arguments.
type Said = (&'static str, &'static [(&'static str, &'static str)]);

const WEATHER: &str = r#"{"city": "Paris", "unit": "celsius"}"#;

/// What models of each family write, as their authors publish it, and what is wrong in likely ways.
const CASES: &[(&str, &str, Said)] = &[
    ("hermes", "Just text.", ("Just text.", &[])),
    (
        "hermes",
        "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Paris\", \"unit\": \"celsius\"}}\n</tool_call>",
        ("", &[("weather", WEATHER)]),
    ),
    (
        "hermes",
        "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Paris\", \"unit\": \"celsius\"}}\n</tool_call>\n\
         <tool_call>\n{\"name\": \"time\", \"arguments\": {}}\n</tool_call>\n",
        ("", &[("weather", WEATHER), ("time", "{}")]),
    ),
    (
        "hermes",
        "Let me look: 1 < 2, <tool>.\n<tool_call>\n{\"arguments\": {\"a\": \"}\\\"</tool_call>{\"}, \"name\": \"time\"}\n</tool_call>",
        ("Let me look: 1 < 2, <tool>.", &[("time", r#"{"a": "}\"</tool_call>{"}"#)]),
    ),
    ("hermes", "<tool_call>{\"name\":\"time\"}</tool_call>", ("", &[("time", "{}")])),
    (
        "hermes",
        "<tool_call>{\"name\":\"time\",\"arguments\":\"{\\\"a\\\": 1}\"}</tool_call>",
        ("", &[("time", r#"{"a": 1}"#)]),
    ),
    ("hermes", "<tool_call>{\"name\":\"time\",\"id\": 12,\"arguments\":null}</tool_call>", ("", &[("time", "{}")])),
    // Another function, and what is no call at all, are text.
    (
        "hermes",
        "<tool_call>\n{\"name\": \"rm\", \"arguments\": {}}\n</tool_call>",
        ("<tool_call>\n{\"name\": \"rm\", \"arguments\": {}}\n</tool_call>", &[]),
    ),
    ("hermes", "Write <tool_call> and </tool_call>.", ("Write <tool_call> and </tool_call>.", &[])),
    ("hermes", "<tool_call>\n{\"name\": ", ("<tool_call>\n{\"name\": ", &[])),
    ("hermes", "<<tool_call>{\"name\":\"time\"}</tool_call>", ("<", &[("time", "{}")])),
    // Cut short in the arguments: what there is of them is told.
    (
        "hermes",
        "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Pa",
        ("", &[("weather", r#"{"city": "Pa"#)]),
    ),
    (
        "llama3",
        "{\"name\": \"weather\", \"parameters\": {\"city\": \"Paris\", \"unit\": \"celsius\"}}",
        ("", &[("weather", WEATHER)]),
    ),
    (
        "llama3",
        "<|python_tag|>{\"name\": \"weather\", \"parameters\": {\"city\": \"Paris\", \"unit\": \"celsius\"}}",
        ("", &[("weather", WEATHER)]),
    ),
    (
        "llama3",
        "\n{\"type\": \"function\", \"name\": \"time\", \"parameters\": {\"n\": 7}}; {\"name\": \"time\", \"parameters\": {}}",
        ("", &[("time", r#"{"n": 7}"#), ("time", "{}")]),
    ),
    ("llama3", "{\"answer\": [42, {}]}", ("{\"answer\": [42, {}]}", &[])),
    ("llama3", "See {\"name\": \"time\", \"parameters\": {}}", ("See {\"name\": \"time\", \"parameters\": {}}", &[])),
    ("llama3", "<|python_tag|>time.call()", ("<|python_tag|>time.call()", &[])),
    (
        "mistral",
        "[TOOL_CALLS] [{\"name\": \"weather\", \"arguments\": {\"city\": \"Paris\", \"unit\": \"celsius\"}, \"id\": \"VvvODy9mT\"}]",
        ("", &[("weather", WEATHER)]),
    ),
    (
        "mistral",
        "[TOOL_CALLS][{\"name\": \"time\", \"arguments\": {\"a\": [1, \"]\"]}}, {\"name\": \"time\", \"arguments\": {}}]",
        ("", &[("time", r#"{"a": [1, "]"]}"#), ("time", "{}")]),
    ),
    ("mistral", "A list: [1, 2] [TOOL", ("A list: [1, 2] [TOOL", &[])),
    (
        "mistral-args",
        "[TOOL_CALLS]weather[ARGS]{\"city\": \"Paris\", \"unit\": \"celsius\"}[TOOL_CALLS]time[ARGS]{}",
        ("", &[("weather", WEATHER), ("time", "{}")]),
    ),
    (
        "mistral-args",
        "Yes.[TOOL_CALLS]weather[CALL_ID]VvvODy9mT[ARGS]{\"city\": \"Paris\", \"unit\": \"celsius\"}",
        ("Yes.", &[("weather", WEATHER)]),
    ),
    ("mistral-args", "[TOOL_CALLS]rm[ARGS]{}", ("[TOOL_CALLS]rm[ARGS]{}", &[])),
    (
        "qwen3-coder",
        "I look.\n<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=unit>\ncelsius\n</parameter>\n\
         </function>\n</tool_call>",
        ("I look.", &[("weather", WEATHER)]),
    ),
    // Strings are as they stand, over several lines and with what looks like an end; other kinds are JSON if they can be.
    (
        "qwen3-coder",
        "<tool_call>\n<function=weather>\n<parameter=city>\n\"Paris\"\n\n</param>\\\n</parameter>\n<parameter=days>\n3\n</parameter>\n\
         <parameter=more>\n[1, {\"a\": True}]\n</parameter>\n<parameter=flag>\nTrue\n</parameter>\n</function>\n</tool_call>\n\
         <tool_call>\n<function=time>\n</function>\n</tool_call>",
        (
            "",
            &[
                (
                    "weather",
                    r#"{"city": "\"Paris\"\n\n</param>\\", "days": 3, "more": "[1, {\"a\": True}]", "flag": true}"#,
                ),
                ("time", "{}"),
            ],
        ),
    ),
    ("qwen3-coder", "<tool_call>\n<function=rm>\n</function>", ("<tool_call>\n<function=rm>\n</function>", &[])),
    ("qwen3-coder", "Use <tool_call> like <function=x", ("Use <tool_call> like <function=x", &[])),
    ("qwen3-coder", "<tool_call>\n<function=weather>\n<parameter=city>\nPa", ("", &[("weather", r#"{"city": "Pa"#)])),
    (
        "glm",
        "Yes.\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n<arg_key>unit</arg_key>\n\
         <arg_value>celsius</arg_value>\n</tool_call>",
        ("Yes.", &[("weather", WEATHER)]),
    ),
    (
        "glm",
        "<tool_call>weather<arg_key>days</arg_key><arg_value>3</arg_value></tool_call><tool_call>time</tool_call>",
        ("", &[("weather", r#"{"days": 3}"#), ("time", "{}")]),
    ),
    ("glm", "<tool_call>rm\n</tool_call>", ("<tool_call>rm\n</tool_call>", &[])),
    (
        "phi4",
        "<|tool_call|>[{\"name\": \"weather\", \"arguments\": {\"city\": \"Paris\", \"unit\": \"celsius\"}}, {\"name\": \"time\"}]<|/tool_call|>",
        ("", &[("weather", WEATHER), ("time", "{}")]),
    ),
    (
        "phi4-functools",
        "I look: functools[{\"name\": \"weather\", \"arguments\": {\"city\": \"Paris\", \"unit\": \"celsius\"}}, {\"name\": \"time\"}]",
        ("I look:", &[("weather", WEATHER), ("time", "{}")]),
    ),
    (
        "phi4-functools",
        "functools[\n  {\"name\": \"time\", \"arguments\": {\"a\": [1]}}\n]\nfunctools[{\"name\": \"time\"}]",
        ("", &[("time", r#"{"a": [1]}"#), ("time", "{}")]),
    ),
    ("phi4-functools", "import functools\nfunctools[0]", ("import functools\nfunctools[0]", &[])),
    ("phi4-functools", "functools[[{\"name\": \"time\"}]]", ("functools[[{\"name\": \"time\"}]]", &[])),
    (
        "phi4-object",
        "<|tool_call|>{\"name\": \"weather\", \"arguments\": {\"city\": \"Paris\", \"unit\": \"celsius\"}}<|/tool_call|>",
        ("", &[("weather", WEATHER)]),
    ),
    (
        "deepseek",
        "Yes.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{\"city\": \"Paris\", \"unit\": \"celsius\"}\n\
         ```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>time\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        ("Yes.", &[("weather", WEATHER), ("time", "{}")]),
    ),
    (
        "deepseek-v3.1",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{\"city\": \"Paris\", \"unit\": \"celsius\"}<｜tool▁call▁end｜>\
         <｜tool▁call▁begin｜>time<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        ("", &[("weather", WEATHER), ("time", "{}")]),
    ),
    (
        "deepseek-v3.1",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>rm<｜tool▁sep｜>{}<｜tool▁call▁end｜>",
        ("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>rm<｜tool▁sep｜>{}<｜tool▁call▁end｜>", &[]),
    ),
];

fn functions() -> Vec<Callable> {
    let properties =
        json!({"city": {"type": "string"}, "unit": {"enum": ["celsius", "kelvin"]}, "days": {"type": "integer"}});
    let weather = Callable { name: "weather".into(), parameters: json!({"type": "object", "properties": properties}) };
    vec![weather, Callable { name: "time".into(), parameters: json!({"type": "object"}) }]
}

fn read(family: &str, parts: &[&str]) -> (String, Vec<(String, String)>) {
    let mut parser = Parser::new(by_name(family), functions());
    let mut pieces: Vec<Piece> = parts.iter().flat_map(|part| parser.push(part)).collect();
    pieces.extend(parser.finish());
    let (mut text, mut calls) = (String::new(), Vec::new());
    for piece in pieces {
        match piece {
            Piece::Text(more) => text.push_str(&more),
            Piece::Call(name) => calls.push((name, String::new())),
            Piece::Arguments(more) => calls.last_mut().expect("arguments follow a name").1.push_str(&more),
        }
    }
    (text, calls)
}

#[test]
fn each_familys_calls_are_read_wherever_tokens_end() {
    for (family, said, (text, calls)) in CASES {
        let wanted: Vec<(String, String)> = calls.iter().map(|(n, a)| ((*n).to_owned(), (*a).to_owned())).collect();
        let check = |parts: &[&str]| {
            let (read_text, read_calls) = read(family, parts);
            assert_eq!((read_text.trim_end(), &read_calls), (text.trim_end(), &wanted), "{family}: {parts:?}");
        };
        check(&[said]);
        for at in (1..said.len()).filter(|at| said.is_char_boundary(*at)) {
            check(&[&said[..at], &said[at..]]);
        }
        let single: Vec<String> = said.chars().map(String::from).collect();
        check(&single.iter().map(String::as_str).collect::<Vec<_>>());
    }
}

#[test]
fn arguments_go_out_as_they_come_and_text_is_held_no_longer_than_needed() {
    let mut parser = Parser::new(by_name("hermes"), functions());
    assert_eq!(parser.push("Well, <too"), [Piece::Text("Well,".into())]);
    assert_eq!(parser.push("th> "), [Piece::Text(" <tooth>".into())]);
    assert_eq!(parser.push("<tool_call>{\"name\": \"ti"), []);
    assert_eq!(
        parser.push("me\", \"arguments\": {\"a\""),
        [Piece::Call("time".into()), Piece::Arguments("{\"a\"".into())]
    );
    assert_eq!(parser.push(": 1"), [Piece::Arguments(": 1".into())]);
    assert_eq!(parser.push("}}</tool_call>\n"), [Piece::Arguments("}".into())]);
    assert_eq!((parser.finish(), parser.call_count), (vec![], 1));
}

/// Reads an answer a few bytes at a time, as tokens come; how many characters were taken for each that was said.
fn read_counted(family: &str, said: &str) -> (String, Vec<String>, f64) {
    let mut parser = Parser::new(by_name(family), functions());
    let mut pieces = Vec::new();
    let chars: Vec<char> = said.chars().collect();
    for token in chars.chunks(4) {
        pieces.extend(parser.push(&token.iter().collect::<String>()));
    }
    pieces.extend(parser.finish());
    let (mut text, mut calls) = (String::new(), Vec::new());
    for piece in pieces {
        match piece {
            Piece::Text(more) => text.push_str(&more),
            Piece::Call(_) => calls.push(String::new()),
            Piece::Arguments(more) => calls.last_mut().expect("arguments follow a name").push_str(&more),
        }
    }
    (text, calls, parser.step_count as f64 / chars.len() as f64)
}

#[test]
fn a_long_call_is_read_once() {
    for (family, head, tail) in [
        ("hermes", "<tool_call>{\"name\": \"time\", \"arguments\": ", "}</tool_call>"),
        ("llama3", "{\"name\": \"time\", \"parameters\": ", "}"),
        ("phi4-functools", "functools[{\"name\": \"time\", \"arguments\": ", "}]"),
        ("mistral-args", "[TOOL_CALLS]time[ARGS]", ""),
    ] {
        // With what would begin a call where text is, in its strings.
        let arguments = format!("{{\"a\": [\"{}\", {{}}]}}", format!("x{head}").replace('"', "\\\"").repeat(5_000));
        let (text, calls, reads) = read_counted(family, &format!("{head}{arguments}{tail}"));
        assert!(text.is_empty() && calls == [arguments], "{family}: {text:?}");
        assert_eq!(reads, 1.0, "{family}");
    }
    let body = "x </parameter ".repeat(10_000);
    let coder =
        format!("<tool_call>\n<function=weather>\n<parameter=city>\n{body}\n</parameter>\n</function>\n</tool_call>");
    let (_, calls, reads) = read_counted("qwen3-coder", &coder);
    assert_eq!((calls, reads), (vec![json!({ "city": body }).to_string().replace("\":\"", "\": \"")], 1.0));
}

/// Each beginning is read as one, and given up, within the one before it: what that costs has a bound for each character.
#[test]
fn what_never_is_a_call_is_text_and_read_a_bounded_number_of_times() {
    let most = 1.0 + READ_AGAIN_MAX as f64;
    for (family, said) in [
        ("hermes", "<tool_call>{\"a\":".repeat(4_000) + "1" + &"}".repeat(4_000)),
        ("hermes", "<tool_call>{\"a\":[\"".repeat(4_000)),
        ("llama3", "<|python_tag|>{\"a\":".repeat(4_000) + "1" + &"}".repeat(4_000)),
        ("mistral", "[TOOL_CALLS][{\"a\":".repeat(4_000) + "1" + &"}]".repeat(4_000)),
        ("glm", "<tool_call>".repeat(8_000)),
        ("hermes", " ".repeat(100_000) + "<tool_call>" + &" ".repeat(100_000) + "x"),
        ("hermes", "< ".repeat(50_000)),
    ] {
        let (text, calls, reads) = read_counted(family, &said);
        assert!(text == said && calls.is_empty(), "{family}: {:?}", &said[..20]);
        assert!(reads <= most, "{family}: {:?} was read {reads} times", &said[..20]);
    }
    // A call that begins within one that was none is found, though.
    let said = "<tool_call>{\"a\": \"<tool_call>{\"name\": \"time\"}</tool_call>";
    let (text, calls, _) = read_counted("hermes", said);
    assert_eq!((text.as_str(), calls), ("<tool_call>{\"a\": \"", vec!["{}".to_owned()]));
}
