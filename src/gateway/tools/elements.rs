//! Calls whose name and arguments are elements of their own, as Qwen's coders and GLM write them, turned into JSON as they come.
//!
//! An argument that its schema has as a string goes out character by character; of any other kind it is known only at its end
//! whether it is JSON.

use serde_json::Value;

use super::family::Elements;

/// Bytes of a name or a key.
const WORD_LEN_MAX: usize = 256;

/// What a character brought.
#[derive(Debug, PartialEq)]
pub(super) enum Brought {
    Nothing,
    /// The function's name is known.
    Name(String),
    /// More of the arguments' JSON.
    Arguments(String),
    Ended,
    /// This is no call.
    Wrong,
}

#[derive(Debug, Default, PartialEq)]
enum Stage {
    #[default]
    Name,
    /// Between arguments.
    Gap,
    Key,
    /// Between a key and its value.
    BeforeValue,
    Value,
}

/// Reads one call.
#[derive(Debug)]
pub(super) struct Reader {
    elements: &'static Elements,
    stage: Stage,
    /// What may be the beginning of the next mark, or a name or a key that is not over.
    word: String,
    /// The value so far, where it has to be whole.
    value: String,
    is_text: bool,
    /// Nothing of the value was read.
    is_first: bool,
    argument_count: usize,
}

impl Reader {
    pub fn new(elements: &'static Elements) -> Reader {
        Reader {
            elements,
            stage: Stage::Name,
            word: String::new(),
            value: String::new(),
            is_text: false,
            is_first: true,
            argument_count: 0,
        }
    }

    /// Takes the next character; `parameters` is the schema of the function, once its name is known.
    pub fn step(&mut self, c: char, parameters: &Value) -> Brought {
        match self.stage {
            Stage::Name => self.name(c),
            Stage::Gap => {
                self.word.push(c);
                match self.find([self.elements.key_open, self.elements.end]) {
                    Some(0) => self.go(Stage::Key),
                    Some(_) => Brought::Ended,
                    None => Brought::Nothing,
                }
            }
            Stage::Key => self.key(c, parameters),
            Stage::BeforeValue => {
                self.word.push(c);
                match self.find([self.elements.value_open, self.elements.end]) {
                    Some(0) => self.go(Stage::Value),
                    // A key without a value.
                    Some(_) => Brought::Ended,
                    None => Brought::Nothing,
                }
            }
            Stage::Value => self.value(c),
        }
    }

    fn go(&mut self, stage: Stage) -> Brought {
        self.stage = stage;
        self.word.clear();
        Brought::Nothing
    }

    /// Which of the marks stands there; anything else between elements is passed over.
    fn find(&mut self, marks: [&str; 2]) -> Option<usize> {
        loop {
            if let Some(found) = marks.iter().position(|mark| *mark == self.word) {
                return Some(found);
            }
            if marks.iter().any(|mark| mark.starts_with(&self.word)) {
                return None;
            }
            self.word.remove(0);
        }
    }

    fn name(&mut self, c: char) -> Brought {
        let Elements { name_open, name_close, .. } = *self.elements;
        if !self.word.starts_with(name_open) {
            self.word.push(c);
            return if name_open.starts_with(&self.word) { Brought::Nothing } else { Brought::Wrong };
        }
        // Without a mark of its own, a name ends where it cannot go on.
        let ends = match name_close {
            "" => c.is_whitespace() || c == '<',
            mark => mark.starts_with(c),
        };
        if !ends {
            self.word.push(c);
            let legal = c.is_ascii_alphanumeric() || c == '_' || c == '-';
            return if legal && self.word.len() < WORD_LEN_MAX { Brought::Nothing } else { Brought::Wrong };
        }
        let name = self.word[name_open.len()..].to_owned();
        self.go(Stage::Gap);
        if name_close.is_empty() && c == '<' {
            self.word.push(c);
        }
        Brought::Name(name)
    }

    fn key(&mut self, c: char, parameters: &Value) -> Brought {
        self.word.push(c);
        let Some(key) = self.word.strip_suffix(self.elements.key_close) else {
            // A key without an end: of a call that has begun nothing can be taken back.
            return if self.word.len() < WORD_LEN_MAX { Brought::Nothing } else { self.go(Stage::Gap) };
        };
        let key = key.trim().to_owned();
        self.is_text = is_text(&parameters["properties"][&key]);
        self.is_first = true;
        self.value.clear();
        let comma = if self.argument_count > 0 { ", " } else { "" };
        self.argument_count += 1;
        let quote = if self.is_text { "\"" } else { "" };
        self.go(if self.elements.value_open.is_empty() { Stage::Value } else { Stage::BeforeValue });
        Brought::Arguments(format!("{comma}{}: {quote}", Value::from(key)))
    }

    fn value(&mut self, c: char) -> Brought {
        let Elements { value_close, in_lines, .. } = *self.elements;
        if std::mem::take(&mut self.is_first) && in_lines && c == '\n' {
            return Brought::Nothing;
        }
        self.word.push(c);
        if let Some(rest) = self.word.strip_suffix(value_close) {
            let rest = if in_lines { rest.strip_suffix('\n').unwrap_or(rest) } else { rest };
            let text = match self.is_text {
                true => format!("{}\"", escaped(rest)),
                false => as_json(&format!("{}{rest}", self.value)),
            };
            self.go(Stage::Gap);
            return Brought::Arguments(text);
        }
        // What may be the beginning of the end stays.
        let may_end = |rest: &str| {
            let rest = if in_lines { rest.strip_prefix('\n').unwrap_or(rest) } else { rest };
            value_close.starts_with(rest)
        };
        let starts = self.word.char_indices().map(|(at, _)| at).chain([self.word.len()]);
        let keep = starts.into_iter().find(|at| may_end(&self.word[*at..])).expect("nothing at all may be one");
        let gone: String = self.word.drain(..keep).collect();
        match self.is_text {
            _ if gone.is_empty() => Brought::Nothing,
            true => Brought::Arguments(escaped(&gone)),
            false => {
                self.value.push_str(&gone);
                Brought::Nothing
            }
        }
    }
}

/// Whether a schema allows strings and nothing else: then what is written is the string, whatever it looks like.
pub(super) fn is_text(schema: &Value) -> bool {
    let all_strings = |values: &Value| values.as_array().is_some_and(|list| list.iter().all(Value::is_string));
    match &schema["type"] {
        Value::String(kind) => kind == "string",
        Value::Null => all_strings(&schema["enum"]) || schema["const"].is_string(),
        _ => false,
    }
}

/// Inside of a JSON string.
fn escaped(text: &str) -> String {
    let quoted = Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

/// JSON as it stands, Python's words for it, or else a string.
fn as_json(text: &str) -> String {
    let trimmed = text.trim();
    match trimmed {
        "True" => "true".to_owned(),
        "False" => "false".to_owned(),
        "None" => "null".to_owned(),
        _ if serde_json::from_str::<Value>(trimmed).is_ok() => trimmed.to_owned(),
        _ => Value::from(text).to_string(),
    }
}
