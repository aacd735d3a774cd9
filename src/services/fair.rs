//! Deficit round robin between API keys, as keys of an ordered queue.
//!
//! Each API key's tasks stay in order; in every round each API key may spend `quantum` tokens and keeps what it did not
//! spend while it has work. In which round a task's turn comes depends on its own API key's tasks alone, so it is known
//! when the task arrives. (Shreedhar and Varghese 1995.)

use std::collections::HashMap;

/// Bits of a queue key that hold the API key's number; the round is above them.
const CLIENT_BITS: u32 = 16;

/// Where one API key's last task stands.
#[derive(Clone, Copy, Debug)]
struct Tail {
    round: u64,
    /// Tokens it may still spend in that round.
    left: u64,
}

/// The rounds of one class of tasks.
#[derive(Clone, Debug)]
pub struct FairShare {
    quantum: u64,
    tails: HashMap<u16, Tail>,
    /// The round of the task that goes next; nobody is put into an earlier one.
    round: u64,
}

impl FairShare {
    pub fn new(quantum: u64) -> FairShare {
        FairShare { quantum: quantum.max(1), tails: HashMap::new(), round: 1 }
    }

    /// The queue key of the next task of an API key, if it costs `tokens`.
    pub fn key(&self, client: u16, tokens: u64) -> u64 {
        self.next(client, tokens).round << CLIENT_BITS | u64::from(client)
    }

    /// Counts a task that was given this place.
    pub fn take(&mut self, client: u16, tokens: u64) {
        let tail = self.next(client, tokens);
        self.tails.insert(client, tail);
    }

    /// Says which task goes next, by its queue key; none when nobody waits.
    pub fn reached(&mut self, key: Option<u64>) {
        match key {
            Some(key) => self.round = key >> CLIENT_BITS,
            // Who has nothing waiting keeps no claim.
            None => self.tails.clear(),
        }
    }

    fn next(&self, client: u16, tokens: u64) -> Tail {
        let fresh = Tail { round: self.round, left: self.quantum };
        let tail = self.tails.get(&client).copied().filter(|t| t.round >= self.round).unwrap_or(fresh);
        let missing = tokens.saturating_sub(tail.left);
        let rounds = missing.div_ceil(self.quantum);
        Tail { round: tail.round + rounds, left: tail.left + rounds * self.quantum - tokens }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(quantum: u64, tasks: &[(u16, u64)]) -> Vec<u16> {
        let mut share = FairShare::new(quantum);
        let mut keyed: Vec<_> = tasks
            .iter()
            .map(|&(client, tokens)| {
                let key = share.key(client, tokens);
                share.take(client, tokens);
                (key, client)
            })
            .collect();
        keyed.sort_by_key(|(key, _)| *key);
        keyed.into_iter().map(|(_, client)| client).collect()
    }

    #[test]
    fn who_sends_many_tasks_waits_behind_who_sends_few() {
        let tasks: Vec<_> = [(0, 100); 6].into_iter().chain([(1, 100), (1, 100)]).collect();
        assert_eq!(order(100, &tasks), [0, 1, 0, 1, 0, 0, 0, 0]);
    }

    #[test]
    fn tokens_are_what_is_shared_not_tasks() {
        let tasks: Vec<_> = [(0, 400); 3].into_iter().chain([(1, 100); 12]).collect();
        let order = order(100, &tasks);
        let small_ones_before = |n: usize| {
            let at = order.iter().enumerate().filter(|(_, c)| **c == 0).nth(n).unwrap().0;
            order[..at].iter().filter(|c| **c == 1).count()
        };
        assert_eq!([0, 1, 2].map(small_ones_before), [3, 7, 11]);
    }

    #[test]
    fn who_was_away_has_saved_nothing() {
        let mut share = FairShare::new(100);
        share.take(0, 1000);
        share.reached(Some(share.key(0, 100)));
        let round = share.round;
        assert!(round > 5);
        assert_eq!(share.key(1, 100) >> CLIENT_BITS, round, "it begins where the others are");
        share.reached(None);
        assert_eq!(share.key(0, 100) >> CLIENT_BITS, round, "and what was before nobody waited is over");
    }
}
