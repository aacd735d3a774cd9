//! Reads calls out of what a model says, as it says it.
//!
//! The machine takes one character at a time, so where a token ends changes nothing. Text that may become a call is held
//! back until it is known to be one, or none; once a function's name is known, its arguments go out as they come.

use std::collections::VecDeque;

use super::elements::{Brought, Reader};
use super::family::{Family, Form};

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::gateway) enum Piece {
    Text(String),
    /// A call of this function begins.
    Call(String),
    /// More of the arguments of the call that began last: JSON as the model wrote it.
    Arguments(String),
}

/// What is being read.
#[derive(Debug, PartialEq)]
enum State {
    /// Text. `held` is what may be the beginning of `open`, and white space before it.
    Text,
    /// After `open`, or in its place: what comes next begins a call, or a list of them.
    Opened,
    /// In an object, or between two of a list.
    Object,
    /// In a name that ends at its mark or its arguments.
    Name,
    /// In arguments after such a name.
    NamedArguments,
    /// In a call that is made of elements.
    Elements,
    /// Between two objects of a list.
    NextInList,
    /// After a call: white space, `close`, a separator, or the next.
    After,
}

/// Reads one answer.
#[derive(Debug)]
pub(in crate::gateway) struct Parser {
    family: &'static Family,
    functions: Vec<Callable>,
    state: State,
    /// What has not gone out, as it was written.
    held: String,
    /// Bytes of white space that `held` begins with, in text.
    white_len: usize,
    object: Object,
    /// Of a call that is made of elements.
    reader: Option<Reader>,
    /// The function that is being called, by its place in the list.
    called: usize,
    in_list: bool,
    /// Nothing but white space was said.
    is_first: bool,
    pub call_count: usize,
    /// Characters to be read before those that come: of what turned out to be no call.
    again: VecDeque<char>,
    /// How many may still be.
    again_left: usize,
    /// Characters taken, those that were read again as often as they were.
    #[cfg(test)]
    step_count: usize,
    out: Vec<Piece>,
}

/// A function as the parser knows it.
#[derive(Clone, Debug)]
pub(in crate::gateway) struct Callable {
    pub name: String,
    /// The schema of its arguments.
    pub parameters: serde_json::Value,
}

/// Bytes that may be held back for a call whose name has not come.
const HELD_LEN_MAX: usize = 16 * 1024;

/// How often a character is read again, on average. What is held and was no call may have another beginning in it, and that
/// one too: without a bound, an answer of nothing but beginnings would be read once for each of them. Eight beginnings that
/// lie within each other are more than a model writes by accident; of an answer with more, some may be text that were calls.
const READ_AGAIN_MAX: usize = 8;

impl Parser {
    /// For an answer in which these functions may be called. A call of another one is text.
    pub fn new(family: &'static Family, functions: Vec<Callable>) -> Parser {
        Parser {
            family,
            functions,
            state: State::Text,
            held: String::new(),
            white_len: 0,
            object: Object::default(),
            reader: None,
            called: 0,
            in_list: false,
            is_first: true,
            call_count: 0,
            again: VecDeque::new(),
            again_left: 0,
            #[cfg(test)]
            step_count: 0,
            out: Vec::new(),
        }
    }

    /// Takes more of the answer, and gives what is known now.
    pub fn push(&mut self, text: &str) -> Vec<Piece> {
        for c in text.chars() {
            self.again_left += READ_AGAIN_MAX;
            self.again.push_back(c);
            while let Some(c) = self.again.pop_front() {
                self.step(c);
                if self.held.len() > HELD_LEN_MAX {
                    self.let_go();
                }
            }
        }
        std::mem::take(&mut self.out)
    }

    /// The answer has ended: what was held back is text after all, unless it only surrounds calls.
    pub fn finish(&mut self) -> Vec<Piece> {
        let is_call = self.object.has_begun;
        let only_surrounds = self.call_count > 0 && (self.state == State::After || self.held.trim().is_empty());
        let held = std::mem::take(&mut self.held);
        if !is_call && !only_surrounds {
            self.say_text(&held);
        }
        self.state = State::Text;
        std::mem::take(&mut self.out)
    }

    fn step(&mut self, c: char) {
        #[cfg(test)]
        {
            self.step_count += 1;
        }
        match self.state {
            State::Text => self.text(c),
            State::Opened => self.opened(c),
            State::Object => self.object(c),
            State::Name => self.name(c),
            State::NamedArguments => self.named_arguments(c),
            State::Elements => self.elements(c),
            State::NextInList => self.next_in_list(c),
            State::After => self.after(c),
        }
    }

    fn text(&mut self, c: char) {
        let is_white = self.held.len() == self.white_len;
        if self.family.open_is_optional && self.is_first && c == '{' && is_white {
            self.state = State::Opened;
            return self.opened(c);
        }
        self.held.push(c);
        if is_white && c.is_whitespace() {
            return self.white_len = self.held.len();
        }
        loop {
            let candidate = &self.held[self.white_len..];
            if candidate == self.family.open {
                return self.open();
            }
            if self.family.open.starts_with(candidate) {
                return;
            }
            // Something is not part of it: all up to the next place where it may begin goes out.
            self.is_first = false;
            let first_len = candidate.chars().next().map_or(0, char::len_utf8);
            let gone: String = self.held.drain(..self.white_len + first_len).collect();
            self.white_len = self.held.len() - self.held.trim_start().len();
            self.say_text(&gone);
        }
    }

    fn open(&mut self) {
        self.state = State::Opened;
        self.in_list = self.family.opens_list();
    }

    fn opened(&mut self, c: char) {
        match (self.family.form, c) {
            (_, c) if c.is_whitespace() => self.held.push(c),
            (Form::List, '[') if !self.in_list => {
                self.in_list = true;
                self.held.push(c);
            }
            (Form::Object | Form::List, '{') => self.begin_object(c),
            (Form::Name(_), c) if is_name_char(c) => {
                self.state = State::Name;
                self.object = Object::default();
                self.name(c);
            }
            (Form::Elements(elements), _) => {
                self.state = State::Elements;
                self.object = Object::default();
                self.reader = Some(Reader::new(elements));
                self.elements(c);
            }
            _ => self.give_up(c),
        }
    }

    fn begin_object(&mut self, c: char) {
        self.object = Object::default();
        self.state = State::Object;
        self.object(c);
    }

    fn object(&mut self, c: char) {
        self.held.push(c);
        let step = self.object.step(c, self.family.arguments);
        if !self.object.has_begun
            && let Some(name) = &self.object.name
        {
            let name = name.clone();
            if !self.knows(&name) {
                return self.give_up_held();
            }
            self.begin_call(name);
        }
        if self.object.has_begun {
            self.held.clear();
            let arguments = self.object.take_arguments();
            self.say_arguments(&arguments);
        }
        match step {
            Step::More => {}
            Step::Ended if self.object.has_begun => self.end_call(),
            Step::Ended | Step::Wrong => {
                // Of a call that has begun nothing can be taken back: what is wrong in it is passed over.
                if !self.object.has_begun {
                    self.give_up_held();
                }
            }
        }
    }

    fn name(&mut self, c: char) {
        let Form::Name(mark) = self.family.form else { unreachable!("only this form has names of their own") };
        self.held.push(c);
        let head = self.object.name.get_or_insert_default();
        if c == '{' {
            let (before, after) = head.split_once(mark).unwrap_or((head, ""));
            // The name stands before the mark, or after it with a fence around the arguments.
            let after = after.trim().trim_end_matches("```json").trim();
            let before = before.split('[').next().unwrap_or_default().trim();
            let name = if after.is_empty() { before } else { after }.to_owned();
            if !self.knows(&name) {
                return self.give_up_held();
            }
            self.begin_call(name);
            self.held.clear();
            self.state = State::NamedArguments;
            return self.named_arguments(c);
        }
        head.push(c);
        // A name, then marks in brackets: an id may stand between.
        let marked = head.contains('[');
        let in_mark = |c: char| mark.contains(c) || (marked && (c == ']' || c == '[')) || c == '`';
        let legal = is_name_char(c) || c.is_whitespace() || in_mark(c);
        if !legal || head.len() > crate::domain::limits::FUNCTION_NAME_LEN_MAX * 2 + mark.len() {
            self.give_up_held();
        }
    }

    fn named_arguments(&mut self, c: char) {
        let ended = self.object.value.step(c) == Step::Ended;
        self.say_arguments(c.encode_utf8(&mut [0; 4]));
        if ended {
            self.object.arguments_sent = true;
            self.end_call();
        }
    }

    fn elements(&mut self, c: char) {
        if !self.object.has_begun {
            self.held.push(c);
        }
        let nothing = serde_json::Value::Null;
        let parameters = self.functions.get(self.called).map_or(&nothing, |f| &f.parameters);
        match self.reader.as_mut().expect("it was made when the state was").step(c, parameters) {
            Brought::Nothing => {}
            Brought::Name(name) if self.knows(&name) => {
                self.begin_call(name);
                self.held.clear();
                self.say_arguments("{");
            }
            Brought::Arguments(more) => self.say_arguments(&more),
            Brought::Ended => {
                self.say_arguments("}");
                self.object.arguments_sent = true;
                self.end_call();
            }
            Brought::Name(_) | Brought::Wrong => self.give_up_held(),
        }
    }

    /// Whether this may be called; then it is what is called.
    fn knows(&mut self, name: &str) -> bool {
        let found = self.functions.iter().position(|f| f.name == name);
        self.called = found.unwrap_or(self.called);
        found.is_some()
    }

    fn begin_call(&mut self, name: String) {
        self.object.has_begun = true;
        self.call_count += 1;
        self.is_first = false;
        self.out.push(Piece::Call(name));
    }

    fn end_call(&mut self) {
        if !self.object.arguments_sent {
            self.say_arguments("{}");
        }
        self.object = Object::default();
        self.held.clear();
        self.state = if self.in_list { State::NextInList } else { State::After };
    }

    fn next_in_list(&mut self, c: char) {
        match c {
            '{' => self.begin_object(c),
            ']' => {
                self.in_list = false;
                self.state = State::After;
            }
            _ => {}
        }
    }

    fn after(&mut self, c: char) {
        let separates = |c: char| c.is_whitespace() || c == ';' || c == ',';
        if self.family.open_is_optional && c == '{' && self.held.trim_start().is_empty() {
            self.held.clear();
            return self.begin_object(c);
        }
        self.held.push(c);
        let candidate = self.held.trim_start_matches(separates);
        let open = self.family.again.unwrap_or(self.family.open);
        let mut ends = self.family.passed_over.iter().chain([&self.family.close]).filter(|mark| !mark.is_empty());
        if candidate.is_empty() || ends.clone().any(|mark| *mark == candidate) {
            self.held.clear();
        } else if candidate == open {
            self.open();
        } else if !open.starts_with(candidate) && !ends.any(|mark| mark.starts_with(candidate)) {
            self.give_up_held();
        }
    }

    /// More is held than may be.
    fn let_go(&mut self) {
        match self.state {
            // White space, and at most the beginning of a mark after it.
            State::Text => {
                let white: String = self.held.drain(..std::mem::take(&mut self.white_len)).collect();
                self.say_text(&white);
            }
            _ => self.give_up_held(),
        }
    }

    fn give_up(&mut self, c: char) {
        self.held.push(c);
        self.give_up_held();
    }

    /// It was no call.
    fn give_up_held(&mut self) {
        self.state = State::Text;
        self.in_list = false;
        self.is_first = false;
        self.object = Object::default();
        self.white_len = 0;
        let held = std::mem::take(&mut self.held);
        let count = held.chars().count();
        if count > self.again_left {
            return self.say_text(&held);
        }
        self.again_left -= count;
        // Its first character is text for certain; in what follows there may be another beginning. Not by recursion: there
        // may be as many beginnings as the answer has room for.
        let mut rest = held.chars();
        if let Some(first) = rest.next() {
            self.say_text(first.encode_utf8(&mut [0; 4]));
        }
        rest.rev().for_each(|c| self.again.push_front(c));
    }

    fn say_text(&mut self, text: &str) {
        match self.out.last_mut() {
            _ if text.is_empty() => {}
            Some(Piece::Text(before)) => before.push_str(text),
            _ => self.out.push(Piece::Text(text.to_owned())),
        }
    }

    fn say_arguments(&mut self, text: &str) {
        match self.out.last_mut() {
            _ if text.is_empty() => {}
            Some(Piece::Arguments(before)) => before.push_str(text),
            _ => self.out.push(Piece::Arguments(text.to_owned())),
        }
    }
}

fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '-'
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    More,
    Ended,
    Wrong,
}

/// An object with a name and arguments, key by key.
#[derive(Debug, Default)]
struct Object {
    place: Place,
    key: String,
    /// The value that is being read.
    value: Value,
    name: Option<String>,
    /// The name was that of a function, and has gone out.
    has_begun: bool,
    /// Arguments that have not gone out.
    arguments: String,
    arguments_sent: bool,
}

#[derive(Debug, Default, PartialEq)]
enum Place {
    #[default]
    Start,
    BeforeKey,
    Key,
    AfterKey,
    BeforeValue,
    Value,
}

impl Object {
    fn step(&mut self, c: char, arguments: &str) -> Step {
        match self.place {
            Place::Start if c == '{' => self.go(Place::BeforeKey),
            Place::BeforeKey if c == '}' => Step::Ended,
            Place::BeforeKey if c == ',' || c.is_whitespace() => Step::More,
            Place::BeforeKey if c == '"' => {
                self.key.clear();
                self.go(Place::Key)
            }
            Place::Key if c == '"' => self.go(Place::AfterKey),
            Place::Key => {
                self.key.push(c);
                Step::More
            }
            Place::AfterKey if c == ':' => {
                self.value = Value::default();
                self.go(Place::BeforeValue)
            }
            Place::AfterKey | Place::BeforeValue if c.is_whitespace() => Step::More,
            Place::BeforeValue => {
                self.place = Place::Value;
                self.value_step(c, arguments)
            }
            Place::Value => self.value_step(c, arguments),
            _ => Step::Wrong,
        }
    }

    fn go(&mut self, place: Place) -> Step {
        self.place = place;
        Step::More
    }

    fn value_step(&mut self, c: char, arguments: &str) -> Step {
        let is_arguments = self.key == arguments || self.key == "arguments" || self.key == "parameters";
        let is_arguments = is_arguments && !self.arguments_sent;
        let step = self.value.step(c);
        // A number or a word ends before what follows it.
        let belongs = step != Step::Wrong;
        if belongs {
            self.value.text.push(c);
        }
        if is_arguments && self.value.is_object() && belongs {
            self.arguments.push(c);
        }
        if step == Step::More {
            return Step::More;
        }
        self.place = Place::BeforeKey;
        let text = std::mem::take(&mut self.value.text);
        if self.key == "name" && self.name.is_none() {
            match serde_json::from_str::<String>(&text) {
                Ok(name) => self.name = Some(name),
                Err(_) => return Step::Wrong,
            }
        }
        if is_arguments {
            self.arguments_sent = true;
            if !text.starts_with('{') {
                // Some write them as a string that holds the object.
                let inner = serde_json::from_str::<String>(&text).unwrap_or_default();
                let is_object = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&inner).is_ok();
                self.arguments.push_str(if is_object { &inner } else { "{}" });
            }
        }
        if belongs { Step::More } else { self.step(c, arguments) }
    }

    /// Arguments that can go out.
    fn take_arguments(&mut self) -> String {
        std::mem::take(&mut self.arguments)
    }
}

/// Where in a JSON value one is.
#[derive(Debug, Default)]
struct Value {
    text: String,
    first: Option<char>,
    depth: u32,
    in_string: bool,
    escaped: bool,
}

impl Value {
    fn is_object(&self) -> bool {
        self.first == Some('{')
    }

    /// `Ended` with the value's last character; `Wrong` at the character after a number or a word.
    fn step(&mut self, c: char) -> Step {
        let first = *self.first.get_or_insert(c);
        if self.in_string {
            match c {
                _ if self.escaped => self.escaped = false,
                '\\' => self.escaped = true,
                '"' => {
                    self.in_string = false;
                    return if self.depth == 0 { Step::Ended } else { Step::More };
                }
                _ => {}
            }
            return Step::More;
        }
        match c {
            '"' => self.in_string = true,
            '{' | '[' => self.depth += 1,
            '}' | ']' if self.depth > 0 => {
                self.depth -= 1;
                return if self.depth == 0 { Step::Ended } else { Step::More };
            }
            ',' | '}' | ']' if self.depth == 0 => return Step::Wrong,
            c if c.is_whitespace() && self.depth == 0 && !matches!(first, '{' | '[' | '"') => return Step::Wrong,
            _ => {}
        }
        Step::More
    }
}

#[cfg(test)]
mod tests;
