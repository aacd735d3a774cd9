//! Bounds of what a client may say, where the configuration does not set them.

/// Nesting of arrays and objects in a JSON body. Deeper documents cost stack when they are walked.
pub const JSON_DEPTH_MAX: usize = 64;

/// Bytes of a correlation id that is echoed; a longer one is replaced. Every task has room for one.
pub const CORRELATION_ID_LEN_MAX: usize = 128;

/// Stop strings in one task, and bytes in each: every token is matched against all of them.
pub const STOP_COUNT_MAX: usize = 16;
pub const STOP_LEN_MAX: usize = 256;

/// Likeliest tokens that are sent with each token; as many as the field's clients ask for.
pub const TOP_LOGPROBS_MAX: u32 = 20;

/// Tokens with a bias in one task, and the largest bias either way: it makes a token certain or impossible.
pub const LOGIT_BIAS_COUNT_MAX: usize = 1024;
pub const LOGIT_BIAS_MAX: f32 = 100.0;

/// Answers that one request at the gateway may ask for; each is a task of its own.
pub const CHOICES_MAX: usize = 16;

/// Texts in one request for embeddings. Each takes a place in the queue.
pub const EMBEDDING_INPUTS_MAX: usize = 128;

/// Messages in one chat task.
pub const MESSAGE_COUNT_MAX: usize = 1024;

/// Bytes of what a schema or a function of a client's is called; as many as the field's clients allow themselves.
pub const FUNCTION_NAME_LEN_MAX: usize = 64;

/// Functions that one request may offer, and calls in one answer that is made to call. Each is a rule of a grammar, or
/// several, and text of the prompt.
pub const FUNCTION_COUNT_MAX: usize = 128;
pub const CALL_COUNT_MAX: usize = 16;

/// Bytes of a model's name, an engine's name, a tag.
pub const NAME_LEN_MAX: usize = 256;

/// Tags of one artifact.
pub const TAG_COUNT_MAX: usize = 64;

/// Largest whole number that every JSON reader keeps exactly, and that canonical JSON (RFC 8785) can carry.
pub const JSON_INTEGER_MAX: u64 = (1 << 53) - 1;
