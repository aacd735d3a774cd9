//! `device same`: one sequence alone, in crowds, in pieces, from the cache and after it was put aside: the same bits, and what
//! a step of each took.

use std::io::Write;
use std::sync::Arc;

use clap::{Arg, ArgMatches, Command, value_parser};
use orchestratord_engine::backend::Backend;
use orchestratord_engine::backend::cuda::engine_on;
use orchestratord_engine::testing::Dice;
use orchestratord_engine::{
    BLOCK_LEN, Engine, EngineOptions, FinishReason, SamplingParams, SequenceRequest, TokenSink, Verdict,
};
use sha2::{Digest, Sha256};

use super::shape;
use crate::cli::Failure;

/// The sequence that is looked at; the others have other numbers.
const SUBJECT: u64 = 0;
/// The one that puts it aside.
const NEWCOMER: u64 = u64::MAX;

pub fn command() -> Command {
    let count = |name: &'static str, default: &'static str, help: &'static str| {
        let legal = value_parser!(u32).range(2..=4096);
        Arg::new(name).long(name).value_name("N").value_parser(legal).default_value(default).help(help)
    };
    let legal = value_parser!(u32).range(2..=1024);
    let crowds = Arg::new("crowd").long("crowd").value_name("N,...").value_delimiter(',').value_parser(legal);
    let command = Command::new("same")
        .about("See whether a sequence has the same bits whoever runs beside it on this machine's CUDA device")
        .after_help(
            "A line a case, with the first digits of the SHA-256 of every token and of the bits of its probability's logarithm. \
             Exit code 1 when two differ.",
        )
        .arg(shape::shape().default_value("tiny"))
        .arg(shape::tensor_type().value_delimiter(',').default_value("bf16"))
        .arg(crowds.default_value("8,32,256").help("sequences that run together, a case each"))
        .arg(count("prompt", "150", "tokens of the prompt"))
        .arg(count("decode", "24", "tokens generated"));
    super::with_kernels(command)
}

/// Keeps what the subject was given.
#[derive(Default)]
struct Watch {
    said: Vec<(u32, u32)>,
    ended: bool,
}

impl TokenSink for Watch {
    fn token(&mut self, id: u64, token: u32, logprob: Option<f32>) -> Verdict {
        if id == SUBJECT {
            self.said.push((token, logprob.expect("it was asked for").to_bits()));
        }
        Verdict::Continue
    }

    fn finished(&mut self, id: u64, _: FinishReason) {
        self.ended |= id == SUBJECT;
    }
}

/// Who runs beside the subject, and what happens to it.
#[derive(Clone, Copy)]
struct Company {
    /// Sequences in all.
    crowd: usize,
    /// Rows of a step that prompts get at most.
    prefill_rows: usize,
    /// The first part of its prompt is in the cache.
    warm: bool,
    /// It is put aside once, after some tokens.
    preempted: bool,
}

struct Subject {
    prompt: Arc<[u32]>,
    max_tokens: u32,
    vocab_len: usize,
}

impl Subject {
    fn request(&self, id: u64, prompt: Arc<[u32]>, max_tokens: u32) -> SequenceRequest {
        // Drawn, not the likeliest: a draw may change with a single bit.
        let sampling = SamplingParams { temperature: 1.0, seed: id, ..SamplingParams::default() };
        let want_logprobs = id == SUBJECT;
        SequenceRequest {
            id,
            prompt,
            max_tokens,
            sampling,
            want_logprobs,
            ignore_end: true,
            ..SequenceRequest::default()
        }
    }

    /// Another prompt of some length, for somebody else.
    fn other(&self, dice: &mut Dice, len: usize) -> Arc<[u32]> {
        (0..len).map(|_| dice.below(self.vocab_len) as u32).collect()
    }

    /// Runs it in this company and says what it was given.
    fn run<B: Backend>(&self, engine: &mut Engine<B>, company: Company) -> Result<Vec<(u32, u32)>, String> {
        let mut dice = Dice::new(company.crowd as u64);
        let mut watch = Watch::default();
        engine.limit_prefill(company.prefill_rows);
        let admit = |engine: &mut Engine<B>, request| engine.admit(request).map_err(|e| e.to_string());
        if company.warm {
            let head = self.prompt[..self.prompt.len() - 1].into();
            admit(engine, SequenceRequest { reuse: true, ..self.request(1, head, 1) })?;
            while !engine.is_idle() {
                engine.step(&mut watch).map_err(|e| e.to_string())?;
            }
        }
        // Half of the others are there before it, and all of them stay longer.
        let long = self.max_tokens + self.prompt.len() as u32;
        for id in 1..=company.crowd as u64 {
            let request = if id == (company.crowd as u64).div_ceil(2) {
                let request = self.request(SUBJECT, self.prompt.clone(), self.max_tokens);
                SequenceRequest { reuse: company.warm, preemptible: company.preempted, ..request }
            } else {
                let len = 1 + dice.below(self.prompt.len());
                self.request(id, self.other(&mut dice, len), long)
            };
            let cached = admit(engine, request)?.cached_tokens;
            if company.warm && cached == 0 && self.prompt.len() > BLOCK_LEN {
                return Err("nothing of its prompt was found in the cache".to_owned());
            }
        }
        let (mut put_aside, mut resumed) = (0, 0);
        while !watch.ended {
            if company.preempted && put_aside == 0 && watch.said.len() * 2 >= self.max_tokens as usize {
                let newcomer = self.other(&mut dice, 5);
                admit(engine, self.request(NEWCOMER, newcomer, 3))?;
            }
            let report = engine.step(&mut watch).map_err(|e| e.to_string())?;
            put_aside += report.preempted;
            resumed += report.resumed;
        }
        for id in 1..=company.crowd as u64 {
            engine.cancel(id);
        }
        engine.cancel(NEWCOMER);
        match company.preempted && (put_aside == 0 || resumed == 0) {
            true => Err("it was not put aside".to_owned()),
            false => Ok(watch.said),
        }
    }
}

pub fn run(arguments: &ArgMatches) -> Result<(), Failure> {
    let crowds: Vec<usize> =
        arguments.get_many::<u32>("crowd").expect("it has a default").map(|n| *n as usize).collect();
    let count = |name| *arguments.get_one::<u32>(name).expect("it has a default");
    let (prompt_len, max_tokens) = (count("prompt") as usize, count("decode"));
    let shape = arguments.get_one::<String>("shape").expect("it has a default");
    let device = super::found(arguments)?;
    let most = crowds.iter().copied().max().expect("there is a default");
    let blocks = (2 * prompt_len + max_tokens as usize).div_ceil(BLOCK_LEN) * (most + 1);
    let mut failed = 0;
    for type_name in arguments.get_many::<String>("type").expect("it has a default") {
        let model = shape::model(shape, shape::type_named(type_name))?;
        let vocab_len = model.info().vocab_len;
        let mut dice = Dice::new(3);
        let prompt = (0..prompt_len).map(|_| dice.below(vocab_len) as u32).collect();
        let subject = Subject { prompt, max_tokens, vocab_len };
        let options = EngineOptions {
            slots_max: most,
            step_rows_max: most.max(prompt_len + 8),
            kv_blocks_max: blocks,
            ..EngineOptions::default()
        };
        let whole = options.step_rows_max;
        let mut engine = engine_on(model, options, super::open(&device)?).map_err(Failure::failed)?;
        let alone = Company { crowd: 1, prefill_rows: whole, warm: false, preempted: false };
        let mut cases = vec![
            ("alone".to_owned(), alone),
            ("alone, its prompt in sevens".to_owned(), Company { prefill_rows: 7, ..alone }),
        ];
        cases.extend(crowds.iter().map(|crowd| (format!("among {crowd}"), Company { crowd: *crowd, ..alone })));
        let full = Company { crowd: most, preempted: true, ..alone };
        cases.push((format!("among {most}, put aside and taken up again"), full));
        cases.push(("alone, from the cache".to_owned(), Company { warm: true, ..alone }));
        let mut first: Option<Vec<(u32, u32)>> = None;
        for (name, company) in cases {
            let said = subject.run(&mut engine, company).map_err(|e| Failure::Failed(format!("{name}: {e}")))?;
            let bytes: Vec<u8> = said.iter().flat_map(|(t, p)| [t.to_le_bytes(), p.to_le_bytes()]).flatten().collect();
            let bits: String = Sha256::digest(&bytes).iter().take(8).map(|b| format!("{b:02x}")).collect();
            let well = said.len() == max_tokens as usize && *first.get_or_insert_with(|| said.clone()) == said;
            failed += usize::from(!well);
            let mark = if well { "ok  " } else { "BAD " };
            let mut out = std::io::stdout().lock();
            let written = writeln!(out, "{mark} {shape} {type_name} {name:<44} bits {bits}").and_then(|()| out.flush());
            written.map_err(Failure::output)?;
        }
    }
    match failed {
        0 => Ok(()),
        _ => Err(Failure::Failed(format!("{failed} cases have other bits"))),
    }
}
