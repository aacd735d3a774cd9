//! `replay`: decodes a transcript's artifact again, and says whether it is the same or where it first differs.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Arg, ArgMatches, Command, value_parser};
use orchestratord_engine::{
    Detokenizer, FinishReason, Isa, Model, Pooling, SamplingParams, SequenceRequest, StopMatcher, TokenSink, Verdict,
    shortened,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::progress::{Status, bytes};
use super::remote::{Remote, with_server};
use super::{Failure, model};
use crate::domain::task::PromptLogprobs;
use crate::infra::storage::fs::FsStore;
use crate::infra::storage::{ArtifactStore, id_of, is_id};
use crate::services::response_format;

pub fn command() -> Command {
    let command = Command::new("replay")
        .about("Decode a transcript again, and say whether it is the same or where it first differs")
        .after_help(
            "Exit codes: 0 identical; 1 it differs, or cannot be decoded here; 2 the command line is wrong. Streams are \
             bit-identical on the same build and instruction set: replay says so when either is another.",
        )
        .arg(Arg::new("transcript").value_name("ARTIFACT").required(true).help("sha256:… of a transcript, or a file with it"))
        .arg(
            Arg::new("artifacts")
                .long("artifacts")
                .value_name("FOLDER")
                .value_parser(value_parser!(PathBuf))
                .help("the server's artifacts_fs_root, where the id is looked up")
                .conflicts_with("url"),
        );
    let command = with_server(command, "server to get the artifact from, such as http://127.0.0.1:8080");
    model::with_json(model::with_threads(model::with_model(command)), "print {\"identical\", …} instead")
}

/// What a transcript says of how it came about.
#[derive(Deserialize)]
struct Metadata {
    model_ref: String,
    model_digest: String,
    engine_version: String,
    arithmetic: String,
    prompt_tokens: Vec<u32>,
    max_tokens: u32,
    seed: u64,
    temperature: f32,
    top_k: u32,
    top_p: f32,
    min_p: f32,
    repetition_penalty: f32,
    presence_penalty: f32,
    frequency_penalty: f32,
    stop: Vec<String>,
    ignore_end: bool,
    /// Transcripts of the first version have neither of these.
    #[serde(default)]
    logit_bias: std::collections::BTreeMap<String, f32>,
    #[serde(default)]
    min_tokens: u32,
    #[serde(default)]
    response_format: serde_json::Value,
    /// Of a vector only.
    pooling: Option<String>,
    dimensions: Option<u32>,
    /// Of tasks that tell of their prompt's own tokens: whether before an answer, or only.
    prompt_logprobs: Option<String>,
    #[serde(default)]
    top_logprobs: u32,
    /// Of tasks whose control tokens are part of the text.
    #[serde(default)]
    shown_tokens: Vec<u32>,
}

/// One token as the transcript has it.
#[derive(Clone, Debug, PartialEq)]
struct Said {
    text: String,
    /// Known when the task asked for `logprobs`.
    id: Option<u32>,
}

/// How a stream ended: `stop`, `length`, or something that cuts it short anywhere.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Finish {
    Stop,
    Length,
    CutShort,
}

pub fn run(arguments: &ArgMatches) -> Result<(), Failure> {
    let document = fetch(arguments)?;
    let not_one = |e: &dyn std::fmt::Display| Failure::Failed(format!("this artifact is not a transcript: {e}"));
    let metadata: Metadata = serde_json::from_value(document["metadata"].clone()).map_err(|e| not_one(&e))?;
    let events = document["content"]["events"].as_array().ok_or_else(|| not_one(&"it has no events"))?;
    let (said, finish) = read_events(events);
    let mut status = Status::new();
    let model = Arc::new(model::open(arguments)?);
    status.say(&format!("reading {} for its digest", bytes(model.info().weights_bytes)));
    let digest = model.digest();
    if digest != metadata.model_digest {
        return Err(Failure::Failed(format!(
            "the transcript is of model {} with digest {}, and this model's is {digest}: give the right one with --model",
            metadata.model_ref, metadata.model_digest
        )));
    }
    status.say(&format!("decoding {} tokens", said.len()));
    let (replayed, arithmetic) =
        decode(model, arguments, &metadata, (finish == Finish::CutShort).then_some(said.len()))?;
    drop(status);
    let difference = first_difference(&said, finish, &replayed.said, replayed.finish);
    let version = env!("CARGO_PKG_VERSION");
    let elsewhere = arithmetic != metadata.arithmetic || version != metadata.engine_version;
    report(
        arguments.get_flag("json"),
        &said,
        difference.as_ref(),
        elsewhere.then(|| {
            format!(
                "it was made by engine {} with {}; this is {version} with {arithmetic}",
                metadata.engine_version, metadata.arithmetic
            )
        }),
    )
}

fn report(
    as_json: bool,
    said: &[Said],
    difference: Option<&Difference>,
    elsewhere: Option<String>,
) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let count = said.len();
    let written = match as_json {
        true => {
            let (at, was, is) = difference
                .map_or((Value::Null, Value::Null, Value::Null), |d| (json!(d.index), json!(d.was), json!(d.is)));
            let body = json!({
                "identical": difference.is_none(), "tokens": count, "first_difference": at, "transcript": was,
                "replay": is, "note": elsewhere,
            });
            writeln!(out, "{body}")
        }
        false => match difference {
            None => writeln!(out, "identical: {count} tokens"),
            Some(d) => writeln!(out, "differs at token {}: the transcript has {}, the replay {}", d.index, d.was, d.is),
        },
    };
    written.map_err(Failure::output)?;
    match (difference, elsewhere) {
        (None, _) => Ok(()),
        (Some(_), Some(note)) => Err(Failure::Failed(format!("not identical, and that may be why: {note}"))),
        (Some(_), None) => Err(Failure::Failed("not identical, on the same build and instruction set".into())),
    }
}

/// The document, checked against the id where there is one.
fn fetch(arguments: &ArgMatches) -> Result<Value, Failure> {
    let name = arguments.get_one::<String>("transcript").expect("it is required");
    let bytes: Vec<u8> = if !is_id(name) {
        if name.starts_with("sha256:") {
            return Err(Failure::Misused(format!("{name:?} is no artifact's id: sha256: and 64 hexadecimal digits")));
        }
        std::fs::read(name).map_err(|e| Failure::Failed(format!("{name}: {e}")))?
    } else if let Some(folder) = arguments.get_one::<PathBuf>("artifacts") {
        from_folder(folder, name)?
    } else if let Some(remote) = Remote::from_arguments(arguments)? {
        let value = remote.json("GET", &format!("/v1/artifacts/{name}"), None)?;
        crate::services::artifacts::canonical(&value)
    } else {
        return Err(Failure::Misused("where is it? Give --artifacts FOLDER, --url URL, or the file itself".into()));
    };
    if is_id(name) && *id_of(&bytes) != **name {
        return Err(Failure::Failed(format!("what came has the digest {}: it is not {name}", id_of(&bytes))));
    }
    serde_json::from_slice(&bytes).map_err(|e| Failure::Failed(format!("{name} is not JSON: {e}")))
}

fn from_folder(folder: &Path, id: &str) -> Result<Vec<u8>, Failure> {
    if !folder.is_dir() {
        return Err(Failure::Misused(format!("--artifacts {}: there is no such folder", folder.display())));
    }
    let store = FsStore::open(folder).map_err(|e| Failure::Failed(format!("{}: {e}", folder.display())))?;
    match store.get(id) {
        Ok(Some(bytes)) => Ok(bytes.to_vec()),
        Ok(None) => Err(Failure::Failed(format!("{id} is not in {}", folder.display()))),
        Err(error) => Err(Failure::failed(error)),
    }
}

fn read_events(events: &[Value]) -> (Vec<Said>, Finish) {
    // What is told of the prompt's tokens stands before the answer's.
    let prompt = events.iter().filter(|e| e["type"] == "prompt").map(|e| {
        let data = &e["data"];
        let pair =
            |e: &Value| (e["id"].as_u64().unwrap_or_default() as u32, e["logprob"].as_f64().unwrap_or(f64::NAN) as f32);
        let top: Vec<_> = data["top_logprobs"].as_array().into_iter().flatten().map(pair).collect();
        let (token, logprob) = pair(data);
        likelihood(token, logprob, &top)
    });
    let tokens = events.iter().filter(|e| e["type"] == "token").map(|e| {
        let data = &e["data"];
        Said { text: data["t"].as_str().unwrap_or_default().to_owned(), id: data["id"].as_u64().map(|id| id as u32) }
    });
    let last = events.last().map_or(&Value::Null, |e| &e["data"]["finish_reason"]);
    let finish = match last.as_str() {
        Some("stop") => Finish::Stop,
        Some("length") => Finish::Length,
        _ => Finish::CutShort,
    };
    // A vector's elements stand for its tokens.
    let vectors = events.iter().filter(|e| e["type"] == "embedding").filter_map(|e| e["data"]["embedding"].as_array());
    let elements = vectors.flatten().map(|x| element(x.as_f64().unwrap_or(f64::NAN) as f32));
    (prompt.chain(tokens).chain(elements).collect(), finish)
}

/// A token of the prompt: what is told of it has to be the same.
fn likelihood(token: u32, logprob: f32, top: &[(u32, f32)]) -> Said {
    Said { text: format!("log-probability {logprob}, likeliest {top:?}"), id: Some(token) }
}

fn element(x: f32) -> Said {
    Said { text: x.to_string(), id: None }
}

/// The stream as it is decoded now.
struct Replayed {
    said: Vec<Said>,
    finish: Finish,
}

/// Turns tokens into events as the server does; see `services::engine_loop`.
struct Recorder<'m> {
    model: &'m Model,
    detokenizer: Detokenizer,
    stops: StopMatcher,
    shown: &'m [u32],
    max_tokens: usize,
    tokens: usize,
    dimensions: Option<u32>,
    /// Whoever ended the stream did so after so many.
    enough: usize,
    replayed: Replayed,
}

impl TokenSink for Recorder<'_> {
    fn token(&mut self, _: u64, token: u32, _: Option<f32>) -> Verdict {
        let (mut piece, mut text) = (String::new(), String::new());
        let tokenizer = self.model.tokenizer();
        let bytes = match self.shown.contains(&token) {
            true => tokenizer.token_name(token).unwrap_or_default().as_bytes(),
            false => tokenizer.token_bytes(token),
        };
        self.detokenizer.push(bytes, &mut piece);
        let hit = self.stops.push(&piece, &mut text);
        self.tokens += 1;
        if self.tokens == self.max_tokens && !hit {
            self.flush(&mut text);
        }
        self.replayed.said.push(Said { text, id: Some(token) });
        if hit || self.replayed.said.len() >= self.enough { Verdict::Stop } else { Verdict::Continue }
    }

    fn prompt_logprob(&mut self, _: u64, _: usize, token: u32, logprob: f32, top: &[(u32, f32)]) {
        self.replayed.said.push(likelihood(token, logprob, top));
    }

    fn embedding(&mut self, _: u64, vector: &[f32]) {
        let short = self.dimensions.map(|len| shortened(vector, len as usize));
        let vector = short.as_deref().unwrap_or(vector);
        self.replayed.said.extend(vector.iter().map(|x| element(*x)));
    }

    fn finished(&mut self, _: u64, reason: FinishReason) {
        let mut text = String::new();
        self.flush(&mut text);
        if !text.is_empty() {
            self.replayed.said.push(Said { text, id: None });
        }
        self.replayed.finish = match reason {
            FinishReason::Stop => Finish::Stop,
            FinishReason::Length => Finish::Length,
            FinishReason::ConstraintFailed => Finish::CutShort,
        };
    }
}

impl Recorder<'_> {
    fn flush(&mut self, text: &mut String) {
        let mut rest = String::new();
        self.detokenizer.finish(&mut rest);
        if !self.stops.push(&rest, text) {
            self.stops.finish(text);
        }
    }
}

fn decode(
    model: Arc<Model>,
    arguments: &ArgMatches,
    m: &Metadata,
    cut_short_after: Option<usize>,
) -> Result<(Replayed, String), Failure> {
    // What is reserved for a prompt alone is one token, and none is drawn.
    let max_tokens = if m.prompt_logprobs.as_deref() == Some(PromptLogprobs::Only.name()) { 0 } else { m.max_tokens };
    let tokens_max = m.prompt_tokens.len() + m.max_tokens as usize;
    model::check_length(&model, m.prompt_tokens.len(), m.max_tokens as usize)?;
    // The transcript's own instruction set, if this processor has it and no other is asked for.
    let own = || m.arithmetic.rsplit_once("-v").and_then(|(isa, _)| Isa::named(isa));
    let isa = model::isa(arguments).or_else(own);
    let mut engine = model::engine_on(isa, model.clone(), arguments, tokens_max, 1)?;
    let bias = m.logit_bias.iter().map(|(token, bias)| Some((token.parse().ok()?, *bias))).collect::<Option<Vec<_>>>();
    let sampling = SamplingParams {
        temperature: m.temperature,
        top_k: m.top_k,
        top_p: m.top_p,
        min_p: m.min_p,
        repetition_penalty: m.repetition_penalty,
        presence_penalty: m.presence_penalty,
        frequency_penalty: m.frequency_penalty,
        seed: m.seed,
        logit_bias: bias
            .ok_or_else(|| Failure::Failed("the transcript's logit_bias has no token numbers".into()))?
            .into(),
        min_tokens: m.min_tokens,
    };
    let format = response_format::parse(&m.response_format)
        .map_err(|why| Failure::Failed(format!("the transcript's response_format {why}")))?;
    let constraint = response_format::constraint(&model, &format).map_err(Failure::failed)?;
    let request = SequenceRequest {
        prompt: m.prompt_tokens.as_slice().into(),
        max_tokens,
        sampling,
        ignore_end: m.ignore_end,
        constraint,
        want_prompt_logprobs: m.prompt_logprobs.is_some(),
        top_logprobs: if m.prompt_logprobs.is_some() { m.top_logprobs } else { 0 },
        pooling: m.pooling.as_deref().map(|name| if name == "mean" { Pooling::Mean } else { Pooling::Last }),
        ..SequenceRequest::default()
    };
    engine.admit(request).map_err(Failure::failed)?;
    let mut recorder = Recorder {
        model: &model,
        detokenizer: Detokenizer::default(),
        stops: StopMatcher::new(&m.stop),
        shown: &m.shown_tokens,
        max_tokens: max_tokens as usize,
        tokens: 0,
        dimensions: m.dimensions,
        enough: cut_short_after.unwrap_or(usize::MAX),
        replayed: Replayed { said: Vec::new(), finish: Finish::CutShort },
    };
    while !engine.is_idle() && cut_short_after != Some(0) {
        engine.step(&mut recorder).map_err(Failure::failed)?;
    }
    Ok((recorder.replayed, engine.arithmetic().to_owned()))
}

/// Where two streams part, and what each has there.
#[derive(Debug, PartialEq)]
struct Difference {
    index: usize,
    was: String,
    is: String,
}

fn first_difference(was: &[Said], was_finish: Finish, is: &[Said], is_finish: Finish) -> Option<Difference> {
    let shown = |said: Option<&Said>, finish: Finish| match said {
        Some(Said { text, id: Some(id) }) => format!("{text:?} (token {id})"),
        Some(Said { text, id: None }) => format!("{text:?}"),
        None => format!("its end ({finish:?})").to_lowercase(),
    };
    let same = |a: &Said, b: &Said| a.text == b.text && (a.id.is_none() || b.id.is_none() || a.id == b.id);
    // A stream that was cut short ends anywhere: what was decoded beyond that says nothing.
    let len = if was_finish == Finish::CutShort { was.len() } else { was.len().max(is.len()) };
    for index in 0..len {
        match (was.get(index), is.get(index)) {
            (Some(a), Some(b)) if same(a, b) => {}
            (a, b) => return Some(Difference { index, was: shown(a, was_finish), is: shown(b, is_finish) }),
        }
    }
    let ends_alike = was_finish == Finish::CutShort || was_finish == is_finish;
    (!ends_alike).then(|| Difference { index: len, was: shown(None, was_finish), is: shown(None, is_finish) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(texts: &[&str]) -> Vec<Said> {
        texts.iter().map(|t| Said { text: (*t).to_owned(), id: None }).collect()
    }

    #[test]
    fn the_first_difference_is_found_and_a_cut_is_none() {
        let at = |was: &[&str], f: Finish, is: &[&str], g: Finish| {
            first_difference(&said(was), f, &said(is), g).map(|d| d.index)
        };
        use Finish::*;
        assert_eq!(at(&["a", "b"], Stop, &["a", "b"], Stop), None);
        assert_eq!(at(&["a", "b"], Stop, &["a", "c"], Stop), Some(1));
        assert_eq!(at(&["a"], Stop, &["a", "b"], Stop), Some(1));
        assert_eq!(at(&["a", "b"], Length, &["a", "b"], Stop), Some(2));
        assert_eq!(at(&["a"], CutShort, &["a", "b"], Length), None);
        assert_eq!(at(&["a", "b"], CutShort, &["a"], Stop), Some(1));
        let other = [Said { text: "a".into(), id: Some(1) }];
        assert!(first_difference(&other, Stop, &[Said { id: Some(2), ..other[0].clone() }], Stop).is_some());
    }
}
