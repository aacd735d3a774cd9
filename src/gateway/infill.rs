//! Text between a prefix and a suffix, for models that have learned it: they have control tokens for the three places.

use std::sync::Arc;

use orchestratord_engine::Tokenizer;

use super::Call;
use super::refusal::Refusal;
use crate::api::on_helper;
use crate::domain::task::Prompt;
use crate::services::pool::Loaded;

/// Marks before the prefix, before the suffix, and before what is to be written, in that order.
const MARKS: &[[&str; 3]] = &[
    // Qwen's coders, and CodeGemma.
    ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
    // StarCoder and its kin.
    ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
];

/// The model's three tokens; none when it has not learned it.
fn marks(tokenizer: &Tokenizer) -> Option<[u32; 3]> {
    MARKS.iter().find_map(|names| {
        let token = |name: &str| match tokenizer.encode(name, false, true)[..] {
            [token] => Some(token),
            _ => None,
        };
        Some([token(names[0])?, token(names[1])?, token(names[2])?])
    })
}

fn tokens(
    tokenizer: &Tokenizer,
    [before_prefix, before_suffix, middle]: [u32; 3],
    prefix: &str,
    suffix: &str,
) -> Vec<u32> {
    // What the model puts in front of any text comes before the marks.
    let mut tokens = tokenizer.encode("", true, false);
    tokens.push(before_prefix);
    tokenizer.encode_piece(prefix, &mut tokens);
    tokens.push(before_suffix);
    tokenizer.encode_piece(suffix, &mut tokens);
    tokens.push(middle);
    tokens
}

/// Prompts that ask for what comes between each of some texts and the suffix.
///
/// # Errors
///
/// Naming `suffix`, for a model without such tokens, or prompts that are not text.
pub(super) async fn prompts(
    call: &Call<'_>,
    loaded: &Arc<Loaded>,
    prompts: Vec<Prompt>,
    suffix: String,
) -> Result<Vec<Prompt>, Refusal> {
    let marks = marks(loaded.model.tokenizer()).ok_or_else(|| {
        Refusal::field(
            "suffix",
            format!("model {} has no tokens for filling in the middle: leave it out", loaded.model_ref),
        )
    })?;
    let text = |prompt: Prompt| match prompt {
        Prompt::Text(text) => Ok(text),
        _ => Err(Refusal::field("suffix", "needs prompts that are text: tokens can hold their own marks")),
    };
    let prefixes: Vec<String> = prompts.into_iter().map(text).collect::<Result<_, _>>()?;
    let loaded = loaded.clone();
    let made = on_helper(call.state, call.wake, move || {
        let tokenizer = loaded.model.tokenizer();
        let one = |prefix: &String| Prompt::Tokens(tokens(tokenizer, marks, prefix, &suffix).into());
        prefixes.iter().map(one).collect()
    });
    Ok(made.await?)
}

#[cfg(test)]
mod tests {
    use orchestratord_engine::Model;
    use orchestratord_engine::testing::TinyModel;

    use super::*;

    #[test]
    fn a_prompt_is_what_stands_around_the_hole_and_marks_in_it_are_text() {
        let names = MARKS[0].to_vec();
        let model = Model::from_vec(TinyModel { marks: names, ..TinyModel::default() }.to_bytes()).expect("a model");
        let tokenizer = model.tokenizer();
        let marks = marks(tokenizer).expect("it has them");
        let made = tokens(tokenizer, marks, "a <|fim_middle|>", "b");
        assert_eq!(tokenizer.decode(&made, true), "<|bos|><|fim_prefix|>a <|fim_middle|><|fim_suffix|>b<|fim_middle|>");
        assert_eq!(made.iter().filter(|token| **token == marks[2]).count(), 1);
        let plain = Model::from_vec(TinyModel::default().to_bytes()).expect("a model");
        assert_eq!(super::marks(plain.tokenizer()), None);
    }
}
