//! A simulated engine: what it does is what the real scheduler asks of it; only the time of its steps is made up.

use orchestratord::admission::Waiter;
use orchestratord::domain::task::Priority;
use orchestratord::services::prediction::{Seated, StepObservation, prefill_cells};
use orchestratord::services::scheduler::{BatchSeat, Machine, NextStep, NoSeat, StepRows};
use orchestratord_engine::share_rows;

use super::chance::Chance;
use super::trace::Client;
use super::world::SimJob;

pub const BLOCK_LEN: u32 = 16;

/// The time that steps really take. Not of the form that the predictions fit: reading the weights and computing the rows
/// overlap, the machine drifts, and now and then something else holds it up.
#[derive(Clone, Copy, Debug)]
pub struct Truth {
    /// Reading the weights once, microseconds.
    pub weights_us: f64,
    /// What comes on top of either.
    pub overhead_us: f64,
    pub decode_row_us: f64,
    pub prefill_row_us: f64,
    pub thousand_cells_us: f64,
    /// Spread of a step's logarithm.
    pub noise: f64,
    /// How far the machine's speed drifts from its mean, over minutes.
    pub drift: f64,
    /// Steps that are held up, and by how much.
    pub stall_share: f64,
    pub stall_us: f64,
}

impl Default for Truth {
    fn default() -> Truth {
        Truth {
            weights_us: 1500.0,
            overhead_us: 300.0,
            decode_row_us: 120.0,
            prefill_row_us: 60.0,
            thousand_cells_us: 40.0,
            noise: 0.05,
            drift: 0.08,
            stall_share: 0.001,
            stall_us: 8000.0,
        }
    }
}

impl Truth {
    /// About as fast as the CPU engine with the built-in model on one core: its weights stay in the cache, so a
    /// step's time is that of its rows.
    pub fn cpu() -> Truth {
        Truth {
            weights_us: 0.0,
            overhead_us: 100.0,
            decode_row_us: 170.0,
            prefill_row_us: 80.0,
            noise: 0.15,
            drift: 0.05,
            stall_share: 0.002,
            ..Truth::default()
        }
    }

    fn step_us(&self, decode: f64, prefill: f64, cells: f64) -> f64 {
        let compute_us = decode * self.decode_row_us + prefill * self.prefill_row_us;
        self.overhead_us + self.weights_us.max(compute_us) + self.thousand_cells_us * cells / 1000.0
    }

    /// Time of one step as it would be measured.
    pub fn observed_us(&self, decode: u32, prefill: u32, cells: u64, chance: &mut Chance) -> f64 {
        self.step_us(decode.into(), prefill.into(), cells as f64) * (self.noise * chance.normal()).exp()
    }

    /// Time of a task in its slot while all of them are taken, about.
    pub fn service_us(&self, client: &Client, slots: u32) -> f64 {
        let tokens = f64::from(client.tokens(client.tokens_max));
        let rows = f64::from(slots);
        let step_us = self.step_us(rows, 8.0, rows * 150.0);
        f64::from(client.prompt_len) * self.prefill_row_us + tokens * step_us
    }
}

/// A sequence in a slot, or put aside.
pub struct Seq {
    pub job: SimJob,
    pub priority: Priority,
    pub ticket: u32,
    pub prefill_left: u32,
    pub prompt_len: u32,
    pub made: u32,
    /// Where it will end.
    pub tokens: u32,
    pub blocks: u32,
    pub pinned: bool,
    pub paused: bool,
    admitted: u64,
}

impl Seq {
    fn cells(&self) -> u64 {
        u64::from(self.prompt_len + self.made)
    }

    fn decodes(&self) -> bool {
        !self.paused && self.prefill_left == 0
    }
}

/// What some steps that are alike have done.
#[derive(Clone, Copy, Debug)]
pub struct Steps {
    pub count: u32,
    /// Of all of them.
    pub duration_us: f64,
    pub rows_decode: u32,
    pub rows_prefill: u32,
    pub context_cells: u64,
}

impl Steps {
    pub fn observation(&self) -> StepObservation {
        StepObservation {
            rows_decode: self.rows_decode,
            rows_prefill: self.rows_prefill,
            context_cells: self.context_cells,
            duration_us: self.duration_us / f64::from(self.count),
        }
    }
}

pub struct SimEngine {
    pub generation: u32,
    pub seqs: Vec<Option<Seq>>,
    /// A seat that was given and not confirmed yet.
    tentative: Option<(usize, u64, u32)>,
    slots_max: u32,
    blocks_max: u32,
    admissions: u64,
    pub preemptions: u64,
    truth: Truth,
    chance: Chance,
    pub alive: bool,
}

impl SimEngine {
    pub fn new(generation: u32, truth: Truth, slots_max: u32, blocks_max: u32, chance: Chance) -> SimEngine {
        SimEngine {
            generation,
            seqs: (0..slots_max).map(|_| None).collect(),
            tentative: None,
            slots_max,
            blocks_max,
            admissions: 0,
            preemptions: 0,
            truth,
            chance,
            alive: true,
        }
    }

    fn in_slots(&self) -> impl Iterator<Item = &Seq> {
        self.seqs.iter().flatten().filter(|s| !s.paused)
    }

    pub fn blocks_used(&self) -> u32 {
        self.in_slots().map(|s| s.blocks).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.seqs.iter().all(Option::is_none)
    }

    /// What a step has in slots.
    pub fn rows(&self) -> StepRows {
        let mut rows = StepRows::default();
        for seq in self.in_slots() {
            rows.all += 1;
            rows.interactive += u32::from(seq.priority == Priority::Interactive);
            rows.pinned += u32::from(seq.pinned);
        }
        rows
    }

    /// Takes up again who was put aside, in order of admission, as long as there is room.
    pub fn resume(&mut self) {
        while let Some(id) = self.first_paused() {
            let blocks = self.seqs[id].as_ref().expect("it was just found").blocks;
            if self.slots_free() == 0 || self.blocks_used() + blocks > self.blocks_max {
                break;
            }
            let seq = self.seqs[id].as_mut().expect("it was just found");
            seq.paused = false;
            // It is computed again: prompt and what it has made.
            seq.prefill_left = seq.prompt_len + seq.made;
        }
    }

    fn first_paused(&self) -> Option<usize> {
        let paused = self.seqs.iter().enumerate().filter_map(|(id, s)| Some((s.as_ref()?, id)));
        paused.filter(|(s, _)| s.paused).min_by_key(|(s, _)| s.admitted).map(|(_, id)| id)
    }

    pub fn next_step(&self) -> NextStep {
        let mut next = NextStep::default();
        let mut first = u64::MAX;
        for seq in self.in_slots() {
            if seq.decodes() {
                next.rows_decode += 1;
                next.decode_cells += seq.cells();
            } else if seq.admitted < first {
                first = seq.admitted;
                next.prefill_position = seq.prompt_len + seq.made - seq.prefill_left.min(seq.prompt_len + seq.made);
            }
        }
        next
    }

    /// Runs as many steps of one shape as fit until `until_us`, one at least and `count_max` at most. `sampled` gets how many
    /// tokens a sequence has made in them.
    pub fn run(
        &mut self,
        now_us: f64,
        until_us: f64,
        count_max: u32,
        prefill_rows: u32,
        mut sampled: impl FnMut(usize, u32),
    ) -> Option<Steps> {
        let next = self.next_step();
        let mut prompts: Vec<(u64, usize)> = Vec::new();
        let mut shortest = u32::MAX;
        for (id, seq) in self.seqs.iter().enumerate() {
            let Some(seq) = seq.as_ref().filter(|s| !s.paused) else { continue };
            match seq.decodes() {
                true => shortest = shortest.min(seq.tokens - seq.made),
                false => prompts.push((seq.admitted, id)),
            }
        }
        if next.rows_decode == 0 && prompts.is_empty() {
            return None;
        }
        prompts.sort_unstable();
        let left_of = |id: usize| self.seqs[id].as_ref().expect("it was just seen").prefill_left;
        let pending: Vec<usize> = prompts.iter().map(|(_, id)| left_of(*id) as usize).collect();
        let mut shares = Vec::new();
        share_rows(&pending, prefill_rows as usize, &mut shares);
        let (mut planned, mut cells) = (Vec::new(), next.decode_cells as f64);
        for ((_, id), rows) in prompts.iter().zip(shares.iter().map(|rows| *rows as u32)).filter(|(_, rows)| *rows > 0)
        {
            let seq = self.seqs[*id].as_ref().expect("it was just seen");
            let position = f64::from(seq.prompt_len + seq.made - seq.prefill_left);
            cells += prefill_cells(position, rows.into());
            planned.push((*id, rows));
        }
        let rows_prefill: u32 = planned.iter().map(|(_, rows)| rows).sum();
        let drift = 1.0 + self.truth.drift * (now_us / 97e6).sin() * (now_us / 13e6).cos();
        let one_us = self.truth.step_us(next.rows_decode.into(), rows_prefill.into(), cells) * drift;
        // Prompts that are not finished in this step go on alike in the next.
        let alike = planned.iter().map(|(id, rows)| (left_of(*id) - 1) / rows).min().unwrap_or(u32::MAX);
        let fit = ((until_us - now_us) / one_us).ceil().max(1.0) as u32;
        let count = fit.min(shortest).min(alike.max(1)).min(count_max).max(1);
        let growth_us = self.truth.thousand_cells_us * f64::from(next.rows_decode) * f64::from(count - 1) / 2000.0;
        let noise = (self.truth.noise / f64::from(count).sqrt() * self.chance.normal()).exp();
        let stalls = (0..count).filter(|_| self.chance.happens(self.truth.stall_share)).count();
        let duration_us =
            f64::from(count) * (one_us + growth_us) * noise + stalls as f64 * self.truth.stall_us * self.chance.unit();
        for (id, seq) in self.seqs.iter_mut().enumerate() {
            let Some(seq) = seq.as_mut().filter(|s| s.decodes()) else { continue };
            seq.made += count;
            sampled(id, count);
        }
        for (id, rows) in planned {
            let seq = self.seqs[id].as_mut().expect("planned");
            seq.prefill_left -= rows * if count > 1 { count } else { 1 };
            if seq.prefill_left == 0 {
                seq.made += 1;
                sampled(id, 1);
            }
        }
        let (rows_decode, context_cells) =
            (next.rows_decode, cells as u64 + u64::from(next.rows_decode * (count - 1) / 2));
        Some(Steps { count, duration_us, rows_decode, rows_prefill, context_cells })
    }

    pub fn remove(&mut self, id: usize) -> Option<Seq> {
        self.seqs[id].take()
    }

    /// What must hold of slots and blocks.
    pub fn check(&self) {
        assert!(self.in_slots().count() <= self.slots_max as usize, "more sequences than slots");
        assert!(self.blocks_used() <= self.blocks_max, "more blocks are used than there are");
        let pinned = self.seqs.iter().flatten().filter(|s| s.pinned).count();
        assert!(pinned <= 1, "one batch task at a time is pinned");
        for seq in self.seqs.iter().flatten() {
            assert!(seq.priority == Priority::Batch || !seq.paused, "an interactive task was put aside");
            assert!(seq.made <= seq.tokens, "a sequence went on past its end");
        }
    }
}

impl Machine<SimJob> for SimEngine {
    fn serves(&self, job: &SimJob) -> bool {
        self.alive && job.generation == self.generation
    }

    fn slots_free(&self) -> usize {
        self.slots_max as usize - self.in_slots().count()
    }

    fn seat(&mut self, job: &SimJob, priority: Priority, pinned: bool) -> Result<usize, NoSeat> {
        let (firm, blocks) = (priority == Priority::Interactive || pinned, job.promise.work.blocks);
        if blocks > self.blocks_max {
            return Err(NoSeat::Never(format!("{blocks} blocks of {}", self.blocks_max)));
        }
        if !firm && self.seqs.iter().flatten().any(|s| s.paused) {
            return Err(NoSeat::Now);
        }
        let can_go = |s: &&Seq| s.priority == Priority::Batch && !s.pinned;
        let stay = |s: &&Seq| !can_go(s);
        let (most_slots, most_blocks) = match firm {
            true => (self.in_slots().filter(stay).count(), self.in_slots().filter(stay).map(|s| s.blocks).sum()),
            false => (self.in_slots().count(), self.blocks_used()),
        };
        if most_slots >= self.slots_max as usize || most_blocks + blocks > self.blocks_max {
            return Err(NoSeat::Now);
        }
        while self.slots_free() == 0 || self.blocks_used() + blocks > self.blocks_max {
            let last =
                self.seqs.iter_mut().flatten().filter(|s| !s.paused && s.priority == Priority::Batch && !s.pinned);
            let last = last.max_by_key(|s| s.admitted).expect("without those who can go it fits, as was just counted");
            last.paused = true;
            self.preemptions += 1;
        }
        self.admissions += 1;
        let id = match self.seqs.iter().position(Option::is_none) {
            Some(id) => id,
            None => {
                self.seqs.push(None);
                self.seqs.len() - 1
            }
        };
        self.tentative = Some((id, self.admissions, blocks));
        Ok(id)
    }

    fn undo(&mut self, _: usize) {
        self.tentative = None;
    }

    fn begin(&mut self, id: usize, waiter: Waiter<SimJob>, pinned: bool, now_us: u64) {
        let (tentative, admitted, blocks) = self.tentative.take().expect("a seat was given just now");
        assert_eq!(id, tentative);
        let job = waiter.entry;
        job.seated_us.set(Some(now_us));
        self.seqs[id] = Some(Seq {
            priority: waiter.priority,
            ticket: waiter.ticket,
            prefill_left: job.prompt_len,
            prompt_len: job.prompt_len,
            made: 0,
            tokens: job.tokens,
            blocks,
            pinned: pinned && waiter.priority == Priority::Batch,
            paused: false,
            admitted,
            job,
        });
    }

    fn batch_seats(&self) -> impl Iterator<Item = BatchSeat> {
        self.seqs.iter().enumerate().filter_map(|(id, seq)| {
            let seq = seq.as_ref().filter(|s| s.priority == Priority::Batch)?;
            Some(BatchSeat { id, accepted_us: seq.job.accepted_us, paused: seq.paused, pinned: seq.pinned })
        })
    }

    fn pin(&mut self, id: usize) {
        self.seqs[id].as_mut().expect("it is here").pinned = true;
    }

    fn seated(&self, out: &mut Vec<Seated>) {
        out.extend(self.seqs.iter().flatten().map(|s| Seated {
            work: s.job.promise.work,
            ticket: s.ticket,
            made: s.made,
            prefill_left: if s.paused { s.prompt_len + s.made } else { s.prefill_left },
            preemptible: s.priority == Priority::Batch && !s.pinned,
            paused: s.paused,
            pinned: s.pinned,
            accepted_us: s.job.accepted_us,
            deadline_us: s.job.deadline_us,
        }));
    }
}
