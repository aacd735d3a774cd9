//! Clients and when they come.

use super::chance::Chance;
use super::engine::Truth;
use orchestratord::domain::task::Priority;

/// How arrivals are spread over time, and how long their answers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Independent arrivals.
    Poisson,
    /// Quiet for a while, then three times the mean rate for a while.
    Bursts,
    /// A day in ten minutes: the rate swings between a fifth and nine fifths of the mean.
    Diurnal,
    /// Independent arrivals whose answers have a heavy tail.
    HeavyTailed,
    /// What `orchestratord-bench grade` asks of a live server: independent arrivals of short prompts, whose answers are cut off
    /// at this many tokens, or a half, a quarter or an eighth of it, unless the model ends them before.
    Live { tokens_max: u32 },
}

/// Where the built-in model ends by itself, fitted to 2600 live answers, of which 94, 88, 76, 25 and 1 % came to 16, 32, 96, 192
/// and 384 tokens: most are a story, and some are a sentence. A share, its mean; the median and spread of the others.
const LIVE_SENTENCES: (f64, f64) = (0.22, 45.0);
const LIVE_STORIES: (f64, f64) = (161.0, 0.377);

impl Kind {
    pub const ALL: [Kind; 4] = [Kind::Poisson, Kind::Bursts, Kind::Diurnal, Kind::HeavyTailed];

    pub const fn name(self) -> &'static str {
        match self {
            Kind::Poisson => "poisson",
            Kind::Bursts => "bursts",
            Kind::Diurnal => "diurnal",
            Kind::HeavyTailed => "heavy-tailed",
            Kind::Live { .. } => "live",
        }
    }
}

/// One task as its client means it, and as it will turn out.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    pub arrival_us: u64,
    pub priority: Priority,
    pub session: u32,
    pub key: u16,
    pub prompt_len: u32,
    pub tokens_max: u32,
    /// Where the model would end by itself; hidden from the server.
    pub tokens_true: u32,
    pub tokens_said: Option<u32>,
    pub deadline_us: u64,
    /// Time after arrival at which the client cancels, if it is not done by then.
    pub cancel_us: Option<u64>,
}

/// What a trace is made of.
#[derive(Clone, Copy, Debug)]
pub struct Trace {
    pub kind: Kind,
    pub seed: u64,
    pub count: usize,
    /// Offered work over what the engine can do.
    pub load: f64,
    pub sessions: u32,
    pub keys: u16,
    pub batch_share: f64,
    /// Clients that say how many tokens they expect, give or take a sixth.
    pub said_share: f64,
    pub cancel_share: f64,
    /// Median of the deadline over the time that the task would take on a busy engine without waiting, and its spread.
    pub slack: f64,
    pub slack_spread: f64,
}

impl Trace {
    pub fn new(kind: Kind, seed: u64, count: usize, load: f64) -> Trace {
        Trace {
            kind,
            seed,
            count,
            load,
            sessions: 400,
            keys: 4,
            batch_share: 0.2,
            said_share: 0.4,
            cancel_share: 0.01,
            slack: 6.0,
            slack_spread: 1.0,
        }
    }

    /// The tasks in order of arrival.
    pub fn clients(&self, truth: &Truth, slots: u32) -> Vec<Client> {
        self.forked(truth, slots, usize::MAX, 0)
    }

    /// The same tasks up to `last` and with it; those after it are drawn anew with `seed`, by the same law, and from the
    /// weather that there is when `last` comes: a burst goes on, but for how long is open again.
    pub fn forked(&self, truth: &Truth, slots: u32, last: usize, seed: u64) -> Vec<Client> {
        let mut chance = Chance::new(self.seed);
        // Each session has its own habit of length.
        let habits: Vec<f64> = (0..self.sessions).map(|_| chance.lognormal(60.0, 0.8)).collect();
        let mut clients: Vec<Client> =
            (0..self.count).map(|_| self.client(&mut chance, &habits, truth, slots)).collect();
        let work_us: f64 = clients.iter().map(|c| truth.service_us(c, slots)).sum::<f64>() / f64::from(slots);
        let mean_us = work_us / self.count as f64 / self.load;
        let phase_us = |busy: bool| if busy { 150.0 } else { 250.0 } * mean_us;
        let mut now_us = 0.0;
        let (mut busy, mut phase_until_us) = (false, 0.0);
        for (index, client) in clients.iter_mut().enumerate() {
            if index > last {
                if index == last + 1 {
                    chance = Chance::new(seed);
                    if phase_until_us > now_us {
                        phase_until_us = now_us + chance.exponential(phase_us(busy));
                    }
                }
                *client = self.client(&mut chance, &habits, truth, slots);
            }
            let rate = match self.kind {
                Kind::Poisson | Kind::HeavyTailed | Kind::Live { .. } => 1.0,
                Kind::Diurnal => 1.0 + 0.8 * (now_us / 600e6 * std::f64::consts::TAU).sin(),
                Kind::Bursts => {
                    while now_us > phase_until_us {
                        busy = !busy;
                        phase_until_us += chance.exponential(phase_us(busy));
                    }
                    if busy { 3.0 } else { 0.4 }
                }
            };
            now_us += chance.exponential(mean_us / rate);
            client.arrival_us = now_us as u64;
        }
        clients
    }

    fn client(&self, chance: &mut Chance, habits: &[f64], truth: &Truth, slots: u32) -> Client {
        if let Kind::Live { tokens_max } = self.kind {
            return self.live_client(chance, tokens_max, truth, slots);
        }
        let session = chance.below(habits.len());
        let habit = habits[session];
        let length = match self.kind {
            Kind::HeavyTailed => chance.pareto(habit * 0.4, 1.3),
            _ => chance.lognormal(habit, 0.35),
        };
        let tokens_true = length.clamp(1.0, 4000.0) as u32;
        let tokens_max = [64, 128, 256, 512, 1024][chance.below(5)];
        let prompt_len = chance.lognormal(90.0, 1.0).clamp(1.0, 3000.0) as u32;
        let said = f64::from(tokens_true.min(tokens_max)) * chance.lognormal(1.0, 0.15);
        let batch = chance.happens(self.batch_share);
        let mut client = Client {
            arrival_us: 0,
            priority: if batch { Priority::Batch } else { Priority::Interactive },
            session: session as u32,
            key: (session % usize::from(self.keys.max(1))) as u16,
            prompt_len,
            tokens_max,
            tokens_true,
            tokens_said: chance.happens(self.said_share).then_some(said.max(1.0) as u32),
            deadline_us: 0,
            cancel_us: None,
        };
        let alone_us = truth.service_us(&client, slots);
        let slack = chance.lognormal(self.slack, self.slack_spread) * if batch { 4.0 } else { 1.0 };
        client.deadline_us = (alone_us * slack).max(1000.0) as u64;
        client.cancel_us = chance.happens(self.cancel_share).then(|| chance.exponential(3.0 * alone_us) as u64);
        client
    }

    fn live_client(&self, chance: &mut Chance, tokens_max: u32, truth: &Truth, slots: u32) -> Client {
        let batch = chance.happens(self.batch_share);
        let tokens_max = tokens_max >> chance.below(4);
        let tokens_true = match chance.happens(LIVE_SENTENCES.0) {
            true => chance.exponential(LIVE_SENTENCES.1),
            false => chance.lognormal(LIVE_STORIES.0, LIVE_STORIES.1),
        };
        let client = Client {
            arrival_us: 0,
            priority: if batch { Priority::Batch } else { Priority::Interactive },
            session: chance.below(self.sessions as usize) as u32,
            key: 0,
            prompt_len: 3 + chance.below(40) as u32,
            tokens_max,
            tokens_true: tokens_true.max(1.0) as u32,
            tokens_said: None,
            deadline_us: 0,
            cancel_us: None,
        };
        // The client knows how much it may get, and not how much it will.
        let longest_us = truth.service_us(&Client { tokens_true: tokens_max, ..client }, slots);
        let slack = chance.lognormal(self.slack, self.slack_spread) * if batch { 4.0 } else { 1.0 };
        Client { deadline_us: (longest_us * slack).max(1000.0) as u64, ..client }
    }
}

impl Client {
    /// Tokens it will really be sent, if nothing stops it.
    pub fn tokens(&self, granted: u32) -> u32 {
        self.tokens_true.min(granted).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The live grader's answers, as they were measured.
    #[test]
    fn simulated_live_answers_are_as_long_as_real_ones() {
        let trace = Trace { sessions: 40, ..Trace::new(Kind::Live { tokens_max: 384 }, 5, 8000, 1.0) };
        let clients = trace.clients(&Truth::cpu(), 16);
        for (limit, measured) in [(48, 0.87), (96, 0.76), (192, 0.25), (384, 0.01)] {
            let asked: Vec<&Client> = clients.iter().filter(|c| c.tokens_max == limit).collect();
            let full = asked.iter().filter(|c| c.tokens_true >= limit).count() as f64 / asked.len() as f64;
            assert!(asked.len() > 1500 && (full - measured).abs() < 0.04, "{limit}: {full} of {}", asked.len());
        }
        let patience = |c: &&Client| c.deadline_us as f64 / f64::from(c.tokens_max);
        let mean = |priority| {
            let of: Vec<f64> = clients.iter().filter(|c| c.priority == priority).map(|c| patience(&c)).collect();
            of.iter().sum::<f64>() / of.len() as f64
        };
        assert!(
            (3.0..5.0).contains(&(mean(Priority::Batch) / mean(Priority::Interactive))),
            "batch work has more time"
        );
    }
}
