//! The built-in model against what `transformers` and `tokenizers` say about it: `models/reference.json`, made by
//! `models/reference.py`.

mod common;

use common::{Record, drain, engine, model, request, wren};
use orchestratord_engine::{ChatMessage, Tokenizer};
use serde_json::Value;

fn reference() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/models/reference.json");
    let text = std::fs::read(path).expect("the reference is there");
    serde_json::from_slice(&text).expect("the reference is JSON")
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().unwrap_or_else(|| panic!("{key} is no list"))
}

fn ids(value: &Value, key: &str) -> Vec<u32> {
    list(value, key).iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

fn floats(value: &Value, key: &str) -> Vec<f64> {
    list(value, key).iter().map(|x| x.as_f64().expect("a number")).collect()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("{key} is no text"))
}

fn argmax(logits: &[f32]) -> u32 {
    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).expect("a vocabulary") as u32
}

/// Logits in the reference have six digits; a choice whose margin is under this may rightly be another.
const ERROR_MAX: f64 = 1e-3;

#[test]
fn logits_are_those_of_transformers() {
    let model = model(wren());
    let vocab_len = model.info().vocab_len;
    let mut engine = engine(&model, |_| ());
    for case in list(&reference(), "prompts") {
        let name = text(case, "name");
        let logits = engine.forward_logits(&ids(case, "ids")).expect("the CPU does not fail");
        let rows: Vec<&[f32]> = logits.chunks_exact(vocab_len).collect();
        let wanted = floats(case, "last_logits");
        assert_eq!(wanted.len(), vocab_len);
        let errors = rows.last().expect("a prompt has tokens").iter().zip(&wanted);
        let worst = errors.map(|(got, wanted)| (f64::from(*got) - wanted).abs()).fold(0.0, f64::max);
        assert!(worst < ERROR_MAX, "{name}: {worst}");
        for ((row, wanted), margin) in rows.iter().zip(ids(case, "argmax")).zip(floats(case, "argmax_margin")) {
            assert!(argmax(row) == wanted || margin < 2.0 * ERROR_MAX, "{name}: not {wanted}, by {margin}");
        }
    }
}

#[test]
fn greedy_text_is_that_of_transformers() {
    let model = model(wren());
    for case in list(&reference(), "prompts") {
        let wanted = ids(case, "greedy");
        let margins = floats(case, "greedy_margin");
        assert!(margins.iter().all(|margin| *margin > 2.0 * ERROR_MAX), "a margin is too thin to be a test");
        let mut engine = engine(&model, |_| ());
        let mut record = Record::default();
        engine.admit(request(0, &ids(case, "ids"), wanted.len() as u32)).expect("room");
        drain(&mut engine, &mut record);
        assert_eq!(record.tokens[&0], wanted, "{}", text(case, "name"));
    }
}

#[test]
fn texts_are_split_and_joined_as_by_tokenizers() {
    let model = model(wren());
    let tokenizer: &Tokenizer = model.tokenizer();
    for case in list(&reference(), "tokenizer") {
        let (string, wanted) = (text(case, "text"), ids(case, "ids"));
        assert_eq!(tokenizer.encode(string, false, true), wanted, "{string:?}");
        assert_eq!(tokenizer.decode(&wanted, true), text(case, "decoded"), "{string:?}");
    }
    for case in list(&reference(), "prompts").iter().filter(|case| !text(case, "name").starts_with("chat")) {
        assert_eq!(tokenizer.encode(text(case, "text"), true, true), ids(case, "ids"), "{}", text(case, "name"));
    }
}

#[test]
fn chats_are_written_as_by_transformers() {
    let model = model(wren());
    let template = model.chat_template().expect("wren chats");
    for case in list(&reference(), "chats") {
        let turn = |m: &Value| ChatMessage::new(text(m, "role"), text(m, "content"));
        let messages: Vec<ChatMessage> = list(case, "messages").iter().map(turn).collect();
        let rendered = template.render(&messages, None, true, 0).expect("a conversation that it knows");
        assert_eq!(rendered, text(case, "rendered"));
        let add_bos = !template.adds_bos();
        assert_eq!(model.tokenizer().encode(&rendered, add_bos, true), ids(case, "ids"));
    }
}
