//! Places promised to clients who were refused: whoever comes back when it was told to finds one.
//!
//! Without this a `Retry-After` is a guess that others make worthless: at twice the load a free place is gone to the next
//! arrival before the client that was told of it is back. So each refusal takes the next place that nobody was promised
//! yet, and around its time a place is kept for it. A client is known by its task's id; one that does not come loses its
//! place a little later.

use std::collections::{BTreeMap, HashMap};

/// How long places are kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Window {
    /// How long before its time the place is no longer given to others.
    pub lead_us: u64,
    /// How long after its time it is still kept: `Retry-After` is in whole seconds, and clients take time to come.
    pub patience_us: u64,
}

#[derive(Clone, Copy, Debug)]
struct Appointment {
    due_us: u64,
    opens_us: u64,
    closes_us: u64,
    serial: u64,
    /// Its client has come back for it.
    came: bool,
}

/// All promises that are neither kept nor over.
#[derive(Debug)]
pub struct Appointments {
    count_max: usize,
    by_id: HashMap<u128, Appointment>,
    /// When places begin to be kept, when they stop, and for whom.
    opening: BTreeMap<(u64, u64), u128>,
    closing: BTreeMap<(u64, u64), u128>,
    kept: usize,
    serials: u64,
    /// The latest time that was promised in turn.
    tail_us: u64,
    /// Share of refused clients who come back for the place that is kept for them, learned with forgetting.
    returning: f64,
}

/// Trust in clients before the first of them has come back, or not: under a half, so that a single place is not kept
/// before anybody has ever come for one.
const RETURNING_FIRST: f64 = 0.45;

/// What one more client who came, or did not, is worth.
const RETURNING_WEIGHT: f64 = 0.1;

impl Appointments {
    /// At most `count_max` at a time.
    pub fn new(count_max: usize) -> Appointments {
        let (by_id, opening, closing) = (HashMap::new(), BTreeMap::new(), BTreeMap::new());
        Appointments { count_max, by_id, opening, closing, kept: 0, serials: 0, tail_us: 0, returning: RETURNING_FIRST }
    }

    /// Promises `id` a place at `due_us`, instead of what it was promised before. False when there are too many promises:
    /// then it is only a prediction.
    pub fn promise(&mut self, id: u128, due_us: u64, window: Window) -> bool {
        self.forget(id);
        if self.by_id.len() >= self.count_max {
            return false;
        }
        self.serials += 1;
        let (opens_us, closes_us) = (due_us.saturating_sub(window.lead_us), due_us.saturating_add(window.patience_us));
        let appointment = Appointment { due_us, opens_us, closes_us, serial: self.serials, came: false };
        self.by_id.insert(id, appointment);
        self.opening.insert((opens_us, self.serials), id);
        self.closing.insert((closes_us, self.serials), id);
        true
    }

    /// The next time to promise, at the earliest `soonest_us`: one `spacing_us` after the one promised before. However
    /// estimates of the engine's pace change meanwhile, no more places are promised for a time than come free in it.
    pub fn next_turn(&mut self, soonest_us: u64, spacing_us: u64) -> u64 {
        if self.by_id.is_empty() {
            self.tail_us = 0;
        }
        self.tail_us = soonest_us.max(self.tail_us.saturating_add(spacing_us));
        self.tail_us
    }

    /// Share of refused clients who come back in time.
    pub fn returning(&self) -> f64 {
        self.returning
    }

    fn learn(&mut self, came: bool) {
        self.returning += RETURNING_WEIGHT * (f64::from(u8::from(came)) - self.returning);
    }

    /// Places to keep at this time: for those of the clients due who will come, as far as is known of such clients.
    pub fn kept(&mut self, now_us: u64) -> usize {
        let due = self.due(now_us);
        (due as f64 * self.returning).round() as usize
    }

    /// Clients whose places are kept at this time; those whose time is over are forgotten.
    fn due(&mut self, now_us: u64) -> usize {
        while let Some(entry) = self.closing.first_entry().filter(|e| e.key().0 < now_us) {
            let id = entry.remove();
            let gone = self.by_id.remove(&id).expect("every appointment has its id");
            if self.opening.remove(&(gone.opens_us, gone.serial)).is_none() {
                self.kept -= 1;
            }
            if !gone.came {
                self.learn(false);
            }
        }
        while let Some(entry) = self.opening.first_entry().filter(|e| e.key().0 <= now_us) {
            entry.remove();
            self.kept += 1;
        }
        self.kept
    }

    /// Whether `id` comes at a time at which a place is kept for it.
    pub fn is_due(&mut self, id: u128, now_us: u64) -> bool {
        self.due(now_us);
        self.by_id.get(&id).is_some_and(|a| a.opens_us <= now_us)
    }

    /// A client whose place may be kept has come, and gets in or not. It counts once, however often it is looked at.
    pub fn came(&mut self, id: u128) {
        if let Some(appointment) = self.by_id.get_mut(&id)
            && !std::mem::replace(&mut appointment.came, true)
        {
            self.learn(true);
        }
    }

    /// The client has its place, or another promise.
    pub fn forget(&mut self, id: u128) {
        let Some(gone) = self.by_id.remove(&id) else { return };
        self.closing.remove(&(gone.closes_us, gone.serial));
        if self.opening.remove(&(gone.opens_us, gone.serial)).is_none() {
            self.kept -= 1;
        }
    }

    /// Promises that are to be kept, the earliest ones that are overdue included.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// When this client was told to come.
    pub fn due_us(&self, id: u128) -> Option<u64> {
        self.by_id.get(&id).map(|a| a.due_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Window = Window { lead_us: 10, patience_us: 20 };

    /// Of clients who have always come so far.
    fn trusted(count_max: usize) -> Appointments {
        Appointments { returning: 1.0, ..Appointments::new(count_max) }
    }

    #[test]
    fn a_place_is_kept_from_a_little_before_its_time_to_a_little_after() {
        let mut book = Appointments::new(10);
        assert!(book.promise(1, 100, WINDOW) && book.promise(2, 105, WINDOW));
        let kept: Vec<_> = [0, 89, 90, 95, 120, 121, 125, 126].map(|now| (now, book.due(now))).into();
        assert_eq!(kept, [(0, 0), (89, 0), (90, 1), (95, 2), (120, 2), (121, 1), (125, 1), (126, 0)]);
        assert!(book.is_empty());
    }

    #[test]
    fn who_comes_in_time_is_known_and_who_comes_early_is_one_like_others() {
        let mut book = Appointments::new(10);
        book.promise(1, 100, WINDOW);
        assert!(!book.is_due(1, 50) && book.is_due(1, 95) && book.is_due(1, 120) && !book.is_due(2, 100));
        book.forget(1);
        assert_eq!((book.due(100), book.len()), (0, 0));
        assert!(!book.is_due(1, 100));
    }

    #[test]
    fn a_second_promise_takes_the_place_of_the_first() {
        let mut book = Appointments::new(10);
        book.promise(1, 100, WINDOW);
        assert_eq!(book.due(100), 1);
        book.promise(1, 300, WINDOW);
        assert_eq!((book.due(100), book.len(), book.due_us(1)), (0, 1, Some(300)));
        assert_eq!((book.due(300), book.due(321)), (1, 0));
    }

    #[test]
    fn there_are_never_more_than_the_bound() {
        let mut book = Appointments::new(2);
        assert!(book.promise(1, 100, WINDOW) && book.promise(2, 100, WINDOW) && !book.promise(3, 100, WINDOW));
        assert!(book.promise(2, 400, WINDOW), "a new promise to one that has one is no further one");
        assert_eq!(book.due(121), 0);
        assert!(book.promise(3, 500, WINDOW));
    }

    #[test]
    fn places_are_kept_for_as_many_as_come() {
        let mut book = trusted(1000);
        (0..10).for_each(|id| assert!(book.promise(id, 100, WINDOW)));
        assert_eq!(book.kept(100), 10);
        assert_eq!(book.kept(121), 0, "nobody came");
        (10..20).for_each(|id| assert!(book.promise(id, 200, WINDOW)));
        let kept = book.kept(200);
        assert!((2..6).contains(&kept), "{kept}");
        for round in 0..30u64 {
            let now = 300 + 100 * round;
            assert!(book.promise(99, now, WINDOW));
            book.came(99);
            book.forget(99);
            book.kept(now);
        }
        assert!(book.returning() > 0.9, "{}", book.returning());
    }

    #[test]
    fn a_place_is_not_kept_from_others_before_anybody_has_come_back_for_one() {
        let mut book = Appointments::new(10);
        assert!(book.promise(1, 100, WINDOW));
        assert_eq!((book.kept(100), book.is_due(1, 100)), (0, true));
        book.came(1);
        book.forget(1);
        assert!(book.promise(2, 200, WINDOW));
        assert_eq!(book.kept(200), 1);
    }

    #[test]
    fn no_two_are_promised_the_same_turn() {
        let mut book = Appointments::new(10);
        let turns: Vec<_> = [(100, 10), (105, 10), (200, 10), (90, 5)]
            .map(|(soonest, spacing)| {
                let turn = book.next_turn(soonest, spacing);
                book.promise(u128::from(turn), turn, WINDOW);
                turn
            })
            .into();
        assert_eq!(turns, [100, 110, 200, 205]);
        assert_eq!((book.due(1000), book.is_empty()), (0, true));
        assert_eq!(book.next_turn(1100, 10), 1100, "an empty book has no turns before");
    }
}
