//! What clients of llama.cpp's server and of vLLM bring along: it is taken in the sense that it has there, or refused by name,
//! and never ignored. After the cases of llama.cpp's own server tests, by meaning.

mod common;

use common::gateway::*;
use common::*;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";
const MESSAGES: &str = "/v1/messages";

fn with(mut body: Value, changes: Value) -> Value {
    body.as_object_mut().expect("an object").extend(changes.as_object().expect("changes").clone());
    body
}

fn completion(changes: Value) -> Value {
    with(json!({ "model": "wren", "prompt": "Once upon a time", "temperature": 0, "max_tokens": 24 }), changes)
}

fn check_refused(gateway: &Client, path: &str, body: &Value, param: &str) {
    let error = gateway_refusal(&ask(gateway, path, body), 400, "invalid_value");
    assert_eq!(error["param"], param, "{path} {body}: {error}");
}

fn text_of(whole: &Value) -> &str {
    let choice = &whole["choices"][0];
    choice["message"]["content"].as_str().or(choice["text"].as_str()).expect("text")
}

fn joined(chunks: &[Value]) -> String {
    let choices = chunks.iter().map(|c| &c["choices"][0]);
    choices.filter_map(|c| c["delta"]["content"].as_str().or(c["text"].as_str())).collect()
}

#[test]
fn other_servers_own_fields_are_refused_by_name() {
    let (_server, gateway) = with_gateway(Settings::default());
    let on = json!(true);
    let both = [
        ("n_predict", json!(8)),
        ("n_keep", json!(-1)),
        ("n_probs", json!(10)),
        ("n_cmpl", json!(2)),
        ("cache_prompt", on.clone()),
        ("id_slot", json!(0)),
        ("return_tokens", on.clone()),
        ("return_progress", on.clone()),
        ("timings_per_token", on.clone()),
        ("response_fields", json!(["content"])),
        ("post_sampling_probs", on.clone()),
        ("grammar", json!("root ::= \"a\"")),
        ("json_schema", json!({ "const": "42" })),
        ("lora", json!([{ "id": 0, "scale": 0.5 }])),
        ("samplers", json!(["top_k"])),
        ("typical_p", json!(0.9)),
        ("mirostat", json!(2)),
        ("dry_multiplier", json!(0.8)),
        ("xtc_probability", json!(0.5)),
        ("dynatemp_range", json!(0.5)),
        ("t_max_predict_ms", json!(10)),
        ("guided_json", json!({})),
        ("guided_regex", json!("a+")),
        ("structured_outputs", json!({ "regex": "a+" })),
        ("stop_token_ids", json!([2])),
        ("prompt_logprobs", json!(1)),
        ("use_beam_search", on.clone()),
        ("length_penalty", json!(1.2)),
        ("skip_special_tokens", json!(false)),
        ("include_stop_str_in_output", on.clone()),
        ("truncate_prompt_tokens", json!(4)),
    ];
    let chats_alone = [
        ("echo", on.clone()),
        ("prompt", json!("x")),
        ("add_generation_prompt", json!(false)),
        ("continue_final_message", on.clone()),
        ("chat_template", json!("{{ messages }}")),
        ("chat_template_kwargs", json!({ "enable_thinking": false })),
        ("reasoning_format", json!("none")),
        ("reasoning_effort", json!("low")),
        ("functions", json!([{ "name": "f" }])),
        ("function_call", json!("auto")),
        ("prediction", json!({ "type": "content", "content": "x" })),
        ("web_search_options", json!({})),
        ("verbosity", json!("high")),
    ];
    for (name, value) in both.iter().chain(&chats_alone) {
        check_refused(&gateway, CHAT, &chat(json!({ *name: value })), name);
    }
    for (name, value) in &both {
        check_refused(&gateway, TEXT, &completion(json!({ *name: value })), name);
    }
    // Lengths without an end, biases as pairs or of words.
    for (changes, param) in [
        (json!({ "max_tokens": -1 }), "max_tokens"),
        (json!({ "logit_bias": [[5, -100]] }), "logit_bias"),
        (json!({ "logit_bias": { " the ": -100 } }), "logit_bias"),
        (json!({ "logit_bias": { "5": false } }), "logit_bias"),
    ] {
        check_refused(&gateway, CHAT, &chat(changes.clone()), param);
        check_refused(&gateway, TEXT, &completion(changes), param);
    }
}

#[test]
fn other_servers_own_routes_are_not_there() {
    let (_server, gateway) = with_gateway(Settings::default());
    for path in ["/completion", "/completions", "/chat/completions", "/infill", "/embedding", "/rerank", "/v1/rerank"] {
        let answer = gateway.send(&Request::post(path, &json!({ "prompt": "x" }))).expect("an answer");
        let error = gateway_refusal(&answer, 404, "not_found");
        assert!(error["message"].as_str().expect("a message").contains(path), "{error}");
    }
    for path in ["/slots", "/props", "/lora-adapters", "/models", "/v1/health"] {
        gateway_refusal(&gateway.send(&Request::get(path)).expect("an answer"), 404, "not_found");
    }
}

#[test]
fn turns_that_are_none_are_refused() {
    let (_server, gateway) = with_gateway(Settings::default());
    let user = json!({ "role": "user", "content": "test" });
    for messages in [
        Value::Null,
        json!("a text"),
        json!({ "role": "user", "content": "not in a list" }),
        json!([123]),
        json!([{}]),
        json!([{ "role": 123 }]),
        json!([{ "role": "user" }]),
        json!([{ "content": "nobody's" }]),
        json!([{ "role": "system", "content": 123 }]),
        json!([user, {}]),
        json!([{ "role": "user", "content": [{ "type": "text" }] }]),
        json!([{ "role": "user", "content": [{ "type": "input_audio", "input_audio": { "data": "" } }] }]),
        json!([user, { "role": "assistant", "content": "So it", "prefix": true }]),
        json!([user, { "role": "assistant", "content": "So it", "partial": true }]),
    ] {
        for (path, body) in [(CHAT, chat(json!({}))), ("/apply-template", json!({})), ("/tokenize", json!({}))] {
            check_refused(&gateway, path, &with(body, json!({ "messages": messages })), "messages");
        }
    }
    // An answer comes back with the fields that answers have; a speaker may have a name.
    let turns = json!([
        { "role": "user", "content": "Hi", "name": "Ada" },
        { "role": "assistant", "content": "Hello!", "refusal": null, "annotations": [], "audio": null, "function_call": null },
        user,
    ]);
    let plain = json!([{ "role": "user", "content": "Hi" }, { "role": "assistant", "content": "Hello!" }, user]);
    let prompt = |turns: &Value| told(&gateway, "/apply-template", &json!({ "messages": turns }))["prompt"].clone();
    assert_eq!(prompt(&turns), prompt(&plain));
    // Parts are one text, and an answer after the assistant's own turn is a turn of its own.
    let parts =
        json!([{ "role": "user", "content": [{ "type": "text", "text": "te" }, { "type": "text", "text": "st" }] }]);
    assert_eq!(prompt(&parts), prompt(&json!([user])));
    let before = prompt(&json!([user, { "role": "assistant", "content": "Well" }]));
    assert!(before.as_str().expect("text").ends_with("Well<|end|><|assistant|>"), "{before}");
}

#[test]
fn a_body_that_is_no_object_is_refused_and_told_so() {
    let (_server, gateway) = with_gateway(Settings::default());
    for path in [CHAT, TEXT, "/v1/embeddings", "/v1/responses", "/tokenize", "/detokenize", "/apply-template"] {
        for (body, says) in [
            ("", "empty"),
            ("hello", "not JSON"),
            ("{\"model\": ", "not JSON"),
            ("[1]", "not an object"),
            ("7", "not an object"),
        ] {
            let request = Request { body: body.into(), ..Request::post(path, &json!({})) };
            let error = gateway_refusal(&gateway.send(&request).expect("an answer"), 400, "invalid_value");
            assert!(error["message"].as_str().expect("a message").contains(says), "{path} {body:?}: {error}");
        }
    }
}

#[test]
fn a_stream_says_once_who_speaks_and_has_one_id() {
    let (_server, gateway) = with_gateway(Settings::default());
    let streamed = chunks(&gateway, CHAT, &chat(json!({ "n": 2, "stream_options": { "include_usage": true } })));
    for index in [0, 1] {
        let own = streamed.iter().filter_map(|c| c["choices"].as_array()?.iter().find(|c| c["index"] == index));
        let own: Vec<&Value> = own.collect();
        let (first, rest) = own.split_first().expect("chunks");
        assert_eq!(first["delta"], json!({ "role": "assistant", "content": "" }));
        assert!(rest.iter().all(|c| c["delta"].get("role").is_none()), "{rest:?}");
        let (last, before) = rest.split_last().expect("chunks");
        assert!(last["finish_reason"].is_string() && before.iter().all(|c| c["finish_reason"].is_null()));
        assert!(last["delta"].get("content").is_none());
    }
    assert!(streamed.iter().all(|c| c["id"] == streamed[0]["id"] && c["created"] == streamed[0]["created"]));
}

#[test]
fn prompts_of_mixed_kinds_are_refused() {
    let (_server, gateway) = with_gateway(Settings::default());
    for input in [
        json!([12, 34, "a text", 56]),
        json!(["a text", [12, 34]]),
        json!([[12, 34], [12, "a text"]]),
        json!([12, -1]),
        json!([1.5]),
        json!({ "prompt_string": "a text" }),
        json!({ "content": [{ "type": "text", "text": "a text" }] }),
        json!({ "content": [{ "type": "image_url", "image_url": { "url": "data:image/png;base64,AAAA" } }] }),
        json!([]),
        json!(true),
        Value::Null,
    ] {
        check_refused(&gateway, TEXT, &completion(json!({ "prompt": input })), "prompt");
        check_refused(&gateway, "/v1/embeddings", &json!({ "model": "wren", "input": input }), "input");
    }
    for (path, body, param) in [
        (TEXT, completion(json!({ "prompt": [[]] })), "prompt"),
        ("/v1/embeddings", json!({ "model": "wren", "input": [[]] }), "input"),
        ("/v1/embeddings", json!({ "model": "wren", "input": [9_999_999] }), "input"),
    ] {
        let error = gateway_refusal(&ask(&gateway, path, &body), 400, "invalid_value");
        let message = error["message"].as_str().expect("a message");
        assert!(error["param"] == param && message.contains(&format!("`{param}`")), "{error}");
    }
    let vectors = |input: Value| told(&gateway, "/v1/embeddings", &json!({ "model": "wren", "input": input }));
    let same = vectors(json!(["This is a test", "This is a test", "Another"]));
    assert_eq!(same["data"][0]["embedding"], same["data"][1]["embedding"]);
    assert_ne!(same["data"][0]["embedding"], same["data"][2]["embedding"]);
    let long = json!({ "model": "wren", "input": "This is a test ".repeat(1000) });
    let error = gateway_refusal(&ask(&gateway, "/v1/embeddings", &long), 400, "context_length_exceeded");
    assert_eq!(error["param"], "input");
    for field in [json!({ "pooling": "none" }), json!({ "embd_normalize": 2 })] {
        let name = field.as_object().and_then(|f| f.keys().next()).expect("a field").clone();
        check_refused(&gateway, "/v1/embeddings", &with(json!({ "model": "wren", "input": "a" }), field), &name);
    }
}

#[test]
fn text_is_tokenized_in_the_sense_of_the_word_it_comes_in() {
    let (_server, gateway) = with_gateway(Settings::default());
    let text = "What is the capital of France? Grüße 媽 🤗";
    let tokens = |body: Value| told(&gateway, "/tokenize", &body)["tokens"].as_array().expect("tokens").clone();
    // llama.cpp's word is the text alone, vLLM's is what the model would read.
    let (bare, read) = (tokens(json!({ "content": text })), tokens(json!({ "prompt": text })));
    assert_eq!(read[1..], bare, "one token comes before any text");
    assert_eq!(tokens(json!({ "content": text, "add_special": true })), read);
    assert_eq!(tokens(json!({ "prompt": text, "add_special_tokens": false })), bare);
    assert_eq!(told(&gateway, "/detokenize", &json!({ "tokens": bare }))["content"], text);
    assert_eq!(tokens(json!({ "content": "" })), Vec::<Value>::new());
    for (body, param) in [
        (json!({ "content": text, "prompt": text }), "content"),
        (json!({ "content": text, "with_pieces": true }), "with_pieces"),
        (json!({ "content": text, "parse_special": false }), "parse_special"),
        (json!({ "content": text, "messages": [] }), "messages"),
        (json!({ "messages": chat(json!({}))["messages"], "add_special": true }), "add_special_tokens"),
        (json!({ "content": [1, 2] }), "content"),
        (json!({}), "messages"),
    ] {
        check_refused(&gateway, "/tokenize", &body, param);
    }
    for tokens in [json!("1"), json!(["1"]), json!([-1]), Value::Null] {
        check_refused(&gateway, "/detokenize", &json!({ "tokens": tokens }), "tokens");
    }
}

#[test]
fn a_context_that_fills_up_ends_an_answer_and_a_prompt_too_long_for_it_is_refused() {
    // Sixteen blocks of sixteen cells.
    let settings = Settings::default().with("kv_blocks_max", 16).with("gateway_max_tokens", 4096);
    let (_server, gateway) = with_gateway(settings);
    let unbounded = with(chat(json!({ "ignore_eos": true })), json!({ "max_tokens": null }));
    let whole = told(&gateway, CHAT, &unbounded);
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
    assert_eq!(whole["usage"]["total_tokens"], 256, "{}", whole["usage"]);
    let streamed = chunks(&gateway, CHAT, &unbounded);
    assert_eq!(streamed.last().expect("chunks")["choices"][0]["finish_reason"], "length");
    assert_eq!(joined(&streamed), text_of(&whole));

    let long = "What is the best book? ".repeat(100);
    let turns = json!([{ "role": "user", "content": long }]);
    for (path, body, param) in [
        (CHAT, chat(json!({ "messages": turns })), "messages"),
        // A stream is refused before it is one.
        (CHAT, chat(json!({ "messages": turns, "stream": true })), "messages"),
        (CHAT, chat(json!({ "messages": turns, "max_tokens": null })), "messages"),
        (TEXT, completion(json!({ "prompt": long })), "prompt"),
        (TEXT, completion(json!({ "max_tokens": 256 })), "prompt"),
        ("/v1/responses", json!({ "model": "wren", "input": turns }), "input"),
    ] {
        let error = gateway_refusal(&ask(&gateway, path, &body), 400, "context_length_exceeded");
        assert_eq!(error["param"], param, "{path}: {error}");
        let message = error["message"].as_str().expect("a message");
        assert!(message.contains("256"), "says how much there is: {error}");
        assert!(!message.contains("`prompt`") || param == "prompt", "nobody sent a field of that name: {error}");
    }
    let message = json!({ "model": "wren", "max_tokens": 8, "messages": turns });
    assert_eq!(ask(&gateway, MESSAGES, &message).status, 400);
    // A client that counts first is told the same.
    let counted = told(&gateway, "/tokenize", &json!({ "messages": turns }))["count"].as_u64().expect("a count");
    assert!(counted > 256);
}

#[test]
fn a_stop_is_never_shown_whole_or_streamed_and_across_tokens() {
    let (_server, gateway) = with_gateway(Settings::default());
    for (path, body) in [(CHAT, chat(json!({}))), (TEXT, completion(json!({})))] {
        let text = text_of(&told(&gateway, path, &body)).to_owned();
        let chars: Vec<char> = text.chars().collect();
        // Pieces that begin and end in the middle of words.
        for from in [3, 8, 13] {
            let stop: String = chars[from..from + 7].iter().collect();
            let body = with(body.clone(), json!({ "stop": ["never said by anybody", stop] }));
            let whole = told(&gateway, path, &body);
            let before = text.split_once(&stop).expect("it is in it").0;
            assert_eq!((text_of(&whole), &whole["choices"][0]["finish_reason"]), (before, &json!("stop")));
            let streamed = chunks(&gateway, path, &body);
            assert_eq!(joined(&streamed), before, "{path} {stop:?}");
            assert_eq!(streamed.last().expect("chunks")["choices"][0]["finish_reason"], "stop");
        }
        check_refused(&gateway, path, &with(body.clone(), json!({ "stop": [""] })), "stop");
        check_refused(&gateway, path, &with(body, json!({ "stop": [1] })), "stop");
    }
}

#[test]
fn logprobs_of_completions_make_the_text_whole_and_streamed() {
    let (_server, gateway) = with_gateway(Settings::default());
    let body = completion(json!({ "logprobs": 3, "max_tokens": 8, "prompt": ["Once upon a time", "The fox"] }));
    let whole = told(&gateway, TEXT, &body);
    let streamed = chunks(&gateway, TEXT, &body);
    for choice in whole["choices"].as_array().expect("choices") {
        let column = |name: &str| choice["logprobs"][name].as_array().expect("a column").clone();
        let tokens: Vec<String> = column("tokens").iter().map(|t| t.as_str().expect("text").to_owned()).collect();
        assert_eq!(tokens.concat(), choice["text"].as_str().expect("text"));
        let mut offset = 0;
        for (((token, logprob), top), at) in
            tokens.iter().zip(column("token_logprobs")).zip(column("top_logprobs")).zip(column("text_offset"))
        {
            assert_eq!(at, offset);
            offset += token.chars().count();
            let best = top.as_object().expect("rivals").values().filter_map(Value::as_f64).fold(f64::MIN, f64::max);
            assert_eq!(logprob.as_f64(), Some(best), "greedy takes the likeliest");
            assert!(best <= 0.0 && (1..=3).contains(&top.as_object().map_or(0, |t| t.len())));
        }
        let parts = streamed.iter().map(|c| &c["choices"][0]).filter(|c| c["index"] == choice["index"]);
        let gathered: Vec<Value> =
            parts.filter_map(|c| c["logprobs"]["token_logprobs"].as_array()).flatten().cloned().collect();
        assert_eq!(gathered, column("token_logprobs"));
    }
    check_refused(&gateway, TEXT, &completion(json!({ "logprobs": true })), "logprobs");
    check_refused(&gateway, TEXT, &completion(json!({ "logprobs": 21 })), "logprobs");
    check_refused(&gateway, TEXT, &completion(json!({ "top_logprobs": 2 })), "top_logprobs");
}

#[test]
fn tokens_with_the_lowest_bias_are_never_said() {
    let (_server, gateway) = with_gateway(Settings::default());
    let plain = told(&gateway, TEXT, &completion(json!({ "max_tokens": 40, "ignore_eos": true })));
    let said = told(&gateway, "/tokenize", &json!({ "content": text_of(&plain) }))["tokens"].clone();
    let bias: serde_json::Map<String, Value> =
        said.as_array().expect("tokens").iter().map(|token| (token.to_string(), json!(-100))).collect();
    assert!(bias.len() > 5);
    let body = completion(json!({ "max_tokens": 40, "ignore_eos": true, "logit_bias": bias, "logprobs": 1 }));
    let other = told(&gateway, TEXT, &body);
    let again = told(&gateway, "/tokenize", &json!({ "content": text_of(&plain), "return_token_strs": true }));
    let banned = again["token_strs"].as_array().expect("names");
    let tokens = other["choices"][0]["logprobs"]["tokens"].as_array().expect("tokens");
    assert_eq!(tokens.len(), 40);
    assert!(!tokens.iter().any(|token| banned.contains(token)), "{tokens:?}");
}

#[test]
fn a_schema_may_stand_beside_json_object() {
    let (_server, gateway) = with_gateway(Settings::default());
    let format = |schema: Value| json!({ "type": "json_object", "schema": schema });
    for path in [CHAT, TEXT] {
        let body = if path == CHAT { chat(json!({})) } else { completion(json!({})) };
        let answer = |schema: Value| {
            let changes = json!({ "response_format": format(schema), "max_tokens": 300 });
            let whole = told(&gateway, path, &with(body.clone(), changes));
            serde_json::from_str::<Value>(text_of(&whole)).expect("JSON")
        };
        assert_eq!(answer(json!({ "const": "42" })), "42");
        let one = answer(
            json!({ "type": "object", "properties": { "a": { "enum": [1, 2] } }, "required": ["a"], "additionalProperties": false }),
        );
        assert!([1, 2].contains(&one["a"].as_i64().expect("a number")), "{one}");
        for wrong in [
            format(json!(123)),
            format(json!({ "type": 123 })),
            format(json!({ "type": "hiccup" })),
            json!({ "type": "json_object", "schema": {}, "strict": true }),
            json!({ "type": "sound" }),
            json!("json_object"),
        ] {
            check_refused(&gateway, path, &with(body.clone(), json!({ "response_format": wrong })), "response_format");
        }
    }
}

#[test]
fn a_template_is_shown_functions_and_where_the_answer_begins_where_they_are_wanted() {
    let template = format!("{}/tests/templates/hermes.jinja", env!("CARGO_MANIFEST_DIR"));
    let (_server, gateway) = with_gateway(Settings::default().with("chat_template", template));
    let function = json!({ "type": "function", "function": { "name": "look_up", "parameters": {
        "type": "object", "properties": { "word": { "type": "string" } } } } });
    let text = |changes: Value| {
        let body = with(json!({ "messages": [{ "role": "user", "content": "What is today?" }] }), changes);
        told(&gateway, "/apply-template", &body)["prompt"].as_str().expect("text").to_owned()
    };
    let plain = text(json!({}));
    for none in
        [json!({ "tools": null }), json!({ "tools": [] }), json!({ "tools": [function], "tool_choice": "none" })]
    {
        assert_eq!(text(none), plain);
    }
    let shown = text(json!({ "tools": [function] }));
    assert!(shown.contains("look_up") && shown.contains("\"word\"") && !plain.contains("look_up"), "{shown}");
    let without = text(json!({ "add_generation_prompt": false }));
    let begins = plain.strip_prefix(&without).expect("the same but for its end");
    assert!(begins.contains("assistant"), "{begins:?}");
    assert!(shown.ends_with(begins));
    // What tokenizing the same turns counts is what the template wrote.
    let turns = json!({ "messages": [{ "role": "user", "content": "What is today?" }], "tools": [function] });
    let counted = told(&gateway, "/tokenize", &turns)["count"].clone();
    let chatted = told(&gateway, CHAT, &with(chat(turns), json!({ "max_tokens": 1 })));
    assert_eq!(chatted["usage"]["prompt_tokens"], counted);
    // A result names its function twice: by the call that it answers, and by itself.
    let call = json!({ "id": "call_1", "type": "function", "function": { "name": "look_up", "arguments": "{\"word\":\"fox\"}" } });
    let turns = json!([
        { "role": "user", "content": "What is a fox?" },
        { "role": "assistant", "content": null, "tool_calls": [call] },
        { "role": "tool", "name": "look_up", "tool_call_id": "call_1", "content": "An animal." },
    ]);
    assert!(text(json!({ "messages": turns })).contains("An animal."));
    // Arguments that were cut short in an earlier answer are the client's to mend.
    let mut cut = turns.clone();
    cut[1]["tool_calls"][0]["function"]["arguments"] = json!("{");
    check_refused(&gateway, CHAT, &chat(json!({ "messages": cut })), "messages");
    told(&gateway, CHAT, &chat(json!({ "messages": turns, "tools": [function], "max_tokens": 8 })));
}

#[test]
fn a_prompt_that_comes_again_is_read_from_the_cache_and_answered_the_same() {
    let (_server, gateway) = with_gateway(Settings::default());
    let long = "Once upon a time there was a small fox named Pip who lived by the river. ".repeat(6);
    let cached = |whole: &Value| whole["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().expect("a count");
    let first = told(&gateway, TEXT, &completion(json!({ "prompt": long })));
    let second = told(&gateway, TEXT, &completion(json!({ "prompt": long })));
    assert_eq!((cached(&first), text_of(&first)), (0, text_of(&second)));
    assert!(cached(&second) > 0 && cached(&second) < second["usage"]["prompt_tokens"].as_u64().expect("a count"));
    let more = told(&gateway, TEXT, &completion(json!({ "prompt": format!("{long}Then it rained.") })));
    assert!(cached(&more) > 0, "{}", more["usage"]);
}

#[test]
fn messages_that_cannot_be_answered_are_refused_in_their_own_words() {
    let (_server, gateway) = with_gateway(Settings::default());
    let body = |changes: Value| {
        let plain =
            json!({ "model": "wren", "max_tokens": 8, "messages": [{ "role": "user", "content": "Say hello" }] });
        with(plain, changes)
    };
    let image = json!({ "type": "image", "source": { "type": "base64", "media_type": "image/png", "data": "AAAA" } });
    for (changes, names) in [
        (json!({ "messages": null }), "messages"),
        (json!({ "messages": [] }), "messages"),
        (json!({ "messages": [{ "role": "user", "content": [image] }] }), "messages"),
        (json!({ "messages": [{ "role": "tool", "content": "x" }] }), "messages"),
        (json!({ "thinking": { "type": "enabled", "budget_tokens": 50 } }), "thinking"),
        (json!({ "stop_sequences": [""] }), "stop_sequences"),
        (json!({ "max_tokens": 0 }), "max_tokens"),
        (json!({ "top_k": -1 }), "top_k"),
        (json!({ "container": "c" }), "container"),
    ] {
        let answer = ask(&gateway, MESSAGES, &body(changes.clone()));
        let told = answer.json().expect("JSON");
        let found = (answer.status, told["type"].as_str(), told["error"]["type"].as_str());
        assert_eq!(found, (400, Some("error"), Some("invalid_request_error")), "{changes}: {told}");
        assert!(told["error"]["message"].as_str().expect("a message").contains(names), "{changes}: {told}");
    }
    for taken in [
        json!({ "thinking": { "type": "disabled" } }),
        json!({ "metadata": { "user_id": "u" } }),
        json!({ "top_k": 40, "top_p": 0.9, "temperature": 0.5 }),
        json!({ "messages": [{ "role": "user", "content": [{ "type": "text", "text": "What" }, { "type": "text", "text": " is?" }] }] }),
    ] {
        let whole = told(&gateway, MESSAGES, &body(taken));
        assert!(whole["content"][0]["text"].is_string() && whole.get("object").is_none(), "{whole}");
    }
    // Counting needs no length.
    let counted = body(json!({ "max_tokens": null, "system": "You are brief." }));
    let with_system = told(&gateway, "/v1/messages/count_tokens", &counted);
    let without = told(&gateway, "/v1/messages/count_tokens", &body(json!({ "max_tokens": null })));
    assert!(with_system["input_tokens"].as_u64() > without["input_tokens"].as_u64());
    assert_eq!(with_system.as_object().map(serde_json::Map::len), Some(1), "{with_system}");
}
