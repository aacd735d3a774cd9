//! `logits`: what the network says about the next token, for comparing engines.

use std::io::{BufWriter, Write};
use std::sync::Arc;

use clap::{Arg, ArgAction, ArgMatches, Command};
use orchestratord_engine::{Engine, FinishReason, Model, SequenceRequest, TokenSink, Verdict};

use super::{Failure, model};

/// Likeliest tokens that are shown to people.
const SHOWN: usize = 10;

/// Positions whose logits are computed together.
const POSITIONS: usize = 16;

pub fn command() -> Command {
    let command = Command::new("logits")
        .about("Print the logits that follow some tokens or a text")
        .after_help("With --json: {\"tokens\": [ids], \"logits\": [one f32 per vocabulary entry]}, or one such list per token with --all-positions.");
    let text = Arg::new("text").long("text").value_name("TEXT").conflicts_with("tokens");
    let command = model::with_tokens(model::with_model(command))
        .arg(text.help("text to encode; without it and --tokens, standard input"))
        .arg(
            Arg::new("all-positions")
                .long("all-positions")
                .action(ArgAction::SetTrue)
                .help("logits after every token, not only after the last"),
        );
    let command = model::with_text_rules(model::with_threads(command));
    model::with_json(command, "every logit as JSON, instead of the ten likeliest tokens")
}

pub fn run(arguments: &ArgMatches) -> Result<(), Failure> {
    let model = Arc::new(model::open(arguments)?);
    let tokens = match arguments.get_one::<String>("tokens") {
        Some(text) => model::parse_tokens(text, model::vocab_len(&model))?,
        None => model::encode(&model, arguments, &model::text_or_stdin(arguments, "text")?),
    };
    model::check_length(&model, tokens.len(), 0)?;
    let all = arguments.get_flag("all-positions");
    let slots = if all { POSITIONS } else { 1 };
    // One more than the prompt: the engine reserves room for the token that is sampled.
    let mut engine = model::engine(model.clone(), arguments, tokens.len() + 1, slots)?;
    let logits =
        if all { engine.forward_logits(&tokens).map_err(Failure::failed)? } else { last(&mut engine, &tokens)? };
    let mut out = BufWriter::new(std::io::stdout().lock());
    let written = match arguments.get_flag("json") {
        true => write_json(&mut out, &tokens, &logits, all, model::vocab_len(&model)),
        false => write_table(&mut out, &model, &tokens, &logits),
    };
    written.and_then(|()| out.flush()).map_err(Failure::output)
}

/// Logits after the last token only: the whole table would be large for a long text.
fn last(engine: &mut Engine, tokens: &[u32]) -> Result<Vec<f32>, Failure> {
    struct Keep(Vec<f32>);
    impl TokenSink for Keep {
        fn token(&mut self, _: u64, _: u32, _: Option<f32>) -> Verdict {
            Verdict::Stop
        }
        fn finished(&mut self, _: u64, _: FinishReason) {}
        fn wants_logits(&self, _: u64) -> bool {
            true
        }
        fn logits(&mut self, _: u64, logits: &[f32]) {
            self.0 = logits.to_vec();
        }
    }
    if tokens.len() == engine.model().info().context_length as usize {
        // There is no room for a token to sample, so the sequence cannot be admitted.
        let vocab_len = model::vocab_len(engine.model());
        let all = engine.forward_logits(tokens).map_err(Failure::failed)?;
        return Ok(all[all.len() - vocab_len..].to_vec());
    }
    let request =
        SequenceRequest { prompt: tokens.into(), max_tokens: 1, ignore_end: true, ..SequenceRequest::default() };
    engine.admit(request).map_err(Failure::failed)?;
    let mut keep = Keep(Vec::new());
    while !engine.is_idle() {
        engine.step(&mut keep).map_err(Failure::failed)?;
    }
    Ok(keep.0)
}

fn write_json(
    out: &mut impl Write,
    tokens: &[u32],
    logits: &[f32],
    all: bool,
    vocab_len: usize,
) -> std::io::Result<()> {
    write!(out, "{{\"tokens\":")?;
    serde_json::to_writer(&mut *out, tokens)?;
    write!(out, ",\"logits\":")?;
    if all {
        for (index, row) in logits.chunks_exact(vocab_len).enumerate() {
            out.write_all(if index == 0 { b"[" } else { b"," })?;
            serde_json::to_writer(&mut *out, row)?;
        }
        out.write_all(b"]")?;
    } else {
        serde_json::to_writer(&mut *out, logits)?;
    }
    out.write_all(b"}\n")
}

/// The likeliest tokens after each position, with their probabilities.
fn write_table(out: &mut impl Write, model: &Model, tokens: &[u32], logits: &[f32]) -> std::io::Result<()> {
    let vocab_len = model::vocab_len(model);
    let rows = logits.len() / vocab_len;
    for (index, row) in logits.chunks_exact(vocab_len).enumerate() {
        let position = tokens.len() - rows + index;
        let shown = |token: u32| format!("{:?}", model.tokenizer().decode(&[token], true));
        writeln!(out, "after token {position}: {} {}", tokens[position], shown(tokens[position]))?;
        let most = row.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
        let sum: f64 = row.iter().map(|x| f64::from(x - most).exp()).sum();
        let mut order: Vec<usize> = (0..vocab_len).collect();
        order.sort_by(|a, b| row[*b].total_cmp(&row[*a]).then(a.cmp(b)));
        for token in order.into_iter().take(SHOWN) {
            let probability = f64::from(row[token] - most).exp() / sum;
            writeln!(out, "{:>10.4} {probability:>8.5} {token:>8} {}", row[token], shown(token as u32))?;
        }
    }
    Ok(())
}
