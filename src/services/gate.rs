//! The gate: what a newcomer is told, and whether it gets in.
//!
//! Reactors call `offer`; the engine thread hands over a freshly played board when something has changed, and never waits
//! for them to take it. Time is an argument: the server and the simulator use the same gate.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};

use super::fair::FairShare;
use super::prediction::{Board, Distribution, Experience, Outlook, Queued, SessionLengths, Shape, StepModel, Work};
use crate::admission::appointments::{Appointments, Window};
use crate::admission::{Newcomer, Place, Placed, QueueFull, QueueWithMetrics};
use crate::config::{Config, QueueOrder};
use crate::domain::task::Priority;

/// Places are promised this much later than predicted, and kept from a little before that: a place that is free too early
/// costs nothing, for newcomers take it; one that is free too late breaks a promise. Tuned in the simulator, whose engine's
/// pace drifts by a twelfth either way: 0.08 kept 85 % of the promises there, 0.12 87 % and this 91 %.
const MARGIN: f64 = 0.15;

/// The same in places: predictions of the next few are coarse.
const MARGIN_PLACES: f64 = 2.0;

/// At most this share of the queue is given up to places that are kept and not due yet.
const KEPT_EARLY_SHARE: f64 = 0.25;

/// The settings that concern the gate.
#[derive(Clone, Copy, Debug)]
pub struct GateRules {
    pub order: QueueOrder,
    pub fair_quantum_tokens: u64,
    pub on_time_probability_floor: f64,
    pub retry_promises_max: usize,
    pub retry_patience_us: u64,
}

impl GateRules {
    pub fn from_config(config: &Config) -> GateRules {
        GateRules {
            order: config.queue_order,
            fair_quantum_tokens: config.fair_quantum_tokens,
            on_time_probability_floor: config.on_time_probability_floor,
            retry_promises_max: config.retry_promises_max,
            retry_patience_us: config.retry_patience_ms * 1000,
        }
    }
}

/// A task that wants in.
#[derive(Clone, Copy)]
pub struct Offer<'a> {
    /// By which a client that comes back is known.
    pub id: u128,
    pub now_us: u64,
    pub priority: Priority,
    /// Microseconds of the caller's clock.
    pub deadline_us: u64,
    /// Number of the API key.
    pub client: u16,
    pub prompt_len: u32,
    /// Most tokens that it will be sent.
    pub tokens_max: u32,
    /// Tokens that the client expects.
    pub tokens_said: Option<u32>,
    /// It takes all the tokens that it may.
    pub never_ends: bool,
    /// Blocks of KV memory it will reserve.
    pub blocks: u32,
    pub session: &'a Mutex<SessionLengths>,
    /// Let in although it is predicted to be late: what a refusal would have prevented is seen so.
    pub forced: bool,
}

/// What a client is told when its task is accepted, and what the scheduler goes by.
#[derive(Clone, Copy, Debug)]
pub struct Promise {
    pub queue_position: u32,
    pub predicted_start_ms: u64,
    pub backoff_ms: u64,
    pub outlook: Outlook,
    pub work: Work,
    /// Its place in the order: smaller goes first, equal ones by their tickets.
    pub key: u64,
    pub ticket: u32,
    /// Seated later than this, it would meet its deadline with less than the floor's probability.
    pub latest_start_us: u64,
}

/// Why a newcomer does not get in.
#[derive(Clone, Copy, Debug)]
pub enum Refusal {
    /// It would hardly meet its deadline.
    Hopeless {
        queue_position: u32,
        finish_us: f64,
        on_time_probability: f64,
    },
    Full {
        full: QueueFull,
        retry_after_ms: u64,
    },
}

/// What predictions are made from; locked for a microsecond at a time.
pub struct Desk {
    pub board: Board,
    pub experience: Experience,
    fair: [FairShare; 2],
}

pub struct Gate<T> {
    pub queue: Arc<QueueWithMetrics<T>>,
    pub rules: GateRules,
    desk: Mutex<Desk>,
    book: Mutex<Appointments>,
    /// Promises in the book, so that nobody locks an empty one.
    promised: AtomicUsize,
}

impl<T> Gate<T> {
    pub fn new(queue: Arc<QueueWithMetrics<T>>, rules: GateRules, shape: Shape, speed: StepModel) -> Gate<T> {
        let fair = || FairShare::new(rules.fair_quantum_tokens);
        let desk = Desk { board: Board::new(shape, speed), experience: Experience::default(), fair: [fair(), fair()] };
        let book = Mutex::new(Appointments::new(rules.retry_promises_max));
        Gate { queue, rules, desk: Mutex::new(desk), book, promised: AtomicUsize::new(0) }
    }

    pub fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().expect("nothing panics under this lock")
    }

    /// For the engine thread, which does not wait for anybody.
    pub fn try_desk(&self) -> Option<MutexGuard<'_, Desk>> {
        self.desk.try_lock().ok()
    }

    /// When the task at this position of those of its class and above will start, milliseconds from now.
    pub fn start_ms(&self, now_us: u64, priority: Priority, position: u32) -> u64 {
        let start_us = self.desk().board.start_at(now_us as f64, priority, position);
        ((start_us - now_us as f64) / 1000.0).round() as u64
    }

    /// Places that are kept for clients who were told to come about now, other than this one.
    fn kept_for_others(&self, id: u128, now_us: u64) -> usize {
        if self.promised.load(SeqCst) == 0 {
            return 0;
        }
        let mut book = self.lock_book();
        let due = book.is_due(id, now_us);
        if due {
            book.came(id);
        }
        let kept = book.kept(now_us);
        self.promised.store(book.len(), SeqCst);
        // A place is kept for it: as long as there is one at all, it is its own.
        if due { 0 } else { kept }
    }

    /// Places that are kept now.
    pub fn kept(&self, now_us: u64) -> usize {
        self.lock_book().kept(now_us)
    }

    /// What a task would be told if it came now; nothing changes.
    pub fn predict(&self, offer: &Offer<'_>) -> Promise {
        let desk = self.desk();
        let (tokens, work, key, _) = self.reckon(&desk, offer);
        self.promise(&desk, offer, key, work, &tokens)
    }

    /// Its tokens, its work, its place in the order, and what it costs in a fair share.
    fn reckon(&self, desk: &Desk, offer: &Offer<'_>) -> (Distribution, Work, u64, u64) {
        let tokens = desk.tokens(offer);
        let work = Work::new(offer.prompt_len, &tokens, offer.blocks);
        let cost = u64::from(offer.prompt_len) + tokens.mean().ceil() as u64;
        let key = match self.rules.order {
            QueueOrder::Fifo => 0,
            QueueOrder::Deadline => offer.deadline_us,
            QueueOrder::Fair => desk.fair[offer.priority.index()].key(offer.client, cost),
        };
        (tokens, work, key, cost)
    }

    fn lock_book(&self) -> MutexGuard<'_, Appointments> {
        self.book.lock().expect("nothing panics under this lock")
    }

    /// Refuses at once, and before anything is known of the prompt, who would be refused in the end.
    ///
    /// # Errors
    ///
    /// `Refusal::Full`.
    pub fn check_room(&self, id: u128, now_us: u64, priority: Priority) -> Result<(), Refusal> {
        let kept = self.kept_for_others(id, now_us);
        match self.queue.would_refuse(priority, kept) {
            false => Ok(()),
            true => Err(self.refusal(id, now_us, self.queue.refuse(self.queue.depth()))),
        }
    }

    /// Predicts, decides, and takes a place; `make` builds what goes into the queue.
    ///
    /// # Errors
    ///
    /// See [`Refusal`].
    pub fn offer(&self, offer: &Offer<'_>, make: impl FnOnce(Placed, Promise) -> T) -> Result<Placed, Refusal> {
        let kept = self.kept_for_others(offer.id, offer.now_us);
        let mut desk = self.desk();
        let (tokens, work, key, cost) = self.reckon(&desk, offer);
        let mut promise = self.promise(&desk, offer, key, work, &tokens);
        if offer.forced {
            promise.latest_start_us = u64::MAX;
        } else if promise.outlook.on_time_probability < self.rules.on_time_probability_floor {
            let Promise { queue_position, outlook, .. } = promise;
            let (finish_us, on_time_probability) = (outlook.finish_us, outlook.on_time_probability);
            return Err(Refusal::Hopeless { queue_position, finish_us, on_time_probability });
        }
        let newcomer = Newcomer { priority: offer.priority, key, kept };
        let placed = self.queue.enqueue_as(newcomer, |placed| {
            promise.ticket = placed.ticket;
            if self.rules.order == QueueOrder::Fifo {
                promise.queue_position = placed.queue_position;
            }
            if placed.waiting >= self.queue.capacity() + self.queue.seats_free() {
                let free_us = desk.board.place_free_us(offer.now_us as f64, 0);
                promise.backoff_ms = ((free_us - offer.now_us as f64) / 1000.0).ceil().max(1.0) as u64;
            }
            let queued = Queued {
                priority: offer.priority,
                key,
                ticket: placed.ticket,
                work,
                accepted_us: offer.now_us,
                latest_start_us: promise.latest_start_us,
                deadline_us: offer.deadline_us,
            };
            desk.board.add(offer.now_us as f64, queued);
            if self.rules.order == QueueOrder::Fair {
                desk.fair[offer.priority.index()].take(offer.client, cost);
            }
            drop(desk);
            make(placed, promise)
        });
        match placed {
            Ok(placed) => {
                self.forget_promise(offer.id);
                Ok(placed)
            }
            Err(full) => Err(self.refusal(offer.id, offer.now_us, full)),
        }
    }

    /// A waiting task has been ended: its place is free, and those behind it are predicted to start sooner. Does nothing for
    /// one that does not wait.
    pub fn leave(&self, now_us: u64, priority: Priority, place: &Place, promise: &Promise) {
        // The engine thread comes here too. When somebody is at the desk, the next board that is played knows.
        if self.queue.leave(priority, place)
            && let Some(mut desk) = self.try_desk()
        {
            desk.board.withdraw(now_us as f64, priority, promise.key, promise.ticket, &promise.work);
        }
    }

    fn forget_promise(&self, id: u128) {
        if self.promised.load(SeqCst) > 0 {
            let mut book = self.lock_book();
            book.forget(id);
            self.promised.store(book.len(), SeqCst);
        }
    }

    fn promise(&self, desk: &Desk, offer: &Offer<'_>, key: u64, work: Work, tokens: &Distribution) -> Promise {
        let now_us = offer.now_us as f64;
        let start = desk.board.start(now_us, offer.priority, key);
        let service = desk.board.service(now_us, start.mean_us, offer.prompt_len);
        let allowed_us = offer.deadline_us.saturating_sub(offer.now_us) as f64;
        let experience = &desk.experience;
        let outlook = experience.outlook(now_us, start, service, tokens, allowed_us, offer.priority);
        let floor = self.rules.on_time_probability_floor;
        let needed_us = experience.needed_us(offer.priority, service, tokens, floor);
        Promise {
            queue_position: start.position,
            predicted_start_ms: (outlook.start_us / 1000.0).round() as u64,
            // With room in the queue there is no reason to wait before the next task.
            backoff_ms: 0,
            outlook,
            work,
            key,
            ticket: 0,
            latest_start_us: match floor > 0.0 {
                true => offer.deadline_us.saturating_sub(needed_us as u64),
                false => u64::MAX,
            },
        }
    }

    /// Tells a refused client when the next place that nobody else was promised will be free, and keeps it for it.
    fn refusal(&self, id: u128, now_us: u64, full: QueueFull) -> Refusal {
        let mut book = self.lock_book();
        book.kept(now_us);
        let room = (self.queue.capacity() + self.queue.seats_free()).saturating_sub(full.waiting);
        // One whose own promise could not be kept takes the next place of all.
        let broken = book.is_due(id, now_us);
        let ahead = if broken { 0 } else { book.len().saturating_sub(room) };
        let (free_us, interval_us) = {
            let desk = self.desk();
            (desk.board.place_free_us(now_us as f64, ahead), desk.board.interval_us())
        };
        let margin = 1.0 + MARGIN;
        let wait_us = (free_us - now_us as f64).max(0.0) * margin + MARGIN_PLACES * interval_us;
        let soonest_us = now_us + wait_us as u64;
        let spacing_us = (interval_us * margin * book.returning()) as u64;
        let due_us = match broken {
            true => soonest_us,
            false => book.next_turn(soonest_us, spacing_us),
        };
        let retry_after_ms = (due_us - now_us).div_ceil(1000).max(1);
        let margin_us = (due_us - now_us) as f64 * MARGIN + MARGIN_PLACES * interval_us;
        let lead_max_us = KEPT_EARLY_SHARE * self.queue.capacity() as f64 * interval_us;
        let lead_us = (2.0 * margin_us).min(lead_max_us.max(2.0 * interval_us));
        let window = Window { lead_us: lead_us as u64, patience_us: self.rules.retry_patience_us };
        book.promise(id, now_us + retry_after_ms * 1000, window);
        self.promised.store(book.len(), SeqCst);
        Refusal::Full { full, retry_after_ms }
    }

    /// When a place will be free, for one that was turned out of the queue.
    pub fn place_free_ms(&self, now_us: u64) -> u64 {
        let free_us = self.desk().board.place_free_us(now_us as f64, self.promised.load(SeqCst));
        ((free_us - now_us as f64) / 1000.0).ceil().max(1.0) as u64
    }
}

impl Desk {
    fn tokens(&self, offer: &Offer<'_>) -> Distribution {
        if offer.never_ends {
            return Distribution::certain(offer.tokens_max);
        }
        let session = offer.session.lock().expect("nothing panics under this lock");
        self.experience.lengths.distribution(&session, offer.tokens_said, 0, offer.tokens_max)
    }

    /// Takes a board that the engine thread has played, with the arrivals that it did not know of yet, for the old one.
    pub fn show(&mut self, now_us: f64, played: &mut Board) {
        played.adopt(now_us, &self.board);
        for (share, priority) in self.fair.iter_mut().zip(Priority::ALL) {
            share.reached(played.first_key(priority));
        }
        std::mem::swap(&mut self.board, played);
    }
}
