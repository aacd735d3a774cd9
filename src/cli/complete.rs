//! `complete`: goes on with a text and writes the tokens as they come, without a server.

use std::io::{self, Write};
use std::sync::Arc;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use orchestratord_engine::{
    AdmitError, ChatMessage, Constraint, Detokenizer, FinishReason, Grammar, Model, SamplingParams, SequenceRequest,
    TokenSink, Verdict,
};
use serde_json::json;

use super::{Failure, model};

pub fn command() -> Command {
    let command = Command::new("complete")
        .about("Go on with a text, without a server")
        .after_help("The same model, prompt and settings give the same tokens as a task of the server does.");
    let prompt = Arg::new("prompt").long("prompt").value_name("TEXT").conflicts_with("tokens");
    let number = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name("X").help(help).allow_negative_numbers(true)
    };
    let chat = Arg::new("chat").long("chat").action(ArgAction::SetTrue).conflicts_with("tokens");
    let command = model::with_tokens(model::with_model(command))
        .arg(prompt.help("text to go on with; without it and --tokens, standard input"))
        .arg(chat.help("the prompt is what a user says: write it with the model's chat template"))
        .arg(
            number("max-tokens", "tokens to generate at most")
                .value_parser(value_parser!(u32).range(1..))
                .default_value("128"),
        )
        .arg(number("temperature", "0: always the likeliest token").value_parser(value_parser!(f32)).default_value("0"))
        .arg(
            number("top-k", "only so many of the likeliest tokens; 0: all")
                .value_parser(value_parser!(u32))
                .default_value("0"),
        )
        .arg(
            number("top-p", "only tokens that together have this probability")
                .value_parser(value_parser!(f32))
                .default_value("1"),
        )
        .arg(
            number("min-p", "only tokens with this share of the likeliest one's probability")
                .value_parser(value_parser!(f32))
                .default_value("0"),
        )
        .arg(number("seed", "the same seed draws the same").value_parser(value_parser!(u64)).default_value("0"))
        .arg(
            Arg::new("ignore-end")
                .long("ignore-end")
                .action(ArgAction::SetTrue)
                .help("go on after a token that ends the answer"),
        );
    let format = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help).group("format").conflicts_with("ignore-end")
    };
    let command = command
        .arg(format("json-schema", "JSON", "the answer is JSON that this schema describes"))
        .arg(format("regex", "PATTERN", "this regular expression matches the answer, from its beginning to its end"))
        .arg(format("grammar", "LARK", "the answer follows this context-free grammar"));
    let command = model::with_text_rules(model::with_threads(command));
    model::with_json(command, "print {\"prompt_tokens\", \"tokens\", \"text\", \"finish_reason\"} at the end instead")
}

pub fn run(arguments: &ArgMatches) -> Result<(), Failure> {
    let model = Arc::new(model::open(arguments)?);
    let prompt = prompt(&model, arguments)?;
    let max_tokens = *arguments.get_one::<u32>("max-tokens").expect("it has a default");
    model::check_length(&model, prompt.len(), max_tokens as usize)?;
    let mut engine = model::engine(model.clone(), arguments, prompt.len() + max_tokens as usize, 1)?;
    let request = SequenceRequest {
        prompt: prompt.as_slice().into(),
        max_tokens,
        sampling: sampling(arguments),
        ignore_end: arguments.get_flag("ignore-end"),
        constraint: constraint(&model, arguments)?,
        ..SequenceRequest::default()
    };
    engine.admit(request).map_err(|e| match e {
        AdmitError::Sampling(field) => Failure::Misused(format!("--{} is out of range", field.replace('_', "-"))),
        other => Failure::failed(other),
    })?;
    let json = arguments.get_flag("json");
    let mut answer = Answer {
        model: &model,
        out: (!json).then(io::stdout),
        detokenizer: Detokenizer::default(),
        tokens: Vec::new(),
        text: String::new(),
        written: 0,
        reason: FinishReason::Length,
        failure: None,
    };
    while !engine.is_idle() {
        engine.step(&mut answer).map_err(Failure::failed)?;
    }
    answer.detokenizer.finish(&mut answer.text);
    answer.write();
    if let Some(error) = answer.failure {
        return Err(Failure::output(error));
    }
    let mut out = io::stdout().lock();
    let finish_reason = match answer.reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::ConstraintFailed => {
            // What there is of the answer stands in the line.
            if !json {
                writeln!(out).map_err(Failure::output)?;
            }
            return Err(Failure::Failed("the grammar cannot be followed any further: make it simpler".to_owned()));
        }
    };
    let (tokens, text) = (answer.tokens, answer.text);
    let written = match json {
        true => writeln!(
            out,
            "{}",
            json!({ "prompt_tokens": prompt, "tokens": tokens, "text": text, "finish_reason": finish_reason })
        ),
        false => writeln!(out),
    };
    written.map_err(Failure::output)
}

fn prompt(model: &Model, arguments: &ArgMatches) -> Result<Vec<u32>, Failure> {
    if let Some(tokens) = arguments.get_one::<String>("tokens") {
        return model::parse_tokens(tokens, model::vocab_len(model));
    }
    let content = model::text_or_stdin(arguments, "prompt")?;
    if arguments.get_flag("chat") {
        let said = ChatMessage::new("user", content);
        return Ok(model::encode_chat(model, &[said])?.1);
    }
    Ok(model::encode(model, arguments, &content))
}

/// What the answer must look like, if one of the formats is given.
fn constraint(model: &Model, arguments: &ArgMatches) -> Result<Option<Constraint>, Failure> {
    let text = |name: &str| arguments.get_one::<String>(name);
    let schema;
    let grammar = if let Some(text) = text("json-schema") {
        schema = serde_json::from_str(text).map_err(|e| Failure::Misused(format!("--json-schema is no JSON: {e}")))?;
        Grammar::JsonSchema(&schema)
    } else if let Some(pattern) = text("regex") {
        Grammar::Regex(pattern)
    } else if let Some(text) = text("grammar") {
        Grammar::Lark(text)
    } else {
        return Ok(None);
    };
    model.constraint(grammar).map(Some).map_err(|e| Failure::Misused(format!("the format cannot be followed: {e}")))
}

fn sampling(arguments: &ArgMatches) -> SamplingParams {
    let float = |name: &str| *arguments.get_one::<f32>(name).expect("it has a default");
    SamplingParams {
        temperature: float("temperature"),
        top_k: *arguments.get_one("top-k").expect("it has a default"),
        top_p: float("top-p"),
        min_p: float("min-p"),
        seed: *arguments.get_one("seed").expect("it has a default"),
        ..SamplingParams::default()
    }
}

/// Takes tokens, and writes their text at once unless it is wanted as JSON.
struct Answer<'m> {
    model: &'m Model,
    out: Option<io::Stdout>,
    detokenizer: Detokenizer,
    tokens: Vec<u32>,
    text: String,
    /// Bytes of `text` that are on standard output.
    written: usize,
    reason: FinishReason,
    failure: Option<io::Error>,
}

impl Answer<'_> {
    fn write(&mut self) {
        let Some(out) = &mut self.out else { return };
        let new = &self.text.as_bytes()[self.written..];
        if !new.is_empty() && self.failure.is_none() {
            self.failure = out.write_all(new).and_then(|()| out.flush()).err();
        }
        self.written = self.text.len();
    }
}

impl TokenSink for Answer<'_> {
    fn token(&mut self, _: u64, token: u32, _: Option<f32>) -> Verdict {
        self.tokens.push(token);
        self.detokenizer.push(self.model.tokenizer().token_bytes(token), &mut self.text);
        self.write();
        // Nobody reads on: whatever else would be computed is for nothing.
        if self.failure.is_some() { Verdict::Stop } else { Verdict::Continue }
    }

    fn finished(&mut self, _: u64, reason: FinishReason) {
        self.reason = reason;
    }
}
