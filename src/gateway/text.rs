//! Text to tokens and back, and turns to text: what clients use to count before they ask.

use serde_json::json;

use super::admit::model;
use super::fields::Fields;
use super::refusal::Refusal;
use super::view::count_tokens;
use super::{Call, chat, tools};
use crate::api::{data, types};
use crate::domain::task::{Chat, Prompt};
use crate::infra::http::Response;

/// POST /tokenize: the tokens of `prompt` (or `content`), or of `messages` as the model's template writes them.
///
/// Whether the tokens that the model puts in front of any text are among them is what the server says whose word it is: vLLM's
/// `prompt` has them, llama.cpp's `content` does not.
///
/// # Errors
///
/// Naming the field.
pub(super) async fn tokenize(call: &Call<'_>, body: &mut [u8]) -> Result<Response, Refusal> {
    let mut f = Fields::read(body)?;
    let loaded = model(call.state, &model_name(call, &mut f)?)?;
    let (text, is_bare) = match (f.take::<String>("prompt")?, f.take::<String>("content")?) {
        (Some(_), Some(_)) => return Err(Refusal::field("content", "is another word for prompt: send one of them")),
        (None, Some(content)) => (Some(content), true),
        (prompt, None) => (prompt, false),
    };
    let with_names: bool = f.take("return_token_strs")?.unwrap_or(false);
    let add_special: Option<bool> = f.take("add_special_tokens")?.or(f.take("add_special")?);
    if text.is_none() && add_special.is_some() {
        return Err(Refusal::field("add_special_tokens", "belongs to prompt: a template has its own"));
    }
    let add_special = add_special.unwrap_or(!is_bare);
    let tokenizer = loaded.model.tokenizer();
    let tokens = match text {
        Some(text) if text.len() <= call.state.config.tokenize_inline_len_max => {
            tokenizer.encode(&text, add_special, false).into()
        }
        Some(text) if add_special => count_tokens(call, &loaded, &Prompt::Text(text)).await?,
        Some(_) => {
            let what = "cannot be left out for a text this long: send \"add_special_tokens\": true";
            return Err(Refusal::field("add_special_tokens", what));
        }
        None => {
            let messages = chat::messages(&mut f, &loaded)?;
            let tools = tools::chat(&mut f, &loaded)?;
            count_tokens(call, &loaded, &chat::prompt(messages, tools.as_ref())).await?
        }
    };
    f.finish()?;
    let mut answer = json!({
        "count": tokens.len(),
        "max_model_len": loaded.info.context_length,
        "tokens": tokens.to_vec(),
    });
    if with_names {
        answer["token_strs"] = tokens.iter().map(|t| tokenizer.token_name(*t)).collect();
    }
    Ok(types::json(200, &answer))
}

/// POST /detokenize: the text of `tokens`.
///
/// # Errors
///
/// Naming the field; a token that the model does not have.
pub(super) fn detokenize(call: &Call<'_>, body: &mut [u8]) -> Result<Response, Refusal> {
    let mut f = Fields::read(body)?;
    let loaded = model(call.state, &model_name(call, &mut f)?)?;
    let tokens: Vec<u32> = f.need("tokens")?;
    f.finish()?;
    let vocab_len = loaded.model.tokenizer().vocab_len();
    if let Some(token) = tokens.iter().find(|token| **token as usize >= vocab_len) {
        return Err(Refusal::field("tokens", format!("{token} is none of the model's {vocab_len}")));
    }
    let text = loaded.model.tokenizer().decode(&tokens, true);
    Ok(types::json(200, &json!({"prompt": text, "content": text})))
}

/// POST /apply-template: the turns as the model reads them.
///
/// # Errors
///
/// Naming the field; turns that the template refuses.
pub(super) fn apply_template(call: &Call<'_>, body: &mut [u8]) -> Result<Response, Refusal> {
    let mut f = Fields::read(body)?;
    let loaded = model(call.state, &model_name(call, &mut f)?)?;
    let messages = chat::messages(&mut f, &loaded)?;
    let tools = tools::chat(&mut f, &loaded)?;
    let goes_on = f.take("add_generation_prompt")?.unwrap_or(true);
    f.finish()?;
    let chat = Chat { turns: messages, tools: tools.map(|t| t.for_template().into()) };
    let text = data::render(&loaded, &chat, goes_on, call.state.clock.unix_ms())?;
    Ok(types::json(200, &json!({"prompt": text})))
}

/// The model may be left out: there is one.
fn model_name(call: &Call<'_>, f: &mut Fields) -> Result<String, Refusal> {
    let named: Option<String> = f.take("model")?;
    let served = || call.state.pools.iter().find_map(|p| p.loaded()).map(|l| l.model_ref.clone());
    Ok(named.or_else(served).unwrap_or_default())
}
