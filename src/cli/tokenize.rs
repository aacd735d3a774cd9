//! `tokenize` and `detokenize`: between text and token ids, as the model does it.

use std::io::Write;

use clap::{Arg, ArgMatches, Command};
use serde_json::json;

use super::{Failure, model};

pub fn command() -> Command {
    let command = Command::new("tokenize").about("Print the token ids of a text or a conversation");
    let text = Arg::new("text").long("text").value_name("TEXT");
    let messages = Arg::new("messages").long("messages").value_name("JSON").conflicts_with("text");
    let command = model::with_model(command)
        .arg(text.help("text to encode; without it, standard input"))
        .arg(messages.help("conversation, [{\"role\", \"content\"}, …], rendered with the model's chat template"));
    model::with_json(model::with_text_rules(command), "print {\"tokens\": [ids], \"text\": what was encoded}")
}

pub fn command_back() -> Command {
    let command = Command::new("detokenize").about("Print the text of token ids, byte for byte").after_help(
        "Control tokens are left out; with --special they are written by name. Without --json the bytes are written as they \
         are, even if they are no UTF-8.",
    );
    let special = Arg::new("special").long("special").action(clap::ArgAction::SetTrue);
    let command = model::with_tokens(model::with_model(command)).arg(special.help("write control tokens by name"));
    model::with_json(command, "print {\"tokens\": [ids], \"text\": text}")
}

pub fn run(arguments: &ArgMatches) -> Result<(), Failure> {
    let model = model::open(arguments)?;
    let (text, tokens) = match arguments.get_one::<String>("messages") {
        Some(messages) => model::encode_chat(&model, &model::parse_messages(messages)?)?,
        None => {
            let text = model::text_or_stdin(arguments, "text")?;
            let tokens = model::encode(&model, arguments, &text);
            (text, tokens)
        }
    };
    let mut out = std::io::stdout().lock();
    let written = match arguments.get_flag("json") {
        true => writeln!(out, "{}", json!({ "tokens": tokens, "text": text })),
        false => {
            let ids: Vec<String> = tokens.iter().map(u32::to_string).collect();
            writeln!(out, "{}", ids.join(","))
        }
    };
    written.map_err(Failure::output)
}

pub fn run_back(arguments: &ArgMatches) -> Result<(), Failure> {
    let model = model::open(arguments)?;
    let tokens = model::parse_tokens(&model::text_or_stdin(arguments, "tokens")?, model::vocab_len(&model))?;
    let bytes = model.tokenizer().decode_bytes(&tokens, arguments.get_flag("special"));
    let mut out = std::io::stdout().lock();
    let written = match arguments.get_flag("json") {
        true => writeln!(out, "{}", json!({ "tokens": tokens, "text": String::from_utf8_lossy(&bytes) })),
        false => out.write_all(&bytes),
    };
    written.and_then(|()| out.flush()).map_err(Failure::output)
}
