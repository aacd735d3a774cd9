//! POST /v1/completions: text that goes on.

use serde::Deserialize;

use super::admit::{Ask, admit, model};
use super::fields::Fields;
use super::format::{RESPONSE_FORMAT, take_response_format};
use super::openai::{Common, Face, OpenAi};
use super::refusal::Refusal;
use super::view::reply;
use super::{Call, infill};
use crate::api::types::check_top_logprobs;
use crate::domain::task::{Prompt, PromptLogprobs};
use crate::infra::reactor::Reply;
use crate::services::pool::Loaded;

/// What the dialect's document says for a request that names no number.
const MAX_TOKENS_DEFAULT: u32 = 16;

#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Prompts {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    ManyTokens(Vec<Vec<u32>>),
}

impl Prompts {
    pub(super) fn into_prompts(self) -> Vec<Prompt> {
        match self {
            Prompts::Text(text) => vec![Prompt::Text(text)],
            Prompts::Tokens(tokens) => vec![Prompt::Tokens(tokens.into())],
            Prompts::Texts(texts) => texts.into_iter().map(Prompt::Text).collect(),
            Prompts::ManyTokens(many) => many.into_iter().map(|tokens| Prompt::Tokens(tokens.into())).collect(),
        }
    }
}

fn text_of(prompt: &Prompt, loaded: &Loaded) -> String {
    match prompt {
        Prompt::Text(text) => text.clone(),
        Prompt::Tokens(tokens) => loaded.model.tokenizer().decode(tokens, false),
        Prompt::Chat(_) => unreachable!("plain completions have no turns"),
    }
}

/// Goes on with each of some texts.
///
/// # Errors
///
/// Naming the field, and as admission refuses.
pub(super) async fn create(call: &Call<'_>, body: &mut [u8]) -> Result<Reply, Refusal> {
    let mut f = Fields::read(body)?;
    let prompts: Prompts = f
        .need("prompt")
        .map_err(|_| Refusal::field("prompt", "must be a text, some texts, or one or more lists of token numbers"))?;
    let prompts = prompts.into_prompts();
    if prompts.is_empty() {
        return Err(Refusal::field("prompt", "is an empty list: send a text"));
    }
    let common = Common::take(&mut f)?;
    let top: Option<u32> = f.take("logprobs")?;
    check_top_logprobs(top.is_some(), top.unwrap_or(0)).map_err(|_| {
        Refusal::field("logprobs", format!("must be at most {}", crate::domain::limits::TOP_LOGPROBS_MAX))
    })?;
    let max_tokens = f.take("max_tokens")?.unwrap_or(MAX_TOKENS_DEFAULT);
    let echo = f.take("echo")?.unwrap_or(false);
    if max_tokens == 0 && !echo {
        return Err(Refusal::field("max_tokens", "must be at least 1, or 0 beside echo"));
    }
    if common.sampling.min_tokens > max_tokens {
        return Err(Refusal::field("min_tokens", "must be at most max_tokens"));
    }
    let prompt_logprobs = match (max_tokens, echo && top.is_some()) {
        (0, _) => PromptLogprobs::Only,
        (_, true) => PromptLogprobs::BeforeAnswer,
        (_, false) => PromptLogprobs::None,
    };
    let suffix: Option<String> = f.take("suffix")?.filter(|suffix: &String| !suffix.is_empty());
    if suffix.is_some() && prompt_logprobs != PromptLogprobs::None {
        let why =
            "cannot stand beside echo with logprobs, or with max_tokens 0: what is repeated is the text before the gap";
        return Err(Refusal::field("suffix", why));
    }
    f.only("best_of", &[common.copies.into()], "must be n: answers are not ranked here")?;
    let format = take_response_format(&mut f)?;
    f.finish()?;
    let loaded = model(call.state, &common.model)?;
    let echo = match echo {
        true => prompts.iter().map(|p| text_of(p, &loaded)).collect(),
        false => Vec::new(),
    };
    let prompts = match suffix {
        Some(suffix) => infill::prompts(call, &loaded, prompts, suffix).await?,
        None => prompts,
    };
    let admitted = admit(
        call,
        Ask {
            model: common.model.clone(),
            prompt_param: "prompt",
            prompts,
            copies: common.copies,
            // What reads its prompt only reserves one token, as a vector does.
            max_tokens: Some(max_tokens.max(1)),
            sampling: common.sampling.clone(),
            stop: common.stop.clone(),
            logprobs: top.is_some(),
            top_logprobs: top.unwrap_or(0),
            prompt_logprobs,
            ignore_end: common.ignore_end,
            format,
            format_param: RESPONSE_FORMAT,
            tools: None,
            has_instructions: false,
            background: false,
            priority: common.priority,
            session_key: common.session_key.clone(),
            note: serde_json::Value::Null,
        },
    )
    .await?;
    let dialect = OpenAi::new(Face::Text, call, &common, top.is_some(), &admitted.tasks, echo, None);
    reply(call, admitted, common.stream, dialect)
}
