//! What the commands that run a model have in common: which model, which tokens, and an engine that fits them.

use std::io::Read;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use orchestratord_engine::{BLOCK_LEN, ChatMessage, Engine, EngineOptions, Isa, Model};

use super::Failure;

/// Rows of a prompt that are computed together. Results do not depend on it.
const STEP_ROWS_MAX: usize = 128;

/// Adds `--model`.
pub fn with_model(command: Command) -> Command {
    let model = Arg::new("model")
        .long("model")
        .value_name("PATH")
        .value_parser(value_parser!(PathBuf))
        .help("GGUF file or Hugging Face folder; without it the built-in model wren");
    command.arg(model)
}

/// Without a server all processors compute.
static THREADS: LazyLock<String> =
    LazyLock::new(|| std::thread::available_parallelism().map_or(1, usize::from).min(1024).to_string());

/// Adds `--threads` and `--isa`.
pub fn with_threads(command: Command) -> Command {
    let threads = Arg::new("threads")
        .long("threads")
        .value_name("N")
        .value_parser(value_parser!(u16).range(1..=1024))
        .default_value(THREADS.as_str())
        .help("threads that compute; results do not depend on it");
    with_isa(command.arg(threads))
}

/// Adds `--isa`.
pub fn with_isa(command: Command) -> Command {
    let isa = Arg::new("isa")
        .long("isa")
        .value_name("NAME")
        .value_parser(PossibleValuesParser::new(Isa::detect().into_iter().map(Isa::name)))
        .help("instruction set, on which the last digits of results depend; without it the best one that rounds no activations");
    command.arg(isa)
}

/// The instruction set that `--isa` names.
pub fn isa(arguments: &ArgMatches) -> Option<Isa> {
    arguments.get_one::<String>("isa").and_then(|name| Isa::named(name))
}

/// Adds what says how text becomes tokens.
pub fn with_text_rules(command: Command) -> Command {
    command
        .arg(
            Arg::new("no-bos")
                .long("no-bos")
                .action(ArgAction::SetTrue)
                .help("do not put the model's first token in front, even if the model wants one"),
        )
        .arg(
            Arg::new("no-special")
                .long("no-special")
                .action(ArgAction::SetTrue)
                .help("names of control tokens in the text are letters like any others"),
        )
}

/// Adds `--tokens`.
pub fn with_tokens(command: Command) -> Command {
    let help = "token ids, separated by commas or spaces; brackets of a JSON array are allowed";
    command.arg(Arg::new("tokens").long("tokens").value_name("IDS").help(help).allow_hyphen_values(true))
}

/// Adds `--json`.
pub fn with_json(command: Command, help: &'static str) -> Command {
    command.arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help(help))
}

/// Loads the model that `--model` names.
pub fn open(arguments: &ArgMatches) -> Result<Model, Failure> {
    match arguments.get_one::<PathBuf>("model") {
        None => Model::from_static(crate::default_model::bytes()).map_err(Failure::failed),
        Some(path) => Model::open(path).map_err(|e| Failure::Failed(format!("model {}: {e}", path.display()))),
    }
}

/// An engine for one sequence of at most `tokens_max` tokens, with `slots` logits at once.
pub fn engine(model: Arc<Model>, arguments: &ArgMatches, tokens_max: usize, slots: usize) -> Result<Engine, Failure> {
    engine_on(isa(arguments), model, arguments, tokens_max, slots)
}

/// As `engine`, on an instruction set that `--isa` does not name.
pub fn engine_on(
    isa: Option<Isa>,
    model: Arc<Model>,
    arguments: &ArgMatches,
    tokens_max: usize,
    slots: usize,
) -> Result<Engine, Failure> {
    let options = EngineOptions {
        slots_max: slots,
        step_rows_max: STEP_ROWS_MAX.max(slots),
        kv_blocks_max: tokens_max.div_ceil(BLOCK_LEN).max(1),
        threads: usize::from(*arguments.get_one::<u16>("threads").expect("it has a default")),
        isa,
        ..EngineOptions::default()
    };
    Engine::new(model, options).map_err(Failure::failed)
}

/// The tokens of a text, as `--no-bos` and `--no-special` want them.
pub fn encode(model: &Model, arguments: &ArgMatches, text: &str) -> Vec<u32> {
    model.tokenizer().encode(text, !arguments.get_flag("no-bos"), !arguments.get_flag("no-special"))
}

/// A conversation as the model's chat template writes it, and its tokens.
///
/// The template may ask for the date: the clock is read here, once.
pub fn encode_chat(model: &Model, messages: &[ChatMessage]) -> Result<(String, Vec<u32>), Failure> {
    let template = model
        .chat_template()
        .ok_or_else(|| Failure::Misused("this model has no chat template: give it plain text instead".to_owned()))?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let text = template.render(messages, None, true, now.as_millis() as u64).map_err(Failure::misused)?;
    let tokens = model.tokenizer().encode(&text, !template.adds_bos(), true);
    Ok((text, tokens))
}

/// Reads `[{"role": …, "content": …}, …]`.
pub fn parse_messages(text: &str) -> Result<Vec<ChatMessage>, Failure> {
    let wrong =
        |what: String| Failure::Misused(format!("messages: {what}; give [{{\"role\": \"user\", \"content\": \"…\"}}]"));
    let values: Vec<serde_json::Value> = serde_json::from_str(text).map_err(|e| wrong(e.to_string()))?;
    let field = |value: &serde_json::Value, name: &str| {
        value[name].as_str().map(str::to_owned).ok_or_else(|| wrong(format!("{name:?} is missing or no string")))
    };
    values.iter().map(|v| Ok(ChatMessage::new(field(v, "role")?, field(v, "content")?))).collect()
}

/// The text of an argument, or all of standard input.
pub fn text_or_stdin(arguments: &ArgMatches, name: &str) -> Result<String, Failure> {
    if let Some(text) = arguments.get_one::<String>(name) {
        return Ok(text.clone());
    }
    let mut bytes = Vec::new();
    std::io::stdin().lock().read_to_end(&mut bytes).map_err(|e| Failure::Failed(format!("standard input: {e}")))?;
    String::from_utf8(bytes).map_err(|e| Failure::Misused(format!("standard input is not UTF-8: {}", e.utf8_error())))
}

/// Reads a list of token ids and checks that the model has them.
pub fn parse_tokens(text: &str, vocab_len: usize) -> Result<Vec<u32>, Failure> {
    let inner = text.trim();
    let inner = inner.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(inner);
    let words = inner.split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty());
    let token = |word: &str| match word.parse::<u32>() {
        Ok(token) if (token as usize) < vocab_len => Ok(token),
        Ok(token) => {
            Err(Failure::Misused(format!("token {token} is none of the model's: they go from 0 to {}", vocab_len - 1)))
        }
        Err(_) => Err(Failure::Misused(format!("{word:?} is no token id: give whole numbers such as 1,2,3"))),
    };
    words.map(token).collect()
}

/// Refuses what the model cannot attend to.
pub fn check_length(model: &Model, prompt_len: usize, max_tokens: usize) -> Result<(), Failure> {
    let context = model.info().context_length as usize;
    if prompt_len == 0 {
        return Err(Failure::Misused("there is no token: give a text or token ids".to_owned()));
    }
    if prompt_len + max_tokens > context {
        let asked = if max_tokens == 0 { String::new() } else { format!(" and {max_tokens} more") };
        return Err(Failure::Misused(format!("{prompt_len} tokens{asked} are over the model's context of {context}")));
    }
    Ok(())
}

/// The length of the model's vocabulary, that of its logits.
pub fn vocab_len(model: &Model) -> usize {
    model.info().vocab_len
}
