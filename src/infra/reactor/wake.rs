//! The reactor's side of waking: who waits on which slot, and until when.
//!
//! Deadlines are kept here and not as timers. Setting one is a store, and most are never reached: a clock that
//! ticks `TICK` walks over all of them and wakes whoever has waited for too long. With nobody connected it rests.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::inbox::WakeAddress;
use crate::infra::prefetch::Stretch;

/// The grain of deadlines: they are never early, and late by two ticks at most.
pub(super) const TICK: Duration = Duration::from_millis(20);

const NEVER: u64 = u64::MAX;

/// While a connection runs, what the one so many places after it needs is asked for.
const AHEAD: usize = 3;

/// Who waits on which slot.
pub(super) struct WakeTable {
    reactor: u16,
    slots: Box<[Slot]>,
    /// Per slot, the tick at which its owner has waited for long enough.
    deadlines: Box<[Cell<u64>]>,
    /// Ticks since the reactor began. Time in which the reactor itself was held up is not counted against peers.
    now: Cell<u64>,
    /// The clock's task, while there is nothing to tick for.
    resting: RefCell<Option<Waker>>,
    vacant: RefCell<Vec<u32>>,
    /// Slots posted in the present turn, in the order in which their owners run: once for the post, and in the same order
    /// again when what they then wrote is done.
    turn: RefCell<Vec<u32>>,
    /// Per slot that was ever taken, what is asked for before its owner runs.
    touched: RefCell<Vec<Touched>>,
}

#[derive(Clone, Copy, Default)]
struct Touched {
    /// What its owner touches whenever it runs.
    state: Stretch,
    /// And while it writes a stream.
    stream: Stretch,
    /// Place in the turn that posted it last.
    place: u32,
}

#[derive(Default)]
struct Slot {
    posted: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Slot {
    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }
}

impl WakeTable {
    /// The last slot is the reactor's own and is not given to connections.
    pub(super) fn new(reactor: u16, slot_count: usize) -> (Rc<WakeTable>, Wake) {
        let table = Rc::new(WakeTable {
            reactor,
            slots: (0..slot_count).map(|_| Slot::default()).collect(),
            deadlines: vec![Cell::new(NEVER); slot_count].into(),
            now: Cell::new(0),
            resting: RefCell::default(),
            vacant: RefCell::new((0..slot_count as u32 - 1).rev().collect()),
            turn: RefCell::default(),
            touched: RefCell::default(),
        });
        let own = Wake { table: table.clone(), slot: slot_count as u32 - 1 };
        (table, own)
    }

    /// A slot for a connection; none when all are taken.
    pub(super) fn take(self: &Rc<Self>) -> Option<Wake> {
        let slot = self.vacant.borrow_mut().pop()?;
        self.rouse();
        // A post meant for the slot's last owner is a spurious wake-up at most.
        self.slots[slot as usize].posted.set(false);
        let mut touched = self.touched.borrow_mut();
        if touched.len() <= slot as usize {
            touched.resize(slot as usize + 1, Touched::default());
        }
        Some(Wake { table: self.clone(), slot })
    }

    /// Slots that connections hold.
    pub(super) fn taken_count(&self) -> usize {
        self.slots.len() - 1 - self.vacant.borrow().len()
    }

    /// Ready when there is something to tick for: somebody is connected, or the reactor itself has a deadline.
    pub(super) fn poll_ticks_wanted(&self, context: &mut Context<'_>) -> Poll<()> {
        if self.taken_count() > 0 || self.deadlines[self.slots.len() - 1].get() != NEVER {
            return Poll::Ready(());
        }
        *self.resting.borrow_mut() = Some(context.waker().clone());
        Poll::Pending
    }

    fn rouse(&self) {
        if let Some(clock) = self.resting.borrow_mut().take() {
            clock.wake();
        }
    }

    pub(super) fn begin_turn(&self) {
        self.turn.borrow_mut().clear();
    }

    pub(super) fn post(&self, slot: u32) {
        if let Some(touched) = self.touched.borrow_mut().get_mut(slot as usize) {
            let mut turn = self.turn.borrow_mut();
            touched.place = turn.len() as u32;
            turn.push(slot);
        }
        let slot = &self.slots[slot as usize];
        slot.posted.set(true);
        slot.wake();
    }

    pub(super) fn wake_all(&self) {
        self.slots.iter().for_each(Slot::wake);
    }

    /// One tick of the clock: wakes whoever has waited for long enough.
    pub(super) fn tick(&self) {
        let now = self.now.get() + 1;
        self.now.set(now);
        // The lowest slots are given first: only those that were ever taken, and the reactor's own, can have a deadline. To look
        // through all that are allowed was most of what an idle server did.
        let ever_taken = self.touched.borrow().len();
        for slot in (0..ever_taken).chain([self.slots.len() - 1]) {
            if self.deadlines[slot].get() <= now {
                self.slots[slot].wake();
            }
        }
    }
}

/// A connection's slot. Given back when it is dropped.
pub struct Wake {
    table: Rc<WakeTable>,
    slot: u32,
}

impl Wake {
    pub fn address(&self) -> WakeAddress {
        WakeAddress { reactor: self.table.reactor, slot: self.slot }
    }

    /// Returns when the slot was posted since the last wait. May be spurious.
    pub async fn wait(&self) {
        poll_fn(|context| self.poll_wait(context)).await;
    }

    /// Waits until `holds`, which is looked at after every post; false when `patience` is over first.
    pub async fn wait_until(&self, patience: Duration, holds: impl Fn() -> bool) -> bool {
        let waiting = async {
            while !holds() {
                self.wait().await;
            }
        };
        self.within(patience, waiting).await.is_some()
    }

    /// Runs a future for `patience` at most. Deadlines do not nest: a slot has one.
    pub(super) async fn within<T>(&self, patience: Duration, future: impl Future<Output = T>) -> Option<T> {
        let mut future = pin!(future);
        self.allow(patience);
        let result = poll_fn(|context| {
            if let Poll::Ready(value) = future.as_mut().poll(context) {
                return Poll::Ready(Some(value));
            }
            self.register(context);
            if self.is_late() { Poll::Ready(None) } else { Poll::Pending }
        })
        .await;
        self.relax();
        result
    }

    /// Ready when the slot was posted since it was last ready.
    pub(super) fn poll_wait(&self, context: &mut Context<'_>) -> Poll<()> {
        self.register(context);
        if self.own().posted.replace(false) { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Has the task woken by posts and by the deadline.
    pub(super) fn register(&self, context: &mut Context<'_>) {
        let mut waker = self.own().waker.borrow_mut();
        if !waker.as_ref().is_some_and(|w| w.will_wake(context.waker())) {
            *waker = Some(context.waker().clone());
        }
    }

    /// Sets the deadline.
    pub(super) fn allow(&self, patience: Duration) {
        let ticks = u64::try_from(patience.as_millis().div_ceil(TICK.as_millis())).unwrap_or(NEVER);
        // The present tick is partly over: it does not count.
        self.deadline().set(self.table.now.get().saturating_add(ticks).saturating_add(1));
        self.table.rouse();
    }

    /// Forgets the deadline.
    pub(super) fn relax(&self) {
        self.deadline().set(NEVER);
    }

    pub(super) fn is_late(&self) -> bool {
        self.deadline().get() <= self.table.now.get()
    }

    /// Says what of other memory its owner touches while it writes a stream.
    pub(super) fn touches_stream(&self, stream: Option<Stretch>) {
        self.set_touched(|touched| touched.stream = stream.unwrap_or_default());
    }

    /// The reactor's own slot is no connection's, and nothing is kept for it.
    fn set_touched(&self, set: impl FnOnce(&mut Touched)) {
        self.table.touched.borrow_mut().get_mut(self.slot as usize).map(set);
    }

    pub(super) fn ahead(&self) -> Ahead {
        Ahead { table: self.table.clone(), slot: self.slot }
    }

    fn own(&self) -> &Slot {
        &self.table.slots[self.slot as usize]
    }

    fn deadline(&self) -> &Cell<u64> {
        &self.table.deadlines[self.slot as usize]
    }
}

impl Drop for Wake {
    fn drop(&mut self) {
        self.relax();
        self.own().waker.borrow_mut().take();
        self.set_touched(|touched| *touched = Touched::default());
        if self.slot as usize + 1 < self.table.slots.len() {
            self.table.vacant.borrow_mut().push(self.slot);
        }
    }
}

/// Looks ahead from a connection's slot.
pub(super) struct Ahead {
    table: Rc<WakeTable>,
    slot: u32,
}

impl Ahead {
    /// Says what the slot's owner touches whenever it runs.
    pub(super) fn touches(&self, state: Stretch) {
        self.table.touched.borrow_mut()[self.slot as usize].state = state;
    }

    /// Called by the slot's owner when it begins to run: asks for what those need who run soon.
    pub(super) fn look(&self) {
        let touched = self.table.touched.borrow();
        let place = touched[self.slot as usize].place as usize;
        if let Some(next) = self.table.turn.borrow().get(place + AHEAD) {
            let next = touched[*next as usize];
            next.state.prefetch();
            next.stream.prefetch();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use std::task::Wake as StdWake;

    #[derive(Default)]
    struct Counter(AtomicUsize);

    impl StdWake for Counter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    #[test]
    fn slots_are_given_back() {
        let (table, _own) = WakeTable::new(0, 3);
        let (a, b) = (table.take().unwrap(), table.take().unwrap());
        assert!(table.take().is_none());
        assert_ne!(a.address(), b.address());
        assert_eq!(table.taken_count(), 2);
        drop(a);
        assert!(table.take().is_some());
    }

    #[test]
    fn a_post_before_the_wait_is_not_lost_and_is_seen_once() {
        let (table, _own) = WakeTable::new(0, 2);
        let wake = table.take().unwrap();
        let counter = Arc::new(Counter::default());
        let waker = counter.clone().into();
        let mut context = Context::from_waker(&waker);
        table.post(wake.slot);
        assert!(wake.poll_wait(&mut context).is_ready());
        assert!(wake.poll_wait(&mut context).is_pending());
        table.post(wake.slot);
        assert_eq!(counter.0.load(SeqCst), 1);
        assert!(wake.poll_wait(&mut context).is_ready());
    }

    #[test]
    fn the_clock_rests_until_somebody_connects_or_the_reactor_waits() {
        let (table, own) = WakeTable::new(0, 3);
        let counter = Arc::new(Counter::default());
        let waker = counter.clone().into();
        let mut context = Context::from_waker(&waker);
        assert!(table.poll_ticks_wanted(&mut context).is_pending());
        let wake = table.take().unwrap();
        assert_eq!(counter.0.load(SeqCst), 1);
        assert!(table.poll_ticks_wanted(&mut context).is_ready());
        drop(wake);
        assert!(table.poll_ticks_wanted(&mut context).is_pending());
        own.allow(TICK);
        assert_eq!(counter.0.load(SeqCst), 2);
        assert!(table.poll_ticks_wanted(&mut context).is_ready());
        own.relax();
        assert!(table.poll_ticks_wanted(&mut context).is_pending());
        own.allow(TICK);
        own.allow(TICK);
        assert_eq!(counter.0.load(SeqCst), 3, "it is roused once");
    }

    #[test]
    fn a_deadline_is_never_early_and_at_most_two_ticks_late() {
        let (table, _own) = WakeTable::new(0, 2);
        let wake = table.take().unwrap();
        let counter = Arc::new(Counter::default());
        let waker = counter.clone().into();
        wake.register(&mut Context::from_waker(&waker));
        for (patience_ms, ticks) in [(0, 1), (1, 2), (20, 2), (21, 3), (200, 11)] {
            wake.allow(Duration::from_millis(patience_ms));
            let before = counter.0.load(SeqCst);
            for _ in 1..ticks {
                table.tick();
                assert!(!wake.is_late(), "{patience_ms} ms");
            }
            assert_eq!(counter.0.load(SeqCst), before);
            table.tick();
            assert!(wake.is_late() && counter.0.load(SeqCst) == before + 1, "{patience_ms} ms");
            wake.relax();
            table.tick();
            assert!(!wake.is_late() && counter.0.load(SeqCst) == before + 1);
        }
        wake.allow(Duration::MAX);
        (0..100).for_each(|_| table.tick());
        assert!(!wake.is_late(), "for ever is not over after some ticks");
    }
}
