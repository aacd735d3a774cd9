//! From logits to a token: penalties, temperature, filters, and a draw that depends on the seed and the position alone.
//!
//! Order of operations after Hugging Face `generation/logits_process.py`: bias, penalties, least length, then what
//! [`choice`] says: temperature, top-k, top-p, min-p.

mod choice;

use std::sync::Arc;

pub use choice::Choice;
pub(crate) use choice::Chooser;

use crate::constraint::Mask;

/// How a sequence picks its tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0: always the most likely token. Otherwise logits are divided by it.
    pub temperature: f32,
    /// Only the most likely tokens, this many; 0: all.
    pub top_k: u32,
    /// Only the most likely tokens that together have this probability; 1: all.
    pub top_p: f32,
    /// Only tokens that have at least this share of the most likely one's probability; 0: all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens in prompt or answer; 1: off. Source: Keskar et al. 2019.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens in the answer; 0: off.
    pub presence_penalty: f32,
    /// Subtracted from the logits of tokens in the answer, once for each time; 0: off.
    pub frequency_penalty: f32,
    /// Two sequences with one seed and one prompt draw the same.
    pub seed: u64,
    /// Added to the logits of single tokens before anything else.
    pub logit_bias: Arc<[(u32, f32)]>,
    /// No end-of-generation token before the answer has this many tokens.
    pub min_tokens: u32,
}

impl Default for SamplingParams {
    /// Greedy, without penalties.
    fn default() -> SamplingParams {
        SamplingParams {
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

impl SamplingParams {
    /// Says which field no sampler can work with.
    pub(crate) fn check(&self, vocab_len: usize) -> Result<(), &'static str> {
        let bias_legal = |(token, bias): &(u32, f32)| (*token as usize) < vocab_len && bias.is_finite();
        let legal = [
            ("temperature", self.temperature >= 0.0 && self.temperature.is_finite()),
            ("top_p", self.top_p >= 0.0 && self.top_p.is_finite()),
            ("min_p", (0.0..=1.0).contains(&self.min_p)),
            ("repetition_penalty", self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()),
            ("presence_penalty", self.presence_penalty.is_finite()),
            ("frequency_penalty", self.frequency_penalty.is_finite()),
            ("logit_bias", self.logit_bias.iter().all(bias_legal)),
        ];
        legal.iter().find(|(_, ok)| !ok).map_or(Ok(()), |(field, _)| Err(field))
    }

    /// What is done to the logits before a token is chosen that comes after so many of the answer. None: nothing, all that is left
    /// is a [`Choice`]. Once there is nothing, there is nothing for the rest of the answer.
    pub(crate) fn edits(&self, answer_len: usize) -> Option<Edits> {
        let bans_ends = self.is_too_short(answer_len);
        let penalties = self.has_penalties().then_some(Penalties {
            repetition: self.repetition_penalty,
            presence: self.presence_penalty,
            frequency: self.frequency_penalty,
        });
        let any = penalties.is_some() || bans_ends || !self.logit_bias.is_empty();
        any.then_some(Edits { penalties, bans_ends })
    }

    /// True when no answer of this length may end.
    fn is_too_short(&self, answer_len: usize) -> bool {
        answer_len < self.min_tokens as usize
    }

    fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }
}

/// What is done to logits before a token is chosen from them: biases are added, if there are any; then this.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Edits {
    /// Tokens of prompt and answer are punished.
    pub penalties: Option<Penalties>,
    /// The answer may not end yet.
    pub bans_ends: bool,
}

/// As [`SamplingParams`] has them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Penalties {
    /// Divides or multiplies, once for a token.
    pub repetition: f32,
    /// Subtracted, once for a token of the answer.
    pub presence: f32,
    /// Subtracted, for each time that it is there.
    pub frequency: f32,
}

/// Draws tokens; its buffers serve all sequences.
pub(crate) struct Sampler {
    /// Logits after penalties.
    scores: Vec<f32>,
    chooser: Chooser,
    /// How often each token is in the answer, and whether it is in the prompt; all zero between calls.
    counts: Vec<u32>,
    /// Tokens that end a generation.
    ends: Box<[u32]>,
}

/// Marks a token of the prompt in `counts`; the rest counts the answer.
const IN_PROMPT: u32 = 1 << 31;

impl Sampler {
    pub fn new(vocab_len: usize, ends: &[u32]) -> Sampler {
        Sampler {
            scores: Vec::with_capacity(vocab_len),
            chooser: Chooser::new(vocab_len),
            counts: vec![0; vocab_len],
            ends: ends.into(),
        }
    }

    /// Picks the token that follows `tokens`, the first `prompt_len` of which are the prompt.
    #[cfg(test)]
    pub fn sample(&mut self, logits: &[f32], params: &SamplingParams, tokens: &[u32], prompt_len: usize) -> u32 {
        self.sample_masked(logits, params, tokens, prompt_len, None)
    }

    /// As `sample`, out of the tokens that the mask allows.
    pub fn sample_masked(
        &mut self,
        logits: &[f32],
        params: &SamplingParams,
        tokens: &[u32],
        prompt_len: usize,
        mask: Option<&Mask>,
    ) -> u32 {
        let choice = Choice::new(params, tokens.len() as u64);
        if mask.is_none() && params.edits(tokens.len() - prompt_len).is_none() {
            return self.chooser.choose(logits, &choice);
        }
        self.edit(logits, params, tokens, prompt_len, mask);
        self.chooser.choose(&self.scores, &choice)
    }

    /// Makes the scores that the token after `tokens` is chosen by.
    fn edit(
        &mut self,
        logits: &[f32],
        params: &SamplingParams,
        tokens: &[u32],
        prompt_len: usize,
        mask: Option<&Mask>,
    ) {
        // A grammar knows better than a number of tokens when an answer is complete.
        let too_short = params.is_too_short(tokens.len() - prompt_len) && mask.is_none();
        self.scores.clear();
        self.scores.extend_from_slice(logits);
        for (token, bias) in params.logit_bias.iter() {
            self.scores[*token as usize] += bias;
        }
        if params.has_penalties() {
            self.penalize(params, tokens, prompt_len);
        }
        if let Some(mask) = mask {
            mask.apply(&mut self.scores);
        }
        if too_short {
            self.ends.iter().for_each(|end| self.scores[*end as usize] = f32::NEG_INFINITY);
        }
    }

    /// The scores that the token after `tokens` is chosen by: for tests.
    pub fn edited(mut self, logits: &[f32], params: &SamplingParams, tokens: &[u32], prompt_len: usize) -> Vec<f32> {
        self.edit(logits, params, tokens, prompt_len, None);
        self.scores
    }

    fn penalize(&mut self, params: &SamplingParams, tokens: &[u32], prompt_len: usize) {
        let (prompt, answer) = tokens.split_at(prompt_len);
        prompt.iter().for_each(|t| self.counts[*t as usize] |= IN_PROMPT);
        answer.iter().for_each(|t| self.counts[*t as usize] += 1);
        for token in tokens {
            // Taken out at the first sight of a token, so that every token is punished once.
            let count = std::mem::take(&mut self.counts[*token as usize]);
            if count == 0 {
                continue;
            }
            let score = &mut self.scores[*token as usize];
            let repetition = params.repetition_penalty;
            *score = if *score > 0.0 { *score / repetition } else { *score * repetition };
            let answered = count & !IN_PROMPT;
            if answered > 0 {
                *score -= params.presence_penalty + params.frequency_penalty * answered as f32;
            }
        }
    }
}

/// What turns a row's bare logits into logarithms of probabilities: the largest, and the logarithm of the sum of what all are
/// to it.
#[derive(Clone, Copy)]
pub(crate) struct LogSum {
    most: f64,
    log_sum: f64,
}

impl LogSum {
    pub fn new(logits: &[f32]) -> LogSum {
        let most = f64::from(logits.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b)));
        let sum: f64 = logits.iter().map(|x| (f64::from(*x) - most).exp()).sum();
        LogSum { most, log_sum: sum.ln() }
    }

    /// The natural logarithm of the probability of a token with this logit.
    pub fn logprob(self, logit: f32) -> f32 {
        (f64::from(logit) - self.most - self.log_sum) as f32
    }
}

/// Appends the `count` likeliest tokens under the bare logits with their log-probabilities, the likeliest first, of
/// equals the lower id.
pub(crate) fn top_logprobs(logits: &[f32], of: LogSum, count: usize, out: &mut Vec<(u32, f32)>) {
    let start = out.len();
    for (token, logit) in logits.iter().enumerate() {
        let place = out[start..].iter().rposition(|(_, kept)| kept >= logit).map_or(0, |index| index + 1);
        if place < count {
            if out.len() - start == count {
                out.pop();
            }
            out.insert(start + place, (token as u32, *logit));
        }
    }
    out[start..].iter_mut().for_each(|(_, value)| *value = of.logprob(*value));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(change: impl Fn(&mut SamplingParams)) -> SamplingParams {
        let mut params = SamplingParams { temperature: 1.0, ..SamplingParams::default() };
        change(&mut params);
        params
    }

    /// How often each token is drawn in `count` positions.
    fn frequencies(logits: &[f32], params: &SamplingParams, count: usize) -> Vec<f64> {
        let mut sampler = Sampler::new(logits.len(), &[]);
        let mut found = vec![0.0; logits.len()];
        for seed in 0..count {
            let params = SamplingParams { seed: seed as u64, ..params.clone() };
            found[sampler.sample(logits, &params, &[0, 0, 0], 3) as usize] += 1.0 / count as f64;
        }
        found
    }

    /// The distribution by the book: everything sorted, in f64.
    fn wanted(logits: &[f32], p: &SamplingParams) -> Vec<f64> {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
        let weight = |i: usize| (f64::from(logits[i]) / f64::from(p.temperature)).exp();
        if p.top_k > 0 {
            order.truncate(p.top_k as usize);
        }
        let total: f64 = order.iter().map(|i| weight(*i)).sum();
        let mut sum = 0.0;
        let mut kept = Vec::new();
        for i in order {
            if !kept.is_empty() && sum >= f64::from(p.top_p) * total {
                break;
            }
            sum += weight(i);
            kept.push(i);
        }
        let best = weight(kept[0]);
        kept.retain(|i| weight(*i) >= f64::from(p.min_p) * best * 0.999_999);
        let total: f64 = kept.iter().map(|i| weight(*i)).sum();
        (0..logits.len()).map(|i| if kept.contains(&i) { weight(i) / total } else { 0.0 }).collect()
    }

    #[test]
    fn draws_are_distributed_as_the_filters_say() {
        let logits = [0.5, 2.0, -1.0, 1.0, 0.0, 1.5, -3.0, 0.9];
        let cases = [
            params(|_| {}),
            params(|p| p.temperature = 0.6),
            params(|p| p.top_k = 3),
            params(|p| p.top_p = 0.7),
            params(|p| p.min_p = 0.3),
            params(|p| (p.top_k, p.top_p, p.min_p, p.temperature) = (5, 0.9, 0.2, 1.4)),
            params(|p| p.top_p = 0.0),
        ];
        for p in cases {
            let (found, wanted) = (frequencies(&logits, &p, 40_000), wanted(&logits, &p));
            for (f, w) in found.iter().zip(&wanted) {
                assert!((f - w).abs() < 0.012, "{p:?}: {found:.3?} and not {wanted:.3?}");
                assert!(*w > 0.0 || *f == 0.0, "{p:?} drew what it excludes");
            }
        }
    }

    #[test]
    fn a_large_vocabulary_is_filtered_as_a_small_one() {
        let mut dice = crate::testing::Dice::new(3);
        let logits: Vec<f32> = (0..5000).map(|_| 4.0 * dice.unit()).collect();
        for top_p in [0.001, 0.05, 0.5, 0.97] {
            let p = params(|p| p.top_p = top_p);
            let allowed = wanted(&logits, &p);
            let mut sampler = Sampler::new(logits.len(), &[]);
            for seed in 0..300 {
                let token = sampler.sample(&logits, &SamplingParams { seed, ..p.clone() }, &[], 0);
                assert!(allowed[token as usize] > 0.0, "top_p {top_p} let token {token} through");
            }
        }
    }

    #[test]
    fn greedy_takes_the_first_of_equals() {
        let mut sampler = Sampler::new(4, &[]);
        assert_eq!(sampler.sample(&[1.0, 3.0, 3.0, 2.0], &SamplingParams::default(), &[], 0), 1);
    }

    #[test]
    fn penalties_count_prompt_and_answer_as_the_field_does() {
        type Case = (fn(&mut SamplingParams), [f32; 4]);
        let cases: [Case; 3] = [
            (|p| p.repetition_penalty = 2.0, [0.5, -2.0, 1.5, 4.0]),
            (|p| p.presence_penalty = 0.25, [1.0, -1.25, 2.75, 4.0]),
            (|p| p.frequency_penalty = 0.5, [1.0, -2.0, 2.5, 4.0]),
        ];
        for (change, wanted) in cases {
            let mut sampler = Sampler::new(4, &[]);
            sampler.scores.extend([1.0, -1.0, 3.0, 4.0]);
            // Prompt 0 0; answer 1 2 1.
            sampler.penalize(&params(change), &[0, 0, 1, 2, 1], 2);
            assert_eq!(sampler.scores, wanted);
            assert_eq!(sampler.counts, [0; 4]);
        }
    }

    #[test]
    fn logprobs_are_those_of_a_softmax() {
        let logits = [1.0f32, 2.0, 3.0];
        let sum: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
        for logit in &logits {
            let wanted = f64::from(*logit) - sum.ln();
            assert!((f64::from(LogSum::new(&logits).logprob(*logit)) - wanted).abs() < 1e-6);
        }
    }

    #[test]
    fn the_likeliest_are_those_that_a_full_sort_puts_first() {
        let mut dice = crate::testing::Dice::new(5);
        for count in [1, 2, 7, 20, 40] {
            // Few values, so that many are equal.
            let logits: Vec<f32> = (0..30).map(|_| dice.below(9) as f32).collect();
            let mut order: Vec<u32> = (0..30).collect();
            order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
            let mut found = vec![(77, 0.5)];
            let of = LogSum::new(&logits);
            top_logprobs(&logits, of, count, &mut found);
            assert_eq!(found[0], (77, 0.5), "what was there before stays");
            let wanted: Vec<_> = order.iter().take(count).map(|t| (*t, of.logprob(logits[*t as usize]))).collect();
            assert_eq!(found[1..], wanted);
        }
    }

    #[test]
    fn a_bias_moves_single_tokens_in_greedy_and_in_drawn_answers() {
        let logits = [1.0, 3.0, 2.0, 0.0];
        let mut sampler = Sampler::new(4, &[]);
        let greedy = |bias: &[(u32, f32)]| SamplingParams { logit_bias: bias.into(), ..SamplingParams::default() };
        assert_eq!(sampler.sample(&logits, &greedy(&[(1, -100.0)]), &[], 0), 2);
        assert_eq!(sampler.sample(&logits, &greedy(&[(3, 100.0), (2, 50.0)]), &[], 0), 3);
        let drawn = params(|p| p.logit_bias = [(0, 100.0)].into());
        assert_eq!(frequencies(&logits, &drawn, 200)[0].round(), 1.0);
    }

    #[test]
    fn an_answer_does_not_end_before_its_least_length() {
        let logits = [0.0, 9.0, 8.0, 1.0];
        let mut sampler = Sampler::new(4, &[1, 2]);
        for temperature in [0.0, 1.0] {
            let p = SamplingParams { min_tokens: 2, temperature, ..SamplingParams::default() };
            for seed in 0..50 {
                let p = SamplingParams { seed, ..p.clone() };
                assert!([0, 3].contains(&sampler.sample(&logits, &p, &[7 % 4, 0], 1)), "one token is too few");
            }
            assert!([1, 2].contains(&sampler.sample(&logits, &p, &[3, 0, 0], 1)), "two are enough");
        }
    }

    #[test]
    fn illegal_values_are_named() {
        assert_eq!(params(|p| p.temperature = f32::NAN).check(4), Err("temperature"));
        assert_eq!(params(|p| p.repetition_penalty = 0.0).check(4), Err("repetition_penalty"));
        assert_eq!(params(|p| p.logit_bias = [(4, 0.0)].into()).check(4), Err("logit_bias"));
        assert_eq!(params(|p| p.logit_bias = [(3, f32::NAN)].into()).check(4), Err("logit_bias"));
        assert_eq!(params(|p| p.logit_bias = [(3, -100.0)].into()).check(4), Ok(()));
    }
}
