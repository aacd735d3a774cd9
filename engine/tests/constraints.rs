//! Answers that must look like something: they do, greedy or drawn, alone or in a crowd.

mod common;

use common::{Record, drain, engine, model, request, wren};
use orchestratord_engine::{FinishReason, Grammar, Model, SequenceRequest};
use serde_json::{Value, json};

/// Ends by itself: every length in it has a bound.
fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "animal": { "enum": ["fox", "owl", "wren"] },
            "age": { "type": "integer", "minimum": 0, "maximum": 20 },
            "likes": { "type": "array", "items": { "type": "string", "maxLength": 6 }, "maxItems": 2 },
            "kind": { "type": "boolean" },
        },
        "required": ["animal", "age", "kind"],
        "additionalProperties": false,
    })
}

fn asked(model: &Model, id: u64, grammar: Grammar<'_>, temperature: f32) -> SequenceRequest {
    let prompt = model.tokenizer().encode("Once upon a time", true, false);
    let mut request = request(id, &prompt, 300);
    request.constraint = Some(model.constraint(grammar).expect("a sound grammar"));
    request.sampling.temperature = temperature;
    request.sampling.seed = id;
    request
}

fn answer(model: &Model, record: &Record, id: u64) -> String {
    // Without the token that ends it, which is not given.
    let tokens = record.tokens.get(&id).cloned().unwrap_or_default();
    assert!(tokens.len() < 300, "it did not end: {}", model.tokenizer().decode(&tokens, true));
    model.tokenizer().decode(&tokens, true)
}

fn check_animal(text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    let object = value.as_object().expect("an object");
    assert!(["fox", "owl", "wren"].contains(&value["animal"].as_str().expect("a string")), "{text}");
    assert!(value["age"].as_u64().expect("a whole number") <= 20 && value["kind"].is_boolean(), "{text}");
    assert!(object.keys().all(|key| ["animal", "age", "likes", "kind"].contains(&key.as_str())), "{text}");
    let likes = value.get("likes").map_or(&[][..], |likes| likes.as_array().expect("a list"));
    assert!(likes.len() <= 2 && likes.iter().all(|l| l.as_str().is_some_and(|l| l.chars().count() <= 6)), "{text}");
}

#[test]
fn json_follows_its_schema_greedy_and_drawn() {
    let model = model(wren());
    let schema = schema();
    for (id, temperature) in [(0, 0.0), (1, 1.0), (2, 1.5), (3, 3.0)] {
        let mut engine = engine(&model, |_| ());
        let mut record = Record::default();
        engine.admit(asked(&model, id, Grammar::JsonSchema(&schema), temperature)).expect("room");
        drain(&mut engine, &mut record);
        check_animal(&answer(&model, &record, id));
    }
}

#[test]
fn a_regular_expression_matches_the_whole_answer() {
    let model = model(wren());
    let mut engine = engine(&model, |_| ());
    let mut record = Record::default();
    engine.admit(asked(&model, 1, Grammar::Regex("[0-9]{3}-(é|🦊){2}"), 2.0)).expect("room");
    drain(&mut engine, &mut record);
    let text = answer(&model, &record, 1);
    let (digits, rest) = text.split_once('-').expect("a dash");
    assert!(digits.len() == 3 && digits.bytes().all(|b| b.is_ascii_digit()), "{text}");
    assert!(rest.chars().count() == 2 && rest.chars().all(|c| "é🦊".contains(c)), "{text}");
}

#[test]
fn a_grammar_may_nest() {
    let model = model(wren());
    let grammar =
        "start: sum\nsum: term (\"+\" term){1,3}\nterm: /[0-9]/ | \"(\" sum2 \")\"\nsum2: /[0-9]/ \"-\" /[0-9]/\n";
    for id in 0..6 {
        let mut engine = engine(&model, |_| ());
        let mut record = Record::default();
        engine.admit(asked(&model, id, Grammar::Lark(grammar), 2.0)).expect("room");
        drain(&mut engine, &mut record);
        let text = answer(&model, &record, id);
        let terms: Vec<&str> = text.split('+').collect();
        let is_term = |t: &&str| t.len() == 1 || (t.starts_with('(') && t.ends_with(')') && t.len() == 5);
        assert!((2..=4).contains(&terms.len()) && terms.iter().all(is_term), "{text}");
    }
}

#[test]
fn an_answer_is_the_same_in_a_crowd() {
    let model = model(wren());
    let schema = schema();
    let alone: Vec<Vec<u32>> = (0..4)
        .map(|id| {
            let mut engine = engine(&model, |_| ());
            let mut record = Record::default();
            engine.admit(asked(&model, id, Grammar::JsonSchema(&schema), 1.0)).expect("room");
            drain(&mut engine, &mut record);
            record.tokens.remove(&id).expect("tokens")
        })
        .collect();
    let mut crowd = engine(&model, |o| (o.threads, o.slots_max) = (2, 8));
    let mut record = Record::default();
    for id in 0..4 {
        crowd.admit(asked(&model, id, Grammar::JsonSchema(&schema), 1.0)).expect("room");
        // One without a grammar beside each that has one.
        let prompt = model.tokenizer().encode("The bird", true, false);
        crowd.admit(request(100 + id, &prompt, 20)).expect("room");
    }
    drain(&mut crowd, &mut record);
    for (id, wanted) in alone.iter().enumerate() {
        assert_eq!(&record.tokens[&(id as u64)], wanted);
    }
}

#[test]
fn what_cannot_be_followed_is_refused_with_a_reason() {
    let model = model(wren());
    let wrong = json!({ "type": "nonsense" });
    for grammar in [Grammar::Regex("("), Grammar::Lark("start: missing"), Grammar::JsonSchema(&wrong)] {
        let error = model.constraint(grammar).expect_err("it is refused").to_string();
        assert!(!error.is_empty() && !error.contains('\n'), "{grammar:?}: {error}");
    }
    assert!(model.constraint(Grammar::JsonObject).is_ok());
}

/// Letters that two rules know, in a list that is written from the right: all of its ends are open at once, so a mask takes longer
/// with every letter, until it takes longer than it may. Written from the left, the same list is followed to the end.
#[test]
fn a_grammar_that_cannot_be_followed_any_further_ends_its_own_answer_and_no_other() {
    let model = model(wren());
    let list = |order: &str| format!("start: list \"~\"\nlist: {order} | one\none: few | /[a-z ]/\nfew: /[a-d]/");
    let (right, left) = (list("one list"), list("list one"));
    let mut engine = engine(&model, |_| ());
    let mut record = Record::default();
    for (id, grammar) in [(1, &right), (2, &left)] {
        let mut request = asked(&model, id, Grammar::Lark(grammar), 0.0);
        request.max_tokens = 40;
        engine.admit(request).expect("room");
    }
    drain(&mut engine, &mut record);
    assert_eq!((record.reasons[&1], record.reasons[&2]), (FinishReason::ConstraintFailed, FinishReason::Length));
    let (cut, whole) = (&record.tokens[&1], &record.tokens[&2]);
    assert!(!cut.is_empty() && cut.len() < whole.len() && whole.starts_with(cut), "{cut:?} {whole:?}");
}

#[test]
fn white_space_between_two_words_is_bounded() {
    let model = model(wren());
    let tokenizer = model.tokenizer();
    let is_white = |token: &u32| {
        let bytes = tokenizer.token_bytes(*token);
        !bytes.is_empty() && bytes.iter().all(|b| b" \n\r\t".contains(b))
    };
    let white: Vec<u32> = (0..tokenizer.vocab_len() as u32).filter(is_white).collect();
    assert!(white.len() > 2, "the vocabulary has white space");
    let schema = schema();
    let mut request = asked(&model, 1, Grammar::JsonSchema(&schema), 1.0);
    request.sampling.logit_bias = white.iter().map(|token| (*token, 100.0)).collect();
    let mut engine = engine(&model, |_| ());
    let mut record = Record::default();
    engine.admit(request).expect("room");
    drain(&mut engine, &mut record);
    let text = answer(&model, &record, 1);
    check_animal(&text);
    let longest = text.split(|c: char| !c.is_ascii_whitespace()).map(str::len).max();
    assert!((2..=20).contains(&longest.expect("a part")), "{longest:?} of white space in {text:?}");
}
