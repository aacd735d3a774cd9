//! Grammars that an answer must follow: which tokens may come next is computed beside the forward pass.
//!
//! `llguidance` compiles a JSON schema, a regular expression or a Lark grammar, and walks the vocabulary with it. Telling it
//! of a token takes microseconds and is done at once; the mask of the next one takes longer, and is made on a thread of its
//! own while the engine computes the logits that it is for.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{SimpleVob, TokEnv, TokRxInfo, TokTrie, TokenizerEnv};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value as Json, json};

use crate::Tokenizer;

/// White space between two words of JSON: enough for a line's end and the indentation of the next.
const WHITE_SPACE: &str = r"[ \n\r\t]{1,20}";

/// What an answer must look like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Grammar<'a> {
    /// Any JSON object.
    JsonObject,
    /// JSON that a schema describes.
    JsonSchema(&'a Json),
    /// Text that a regular expression matches from its beginning to its end.
    Regex(&'a str),
    /// Text of a context-free grammar, in llguidance's variant of Lark.
    Lark(&'a str),
}

/// A grammar that cannot be followed. `Display` is one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct GrammarError(String);

/// A compiled grammar at its beginning. Cloning copies the handle.
#[derive(Clone)]
pub struct Constraint(Arc<Matcher>);

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Constraint")
    }
}

impl Constraint {
    /// How many of these tokens may begin an answer, and whether it may end after all of them.
    pub fn accepts(&self, tokens: &[u32]) -> (usize, bool) {
        let mut matcher = self.0.deep_clone();
        let count =
            tokens.iter().take_while(|token| !matcher.is_stopped() && matcher.consume_token(**token).is_ok()).count();
        (count, count == tokens.len() && (matcher.is_stopped() || matcher.is_accepting().unwrap_or(false)))
    }
}

/// Compiles grammars for one vocabulary.
pub(crate) struct Grammars {
    factory: OnceLock<Result<ParserFactory, String>>,
}

impl Grammars {
    pub fn new() -> Grammars {
        Grammars { factory: OnceLock::new() }
    }

    /// # Errors
    ///
    /// When the grammar is none, or too large.
    pub fn compile(&self, tokenizer: &Tokenizer, grammar: Grammar<'_>) -> Result<Constraint, GrammarError> {
        let grammar = match grammar {
            Grammar::JsonObject => TopLevelGrammar::from_json_schema(with_bounded_space(&json!({ "type": "object" }))),
            Grammar::JsonSchema(schema) => TopLevelGrammar::from_json_schema(with_bounded_space(schema)),
            Grammar::Regex(pattern) => TopLevelGrammar::from_regex(pattern),
            Grammar::Lark(text) => TopLevelGrammar::from_lark(text.to_owned()),
        };
        // The vocabulary is sorted into a tree when the first grammar comes: most models are never asked for one.
        let factory = self.factory.get_or_init(|| factory(tokenizer)).as_ref();
        let factory = factory.map_err(|why| GrammarError(why.clone()))?;
        let matcher = Matcher::new(factory.create_parser(grammar));
        match matcher.get_error() {
            Some(error) => Err(GrammarError(one_line(&error))),
            None => Ok(Constraint(Arc::new(matcher))),
        }
    }
}

/// A schema whose answers have a bounded stretch of white space between two words. Without a bound, a model that likes
/// white space could write it until its tokens run out, and every word of it would be legal.
fn with_bounded_space(schema: &Json) -> Json {
    let mut schema = schema.clone();
    if schema == Json::Bool(true) {
        schema = json!({});
    }
    if let Some(fields) = schema.as_object_mut() {
        // The key is llguidance's own: one that a client sent would lift the bound.
        fields.insert("x-guidance".to_owned(), json!({ "whitespace_pattern": WHITE_SPACE }));
    }
    schema
}

fn factory(tokenizer: &Tokenizer) -> Result<ParserFactory, String> {
    let ends = tokenizer.ends_of_generation();
    let Some(end) = tokenizer.eos().or(ends.first().copied()) else {
        return Err("the model has no token that ends an answer, so it could not end one of a grammar".to_owned());
    };
    let words: Vec<Vec<u8>> = (0..tokenizer.vocab_len() as u32)
        .map(|token| match tokenizer.is_control(token) || ends.contains(&token) {
            // A control token is no text, whatever its name is: the mark in front says so.
            true => {
                [&[TokTrie::SPECIAL_TOKEN_MARKER], tokenizer.token_name(token).unwrap_or_default().as_bytes()].concat()
            }
            false => tokenizer.token_bytes(token).to_vec(),
        })
        .collect();
    let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, end), &words);
    let all_ends: Vec<u32> = std::iter::once(end).chain(ends.iter().copied().filter(|e| *e != end)).collect();
    let environment: TokEnv = Arc::new(Vocabulary(trie.with_eos_tokens(&all_ends)));
    let mut factory = ParserFactory::new_simple(&environment).map_err(|e| one_line(&e.to_string()))?;
    factory.quiet();
    Ok(factory)
}

/// The vocabulary as llguidance wants to see it.
struct Vocabulary(TokTrie);

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.0
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        self.0.greedy_tokenize(bytes)
    }

    fn tokenize_is_canonical(&self) -> bool {
        // The model's own tokens come from the model: nothing is forced on it.
        false
    }
}

/// The tokens that may come next.
pub(crate) struct Mask(SimpleVob);

impl Mask {
    /// Takes away the scores of all tokens that may not come.
    pub fn apply(&self, scores: &mut [f32]) {
        let known = self.0.len().min(scores.len());
        self.0.iter_unset_entries(|token| {
            if token < known {
                scores[token] = f32::NEG_INFINITY;
            }
        });
        scores[known..].fill(f32::NEG_INFINITY);
    }
}

/// Where an answer stands in its grammar.
pub(crate) enum Progress {
    /// The mask of the next token is being made.
    Working(Receiver<Made>),
    /// It is there.
    Ready { matcher: Box<Matcher>, mask: Mask },
    /// The grammar cannot go on, which the sequence has to be told.
    Failed,
}

type Made = (Box<Matcher>, Result<SimpleVob, String>);

struct Job {
    matcher: Box<Matcher>,
    reply: SyncSender<Made>,
}

/// The thread that makes masks. It is started for the first grammar, and ends with the engine.
pub(crate) struct MaskMaker {
    jobs: Option<SyncSender<Job>>,
    jobs_max: usize,
}

impl MaskMaker {
    /// At most `jobs_max` masks wait to be made: one for each sequence in a slot. Those of sequences that were cancelled
    /// meanwhile may stand before them; beyond the bound, the engine's thread makes the mask itself.
    pub fn new(jobs_max: usize) -> MaskMaker {
        MaskMaker { jobs: None, jobs_max }
    }

    /// Begins to follow a grammar.
    pub fn begin(&mut self, constraint: &Constraint) -> Progress {
        self.make(Box::new(constraint.0.deep_clone()))
    }

    /// Goes on after a token. True when the answer is complete and nothing may follow.
    ///
    /// The token must be one that the mask allowed.
    pub fn advance(&mut self, progress: &mut Progress, token: u32) -> bool {
        let Progress::Ready { mut matcher, .. } = std::mem::replace(progress, Progress::Failed) else {
            return false;
        };
        if matcher.consume_token(token).is_err() {
            return false;
        }
        if matcher.is_stopped() {
            return true;
        }
        *progress = self.make(matcher);
        false
    }

    fn make(&mut self, matcher: Box<Matcher>) -> Progress {
        // One answer, which never waits.
        let (reply, receiver) = sync_channel(1);
        let mut job = Job { matcher, reply };
        if self.jobs.is_none() {
            self.jobs = start(self.jobs_max);
        }
        if let Some(jobs) = &self.jobs {
            match jobs.try_send(job) {
                Ok(()) => return Progress::Working(receiver),
                Err(TrySendError::Full(refused) | TrySendError::Disconnected(refused)) => job = refused,
            }
        }
        // Without the thread it takes longer, and that is all.
        work(job);
        Progress::Working(receiver)
    }
}

impl Progress {
    /// The mask, waited for if it is not there yet.
    pub fn mask(&mut self) -> Option<&Mask> {
        if let Progress::Working(receiver) = self {
            *self = match receiver.recv() {
                Ok((matcher, Ok(mask))) if !mask.is_zero() => Progress::Ready { matcher, mask: Mask(mask) },
                _ => Progress::Failed,
            };
        }
        match self {
            Progress::Ready { mask, .. } => Some(mask),
            _ => None,
        }
    }
}

fn start(jobs_max: usize) -> Option<SyncSender<Job>> {
    let (jobs, received) = sync_channel::<Job>(jobs_max);
    let body = move || received.into_iter().for_each(work);
    std::thread::Builder::new().name("masks".into()).spawn(body).ok()?;
    Some(jobs)
}

fn work(mut job: Job) {
    let mask = job.matcher.compute_mask().map_err(|e| e.to_string());
    // Nobody waits for it when the sequence was cancelled meanwhile.
    let _ = job.reply.send((job.matcher, mask));
}

fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}
