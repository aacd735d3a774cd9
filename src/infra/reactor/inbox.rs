//! How another thread wakes a connection: mark its slot, and ring its reactor once for all that were marked.
//!
//! ```text
//! engine thread: post(slot) … post(slot)   flags and a queue, no system call
//!                ring_all()                one eventfd write per reactor that was touched
//! reactor:       eventfd readable          drains the queue, wakes the tasks that wait on those slots
//! ```
//!
//! Memory order. A poster publishes its data, then marks; the reactor unmarks, then looks at the data. A post
//! that finds its slot marked already therefore needs no second place in the queue: whoever unmarks it looks
//! afterwards. Likewise `notified` is cleared before the queue is read.

// An eventfd is made, written and read by system calls; the descriptor is owned by the inbox.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use crossbeam_queue::ArrayQueue;

/// One waiting connection: which reactor, which slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WakeAddress {
    pub(super) reactor: u16,
    pub(super) slot: u32,
}

impl WakeAddress {
    /// A connection by its reactor and its slot there.
    pub fn of(reactor: u16, slot: u32) -> WakeAddress {
        WakeAddress { reactor, slot }
    }

    /// Never 0, so that 0 can stand for nobody in an atomic.
    pub fn pack(self) -> u64 {
        1 << 63 | u64::from(self.reactor) << 32 | u64::from(self.slot)
    }

    pub fn unpack(value: u64) -> Option<WakeAddress> {
        (value != 0).then_some(WakeAddress { reactor: (value >> 32) as u16 & 0x7fff, slot: value as u32 })
    }
}

/// The door of one reactor.
pub struct Inbox {
    descriptor: OwnedFd,
    /// Per slot: it is in `ready` or `answered` already. So neither can overflow.
    marked: Box<[AtomicBool]>,
    ready: ArrayQueue<u32>,
    /// Slots whose answer is there, before those that have a token: who asked has nothing to read meanwhile.
    answered: ArrayQueue<u32>,
    /// Something was posted since the last ring.
    dirty: AtomicBool,
    /// The descriptor was written since the reactor read it last.
    notified: AtomicBool,
}

impl Inbox {
    /// An inbox for `connections_max` connections; one more slot is the reactor's own.
    ///
    /// # Errors
    ///
    /// When the process has no descriptor left.
    pub fn new(connections_max: usize) -> io::Result<Arc<Inbox>> {
        // SAFETY: a plain system call; the descriptor it returns is ours alone.
        let descriptor = unsafe {
            let raw = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
            if raw < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(raw)
        };
        let slots = connections_max + 1;
        Ok(Arc::new(Inbox {
            descriptor,
            marked: (0..slots).map(|_| AtomicBool::new(false)).collect(),
            ready: ArrayQueue::new(slots),
            answered: ArrayQueue::new(slots),
            dirty: AtomicBool::new(false),
            notified: AtomicBool::new(false),
        }))
    }

    /// Slots, the reactor's own included.
    pub fn slot_count(&self) -> usize {
        self.marked.len()
    }

    /// Marks a slot. No system call; `ring` makes it known.
    pub fn post(&self, slot: u32) {
        self.post_to(&self.ready, slot);
    }

    /// The same for one that is to run before all that were posted without an answer.
    pub(super) fn post_answer(&self, slot: u32) {
        self.post_to(&self.answered, slot);
    }

    fn post_to(&self, queue: &ArrayQueue<u32>, slot: u32) {
        if !self.marked[slot as usize].swap(true, SeqCst) {
            assert!(queue.push(slot).is_ok(), "a slot was queued twice");
        }
        // The load keeps all but the first post of a step from costing a locked instruction.
        if !self.dirty.load(SeqCst) {
            self.dirty.store(true, SeqCst);
        }
    }

    /// Makes posts known; at most one system call until the reactor has drained.
    pub fn ring(&self) {
        // The load keeps a reactor that was not touched from costing a locked instruction.
        if self.dirty.load(SeqCst) && self.dirty.swap(false, SeqCst) {
            self.notify();
        }
    }

    fn notify(&self) {
        if !self.notified.swap(true, SeqCst) {
            let one = 1u64.to_ne_bytes();
            // SAFETY: the descriptor is open and eight bytes are read from `one`.
            unsafe { libc::write(self.descriptor.as_raw_fd(), one.as_ptr().cast(), 8) };
        }
    }

    /// A descriptor of the same eventfd, for the reactor to wait on.
    pub(super) fn duplicate(&self) -> io::Result<OwnedFd> {
        self.descriptor.try_clone()
    }

    /// Called by the reactor when the descriptor is readable: hands out marked slots, all of those with an answer first,
    /// then of the `n` others the oldest `most(n)`. When there are more, the descriptor is readable again at once.
    pub fn drain(&self, most: impl FnOnce(usize) -> usize, mut each: impl FnMut(u32)) {
        let mut count = [0u8; 8];
        // SAFETY: the descriptor is open and non-blocking, and eight bytes fit into `count`.
        unsafe { libc::read(self.descriptor.as_raw_fd(), count.as_mut_ptr().cast(), 8) };
        // Before the queue is read: whoever posts after this will write again.
        self.notified.store(false, SeqCst);
        let mut hand_out = |slot: u32| {
            self.marked[slot as usize].store(false, SeqCst);
            each(slot);
        };
        while let Some(slot) = self.answered.pop() {
            hand_out(slot);
        }
        for _ in 0..most(self.ready.len()) {
            let Some(slot) = self.ready.pop() else { return };
            hand_out(slot);
        }
        if !self.ready.is_empty() {
            self.notify();
        }
    }
}

/// The doors of all reactors.
#[derive(Clone)]
pub struct WakeHub(Arc<[Arc<Inbox>]>);

impl WakeHub {
    pub fn new(inboxes: Vec<Arc<Inbox>>) -> WakeHub {
        assert!(inboxes.len() <= 0x8000, "a reactor's number has fifteen bits");
        WakeHub(inboxes.into())
    }

    /// Marks a connection. No system call.
    pub fn post(&self, address: WakeAddress) {
        self.0[usize::from(address.reactor)].post(address.slot);
    }

    /// Rings every reactor that something was posted to.
    pub fn ring_all(&self) {
        self.0.iter().for_each(|inbox| inbox.ring());
    }

    /// Marks one connection and rings its reactor.
    pub fn wake(&self, address: WakeAddress) {
        let inbox = &self.0[usize::from(address.reactor)];
        inbox.post(address.slot);
        inbox.ring();
    }

    /// The same for one whose answer is there.
    pub(super) fn wake_answered(&self, address: WakeAddress) {
        let inbox = &self.0[usize::from(address.reactor)];
        inbox.post_answer(address.slot);
        inbox.ring();
    }

    /// A hub with one inbox that nobody drains, and an address in it. For tests in other modules.
    #[doc(hidden)]
    pub fn for_tests() -> (WakeHub, WakeAddress) {
        let inbox = Inbox::new(8).expect("there are descriptors");
        (WakeHub::new(vec![inbox]), WakeAddress { reactor: 0, slot: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_packing_and_nobody_is_zero() {
        for (reactor, slot) in [(0, 0), (3, 17), (0x7fff, u32::MAX)] {
            let address = WakeAddress { reactor, slot };
            assert_ne!(address.pack(), 0);
            assert_eq!(WakeAddress::unpack(address.pack()), Some(address));
        }
        assert_eq!(WakeAddress::unpack(0), None);
    }

    fn drained(inbox: &Inbox) -> Vec<u32> {
        let mut slots = Vec::new();
        inbox.drain(|_| usize::MAX, |slot| slots.push(slot));
        slots
    }

    #[test]
    fn what_a_turn_leaves_rings_again() {
        let inbox = Inbox::new(4).unwrap();
        (0..4).for_each(|slot| inbox.post(slot));
        inbox.ring();
        let mut slots = Vec::new();
        inbox.drain(|_| 3, |slot| slots.push(slot));
        assert_eq!((&slots[..], rings_waiting(&inbox)), (&[0, 1, 2][..], 1));
        inbox.drain(|_| 3, |slot| slots.push(slot));
        assert_eq!((&slots[..], rings_waiting(&inbox)), (&[0, 1, 2, 3][..], 0));
    }

    #[test]
    fn answers_are_handed_out_before_tokens_and_beyond_the_turn() {
        let inbox = Inbox::new(8).unwrap();
        (0..3).for_each(|slot| inbox.post(slot));
        (3..5).for_each(|slot| inbox.post_answer(slot));
        inbox.ring();
        let (mut slots, mut waiting) = (Vec::new(), 0);
        let most = |count| {
            waiting = count;
            1
        };
        inbox.drain(most, |slot| slots.push(slot));
        assert_eq!((&slots[..], waiting, rings_waiting(&inbox)), (&[3, 4, 0][..], 3, 1));
    }

    #[test]
    fn a_slot_is_handed_out_once_however_often_it_was_posted() {
        let inbox = Inbox::new(4).unwrap();
        for slot in [1, 1, 3, 1] {
            inbox.post(slot);
        }
        inbox.ring();
        assert_eq!(drained(&inbox), [1, 3]);
        assert!(drained(&inbox).is_empty());
        inbox.post(1);
        assert_eq!(drained(&inbox), [1]);
    }

    fn rings_waiting(inbox: &Inbox) -> u64 {
        let mut count = [0u8; 8];
        // SAFETY: as in `drain`.
        let got = unsafe { libc::read(inbox.descriptor.as_raw_fd(), count.as_mut_ptr().cast(), 8) };
        if got == 8 { u64::from_ne_bytes(count) } else { 0 }
    }

    #[test]
    fn many_rings_are_one_system_call_and_no_post_is_none() {
        let inbox = Inbox::new(4).unwrap();
        inbox.ring();
        assert_eq!(rings_waiting(&inbox), 0);
        for slot in 0..4 {
            inbox.post(slot);
            inbox.ring();
        }
        assert_eq!(rings_waiting(&inbox), 1);
        drained(&inbox);
        inbox.post(2);
        inbox.ring();
        assert_eq!(rings_waiting(&inbox), 1);
    }

    /// Each poster raises its own counter and then posts; the drainer must in the end have seen the last value.
    #[test]
    fn no_post_is_lost_between_threads() {
        use std::sync::atomic::AtomicU32;
        const SLOTS: usize = 4;
        const POSTS: u32 = 20_000;
        let inbox = Inbox::new(SLOTS).unwrap();
        let raised: Arc<[AtomicU32]> = (0..SLOTS).map(|_| AtomicU32::new(0)).collect();
        let posters: Vec<_> = (0..SLOTS as u32)
            .map(|slot| {
                let (inbox, raised) = (inbox.clone(), raised.clone());
                std::thread::spawn(move || {
                    for _ in 0..POSTS {
                        raised[slot as usize].fetch_add(1, SeqCst);
                        inbox.post(slot);
                        inbox.ring();
                    }
                })
            })
            .collect();
        let mut seen = [0; SLOTS];
        let began = std::time::Instant::now();
        while seen != [POSTS; SLOTS] {
            assert!(began.elapsed().as_secs() < 20, "a post was lost: {seen:?}");
            let mut wait = libc::pollfd { fd: inbox.descriptor.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one pollfd that lives through the call. It waits as a reactor does: for a ring alone.
            unsafe { libc::poll(&raw mut wait, 1, 1000) };
            inbox.drain(|_| 3, |slot| seen[slot as usize] = raised[slot as usize].load(SeqCst));
        }
        posters.into_iter().for_each(|p| p.join().unwrap());
    }
}
