//! An engine without a model: every sequence gets one token at every point of a schedule. What is left of a
//! server that runs on it is the serving path.

use std::sync::Arc;
use std::time::Duration;

use orchestratord::services::decoder::Decoder;
use orchestratord_engine::{
    AdmitError, AdmitInfo, EngineOptions, FinishReason, KvUsage, Model, NextRows, Progress, SequenceRequest, SessionKv,
    StepReport, TokenSink, Verdict,
};

use crate::pace::Grid;

struct Seat {
    id: u64,
    left: u32,
}

/// The engine; `token` is what it says every time.
pub struct Paced {
    interval: Duration,
    grid: Grid,
    token: u32,
    slots_max: usize,
    seats: Vec<Seat>,
}

impl Paced {
    pub fn new(interval: Duration, token: u32, slots_max: usize) -> Paced {
        Paced { interval, grid: Grid::new(interval), token, slots_max, seats: Vec::with_capacity(slots_max) }
    }
}

impl Decoder for Paced {
    fn admit(&mut self, request: SequenceRequest) -> Result<AdmitInfo, AdmitError> {
        if self.seats.len() == self.slots_max {
            return Err(AdmitError::NoSlot);
        }
        if self.seats.is_empty() {
            self.grid.restart();
        }
        self.seats.push(Seat { id: request.id, left: request.max_tokens });
        Ok(AdmitInfo { cached_tokens: 0 })
    }

    fn cancel(&mut self, id: u64) {
        self.seats.retain(|seat| seat.id != id);
    }

    fn step(&mut self, sink: &mut dyn TokenSink) -> Result<StepReport, String> {
        self.grid.wait();
        let rows = self.seats.len() as u32;
        let token = self.token;
        self.seats.retain_mut(|seat| {
            seat.left -= 1;
            let reason = match sink.token(seat.id, token, None) {
                Verdict::Stop => FinishReason::Stop,
                Verdict::Continue if seat.left == 0 => FinishReason::Length,
                Verdict::Continue => return true,
            };
            sink.finished(seat.id, reason);
            false
        });
        let finished = rows - self.seats.len() as u32;
        Ok(StepReport { rows_decode: rows, sampled: rows, finished, ..StepReport::default() })
    }

    fn rebuilt(&mut self, _: Arc<Model>, _: EngineOptions) -> Result<Box<dyn Decoder>, String> {
        Ok(Box::new(Paced::new(self.interval, self.token, self.slots_max)))
    }

    fn arithmetic(&self) -> String {
        "none".to_owned()
    }

    fn is_idle(&self) -> bool {
        self.seats.is_empty()
    }

    fn slots_free(&self) -> usize {
        self.slots_max - self.seats.len()
    }

    fn running_count(&self) -> usize {
        self.seats.len()
    }

    fn paused_count(&self) -> usize {
        0
    }

    fn kv_usage(&self) -> KvUsage {
        KvUsage::default()
    }

    fn session_kv(&self, _: u128) -> SessionKv {
        SessionKv::default()
    }

    fn drop_session(&mut self, _: u128) {}

    fn next_rows(&self) -> NextRows {
        NextRows { decode: self.seats.len() as u32, ..NextRows::default() }
    }

    fn limit_prefill(&mut self, _: usize) {}

    fn progress(&self, each: &mut dyn FnMut(u64, Progress)) {
        self.seats.iter().for_each(|seat| each(seat.id, Progress { prefill_left: 0, paused: false }));
    }

    fn pin(&mut self, _: u64) {}
}
