//! Time between tokens of running streams while long prompts arrive, over that of the same streams alone.
//!
//! All slots but one have a stream; in the last one prompts of 8 k tokens are read, each sent when the one before was
//! answered, so that there always is one. Then the same streams run again without prompts. The same tokens of the same streams
//! are compared, for a step takes longer the longer the streams are; and since an answer depends on nobody beside it, they have
//! to be the same bytes both times. The 99th of a hundred of all of them is about the steps at the end, so it is also taken for
//! each tenth of the way, and the worst of those ratios told.
//!
//! What keeps the streams going is `step_ms_max`, which cuts prompts into chunks. It is graded as it is by default, twice the
//! time of a step, and set a little above the time of the step in the middle.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant};

use orchestratord_engine::{BLOCK_LEN, Model};
use serde_json::{Value, json};
use uuid::Uuid;

use super::client::{Door, NO_DEADLINE_MS, WORDS};
use super::long_context::{LongContext, NAME};
use super::server::with_server;
use crate::sim::chance::Chance;

/// What the model is said to have: room for the longest prompt and for the streams.
const CONTEXT_LEN: u32 = 16_384;

/// Rows of a step, so many that the time of one decides how long a chunk is; as in the simulator.
const STEP_ROWS_MAX: usize = 512;

/// The second bound that is graded, over the median time between tokens of streams that nothing disturbs.
const TIGHT: f64 = 1.15;

/// Tokens of the streams' own prompts, of the answers to long ones, and of the streams by which a server learns its speed.
const STREAM_PROMPT_LEN: usize = 32;
const ANSWER_LEN: u32 = 4;
const WARM_UP_LEN: u32 = 200;

/// The first of the long prompts, which are numbered; the streams have the numbers from 0 on.
const LONG_PROMPTS: u64 = 1000;

/// Parts of the way that are looked at one by one.
const PARTS: usize = 10;

/// What is run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub seed: u64,
    /// Sequences that are decoded together: streams, and one for prompts.
    pub slots: usize,
    pub prompts: usize,
    pub prompt_len: usize,
    /// Tokens of a stream, at most: where it ends before all prompts are read, that is the end of the run.
    pub stream_len: u32,
}

impl Plan {
    /// Prompts of 8 k, of which each takes seconds.
    pub fn of_long_prompts(seed: u64, slots: usize, prompts: usize) -> Plan {
        Plan { seed, slots, prompts, prompt_len: 8192, stream_len: 8000 }
    }

    fn streams(&self) -> usize {
        self.slots - 1
    }

    fn blocks(&self) -> usize {
        let stream = (STREAM_PROMPT_LEN + self.stream_len as usize).div_ceil(BLOCK_LEN);
        let prompt = (self.prompt_len + ANSWER_LEN as usize).div_ceil(BLOCK_LEN);
        // One more each, for what of a block an answer leaves over.
        self.streams() * (stream + 1) + prompt + 1
    }
}

/// Times between the same tokens, milliseconds, sorted.
#[derive(Clone, Debug)]
pub struct Gaps {
    pub step_ms_max: f64,
    pub beside_prompts: Vec<f64>,
    pub alone: Vec<f64>,
    /// The worst ratio of the 99ths of a hundred in one of the tenths of the way.
    pub worst_tenth: f64,
    /// Time to the first token of each prompt that was answered while the streams ran.
    pub first_token_ms: Vec<f64>,
    plan: Plan,
}

impl Gaps {
    /// The 99th of a hundred beside prompts, over that without.
    pub fn ratio(&self) -> f64 {
        quantile(&self.beside_prompts, 0.99) / quantile(&self.alone, 0.99)
    }

    /// The row of the table.
    pub fn row(&self) -> String {
        let Gaps { step_ms_max, beside_prompts, alone, first_token_ms, plan, .. } = self;
        let both = |share| format!("{:.2} ms over {:.2} ms", quantile(beside_prompts, share), quantile(alone, share));
        let bound = if *step_ms_max > 0.0 { format!("{step_ms_max:.2}") } else { "0, twice a step".to_owned() };
        format!(
            "| time between tokens, p99, beside prompts of {} tokens over without; step_ms_max {bound} | live, {} streams | \
             {:.2} x ({}; the worst tenth of the way {:.2} x; median {}; {} gaps each; {} prompts answered, first token after \
             {:.0} ms) |",
            plan.prompt_len,
            plan.streams(),
            self.ratio(),
            both(0.99),
            self.worst_tenth,
            both(0.5),
            alone.len(),
            first_token_ms.len(),
            quantile(first_token_ms, 0.5),
        )
    }
}

/// Of sorted figures; not a number where there are none.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    sorted.get((sorted.len() as f64 * share) as usize).copied().unwrap_or(f64::NAN)
}

/// With the bound as it is by default, and with a tight one.
///
/// # Errors
///
/// When a server does not start or does not answer as it should, and when a stream says something else beside prompts.
pub fn measure(plan: &Plan) -> Result<[Gaps; 2], String> {
    if plan.slots < 2 {
        return Err("a stream and a prompt are two slots".into());
    }
    let model = LongContext::write(CONTEXT_LEN)?;
    let by_default = under(plan, &model, 0.0)?;
    let tight = under(plan, &model, TIGHT * quantile(&by_default.alone, 0.5))?;
    Ok([by_default, tight])
}

fn under(plan: &Plan, model: &LongContext, step_ms_max: f64) -> Result<Gaps, String> {
    let settings = [
        ("model", model.path().display().to_string()),
        ("slots_max", plan.slots.to_string()),
        ("step_rows_max", STEP_ROWS_MAX.to_string()),
        ("step_ms_max", step_ms_max.to_string()),
        ("kv_blocks_max", plan.blocks().to_string()),
    ];
    with_server(NAME, &settings, |door| {
        let words = Words::new(plan.seed)?;
        run(plan, door, &words, WARM_UP_LEN.min(plan.stream_len), 0)?;
        let (disturbed, prompts) = run(plan, door, &words, plan.stream_len, plan.prompts)?;
        let longest = disturbed.iter().map(Vec::len).max().unwrap_or(0);
        let (alone, _) = run(plan, door, &words, longest as u32, 0)?;
        let pairs = compare(&disturbed, &alone, prompts.during)?;
        let [beside_prompts, alone] = sorted(&pairs);
        let part_len = pairs.len().div_ceil(PARTS);
        let ratios =
            pairs.chunks(part_len).map(sorted).map(|[beside, alone]| quantile(&beside, 0.99) / quantile(&alone, 0.99));
        let worst_tenth = ratios.fold(0.0, f64::max);
        let mut first_token_ms = prompts.first_token_ms;
        first_token_ms.sort_unstable_by(f64::total_cmp);
        Ok(Gaps { step_ms_max, beside_prompts, alone, worst_tenth, first_token_ms, plan: *plan })
    })
}

/// The gaps beside prompts and those alone, each sorted.
fn sorted(pairs: &[Pair]) -> [Vec<f64>; 2] {
    let mut gaps = [pairs.iter().map(|p| p.beside_ms).collect::<Vec<_>>(), pairs.iter().map(|p| p.alone_ms).collect()];
    gaps.iter_mut().for_each(|gaps| gaps.sort_unstable_by(f64::total_cmp));
    gaps
}

/// A token's event as it was sent, and when it was read.
struct Token {
    at: Instant,
    data: Box<str>,
}

/// What a stream said.
type Heard = Vec<Token>;

/// What became of the prompts, and from when to when there was one.
struct Prompts {
    first_token_ms: Vec<f64>,
    during: (Instant, Instant),
}

/// The streams, to the end of `len` tokens each or until `prompts` were answered beside them.
fn run(plan: &Plan, door: &Door, words: &Words, len: u32, prompts: usize) -> Result<(Vec<Heard>, Prompts), String> {
    let ids: Vec<Uuid> = (0..plan.streams()).map(|_| Uuid::new_v4()).collect();
    let is_over = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (sender, begun) = mpsc::channel();
        let spawn = |(number, id): (usize, &Uuid)| {
            let body = task(door, *id, &words.prompt(STREAM_PROMPT_LEN, number as u64), len);
            let sender = sender.clone();
            scope.spawn(move || {
                let heard = listen(door, &body, &sender);
                is_over.store(true, SeqCst);
                heard
            })
        };
        let streams: Vec<_> = ids.iter().enumerate().map(spawn).collect();
        drop(sender);
        let all_run = ids.iter().all(|_| begun.recv().is_ok());
        let sent = match all_run {
            true => send_prompts(plan, door, words, prompts, is_over),
            false => Err("a stream has no token".into()),
        };
        if prompts > 0 {
            ids.iter().try_for_each(|id| door.cancel(*id))?;
        }
        // Why a stream failed says more than that it did.
        let heard: Result<Vec<Heard>, String> =
            streams.into_iter().map(|s| s.join().map_err(|_| "a client panicked".to_owned())?).collect();
        Ok((heard?, sent?))
    })
}

fn send_prompts(
    plan: &Plan,
    door: &Door,
    words: &Words,
    count: usize,
    is_over: &AtomicBool,
) -> Result<Prompts, String> {
    let long = |number: usize| words.prompt(plan.prompt_len, LONG_PROMPTS + number as u64);
    let bodies: Vec<String> = (0..count).map(|n| task(door, Uuid::new_v4(), &long(n), ANSWER_LEN)).collect();
    let began = Instant::now();
    let mut first_token_ms = Vec::new();
    for body in &bodies {
        let mut first: Option<Duration> = None;
        let refusal = door.read_task(body, |event| match event.name {
            "token" => {
                first = first.or(Some(event.after));
                Ok(())
            }
            "error" => Err(format!("a long prompt ended with {}", event.data)),
            _ => Ok(()),
        })?;
        if let Some(refusal) = refusal {
            return Err(format!("a long prompt was refused: {refusal}"));
        }
        if is_over.load(SeqCst) {
            break;
        }
        first_token_ms.push(first.ok_or("a long prompt got no token")?.as_secs_f64() * 1e3);
    }
    Ok(Prompts { first_token_ms, during: (began, Instant::now()) })
}

/// The tokens of a task; `begun` hears of the first.
fn listen(door: &Door, body: &str, begun: &Sender<()>) -> Result<Heard, String> {
    let mut tokens = Heard::new();
    let refusal = door.read_task(body, |event| {
        match event.name {
            "token" => {
                tokens.push(Token { at: Instant::now(), data: event.data.into() });
                if tokens.len() == 1 {
                    // Whoever waited for it may do so no more.
                    let _ = begun.send(());
                }
            }
            "error" => return Err(format!("a stream ended with {}", event.data)),
            _ => {}
        }
        Ok(())
    })?;
    refusal.map_or(Ok(tokens), |refusal| Err(format!("a stream was refused: {refusal}")))
}

fn task(door: &Door, id: Uuid, prompt: &str, tokens: u32) -> String {
    let body: Value = json!({
        "task_id": id.to_string(),
        "session_id": Uuid::new_v4().to_string(),
        "workload": "completion",
        "model_ref": door.model,
        "engine": door.engine,
        "ctx": CONTEXT_LEN,
        "priority": "interactive",
        "max_tokens": tokens,
        "deadline_ms": NO_DEADLINE_MS,
        "prompt": prompt,
        "temperature": 1.0,
        "seed": 1,
        "ignore_end": true,
        "kv_hint": "cold",
    });
    body.to_string()
}

/// The time before a token, and before the same token of the streams alone, milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Pair {
    /// Its number in its stream.
    index: usize,
    beside_ms: f64,
    alone_ms: f64,
}

/// The gaps before those tokens that came while there was a prompt, in the order of the way.
fn compare(disturbed: &[Heard], alone: &[Heard], (from, to): (Instant, Instant)) -> Result<Vec<Pair>, String> {
    let mut pairs = Vec::new();
    let ms = |from: &Token, to: &Token| (to.at - from.at).as_secs_f64() * 1e3;
    for (beside, alone) in disturbed.iter().zip(alone) {
        if beside.len() > alone.len() {
            return Err(format!("{} tokens alone, and {} beside prompts", alone.len(), beside.len()));
        }
        if let Some((beside, alone)) = beside.iter().zip(alone).find(|(beside, alone)| beside.data != alone.data) {
            return Err(format!("a stream says {} beside prompts, and {} alone", beside.data, alone.data));
        }
        for (index, (beside, alone)) in beside.windows(2).zip(alone.windows(2)).enumerate() {
            if beside[0].at >= from && beside[1].at <= to {
                let (beside_ms, alone_ms) = (ms(&beside[0], &beside[1]), ms(&alone[0], &alone[1]));
                pairs.push(Pair { index: index + 1, beside_ms, alone_ms });
            }
        }
    }
    pairs.sort_by_key(|pair| pair.index);
    if pairs.is_empty() { Err("no token came while there was a prompt".into()) } else { Ok(pairs) }
}

/// Prompts of so many tokens.
struct Words {
    model: Model,
    seed: u64,
}

impl Words {
    fn new(seed: u64) -> Result<Words, String> {
        let model = Model::from_static(orchestratord::default_model::bytes()).map_err(|e| e.to_string())?;
        Ok(Words { model, seed })
    }

    /// The same number gives the same one.
    fn prompt(&self, len: usize, number: u64) -> String {
        let mut chance = Chance::new(self.seed << 32 ^ number);
        let count = |text: &str| self.model.tokenizer().encode(text, true, false).len();
        // Each word is a token when a space stands before it, and the first one may be more.
        let more = len - count(WORDS[0]);
        let words = [WORDS[0]].into_iter().chain((0..more).map(|_| WORDS[chance.below(WORDS.len())]));
        let text = words.collect::<Vec<_>>().join(" ");
        assert_eq!(count(&text), len, "a word is not a token");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(times_ms: &[u64], from: Instant) -> Heard {
        let token =
            |(i, ms): (usize, &u64)| Token { at: from + Duration::from_millis(*ms), data: i.to_string().into() };
        times_ms.iter().enumerate().map(token).collect()
    }

    #[test]
    fn the_same_tokens_are_compared_and_only_those_beside_a_prompt() {
        let zero = Instant::now();
        let at = |ms| zero + Duration::from_millis(ms);
        let beside = [heard(&[0, 1, 5, 11, 12], zero), heard(&[3, 4], zero)];
        let alone = [heard(&[50, 52, 55, 59, 64, 70], zero), heard(&[50, 58], zero)];
        let pair = |index, beside_ms, alone_ms| Pair { index, beside_ms, alone_ms };
        let pairs = compare(&beside, &alone, (at(1), at(11))).expect("they say the same");
        assert_eq!(pairs, [pair(1, 1.0, 8.0), pair(2, 4.0, 3.0), pair(3, 6.0, 4.0)]);
        assert_eq!(sorted(&pairs), [vec![1.0, 4.0, 6.0], vec![3.0, 4.0, 8.0]]);
        assert!(compare(&beside, &alone, (at(20), at(30))).is_err(), "nothing was measured");
        assert!(compare(&alone, &beside, (at(0), at(100))).is_err(), "some were not there alone");
        let mut other = heard(&[0, 1, 2, 3, 4], zero);
        other[3].data = "x".into();
        assert!(compare(&[other], &alone, (at(0), at(11))).is_err(), "a neighbour changed what was said");
    }

    #[test]
    fn a_prompt_has_as_many_tokens_as_were_asked_for() {
        let words = Words::new(3).expect("the built-in model is sound");
        let prompt = words.prompt(100, 1);
        assert_eq!(prompt, words.prompt(100, 1));
        assert_ne!(prompt, words.prompt(100, 2));
        assert_eq!(words.model.tokenizer().encode(&prompt, true, false).len(), 100);
    }
}
