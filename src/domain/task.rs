//! One generation as a client asked for it, after every field was checked.

use std::sync::Arc;

use super::ids::{SessionId, TaskId};

/// Who goes first. Interactive tasks are seated before batch tasks and never preempted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Priority {
    Interactive,
    Batch,
}

impl Priority {
    pub const ALL: [Priority; 2] = [Priority::Interactive, Priority::Batch];

    pub const fn name(self) -> &'static str {
        match self {
            Priority::Interactive => "interactive",
            Priority::Batch => "batch",
        }
    }

    pub const fn index(self) -> usize {
        self as usize
    }
}

/// Why a stream ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    Stop,
    Length,
    Canceled,
}

impl FinishReason {
    pub const fn name(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Canceled => "canceled",
        }
    }
}

/// What the model is shown.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    Text(String),
    /// Rendered with the model's own chat template.
    Chat(Chat),
    /// Tokenized already.
    Tokens(Arc<[u32]>),
}

impl Prompt {
    /// Bytes of text that the client sent.
    pub fn text_len(&self) -> usize {
        match self {
            Prompt::Text(text) => text.len(),
            Prompt::Chat(chat) => {
                let called = |m: &Message| m.calls.iter().map(|c| c.arguments.len()).sum::<usize>();
                let turns = chat.turns.iter().map(|m| m.content.len() + called(m)).sum::<usize>();
                turns + chat.tools.as_ref().map_or(0, |tools| tools.len())
            }
            Prompt::Tokens(_) => 0,
        }
    }

    /// Tokens that this is at least, when none stands for more than `token_bytes_max` bytes.
    pub fn token_count_min(&self, token_bytes_max: usize) -> usize {
        match self {
            Prompt::Tokens(tokens) => tokens.len(),
            Prompt::Text(text) => text.len() / token_bytes_max.max(1),
            // Templates repeat what is said; whether they repeat the rest is their affair.
            Prompt::Chat(chat) => chat.turns.iter().map(|m| m.content.len()).sum::<usize>() / token_bytes_max.max(1),
        }
    }
}

/// A conversation that the assistant is to go on with.
#[derive(Clone, Debug, PartialEq)]
pub struct Chat {
    pub turns: Vec<Message>,
    /// Functions that may be called: a list in JSON, as chat templates want it.
    pub tools: Option<Arc<str>>,
}

impl From<Vec<Message>> for Chat {
    fn from(turns: Vec<Message>) -> Chat {
        Chat { turns, tools: None }
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Message {
    pub role: String,
    pub content: String,
    /// Functions that the assistant called in this turn.
    pub calls: Vec<FunctionCall>,
    /// The id and function of the call that this turn answers.
    pub answers: Option<(String, String)>,
}

impl Message {
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message { role: role.into(), content: content.into(), ..Message::default() }
    }
}

/// A function that was called in an earlier turn.
#[derive(Clone, Debug, PartialEq)]
pub struct FunctionCall {
    pub id: String,
    pub name: String,
    /// A JSON object.
    pub arguments: String,
}

/// How a token is drawn from the logits. Temperature 0 is greedy.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    pub temperature: f32,
    /// 0: off.
    pub top_k: u32,
    /// 1: off.
    pub top_p: f32,
    /// 0: off.
    pub min_p: f32,
    /// 1: off.
    pub repetition_penalty: f32,
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    pub seed: u64,
    /// Added to the logits of single tokens.
    pub logit_bias: Arc<[(u32, f32)]>,
    /// The model's end-of-generation tokens do not count before so many tokens.
    pub min_tokens: u32,
}

impl Default for Sampling {
    /// Greedy, and nothing else.
    fn default() -> Sampling {
        Sampling {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: 0,
            logit_bias: Arc::default(),
            min_tokens: 0,
        }
    }
}

/// A task whose fields are each legal on their own; limits of the model come later.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskSpec {
    pub task_id: TaskId,
    pub session_id: SessionId,
    pub workload: Workload,
    /// Means something when the workload is `Embedding`.
    pub embedding: Embedding,
    pub model_ref: Arc<str>,
    pub engine: &'static str,
    /// Cells of context the client wants: prompt and answer together.
    pub ctx: u32,
    pub priority: Priority,
    pub max_tokens: u32,
    /// From the acceptance to the last token, milliseconds, > 0.
    pub deadline_ms: u64,
    pub prompt: Prompt,
    pub sampling: Sampling,
    pub stop: Vec<String>,
    pub response_format: ResponseFormat,
    /// Control tokens whose names are part of the text.
    pub shown: Arc<[u32]>,
    /// Log-probability and id of each token are sent.
    pub logprobs: bool,
    /// So many of the likeliest tokens at each place are sent with theirs, too.
    pub top_logprobs: u32,
    /// What is sent of the prompt's own tokens.
    pub prompt_logprobs: PromptLogprobs,
    /// False: neither reads nor warms the prefix cache of others.
    pub reuse_kv: bool,
    /// Tokens the client believes it will take; predictions use it.
    pub expected_tokens: Option<u32>,
    /// A stream that lost its last reader is cancelled after the grace period.
    pub cancel_on_disconnect: bool,
    /// Decode to `max_tokens`, past the model's end-of-generation token. Benchmarks need it.
    pub ignore_end: bool,
    /// The first of the messages is this task's instructions and no turn of the conversation.
    pub has_instructions: bool,
    pub deterministic: bool,
    /// A JSON object that whoever made the task wants to find with it.
    pub note: Option<Arc<str>>,
}

/// Whether the log-probabilities of the prompt's own tokens are sent, with `top_logprobs` in each place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PromptLogprobs {
    #[default]
    None,
    BeforeAnswer,
    /// There is no answer.
    Only,
}

impl PromptLogprobs {
    pub const fn name(self) -> &'static str {
        match self {
            PromptLogprobs::None => "none",
            PromptLogprobs::BeforeAnswer => "before_answer",
            PromptLogprobs::Only => "only",
        }
    }
}

/// What an answer must look like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ResponseFormat {
    #[default]
    Text,
    JsonObject,
    /// The schema as JSON.
    JsonSchema(String),
    Regex(String),
    /// A grammar in llguidance's variant of Lark.
    Grammar(String),
}

/// How a text is to become a vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Embedding {
    /// None: as the model's authors do it.
    pub pooling: Option<Pooling>,
    /// So many elements; none is all.
    pub dimensions: Option<u32>,
}

/// Of which hidden states a vector is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    Last,
    Mean,
}

impl Pooling {
    pub const fn name(self) -> &'static str {
        match self {
            Pooling::Last => "last",
            Pooling::Mean => "mean",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    Completion,
    Embedding,
    Rerank,
}

impl Workload {
    pub const fn name(self) -> &'static str {
        match self {
            Workload::Completion => "completion",
            Workload::Embedding => "embedding",
            Workload::Rerank => "rerank",
        }
    }
}
