//! POST /v1/embeddings: a vector for each of some texts.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use orchestratord_engine::BLOCK_LEN;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Call;
use super::admit::{Admitted, abandon, deadline_ms, fresh_id, in_the_dialect, model, session_key, session_of};
use super::completions::Prompts;
use super::fields::Fields;
use super::format::RESPONSE_FORMAT;
use super::openai::take_priority;
use super::refusal::Refusal;
use super::view::{Dialect, End, Token, reply};
use crate::api::data;
use crate::api::types::{self, require_key};
use crate::domain::limits;
use crate::domain::task::{Embedding, Priority, Prompt, PromptLogprobs, ResponseFormat, Sampling, TaskSpec, Workload};
use crate::infra::http::Response;
use crate::infra::reactor::Reply;
use crate::services::task::LiveTask;

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Encoding {
    Float,
    /// Of the floats' bytes, little-endian.
    Base64,
}

/// Vectors in the order of the texts.
///
/// # Errors
///
/// Naming the field, and as admission refuses.
pub(super) async fn create(call: &Call<'_>, body: &mut [u8]) -> Result<Reply, Refusal> {
    let mut f = Fields::read(body)?;
    let name: String = f.need("model")?;
    let prompts: Prompts = f
        .need("input")
        .map_err(|_| Refusal::field("input", "must be a text, some texts, or one or more lists of token numbers"))?;
    let prompts = prompts.into_prompts();
    let most = limits::EMBEDDING_INPUTS_MAX;
    if !(1..=most).contains(&prompts.len()) {
        return Err(Refusal::field("input", format!("has {} texts: send 1 to {most} at a time", prompts.len())));
    }
    let encoding = f.take("encoding_format")?.unwrap_or(Encoding::Float);
    let dimensions: Option<u32> = f.take("dimensions")?;
    let priority = take_priority(&mut f)?;
    f.pass_over(&["user"]);
    f.finish()?;
    let loaded = model(call.state, &name)?;
    let longest = loaded.info.embedding_length;
    if dimensions.is_some_and(|wanted| wanted == 0 || wanted as usize > longest) {
        return Err(Refusal::field("dimensions", format!("must be from 1 to {longest} with this model")));
    }
    let embedding = Embedding { pooling: None, dimensions };
    let admitted = admit(call, &name, &prompts, embedding, priority).await?;
    let vectors = vec![Value::Null; prompts.len()];
    reply(call, admitted, false, Vectors { model: name, encoding, vectors, prompt_tokens: 0 })
}

/// Puts every text into the queue, or none of them.
async fn admit(
    call: &Call<'_>,
    name: &str,
    prompts: &[Prompt],
    embedding: Embedding,
    priority: Priority,
) -> Result<Admitted, Refusal> {
    let state = call.state;
    let client = require_key(call.head, &state.keys)?;
    let loaded = model(state, name)?;
    let deadline_ms = deadline_ms(call.head, state.config.gateway_deadline_ms)?;
    let named = session_key(call.head);
    let session_id = named.as_deref().map_or_else(fresh_id, session_of);
    let pool = state.pools.iter().next().expect("a server has a pool");
    let context = loaded.info.context_length.min((pool.rules.kv_blocks_max * BLOCK_LEN) as u32);
    let mut tasks: Vec<Arc<LiveTask>> = Vec::with_capacity(prompts.len());
    for prompt in prompts {
        let spec = TaskSpec {
            task_id: fresh_id(),
            session_id,
            workload: Workload::Embedding,
            embedding,
            model_ref: loaded.model_ref.as_str().into(),
            engine: pool.engine,
            ctx: context,
            priority,
            max_tokens: 1,
            deadline_ms,
            prompt: prompt.clone(),
            // Nothing is drawn for a vector.
            sampling: Sampling::default(),
            stop: Vec::new(),
            response_format: ResponseFormat::Text,
            shown: Arc::default(),
            logprobs: false,
            top_logprobs: 0,
            prompt_logprobs: PromptLogprobs::None,
            reuse_kv: true,
            expected_tokens: None,
            cancel_on_disconnect: true,
            ignore_end: false,
            has_instructions: false,
            note: None,
            deterministic: true,
        };
        match data::admit(state, client, spec, |_, _| (), call.request_id, call.wake).await {
            Ok(task) => tasks.push(task),
            Err(error) => {
                data::count_refusal(state, &error);
                tasks.iter().for_each(|task| abandon(state, task));
                return Err(in_the_dialect(error, "input"));
            }
        }
    }
    Ok(Admitted {
        tasks,
        own_session: named.is_none().then_some(session_id),
        format_param: RESPONSE_FORMAT,
        is_shared: false,
    })
}

/// The answer as it grows.
struct Vectors {
    model: String,
    encoding: Encoding,
    /// Each as it is sent, in the order of the texts.
    vectors: Vec<Value>,
    prompt_tokens: usize,
}

#[derive(Deserialize)]
struct EmbeddingData {
    embedding: Vec<f32>,
}

impl Dialect for Vectors {
    fn token(&mut self, _: usize, _: Token<'_>, _: &mut Vec<u8>) {}

    fn embedding(&mut self, source: usize, data: &[u8]) {
        let data: EmbeddingData = serde_json::from_slice(data).expect("we write JSON");
        self.vectors[source] = match self.encoding {
            Encoding::Float => json!(data.embedding),
            Encoding::Base64 => {
                let bytes: Vec<u8> = data.embedding.iter().flat_map(|x| x.to_le_bytes()).collect();
                BASE64.encode(bytes).into()
            }
        };
    }

    fn end(&mut self, _: usize, end: &End<'_>, _: &mut Vec<u8>) {
        self.prompt_tokens += end.task.prompt.len();
    }

    fn failed(&mut self, _: &Refusal, _: &mut Vec<u8>) {}

    fn finish(&mut self, _: &mut Vec<u8>) {}

    fn body(&mut self) -> Response {
        let vectors = std::mem::take(&mut self.vectors).into_iter().enumerate();
        let one = |(index, vector)| json!({"object": "embedding", "index": index, "embedding": vector});
        let data: Vec<Value> = vectors.map(one).collect();
        let count = self.prompt_tokens;
        let usage = json!({"prompt_tokens": count, "total_tokens": count});
        types::json(200, &json!({"object": "list", "data": data, "model": self.model, "usage": usage}))
    }
}
