//! What chat and plain completions have in common: their parameters, their chunks, their answers.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::Call;
use super::fields::Fields;
use super::refusal::{Refusal, Shape};
use super::tools::{Parser, Piece, Tools, call_id};
use super::view::{Dialect, End, Logprob, Token};
use crate::api::types::{self, check_sampling, check_stop, logit_bias};
use crate::domain::limits;
use crate::domain::task::{Priority, Sampling};
use crate::infra::http::Response;
use crate::services::pool::Loaded;
use crate::services::task::LiveTask;
use crate::state::AppState;

/// Parameters that both have, ours and those that other servers' clients send.
pub(super) struct Common {
    pub model: String,
    pub copies: u32,
    pub sampling: Sampling,
    pub stop: Vec<String>,
    pub ignore_end: bool,
    pub priority: Priority,
    pub session_key: Option<String>,
    pub stream: bool,
    pub include_usage: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StreamOptions {
    include_usage: Option<bool>,
    /// Padding against eavesdroppers who measure chunks: never added here.
    #[serde(rename = "include_obfuscation")]
    _include_obfuscation: Option<bool>,
}

impl Common {
    /// # Errors
    ///
    /// Naming the field.
    pub fn take(f: &mut Fields) -> Result<Common, Refusal> {
        let stream = f.take("stream")?.unwrap_or(false);
        let options: Option<StreamOptions> = f.take("stream_options")?;
        if options.is_some() && !stream {
            return Err(Refusal::field("stream_options", "belongs to streams: send \"stream\": true with it"));
        }
        let stop = match f.take("stop")? {
            None => Vec::new(),
            Some(OneOrMany::One(stop)) => vec![stop],
            Some(OneOrMany::Many(stops)) => stops,
        };
        check_stop(&stop)?;
        let priority = take_priority(f)?;
        // Neither changes what is answered: who asks, and labels for an account that this server does not keep.
        f.pass_over(&["user", "safety_identifier", "metadata", "store", "prompt_cache_retention"]);
        Ok(Common {
            model: f.need("model")?,
            copies: f.take("n")?.unwrap_or(1),
            sampling: sampling(f)?,
            stop,
            ignore_end: f.take("ignore_eos")?.unwrap_or(false),
            priority,
            session_key: f.take("prompt_cache_key")?,
            stream,
            include_usage: options.is_some_and(|o| o.include_usage == Some(true)),
        })
    }
}

/// What `service_tier` says about the queue.
///
/// # Errors
///
/// Naming it.
pub(super) fn take_priority(f: &mut Fields) -> Result<Priority, Refusal> {
    match f.take::<String>("service_tier")?.as_deref() {
        None | Some("auto" | "default" | "priority") => Ok(Priority::Interactive),
        Some("flex") => Ok(Priority::Batch),
        Some(_) => Err(Refusal::field("service_tier", "must be auto, default, priority or flex")),
    }
}

fn sampling(f: &mut Fields) -> Result<Sampling, Refusal> {
    let seed: Option<u64> = f.take("seed")?;
    let bias = f.take("logit_bias")?.unwrap_or_default();
    let top_k: i64 = f.take("top_k")?.unwrap_or(0);
    let sampling = Sampling {
        temperature: f.take("temperature")?.unwrap_or(1.0),
        // Others say -1 for all of them.
        top_k: u32::try_from(top_k.max(0)).map_err(|_| Refusal::field("top_k", "is more than any vocabulary has"))?,
        top_p: f.take("top_p")?.unwrap_or(1.0),
        min_p: f.take("min_p")?.unwrap_or(0.0),
        repetition_penalty: f.take("repetition_penalty")?.unwrap_or(1.0),
        presence_penalty: f.take("presence_penalty")?.unwrap_or(0.0),
        frequency_penalty: f.take("frequency_penalty")?.unwrap_or(0.0),
        // A client that names no seed expects another answer each time; the one it got is told at the end.
        seed: seed.unwrap_or_else(fresh_seed),
        logit_bias: logit_bias(&bias)?,
        min_tokens: f.take("min_tokens")?.unwrap_or(0),
    };
    check_sampling(&sampling)?;
    Ok(sampling)
}

/// Any number that JSON keeps.
pub(super) fn fresh_seed() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().0 & limits::JSON_INTEGER_MAX
}

/// Everything that the bytes of an answer depend on besides its request: build, arithmetic, weights. None in the first
/// moments of a model, while the digest of its weights is computed.
fn fingerprint(loaded: &Loaded) -> Option<String> {
    let weights = loaded.model.digest_if_known()?;
    let facts = format!("{}\n{}\n{}\n{weights}", loaded.engine, loaded.engine_version, loaded.arithmetic);
    let digest = Sha256::digest(facts);
    let hex: String = digest[..6].iter().map(|byte| format!("{byte:02x}")).collect();
    Some(format!("fp_{hex}"))
}

/// The two faces of this dialect.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Face {
    Chat,
    Text,
}

impl Face {
    const fn id_prefix(self) -> &'static str {
        if matches!(self, Face::Chat) { "chatcmpl-" } else { "cmpl-" }
    }

    const fn object(self, is_chunk: bool) -> &'static str {
        match (self, is_chunk) {
            (Face::Chat, true) => "chat.completion.chunk",
            (Face::Chat, false) => "chat.completion",
            (Face::Text, _) => "text_completion",
        }
    }
}

/// One answer as it grows.
#[derive(Default)]
struct Choice {
    begun: bool,
    text: String,
    /// Functions that it calls: id, name, arguments.
    calls: Vec<(String, String, String)>,
    parser: Option<Parser>,
    /// What is told of the prompt's tokens but the first, until the answer begins.
    prompt: Vec<Logprob>,
    /// Those of an answer that is given whole, or of tokens that no chunk has told of yet.
    logprobs: Vec<Value>,
    finish_reason: Option<String>,
    facts: Value,
}

/// Chat completions and plain completions.
pub(super) struct OpenAi {
    face: Face,
    state: Arc<AppState>,
    loaded: Arc<Loaded>,
    stream: bool,
    include_usage: bool,
    logprobs: bool,
    /// Answers to one prompt, next to each other.
    copies: usize,
    id: String,
    created: u64,
    /// A chunk up to the number of its choice.
    chunk_start: Vec<u8>,
    choices: Vec<Choice>,
    tasks: Vec<Arc<LiveTask>>,
    /// Put in front of each answer.
    echo: Vec<String>,
    prompt_tokens: usize,
    cached_tokens: u32,
    completion_tokens: u32,
}

impl OpenAi {
    pub fn new(
        face: Face,
        call: &Call<'_>,
        common: &Common,
        logprobs: bool,
        tasks: &[Arc<LiveTask>],
        echo: Vec<String>,
        tools: Option<&Tools>,
    ) -> OpenAi {
        let first = &tasks[0];
        let id = format!("{}{:032x}", face.id_prefix(), first.spec.task_id.0);
        let created = call.state.clock.unix_ms() / 1000;
        let mut head = json!({
            "id": id,
            "object": face.object(true),
            "created": created,
            "model": first.loaded.model_ref,
            "system_fingerprint": fingerprint(&first.loaded),
        })
        .to_string();
        head.pop();
        OpenAi {
            face,
            state: call.state.clone(),
            loaded: first.loaded.clone(),
            stream: common.stream,
            include_usage: common.include_usage,
            logprobs,
            copies: common.copies as usize,
            id,
            created,
            chunk_start: format!("data: {head},\"choices\":[").into_bytes(),
            choices: tasks.iter().map(|_| Choice { parser: tools.map(Tools::parser), ..Choice::default() }).collect(),
            tasks: tasks.to_vec(),
            echo,
            prompt_tokens: 0,
            cached_tokens: 0,
            completion_tokens: 0,
        }
    }

    /// A chunk with one choice; `delta` is the JSON of its text or delta field.
    fn chunk(&self, source: usize, delta: &[&str], logprobs: &str, finish_reason: &str, rest: &str, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.chunk_start);
        out.extend_from_slice(b"{\"index\":");
        out.extend_from_slice(itoa::Buffer::new().format(source).as_bytes());
        out.extend_from_slice(if self.face == Face::Chat { b",\"delta\":" } else { b",\"text\":" });
        delta.iter().for_each(|part| out.extend_from_slice(part.as_bytes()));
        out.extend_from_slice(b",\"logprobs\":");
        out.extend_from_slice(logprobs.as_bytes());
        out.extend_from_slice(b",\"finish_reason\":");
        out.extend_from_slice(finish_reason.as_bytes());
        out.extend_from_slice(rest.as_bytes());
        self.close_chunk("}]", out);
    }

    fn close_chunk(&self, end: &str, out: &mut Vec<u8>) {
        out.extend_from_slice(end.as_bytes());
        out.extend_from_slice(if self.include_usage { b",\"usage\":null}\n\n" } else { b"}\n\n" });
    }

    /// What comes before an answer's first token: the role, or the prompt that is to be repeated.
    fn begin(&mut self, source: usize, out: &mut Vec<u8>) {
        if std::mem::replace(&mut self.choices[source].begun, true) {
            return;
        }
        let echo = self.echo.get(source / self.copies).cloned();
        let mut logprobs = Vec::new();
        if let Some(text) = &echo {
            if self.logprobs {
                logprobs = self.prompt_logprobs(source, text);
            }
            self.choices[source].text.push_str(text);
        }
        if !self.stream {
            self.choices[source].logprobs = logprobs;
            return;
        }
        match (self.face, echo) {
            (Face::Chat, _) => {
                self.chunk(source, &["{\"role\":\"assistant\",\"content\":\"\"}"], "null", "null", "", out);
            }
            (Face::Text, Some(text)) => {
                let literal = Value::from(text).to_string();
                let field = if self.logprobs { self.logprobs_field(logprobs) } else { Value::Null };
                self.chunk(source, &[&literal], &field.to_string(), "null", "", out);
            }
            (Face::Text, None) => {}
        }
    }

    /// What an answer says that may call functions.
    fn pieces(&mut self, source: usize, pieces: Vec<Piece>, out: &mut Vec<u8>) {
        for piece in pieces {
            let choice = &mut self.choices[source];
            let delta = match piece {
                Piece::Text(text) => {
                    let delta = json!({"content": text});
                    choice.text.push_str(&text);
                    delta
                }
                Piece::Call(name) => {
                    let index = choice.calls.len();
                    let id = call_id(&self.tasks[source], index);
                    let function = json!({"name": name, "arguments": ""});
                    choice.calls.push((id.clone(), name, String::new()));
                    json!({"tool_calls": [{"index": index, "id": id, "type": "function", "function": function}]})
                }
                Piece::Arguments(more) => {
                    let index = choice.calls.len() - 1;
                    choice.calls[index].2.push_str(&more);
                    json!({"tool_calls": [{"index": index, "function": {"arguments": more}}]})
                }
            };
            if self.stream {
                let logprobs = self.pending_logprobs(source);
                self.chunk(source, &[&delta.to_string()], &logprobs, "null", "", out);
            }
        }
    }

    /// Of tokens that no chunk has told of.
    fn pending_logprobs(&mut self, source: usize) -> String {
        match std::mem::take(&mut self.choices[source].logprobs) {
            none if none.is_empty() => "null".to_owned(),
            tokens => self.logprobs_field(tokens).to_string(),
        }
    }

    fn token_text(&self, id: u32) -> (String, &[u8]) {
        let bytes = self.loaded.model.tokenizer().token_bytes(id);
        (String::from_utf8_lossy(bytes).into_owned(), bytes)
    }

    fn chat_logprob(&self, found: &Logprob) -> Value {
        let one = |l: &Logprob| {
            let (text, bytes) = self.token_text(l.id);
            json!({"token": text, "logprob": l.logprob, "bytes": bytes})
        };
        let mut all = one(found);
        all["top_logprobs"] = found.top_logprobs.iter().map(one).collect();
        all
    }

    fn text_logprob(&self, source: usize, found: &Logprob) -> Value {
        self.text_logprob_at(self.choices[source].text.chars().count(), found)
    }

    fn text_logprob_at(&self, offset: usize, found: &Logprob) -> Value {
        let mut top = serde_json::Map::new();
        // The token itself is always among them. Of tokens with the same text (parts of characters) the likeliest stands.
        for one in found.top_logprobs.iter().chain([found]) {
            top.entry(self.token_text(one.id).0).or_insert(one.logprob.into());
        }
        json!({"token": self.token_text(found.id).0, "logprob": found.logprob, "top": top, "offset": offset})
    }

    /// What is told of the tokens of a prompt that is repeated: nothing came before the first, so it has no probability.
    fn prompt_logprobs(&mut self, source: usize, text: &str) -> Vec<Value> {
        let told = std::mem::take(&mut self.choices[source].prompt);
        let tokens = &self.tasks[source].prompt;
        let char_count = |token: u32| self.token_text(token).1.iter().filter(|b| **b & 0xC0 != 0x80).count();
        let text_len = text.chars().count();
        // Some tokenizers put a blank before a text, which is none of it.
        let blank = tokens.iter().map(|t| char_count(*t)).sum::<usize>().saturating_sub(text_len).min(1);
        let mut begin = 0;
        let mut offset = |token: u32| {
            let before = begin;
            begin += char_count(token);
            before.saturating_sub(blank).min(text_len)
        };
        let first = json!({"token": self.token_text(tokens[0]).0, "offset": offset(tokens[0])});
        let rest = told.iter().map(|found| self.text_logprob_at(offset(found.id), found));
        [first].into_iter().chain(rest).collect()
    }

    /// The field `logprobs` for some tokens; what one of them has not is null.
    fn logprobs_field(&self, tokens: Vec<Value>) -> Value {
        if self.face == Face::Chat {
            return json!({"content": tokens, "refusal": null});
        }
        let column = |name: &str| tokens.iter().map(|t| t[name].clone()).collect::<Vec<_>>();
        json!({
            "tokens": column("token"),
            "token_logprobs": column("logprob"),
            "top_logprobs": column("top"),
            "text_offset": column("offset"),
        })
    }

    fn usage(&self) -> Value {
        let (prompt, completion) = (self.prompt_tokens, self.completion_tokens as usize);
        json!({
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        })
    }

    fn choice_body(&mut self, source: usize) -> Value {
        let choice = std::mem::take(&mut self.choices[source]);
        let logprobs = if self.logprobs { self.logprobs_field(choice.logprobs) } else { Value::Null };
        let mut body = json!({
            "index": source,
            "logprobs": logprobs,
            "finish_reason": choice.finish_reason,
            "orchestratord": choice.facts,
        });
        match self.face {
            Face::Chat => {
                let content = match choice.text.is_empty() && !choice.calls.is_empty() {
                    true => Value::Null,
                    false => choice.text.into(),
                };
                body["message"] = json!({"role": "assistant", "content": content, "refusal": null});
                if !choice.calls.is_empty() {
                    let call = |(id, name, arguments)| json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
                    body["message"]["tool_calls"] = choice.calls.into_iter().map(call).collect();
                }
            }
            Face::Text => body["text"] = choice.text.into(),
        }
        body
    }
}

/// What no other server tells: how to find and repeat this answer, and where its time went.
pub(super) fn facts(end: &End<'_>) -> Value {
    let mut facts = times(end.task);
    facts["transcript"] = end.artifact_id.into();
    facts["decode_ms"] = end.decode_ms.into();
    facts
}

/// As much of it as a task knows at any time.
pub(super) fn times(task: &LiveTask) -> Value {
    let times = &task.times;
    let ms = |from: u64, to: u64| if from == 0 || to == 0 { 0 } else { to.saturating_sub(from) / 1000 };
    let seated = times.seated_us.load(Relaxed);
    json!({
        "task_id": task.spec.task_id.to_string(),
        "seed": task.spec.sampling.seed,
        "queue_ms": ms(task.accepted_us, seated),
        "first_token_ms": ms(task.accepted_us, times.first_token_us.load(Relaxed)),
        "decode_ms": times.decode_ms(),
    })
}

impl Dialect for OpenAi {
    fn token(&mut self, source: usize, token: Token<'_>, out: &mut Vec<u8>) {
        self.begin(source, out);
        let logprob = if self.logprobs { token.logprob() } else { None };
        let logprob = logprob.map(|found| match self.face {
            Face::Chat => self.chat_logprob(&found),
            Face::Text => self.text_logprob(source, &found),
        });
        if let Some(parser) = &mut self.choices[source].parser {
            let mut text = String::new();
            token.push_text(&mut text);
            let pieces = parser.push(&text);
            self.choices[source].logprobs.extend(logprob);
            return self.pieces(source, pieces, out);
        }
        if self.stream && (!token.is_empty() || logprob.is_some()) {
            let field = logprob.clone().map(|l| self.logprobs_field(vec![l]).to_string());
            let field = field.as_deref().unwrap_or("null");
            match self.face {
                Face::Chat => self.chunk(source, &["{\"content\":", token.literal, "}"], field, "null", "", out),
                Face::Text => self.chunk(source, &[token.literal], field, "null", "", out),
            }
        }
        let choice = &mut self.choices[source];
        if !self.stream || (self.logprobs && self.face == Face::Text) {
            token.push_text(&mut choice.text);
        }
        if !self.stream {
            choice.logprobs.extend(logprob);
        }
    }

    fn prompt_token(&mut self, source: usize, data: &[u8]) {
        if self.logprobs {
            self.choices[source].prompt.push(serde_json::from_slice(data).expect("we wrote it"));
        }
    }

    fn end(&mut self, source: usize, end: &End<'_>, out: &mut Vec<u8>) {
        self.begin(source, out);
        if source.is_multiple_of(self.copies) {
            self.prompt_tokens += end.task.prompt.len();
            self.cached_tokens += end.task.times.cached_tokens.load(Relaxed);
        }
        self.completion_tokens += end.tokens_out;
        let facts = facts(end);
        let mut reason = end.finish_reason;
        if let Some(mut parser) = self.choices[source].parser.take() {
            self.pieces(source, parser.finish(), out);
            if parser.call_count > 0 && reason == "stop" {
                reason = "tool_calls";
            }
        }
        if self.stream {
            let logprobs = self.pending_logprobs(source);
            let delta = if self.face == Face::Chat { "{}" } else { "\"\"" };
            let finish_reason = Value::from(reason).to_string();
            self.chunk(source, &[delta], &logprobs, &finish_reason, &format!(",\"orchestratord\":{facts}"), out);
        }
        let choice = &mut self.choices[source];
        choice.finish_reason = Some(reason.to_owned());
        choice.facts = facts;
    }

    fn failed(&mut self, refusal: &Refusal, out: &mut Vec<u8>) {
        if self.stream {
            let body = refusal.body(Shape::OpenAi, "", &self.state);
            out.extend_from_slice(format!("data: {body}\n\ndata: [DONE]\n\n").as_bytes());
        }
    }

    fn finish(&mut self, out: &mut Vec<u8>) {
        if self.include_usage {
            out.extend_from_slice(&self.chunk_start);
            out.extend_from_slice(format!("],\"usage\":{}}}\n\n", self.usage()).as_bytes());
        }
        out.extend_from_slice(b"data: [DONE]\n\n");
    }

    fn body(&mut self) -> Response {
        let choices: Vec<Value> = (0..self.choices.len()).map(|source| self.choice_body(source)).collect();
        types::json(
            200,
            &json!({
                "id": self.id,
                "object": self.face.object(false),
                "created": self.created,
                "model": self.loaded.model_ref,
                "system_fingerprint": fingerprint(&self.loaded),
                "choices": choices,
                "usage": self.usage(),
            }),
        )
    }
}
