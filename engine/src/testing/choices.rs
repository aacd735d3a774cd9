//! Rows of scores and ways to choose from them, odd ones among them; and what is done to them before.

use super::Dice;
use crate::SamplingParams;
use crate::backend::Edits;
use crate::sampler::{Choice, Chooser, Sampler};

/// What the host chooses.
pub fn chosen(scores: &[f32], choice: &Choice) -> u32 {
    Chooser::new(scores.len()).choose(scores, choice)
}

/// Scores like a model's, or many equal ones, masked ones, a flat row, numbers that are none, or the largest there are.
pub fn scores(dice: &mut Dice, len: usize) -> Vec<f32> {
    let kind = dice.below(9);
    let offset = 20.0 * dice.unit();
    let one = |dice: &mut Dice| match kind {
        0 => offset,
        1 => dice.below(5) as f32 - 2.0,
        2 if dice.below(3) > 0 => f32::NEG_INFINITY,
        3 if dice.below(4) == 0 => f32::NAN,
        4 if dice.below(3) == 0 => [f32::INFINITY, f32::MAX, f32::MIN, -0.0, 0.0, f32::from_bits(1)][dice.below(6)],
        5 => [f32::NEG_INFINITY, f32::NAN][dice.below(2)],
        6 => offset + 1e-4 * dice.unit(),
        _ => offset + 3.0 * (dice.unit() + dice.unit() + dice.unit()),
    };
    (0..len).map(|_| one(dice)).collect()
}

/// Any of the parameters, or none.
pub fn choice(dice: &mut Dice, len: usize) -> Choice {
    let temperature = [0.0, f32::from_bits(1), 1e-3, 0.3, 0.8, 1.0, 1.0, 1.7, 20.0, f32::MAX][dice.below(10)];
    let top_k = [0, 0, 1, 2, 5, 40, len as u32 / 2, len as u32, len as u32 + 1][dice.below(9)];
    let any = dice.next_u64();
    let half = 1 << 63;
    let top_p = [0, 1, any, any >> 3, !(any >> 4), half, half + 1, u64::MAX][dice.below(8)];
    let top_p = (dice.below(3) > 0).then_some(top_p);
    let min_weight = [0, 0, 0, 1, 2, 1 << 20, any >> 28, 1 << 40][dice.below(8)].min(1 << 40);
    Choice { temperature, top_k, top_p, min_weight, seed: dice.next_u64(), position: dice.below(1 << 20) as u64 }
}

/// Biases, penalties and least lengths, some of each or none; `wild` ones besides, by which scores become infinite or no numbers.
pub fn editing(dice: &mut Dice, len: usize, wild: bool) -> SamplingParams {
    let kinds = if wild { 8 } else { 4 };
    let bias_count = [0, 0, 1, 5, 300][dice.below(5)];
    // From few tokens, so that some have several biases, which are added in their order.
    let among = 1 + dice.below(len);
    let mut bias = |_| {
        let bias = [0.7, -3.1, 100.0, -100.0, f32::MAX, f32::MIN, 1e-30, 0.1][dice.below(kinds)];
        (dice.below(among) as u32, bias)
    };
    let logit_bias = (0..bias_count).map(&mut bias).collect();
    SamplingParams {
        logit_bias,
        repetition_penalty: [1.0, 1.0, 1.3, 0.8, 1e-38, f32::MAX, 3.0, f32::from_bits(1)][dice.below(kinds)],
        presence_penalty: [0.0, 0.0, 0.6, -1.7, f32::MAX, f32::MIN, 1e-40, -0.0][dice.below(kinds)],
        frequency_penalty: [0.0, 0.0, 0.3, -0.1, f32::MAX, f32::MIN, 1e-40, -0.0][dice.below(kinds)],
        min_tokens: [0, 0, 2, 5][dice.below(4)],
        ..SamplingParams::default()
    }
}

/// What the host does to logits before it chooses the token after `tokens`.
pub fn edits(params: &SamplingParams, answer_len: usize) -> Option<Edits> {
    params.edits(answer_len)
}

/// The logits after that.
pub fn edited(logits: &[f32], params: &SamplingParams, tokens: &[u32], prompt_len: usize, ends: &[u32]) -> Vec<f32> {
    Sampler::new(logits.len(), ends).edited(logits, params, tokens, prompt_len)
}
