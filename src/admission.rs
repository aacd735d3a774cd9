//! The way from the reactors to the engine: a bounded queue with two policies and exact counts.
//!
//! Reactors call `enqueue`; the engine thread owns `Waiting`, the other end. One lock-free ring carries
//! the tasks over; how many wait is one packed atomic that is changed together with the decision, so two
//! reactors can never both take the last place. The ring is drained by the engine before every step, so
//! it is a crossing point and not where tasks wait.
//!
//! ```text
//! counts (u64):  interactive waiting: 20 bits | batch waiting: 20 bits | owed, by class: 2 bits | ticket: 22 bits
//! ```
//!
//! Under `drop-lru` the decision to evict is part of the same compare-and-swap: the newcomer takes over
//! the count of one waiting task of equal or lower class, and carries that debt through the ring; the
//! engine settles it by evicting the task of that class that has waited longest.
//!
//! A waiting task that somebody ends gives its place back at once, whatever the engine does: its [`Place`] settles whose it
//! is, and the count goes down with the next compare-and-swap. Only while a newcomer that evicts one of its class is on its
//! way (the *owed* bit) the place stays: then it is that newcomer's, and nobody is evicted for it.
//!
//! Within a class tasks go in order of arrival, or by a key that the newcomer brings: smaller first, equal ones in order of
//! arrival. Places that were promised to clients who were refused before are in `appointments`.

pub mod appointments;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering::SeqCst};

use crossbeam_queue::ArrayQueue;

use crate::config::AdmissionPolicy;
use crate::domain::task::Priority;
use crate::metrics::Metrics;

const COUNT_BITS: u32 = 20;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;
const OWED_SHIFT: u32 = 2 * COUNT_BITS;
const TICKET_SHIFT: u32 = OWED_SHIFT + 2;
const TICKET_MASK: u32 = (1 << (64 - TICKET_SHIFT)) - 1;

/// Most tasks that a queue can be made for.
pub const CAPACITY_MAX: usize = 500_000;

const _: () = assert!(CAPACITY_MAX < COUNT_MASK as usize / 2, "newcomers on their way are counted too");
const _: () = assert!(4 * CAPACITY_MAX < TICKET_MASK as usize, "who is later must be clear of all in the ring");

/// Waiting tasks, and the number of the next arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counts {
    waiting: [u32; 2],
    /// A newcomer that evicts a task of this class may be on its way.
    owed: [bool; 2],
    ticket: u32,
}

impl Counts {
    fn pack(self) -> u64 {
        let waiting = u64::from(self.waiting[0]) | u64::from(self.waiting[1]) << COUNT_BITS;
        let owed = u64::from(self.owed[0]) | u64::from(self.owed[1]) << 1;
        waiting | owed << OWED_SHIFT | u64::from(self.ticket) << TICKET_SHIFT
    }

    fn unpack(value: u64) -> Counts {
        Counts {
            waiting: [(value & COUNT_MASK) as u32, (value >> COUNT_BITS & COUNT_MASK) as u32],
            owed: [value >> OWED_SHIFT & 1 == 1, value >> (OWED_SHIFT + 1) & 1 == 1],
            ticket: (value >> TICKET_SHIFT) as u32,
        }
    }

    fn total(self) -> usize {
        (self.waiting[0] + self.waiting[1]) as usize
    }

    /// Tasks that will be seated before a newcomer of this class.
    fn ahead(self, priority: Priority) -> u32 {
        match priority {
            Priority::Interactive => self.waiting[0],
            Priority::Batch => self.waiting[0] + self.waiting[1],
        }
    }
}

/// Whose a waiting task's place in the counts is. Part of the task: the engine and whoever ends the task both have it.
#[derive(Debug, Default)]
pub struct Place(AtomicU8);

impl Place {
    /// The task's own, until the engine seats or evicts it or somebody ends it.
    const HELD: u8 = 0;
    /// The engine has dealt with it.
    const TAKEN: u8 = 1;
    /// Somebody has ended the task and is about to say which of the two below it is.
    const LEAVING: u8 = 2;
    /// Given back.
    const FREE: u8 = 3;
    /// Not given back, for it may be owed to a newcomer: the engine sees to it.
    const KEPT: u8 = 4;

    fn change(&self, from: u8, to: u8) -> bool {
        self.0.compare_exchange(from, to, SeqCst, SeqCst).is_ok()
    }

    fn is(&self, state: u8) -> bool {
        self.0.load(SeqCst) == state
    }
}

/// What can wait.
pub trait Waits {
    fn place(&self) -> &Place;
}

/// What crosses the ring.
struct Arrival<T> {
    displaces: Option<Priority>,
    waiter: Waiter<T>,
}

/// A task that waits.
pub struct Waiter<T> {
    pub priority: Priority,
    /// Smaller goes first within the class.
    pub key: u64,
    /// Order of arrival among those that are on their way; wraps, see [`is_later`].
    pub ticket: u32,
    /// Order of arrival among those that wait.
    arrival: u64,
    pub entry: T,
}

/// How a newcomer comes.
#[derive(Clone, Copy, Debug)]
pub struct Newcomer {
    pub priority: Priority,
    /// Smaller goes first within the class; the same for all is in order of arrival.
    pub key: u64,
    /// Places that are kept for others: they do not count as free, except that a free slot is never kept idle for them.
    pub kept: usize,
}

/// Where a newcomer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Tasks that will be seated first; 0 is next.
    pub queue_position: u32,
    /// A waiting task of this class was or will be evicted for the newcomer.
    pub displaced: Option<Priority>,
    /// Tasks waiting, the newcomer included.
    pub waiting: usize,
    pub ticket: u32,
}

/// No place: the queue is full, and the policy found nothing to evict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueFull {
    pub policy: AdmissionPolicy,
    pub waiting: usize,
}

/// The reactors' end of the queue.
pub struct QueueWithMetrics<T> {
    ring: ArrayQueue<Arrival<T>>,
    counts: AtomicU64,
    /// Places taken in the ring; taken before the counts change, so a push cannot fail.
    crossing: AtomicUsize,
    /// Free slots of the engine: a task that will be seated at once needs no place in the queue.
    seats_free: AtomicUsize,
    capacity: usize,
    policy: AdmissionPolicy,
    metrics: Arc<Metrics>,
}

impl<T> QueueWithMetrics<T> {
    /// A queue in which `capacity` tasks may wait, and the engine's end of it.
    pub fn new(capacity: usize, policy: AdmissionPolicy, metrics: Arc<Metrics>) -> (Arc<Self>, Waiting<T>) {
        assert!(capacity <= CAPACITY_MAX, "the counts have {COUNT_BITS} bits each");
        // Displacing newcomers can outnumber the places while the engine is in a long step.
        let ring_len = (2 * capacity).max(1024);
        let queue = Arc::new(QueueWithMetrics {
            ring: ArrayQueue::new(ring_len),
            counts: AtomicU64::new(0),
            crossing: AtomicUsize::new(0),
            seats_free: AtomicUsize::new(0),
            capacity,
            policy,
            metrics,
        });
        let waiting = Waiting {
            queue: queue.clone(),
            lists: [VecDeque::new(), VecDeque::new()],
            early: Vec::new(),
            arrived: 0,
            arrivals: 0,
            owed: [0; 2],
        };
        (queue, waiting)
    }

    /// Takes a place and sends over what `make` builds of it, or says that there is none.
    ///
    /// # Errors
    ///
    /// Under `reject` when all places are taken; under `drop-lru` when besides nothing of equal or lower
    /// class waits.
    pub fn enqueue(&self, priority: Priority, make: impl FnOnce(Placed) -> T) -> Result<Placed, QueueFull> {
        self.enqueue_as(Newcomer { priority, key: 0, kept: 0 }, make)
    }

    /// `enqueue` with a place in an order of its own, or beside places that are kept.
    ///
    /// # Errors
    ///
    /// As `enqueue`.
    pub fn enqueue_as(&self, newcomer: Newcomer, make: impl FnOnce(Placed) -> T) -> Result<Placed, QueueFull> {
        let Newcomer { priority, key, kept } = newcomer;
        if self.crossing.fetch_add(1, SeqCst) >= self.ring.capacity() {
            self.crossing.fetch_sub(1, SeqCst);
            return Err(self.refuse(self.depth()));
        }
        let mut current = self.counts.load(SeqCst);
        let placed = loop {
            let mut counts = Counts::unpack(current);
            let displaced = match self.is_full(counts, kept) {
                false => None,
                true => match self.victim(counts, priority) {
                    Some(class) => Some(class),
                    None => {
                        self.crossing.fetch_sub(1, SeqCst);
                        return Err(self.refuse(counts.total()));
                    }
                },
            };
            if let Some(class) = displaced {
                counts.waiting[class.index()] -= 1;
                counts.owed[class.index()] = true;
            }
            let queue_position = counts.ahead(priority);
            let ticket = counts.ticket;
            counts.waiting[priority.index()] += 1;
            counts.ticket = (ticket + 1) & TICKET_MASK;
            match self.counts.compare_exchange(current, counts.pack(), SeqCst, SeqCst) {
                Ok(_) => break Placed { queue_position, displaced, waiting: counts.total(), ticket },
                Err(now) => current = now,
            }
        };
        if placed.displaced.is_some() {
            self.metrics.backpressure_drop_lru.add(1);
            self.metrics.rejected("QUEUE_FULL_DROP_LRU");
        }
        self.metrics.tasks_enqueued[priority.index()].add(1);
        self.publish_depth();
        let waiter = Waiter { priority, key, ticket: placed.ticket, arrival: 0, entry: make(placed) };
        let arrival = Arrival { displaces: placed.displaced, waiter };
        assert!(self.ring.push(arrival).is_ok(), "a place in the ring was taken before");
        Ok(placed)
    }

    /// True when a newcomer of this class would be refused now, with so many places kept for others.
    pub fn would_refuse(&self, priority: Priority, kept: usize) -> bool {
        let counts = Counts::unpack(self.counts.load(SeqCst));
        self.is_full(counts, kept) && self.victim(counts, priority).is_none()
    }

    /// Counts a refusal that was decided with `would_refuse`.
    pub fn refuse(&self, waiting: usize) -> QueueFull {
        match self.policy {
            AdmissionPolicy::Reject => {
                self.metrics.backpressure_reject.add(1);
                self.metrics.rejected("ADMISSION_REJECT");
            }
            AdmissionPolicy::DropLru => {
                self.metrics.backpressure_drop_lru.add(1);
                self.metrics.rejected("QUEUE_FULL_DROP_LRU");
            }
        }
        QueueFull { policy: self.policy, waiting }
    }

    /// Tasks that wait.
    pub fn depth(&self) -> usize {
        Counts::unpack(self.counts.load(SeqCst)).total()
    }

    /// Somebody has come of whom the engine does not know yet.
    pub fn has_arrivals(&self) -> bool {
        !self.ring.is_empty()
    }

    /// Tasks that a newcomer of this class would have ahead of it.
    pub fn ahead(&self, priority: Priority) -> u32 {
        Counts::unpack(self.counts.load(SeqCst)).ahead(priority)
    }

    pub fn seats_free(&self) -> usize {
        self.seats_free.load(SeqCst)
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    fn is_full(&self, counts: Counts, kept: usize) -> bool {
        let seats = self.seats_free.load(SeqCst);
        counts.total() >= seats && counts.total() + kept >= self.capacity + seats
    }

    /// The class of which a task would be evicted: the lowest that waits, never above the newcomer's.
    fn victim(&self, counts: Counts, newcomer: Priority) -> Option<Priority> {
        if self.policy == AdmissionPolicy::Reject {
            return None;
        }
        let classes: &[Priority] = match newcomer {
            Priority::Interactive => &[Priority::Batch, Priority::Interactive],
            Priority::Batch => &[Priority::Batch],
        };
        classes.iter().copied().find(|class| counts.waiting[class.index()] > 0)
    }

    /// Gives back the place of a waiting task that has been ended. Once this has returned the place is the next newcomer's,
    /// unless one that is on its way had been promised it before. Does nothing for a task whose place is being dealt with
    /// already.
    /// True when it waited.
    pub fn leave(&self, priority: Priority, place: &Place) -> bool {
        let waited = place.change(Place::HELD, Place::LEAVING);
        if waited {
            let state = if self.release(priority) { Place::FREE } else { Place::KEPT };
            place.0.store(state, SeqCst);
        }
        waited
    }

    /// Takes one waiting task of this class off the counts, unless one of them may be owed to a newcomer.
    fn release(&self, priority: Priority) -> bool {
        let change = |value| {
            let mut counts = Counts::unpack(value);
            if counts.owed[priority.index()] {
                return None;
            }
            let waiting = &mut counts.waiting[priority.index()];
            *waiting = waiting.checked_sub(1).expect("who gives a place back had one");
            Some(counts.pack())
        };
        let released = self.counts.fetch_update(SeqCst, SeqCst, change).is_ok();
        if released {
            self.publish_depth();
        }
        released
    }

    /// Nothing is owed any more, as everything before the ticket `arrived` has been settled; of a class for which `stays`
    /// says so it still is.
    fn settled(&self, arrived: u32, stays: [bool; 2]) {
        let change = |value| {
            let mut counts = Counts::unpack(value);
            let before = counts.owed;
            counts.owed = [before[0] && stays[0], before[1] && stays[1]];
            (counts.ticket == arrived && counts.owed != before).then(|| counts.pack())
        };
        let _ = self.counts.fetch_update(SeqCst, SeqCst, change);
    }

    /// Sets the gauges to what waits now. Two threads may do so in the wrong order, so a scrape does it once more.
    pub fn publish_depth(&self) {
        let counts = Counts::unpack(self.counts.load(SeqCst));
        for p in Priority::ALL {
            self.metrics.queue_depth[p.index()].set(u64::from(counts.waiting[p.index()]));
        }
    }
}

/// The engine's end: tasks in the order in which they will be seated.
pub struct Waiting<T> {
    queue: Arc<QueueWithMetrics<T>>,
    lists: [VecDeque<Waiter<T>>; 2],
    /// Arrivals that overtook one with an earlier ticket in the ring; at most one a reactor.
    early: Vec<Arrival<T>>,
    /// The ticket that is next: all before it have been taken over.
    arrived: u32,
    arrivals: u64,
    /// Debts, by class, for which nobody was left but tasks whose end is being settled: the first of them pays that turns
    /// out to have kept its place.
    owed: [u32; 2],
}

impl<T: Waits> Waiting<T> {
    /// Takes over what has arrived. `evicted` gets each task that a newcomer displaced.
    pub fn drain(&mut self, mut evicted: impl FnMut(Waiter<T>)) {
        while let Some(arrival) = self.queue.ring.pop() {
            self.queue.crossing.fetch_sub(1, SeqCst);
            self.early.push(arrival);
            // Two reactors may push in another order than they took their tickets. The ticket counts: a debt that is
            // paid before an earlier one would take the task which that one is owed.
            while let Some(index) = self.early.iter().position(|a| a.waiter.ticket == self.arrived) {
                let arrival = self.early.swap_remove(index);
                self.arrived = (self.arrived + 1) & TICKET_MASK;
                self.take_over(arrival, &mut evicted);
            }
        }
        self.queue.settled(self.arrived, self.owed.map(|debts| debts > 0));
    }

    fn take_over(&mut self, arrival: Arrival<T>, evicted: &mut impl FnMut(Waiter<T>)) {
        if let Some(class) = arrival.displaces {
            self.settle(class, evicted);
        }
        let waiter = Waiter { arrival: self.arrivals, ..arrival.waiter };
        self.arrivals += 1;
        let list = &mut self.lists[waiter.priority.index()];
        let place = list.iter().rposition(|w| w.key <= waiter.key).map_or(0, |index| index + 1);
        list.insert(place, waiter);
    }

    /// Pays a newcomer's debt with a place of this class: one that its task does not need any more, or that of the task
    /// that has waited longest.
    fn settle(&mut self, class: Priority, evicted: &mut impl FnMut(Waiter<T>)) {
        let list = &mut self.lists[class.index()];
        if let Some(ended) = list.iter().find(|w| w.entry.place().is(Place::KEPT)) {
            // It stays in the list until it is looked at, without a claim.
            ended.entry.place().0.store(Place::FREE, SeqCst);
            return;
        }
        // In order of arrival the longest waiting is the first; with keys it may be anywhere.
        let held = |(_, waiter): &(usize, &Waiter<T>)| waiter.entry.place().is(Place::HELD);
        while let Some((oldest, _)) = list.iter().enumerate().filter(held).min_by_key(|(_, w)| w.arrival) {
            // Somebody may end it just now.
            if list[oldest].entry.place().change(Place::HELD, Place::TAKEN) {
                evicted(list.remove(oldest).expect("it was just found"));
                return;
            }
        }
        self.owed[class.index()] += 1;
    }

    /// The next task of this class.
    pub fn front(&self, priority: Priority) -> Option<&Waiter<T>> {
        self.lists[priority.index()].front()
    }

    /// Takes the next task of this class off the queue. None when it has been ended just now, or is owed to a newcomer that
    /// is on its way: drain and try again.
    pub fn take(&mut self, priority: Priority) -> Option<Waiter<T>> {
        let list = &mut self.lists[priority.index()];
        let place = list.front()?.entry.place();
        if !place.change(Place::HELD, Place::TAKEN) {
            return None;
        }
        if !self.queue.release(priority) {
            place.0.store(Place::HELD, SeqCst);
            return None;
        }
        list.pop_front()
    }

    /// Removes every waiting task for which `leaves` says so, and hands it to `removed`. One whose place is owed to a
    /// newcomer that is on its way, or that is being ended just now, stays until the next time.
    pub fn remove_if(&mut self, mut leaves: impl FnMut(&T) -> bool, mut removed: impl FnMut(Waiter<T>)) {
        for priority in Priority::ALL {
            let owed = &mut self.owed[priority.index()];
            let list = &mut self.lists[priority.index()];
            let mut index = 0;
            while index < list.len() {
                if leaves(&list[index].entry) && give_up(&self.queue, priority, list[index].entry.place(), owed) {
                    removed(list.remove(index).expect("index is in range"));
                } else {
                    index += 1;
                }
            }
        }
    }

    /// Says how many slots are free. The counts of waiting tasks go down first, so that a newcomer in
    /// between finds a place rather than a refusal.
    pub fn publish_seats_free(&self, seats: usize) {
        self.queue.seats_free.store(seats, SeqCst);
    }

    /// In the order in which they will be seated.
    pub fn iter(&self) -> impl Iterator<Item = &Waiter<T>> + Clone {
        self.lists.iter().flatten()
    }

    /// The ticket of the next arrival: those before it have been taken over.
    pub fn arrived(&self) -> u32 {
        self.arrived
    }

    pub fn len(&self) -> usize {
        self.lists.iter().map(VecDeque::len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Sees to it that an ended task's place is given back, if it has not been; false when that cannot be done yet.
fn give_up<T>(queue: &QueueWithMetrics<T>, priority: Priority, place: &Place, owed: &mut u32) -> bool {
    queue.leave(priority, place);
    if place.is(Place::KEPT) {
        if *owed > 0 {
            *owed -= 1;
        } else if !queue.release(priority) {
            return false;
        }
        place.0.store(Place::FREE, SeqCst);
    }
    place.is(Place::FREE)
}

/// Whether a ticket came after another. They wrap: the later one is less than half the circle ahead.
pub fn is_later(a: u32, b: u32) -> bool {
    let ahead = a.wrapping_sub(b) & TICKET_MASK;
    ahead != 0 && ahead < TICKET_MASK / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Labels;
    use Priority::{Batch, Interactive};

    fn metrics() -> Arc<Metrics> {
        Arc::new(Metrics::new(Labels { engine: "cpu", engine_version: "1", pool_id: "p".into(), replica_id: "0" }))
    }

    /// A task of which only the number matters. Clones are the same task.
    #[derive(Clone)]
    struct Task(u32, Arc<Place>);

    impl Waits for Task {
        fn place(&self) -> &Place {
            &self.1
        }
    }

    fn task(n: u32) -> Task {
        Task(n, Arc::default())
    }

    /// A queue of numbers.
    struct Numbers(Arc<QueueWithMetrics<Task>>);

    impl Numbers {
        fn enqueue(&self, priority: Priority, make: impl FnOnce(Placed) -> u32) -> Result<Placed, QueueFull> {
            self.0.enqueue(priority, |placed| task(make(placed)))
        }

        fn enqueue_as(&self, newcomer: Newcomer, make: impl FnOnce(Placed) -> u32) -> Result<Placed, QueueFull> {
            self.0.enqueue_as(newcomer, |placed| task(make(placed)))
        }

        /// Enqueues a task that the caller may end.
        fn send(&self, priority: Priority, n: u32) -> Task {
            let mut sent = None;
            self.0.enqueue(priority, |_| sent.insert(task(n)).clone()).expect("there is room");
            sent.expect("it was made")
        }
    }

    impl std::ops::Deref for Numbers {
        type Target = QueueWithMetrics<Task>;
        fn deref(&self) -> &Self::Target {
            &self.0
        }
    }

    fn queue(capacity: usize, policy: AdmissionPolicy) -> (Numbers, Waiting<Task>) {
        let (queue, waiting) = QueueWithMetrics::new(capacity, policy, metrics());
        (Numbers(queue), waiting)
    }

    fn order(waiting: &mut Waiting<Task>) -> Vec<u32> {
        Priority::ALL
            .iter()
            .flat_map(|&p| std::iter::from_fn(|| waiting.take(p).map(|w| w.entry.0)).collect::<Vec<_>>())
            .collect()
    }

    #[test]
    fn a_newcomer_is_told_how_many_are_ahead() {
        let (queue, mut waiting) = queue(8, AdmissionPolicy::Reject);
        let position = |p, n| queue.enqueue(p, |_| n).unwrap().queue_position;
        assert_eq!(
            [position(Batch, 0), position(Interactive, 1), position(Interactive, 2), position(Batch, 3)],
            [0, 0, 1, 3]
        );
        waiting.drain(|_| panic!("nobody is evicted"));
        assert_eq!(order(&mut waiting), [1, 2, 0, 3]);
        assert_eq!(queue.depth(), 0);
    }

    #[test]
    fn a_full_queue_refuses_under_reject() {
        let (queue, mut waiting) = queue(1, AdmissionPolicy::Reject);
        assert!(queue.enqueue(Interactive, |_| 1).is_ok());
        assert!(queue.would_refuse(Interactive, 0));
        assert_eq!(queue.enqueue(Interactive, |_| 2), Err(QueueFull { policy: AdmissionPolicy::Reject, waiting: 1 }));
        assert_eq!(queue.metrics.backpressure_reject.value(), 1);
        waiting.drain(|_| panic!("nobody is evicted"));
        assert_eq!(order(&mut waiting), [1]);
        assert!(queue.enqueue(Interactive, |_| 3).is_ok());
    }

    #[test]
    fn a_free_slot_is_a_place() {
        let (queue, mut waiting) = queue(0, AdmissionPolicy::Reject);
        assert!(queue.enqueue(Interactive, |_| 1).is_err());
        waiting.publish_seats_free(1);
        assert!(queue.enqueue(Interactive, |_| 1).is_ok());
        assert!(queue.enqueue(Interactive, |_| 2).is_err());
        waiting.drain(|_| panic!("nobody is evicted"));
        assert_eq!(waiting.take(Interactive).map(|w| w.entry.0), Some(1));
        waiting.publish_seats_free(0);
        assert!(queue.enqueue(Interactive, |_| 3).is_err());
    }

    #[test]
    fn drop_lru_evicts_the_oldest_of_the_lowest_class() {
        let (queue, mut waiting) = queue(3, AdmissionPolicy::DropLru);
        for (priority, n) in [(Interactive, 0), (Batch, 1), (Batch, 2)] {
            queue.enqueue(priority, |_| n).unwrap();
        }
        let mut evicted = Vec::new();
        let placed = queue.enqueue(Interactive, |_| 3).unwrap();
        assert_eq!((placed.displaced, placed.queue_position, placed.waiting), (Some(Batch), 1, 3));
        queue.enqueue(Batch, |_| 4).unwrap();
        queue.enqueue(Interactive, |_| 5).unwrap();
        queue.enqueue(Interactive, |_| 6).unwrap();
        assert!(queue.enqueue(Batch, |_| 7).is_err(), "only interactive tasks wait, and batch may not evict them");
        waiting.drain(|w| evicted.push(w.entry.0));
        assert_eq!(evicted, [1, 2, 4, 0]);
        assert_eq!(order(&mut waiting), [3, 5, 6]);
        assert_eq!(queue.metrics.backpressure_drop_lru.value(), 5);
    }

    #[test]
    fn a_task_owed_to_a_newcomer_is_not_seated() {
        let (queue, mut waiting) = queue(1, AdmissionPolicy::DropLru);
        queue.enqueue(Batch, |_| 1).unwrap();
        waiting.drain(|_| panic!("nobody is evicted"));
        queue.enqueue(Interactive, |_| 2).unwrap();
        assert!(waiting.take(Batch).is_none(), "its place belongs to the newcomer");
        let mut evicted = Vec::new();
        waiting.drain(|w| evicted.push(w.entry.0));
        assert_eq!((evicted, order(&mut waiting)), (vec![1], vec![2]));
    }

    #[test]
    fn removed_tasks_give_their_place_back() {
        let (queue, mut waiting) = queue(2, AdmissionPolicy::Reject);
        queue.enqueue(Interactive, |_| 1).unwrap();
        queue.enqueue(Batch, |_| 2).unwrap();
        waiting.drain(|_| panic!("nobody is evicted"));
        let mut removed = Vec::new();
        waiting.remove_if(|t| t.0 == 2, |w| removed.push(w.entry.0));
        assert_eq!((removed, queue.depth()), (vec![2], 1));
        assert!(queue.enqueue(Interactive, |_| 3).is_ok());
    }

    fn arrival(ticket: u32, displaces: Option<Priority>) -> Arrival<Task> {
        Arrival { displaces, waiter: Waiter { priority: Batch, key: 0, ticket, arrival: 0, entry: task(ticket) } }
    }

    #[test]
    fn arrivals_that_overtook_each_other_are_put_in_order_even_when_tickets_wrap() {
        let (queue, mut waiting) = queue(4, AdmissionPolicy::DropLru);
        waiting.arrived = TICKET_MASK;
        queue.crossing.store(4, SeqCst);
        let mut evicted = Vec::new();
        // Ticket 1 displaces a task, and so does ticket 2, which comes first: each evicts the one that it is owed.
        for late in [arrival(0, None), arrival(2, Some(Batch)), arrival(1, Some(Batch))] {
            assert!(queue.ring.push(late).is_ok());
            waiting.drain(|w| evicted.push(w.entry.0));
            assert!(waiting.is_empty() && evicted.is_empty(), "nothing is taken over before its turn");
        }
        assert!(queue.ring.push(arrival(TICKET_MASK, None)).is_ok());
        waiting.drain(|w| evicted.push(w.entry.0));
        assert_eq!(evicted, [TICKET_MASK, 0]);
        assert_eq!(waiting.iter().map(|w| w.entry.0).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn tasks_with_keys_go_by_them_and_the_oldest_is_still_the_one_that_is_dropped() {
        let (queue, mut waiting) = queue(4, AdmissionPolicy::DropLru);
        let send = |key, n| queue.enqueue_as(Newcomer { priority: Interactive, key, kept: 0 }, |_| n).unwrap();
        for (key, n) in [(30, 1), (10, 2), (20, 3), (10, 4), (5, 5)] {
            send(key, n);
        }
        let mut evicted = Vec::new();
        waiting.drain(|w| evicted.push(w.entry.0));
        assert_eq!((evicted, order(&mut waiting)), (vec![1], vec![5, 2, 4, 3]));
    }

    #[test]
    fn kept_places_are_not_given_away_but_a_free_slot_is() {
        let (queue, waiting) = queue(2, AdmissionPolicy::Reject);
        let send = |kept| queue.enqueue_as(Newcomer { priority: Interactive, key: 0, kept }, |_| 0).is_ok();
        assert!(!send(2) && queue.would_refuse(Interactive, 2), "both places are kept");
        assert!(send(1) && !send(1) && send(0));
        waiting.publish_seats_free(3);
        assert!(send(5), "no slot stays empty for somebody who may not come");
        assert!(!send(5));
    }

    #[test]
    fn the_place_of_an_ended_task_is_free_before_the_engine_looks_up() {
        for policy in [AdmissionPolicy::Reject, AdmissionPolicy::DropLru] {
            let (queue, mut waiting) = queue(2, policy);
            let (first, second) = (queue.send(Batch, 1), queue.send(Interactive, 2));
            queue.leave(Batch, &first.1);
            queue.leave(Batch, &first.1);
            assert_eq!(queue.depth(), 1, "once");
            let placed = queue.enqueue(Interactive, |_| 3).expect("its place is free");
            assert_eq!((placed.displaced, placed.queue_position, placed.waiting), (None, 1, 2));
            waiting.drain(|_| panic!("nobody is evicted"));
            queue.leave(Interactive, &second.1);
            assert!(queue.enqueue(Interactive, |_| 4).is_ok());
            waiting.drain(|_| panic!("nobody is evicted"));
            let mut gone = Vec::new();
            waiting.remove_if(|t| [1, 2].contains(&t.0), |w| gone.push(w.entry.0));
            gone.sort_unstable();
            assert_eq!((gone, order(&mut waiting), queue.depth()), (vec![1, 2], vec![3, 4], 0));
        }
    }

    #[test]
    fn an_ended_task_pays_for_a_newcomer_that_would_have_evicted_another() {
        let (queue, mut waiting) = queue(2, AdmissionPolicy::DropLru);
        let (_oldest, ended) = (queue.send(Batch, 1), queue.send(Batch, 2));
        assert_eq!(queue.enqueue(Interactive, |_| 3).unwrap().displaced, Some(Batch));
        queue.leave(Batch, &ended.1);
        assert_eq!(queue.depth(), 2, "the newcomer has its place");
        waiting.drain(|_| panic!("nobody need be evicted"));
        waiting.remove_if(|t| t.0 == 2, |_| ());
        assert_eq!((queue.depth(), order(&mut waiting), queue.depth()), (2, vec![3, 1], 0));
    }

    #[test]
    fn a_debt_that_nobody_can_pay_yet_is_paid_by_the_task_that_is_leaving() {
        let (queue, mut waiting) = queue(1, AdmissionPolicy::DropLru);
        let leaving = queue.send(Batch, 1);
        assert!(leaving.1.change(Place::HELD, Place::LEAVING), "a thread stops in the middle of leave");
        assert_eq!(queue.enqueue(Interactive, |_| 2).unwrap().displaced, Some(Batch));
        waiting.drain(|_| panic!("nobody is left to be evicted"));
        assert_eq!(waiting.owed, [0, 1]);
        assert!(!queue.release(Batch), "the thread goes on, and finds that it may not");
        leaving.1.0.store(Place::KEPT, SeqCst);
        waiting.remove_if(|t| t.0 == 1, |_| ());
        waiting.drain(|_| ());
        assert_eq!((waiting.owed, queue.depth(), order(&mut waiting), queue.depth()), ([0, 0], 1, vec![2], 0));
        queue.leave(Batch, &queue.send(Batch, 3).1);
        assert_eq!(queue.depth(), 0, "nothing is owed any more");
    }

    #[test]
    fn an_ended_task_is_not_seated_and_a_seated_one_gives_no_place_back() {
        let (queue, mut waiting) = queue(2, AdmissionPolicy::Reject);
        let (ended, seated) = (queue.send(Interactive, 1), queue.send(Batch, 2));
        waiting.drain(|_| ());
        queue.leave(Interactive, &ended.1);
        assert!(waiting.take(Interactive).is_none());
        assert_eq!(waiting.take(Batch).map(|w| w.entry.0), Some(2));
        queue.leave(Batch, &seated.1);
        assert_eq!(queue.depth(), 0);
        waiting.remove_if(|_| true, |_| ());
        assert_eq!((queue.depth(), waiting.len()), (0, 0));
    }

    /// Many reactors that send and end tasks, one engine: each accepted task is seated, evicted or ended, once, never do more
    /// hold a place than there are, and the counts end at 0.
    #[test]
    fn nothing_is_lost_or_doubled_under_contention() {
        const CAPACITY: usize = 5;
        const EACH: u32 = 10_000;
        for policy in [AdmissionPolicy::Reject, AdmissionPolicy::DropLru] {
            let (queue, mut waiting) = queue(CAPACITY, policy);
            let queue = Arc::new(queue);
            let ended: Arc<Vec<AtomicU8>> = Arc::new((0..4 * EACH).map(|_| AtomicU8::new(0)).collect());
            let threads: Vec<_> = (0..4u32)
                .map(|thread| {
                    let (queue, ended) = (queue.clone(), ended.clone());
                    std::thread::spawn(move || {
                        let mut accepted = 0;
                        let mut mine = VecDeque::new();
                        for n in 0..EACH {
                            let class = if n.is_multiple_of(3) { Batch } else { Interactive };
                            let mut made = None;
                            let number = thread * EACH + n;
                            let Ok(placed) = queue.0.enqueue(class, |_| made.insert(task(number)).clone()) else {
                                continue;
                            };
                            assert!(placed.waiting <= CAPACITY, "more hold a place than there are");
                            accepted += 1;
                            mine.push_back((class, made.expect("it was made")));
                            // One of the last few changes its mind, at a time of its own.
                            if n % 5 < 3
                                && let Some((class, task)) = mine.remove((n as usize * 7) % mine.len())
                            {
                                ended[task.0 as usize].store(1, SeqCst);
                                queue.leave(class, &task.1);
                            }
                            if mine.len() > 8 {
                                mine.pop_front();
                            }
                        }
                        accepted
                    })
                })
                .collect();
            let mut seen = vec![0u8; 4 * EACH as usize];
            let mut count = 0;
            let mut see = |n: u32| {
                seen[n as usize] += 1;
                count += 1;
            };
            loop {
                let done = threads.iter().all(|t| t.is_finished());
                waiting.drain(|w| see(w.entry.0));
                waiting.remove_if(|t| ended[t.0 as usize].load(SeqCst) == 1, |w| see(w.entry.0));
                Priority::ALL.iter().filter_map(|&p| waiting.take(p)).for_each(|w| see(w.entry.0));
                if done && waiting.is_empty() && queue.ring.is_empty() {
                    break;
                }
            }
            let accepted: usize = threads.into_iter().map(|t| t.join().unwrap()).sum();
            assert_eq!((count, queue.depth(), waiting.owed), (accepted, 0, [0, 0]), "{policy:?}");
            assert!(seen.iter().all(|&n| n <= 1), "{policy:?}: a task was handed out twice");
        }
    }
}
