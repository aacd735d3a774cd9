//! Functions that a model may call: what a request offers, how the model's family writes a call, and how it is read.

mod elements;
mod family;
mod grammar;
mod parser;
mod request;

use orchestratord_engine::Tokenizer;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

pub(super) use family::Family;
use parser::Callable;
pub(super) use parser::{Parser, Piece};
pub(super) use request::{anthropic, chat, response};

use crate::domain::ids::TaskId;
use crate::domain::task::Prompt;
use crate::services::pool::Loaded;
use crate::services::task::LiveTask;

/// A function that may be called.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Function {
    pub name: String,
    pub description: Option<String>,
    /// The JSON schema of its arguments, which are an object.
    pub parameters: Value,
    /// The arguments must be what the schema says, even where the model is free to call.
    pub strict: bool,
}

/// Whether the model has to call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Auto,
    Required,
    /// This one, by its place in the list.
    Named(usize),
}

/// What a request offers.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tools {
    pub family: &'static Family,
    pub functions: Vec<Function>,
    pub wanted: Wanted,
    /// More than one call may come in an answer.
    pub parallel: bool,
}

impl Tools {
    /// The functions as chat templates want them.
    pub fn for_template(&self) -> String {
        let one = |f: &Function| {
            let mut function = json!({"name": f.name});
            if let Some(description) = &f.description {
                function["description"] = description.as_str().into();
            }
            function["parameters"] = f.parameters.clone();
            json!({"type": "function", "function": function})
        };
        Value::Array(self.functions.iter().map(one).collect()).to_string()
    }

    /// The family's marks that are control tokens here: without them a call could not be told from text.
    pub fn shown(&self, tokenizer: &Tokenizer) -> Vec<u32> {
        self.family.marks().filter_map(|mark| grammar::control_token(tokenizer, mark)).collect()
    }

    pub fn parser(&self) -> Parser {
        let callable = |f: &Function| Callable { name: f.name.clone(), parameters: f.parameters.clone() };
        Parser::new(self.family, self.functions.iter().map(callable).collect())
    }
}

/// How the model's calls are written; none when it has no template that knows tools in a way that is known here.
pub(super) fn family_of(loaded: &Loaded) -> Option<&'static Family> {
    family::family_of(loaded.model.chat_template()?.source())
}

/// A reader of what a task says; none for one that may call nothing.
pub(super) fn parser_of(task: &LiveTask) -> Option<Parser> {
    let Prompt::Chat(chat) = &task.spec.prompt else { return None };
    let tools: Vec<Value> = serde_json::from_str(chat.tools.as_deref()?).expect("it was written from JSON");
    let callable = tools.into_iter().filter_map(|mut tool| {
        let name = tool["function"]["name"].as_str()?.to_owned();
        Some(Callable { name, parameters: tool["function"]["parameters"].take() })
    });
    Some(Parser::new(family_of(&task.loaded)?, callable.collect()))
}

/// The id of a task's call, the same whenever it is asked for.
pub(super) fn call_id(task: &LiveTask, index: usize) -> String {
    id_of(task.spec.task_id, index, family_of(&task.loaded).is_some_and(|f| f.short_ids))
}

fn id_of(task: TaskId, index: usize, short: bool) -> String {
    let digest = Sha256::digest([task.0.to_be_bytes(), (index as u128).to_be_bytes()].concat());
    match short {
        true => {
            digest[..9].iter().map(|byte| b"0123456789abcdefghijklmnopqrstuv"[usize::from(byte & 31)] as char).collect()
        }
        false => digest[..12].iter().fold("call_".to_owned(), |id, byte| format!("{id}{byte:02x}")),
    }
}

/// An answer in the order in which it was said.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Item {
    Text(String),
    Call { name: String, arguments: String },
}

/// Adds a piece to what was said before it.
pub(super) fn gather(items: &mut Vec<Item>, piece: Piece) {
    match (piece, items.last_mut()) {
        (Piece::Text(more), Some(Item::Text(text))) => text.push_str(&more),
        (Piece::Text(text), _) => items.push(Item::Text(text)),
        (Piece::Call(name), _) => items.push(Item::Call { name, arguments: String::new() }),
        (Piece::Arguments(more), Some(Item::Call { arguments, .. })) => arguments.push_str(&more),
        (Piece::Arguments(_), _) => unreachable!("arguments follow a call"),
    }
}

/// What a whole answer says.
pub(super) fn items_of(task: &LiveTask, text: &str) -> Vec<Item> {
    let mut items = Vec::new();
    match parser_of(task) {
        Some(mut parser) => {
            let pieces = parser.push(text).into_iter().chain(parser.finish());
            pieces.for_each(|piece| gather(&mut items, piece));
        }
        None if text.is_empty() => {}
        None => items.push(Item::Text(text.to_owned())),
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::Uuid;

    #[test]
    fn ids_of_calls_are_their_own_and_stay() {
        let id = |task: u128, index: usize, short| id_of(Uuid(task), index, short);
        assert_eq!(id(7, 0, false), id(7, 0, false));
        assert!(id(7, 0, false) != id(7, 1, false) && id(7, 0, false) != id(8, 0, false));
        assert_eq!((id(7, 0, false).len(), id(7, 0, true).len()), (29, 9));
        assert!(id(7, 0, true).chars().all(|c| c.is_ascii_alphanumeric()));
    }
}
