//! Sessions: how long they live, how often they were used, and what is left of their budgets.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

use super::prediction::SessionLengths;
use crate::config::Config;
use crate::domain::ids::SessionId;

/// Cost is counted in whole millionths, so that sums are exact.
const COST_SCALE: f64 = 1e6;

/// Whose budget it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    Session,
    /// All tasks sent with one API key.
    Key,
}

/// Which budget is spent, so that a task cannot be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BudgetSpent {
    pub owner: Owner,
    pub what: Spent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spent {
    Tokens,
    Time,
    Cost,
}

impl BudgetSpent {
    /// The envelope's `policy_label`.
    pub const fn label(self) -> &'static str {
        match (self.owner, self.what) {
            (Owner::Session, Spent::Tokens) => "session-tokens-budget",
            (Owner::Session, Spent::Time) => "session-time-budget",
            (Owner::Session, Spent::Cost) => "session-cost-budget",
            (Owner::Key, Spent::Tokens) => "key-tokens-budget",
            (Owner::Key, Spent::Time) => "key-time-budget",
            (Owner::Key, Spent::Cost) => "key-cost-budget",
        }
    }
}

/// What there is left to spend.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budgets {
    pub tokens: u64,
    pub time_ms: u64,
    cost_millionths: u64,
}

impl Budgets {
    pub fn cost(&self) -> f64 {
        self.cost_millionths as f64 / COST_SCALE
    }

    /// What would be left after so much more.
    pub fn less(&self, tokens: u64, time_ms: u64, rules: &SessionRules) -> Budgets {
        Budgets {
            tokens: self.tokens.saturating_sub(tokens),
            time_ms: self.time_ms.saturating_sub(time_ms),
            cost_millionths: self.cost_millionths.saturating_sub(tokens * rules.cost_per_token_millionths),
        }
    }

    /// What both leave.
    fn least(self, other: Budgets) -> Budgets {
        Budgets {
            tokens: self.tokens.min(other.tokens),
            time_ms: self.time_ms.min(other.time_ms),
            cost_millionths: self.cost_millionths.min(other.cost_millionths),
        }
    }
}

/// The settings that concern sessions and budgets.
#[derive(Clone, Copy, Debug)]
pub struct SessionRules {
    pub ttl_ms: u64,
    pub sessions_max: usize,
    budgets: Budgets,
    key_budgets: Budgets,
    cost_per_token_millionths: u64,
}

impl SessionRules {
    pub fn from_config(config: &Config) -> SessionRules {
        let millionths = |value: f64| (value * COST_SCALE).round() as u64;
        let or_none = |limit: u64| if limit == 0 { u64::MAX } else { limit };
        SessionRules {
            ttl_ms: config.session_ttl_ms,
            sessions_max: config.sessions_max,
            budgets: Budgets {
                tokens: config.session_tokens_budget,
                time_ms: config.session_time_budget_ms,
                cost_millionths: millionths(config.session_cost_budget),
            },
            key_budgets: Budgets {
                tokens: or_none(config.key_tokens_budget),
                time_ms: or_none(config.key_time_budget_ms),
                cost_millionths: or_none(millionths(config.key_cost_budget)),
            },
            cost_per_token_millionths: millionths(config.cost_per_token),
        }
    }
}

/// What one owner has, and what of it is promised to tasks that have not ended.
pub struct Purse {
    owner: Owner,
    inner: Mutex<Money>,
}

#[derive(Debug)]
struct Money {
    left: Budgets,
    /// Tokens promised: two tasks cannot both spend the last one.
    tokens_reserved: u64,
    live_tasks: u32,
    /// Tasks in slots, and the sum of the times at which they got there: what they have used so far follows.
    seated_count: u64,
    seated_sum_us: u64,
}

impl Money {
    fn time_left_us(&self, now_us: u64) -> u64 {
        let running_us = (self.seated_count * now_us).saturating_sub(self.seated_sum_us);
        self.left.time_ms.saturating_mul(1000).saturating_sub(running_us)
    }

    /// Tokens that a new task may be given.
    fn tokens_free(&self, now_us: u64, rules: &SessionRules) -> Result<u64, Spent> {
        let free = self.left.tokens.saturating_sub(self.tokens_reserved);
        if free == 0 {
            return Err(Spent::Tokens);
        }
        if self.time_left_us(now_us) == 0 {
            return Err(Spent::Time);
        }
        let affordable = match self.left.cost_millionths.checked_div(rules.cost_per_token_millionths) {
            Some(tokens) => tokens.saturating_sub(self.tokens_reserved),
            None => u64::MAX,
        };
        if affordable == 0 { Err(Spent::Cost) } else { Ok(free.min(affordable)) }
    }

    fn reserve(&mut self, tokens: u64) {
        self.tokens_reserved += tokens;
        self.live_tasks += 1;
    }
}

impl Purse {
    fn new(owner: Owner, left: Budgets) -> Purse {
        let money = Money { left, tokens_reserved: 0, live_tasks: 0, seated_count: 0, seated_sum_us: 0 };
        Purse { owner, inner: Mutex::new(money) }
    }

    fn lock(&self) -> MutexGuard<'_, Money> {
        self.inner.lock().expect("nothing panics under this lock")
    }

    fn live_tasks(&self) -> u32 {
        self.lock().live_tasks
    }

    fn check_left(&self, now_us: u64, rules: &SessionRules) -> Result<(), BudgetSpent> {
        let free = self.lock().tokens_free(now_us, rules);
        free.map(|_| ()).map_err(|what| BudgetSpent { owner: self.owner, what })
    }

    /// What is left, tasks that have not ended aside.
    pub fn left(&self) -> Budgets {
        self.lock().left
    }

    /// Tokens promised to tasks that have not ended.
    pub fn tokens_reserved(&self) -> u64 {
        self.lock().tokens_reserved
    }
}

/// One session. Shared by its tasks, which may outlive it.
pub struct Session {
    pub id: SessionId,
    pub purse: Purse,
    /// How long its answers are.
    pub lengths: Mutex<SessionLengths>,
    uses: Mutex<Uses>,
}

#[derive(Clone, Copy)]
struct Uses {
    last_ms: u64,
    turns: u64,
}

/// What a session shows of itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SessionView {
    pub ttl_ms_remaining: u64,
    pub turns: u64,
    pub budgets: Budgets,
}

impl Session {
    fn uses(&self) -> MutexGuard<'_, Uses> {
        self.uses.lock().expect("nothing panics under this lock")
    }

    fn used(&self, now_ms: u64) {
        self.uses().last_ms = now_ms;
    }

    pub fn view(&self, now_ms: u64, rules: &SessionRules) -> SessionView {
        let uses = *self.uses();
        SessionView {
            ttl_ms_remaining: (uses.last_ms + rules.ttl_ms).saturating_sub(now_ms),
            turns: uses.turns,
            budgets: self.purse.left(),
        }
    }
}

/// Who pays for a task: its session, and the API key it was sent with.
#[derive(Clone)]
pub struct Account {
    pub session: Arc<Session>,
    pub key: Arc<Purse>,
}

/// What one task was given, and until when it used it.
#[derive(Clone, Copy, Debug)]
pub struct Bill {
    pub reserved: u64,
    pub tokens: u64,
    pub time_ms: u64,
    /// When it got its slot; none if it never did.
    pub seated_us: Option<u64>,
    pub now_ms: u64,
}

impl Account {
    /// Both purses, always in this order.
    fn purses(&self) -> [&Purse; 2] {
        [&self.key, &self.session.purse]
    }

    /// What both have left, tasks that have not ended aside.
    pub fn budgets(&self) -> Budgets {
        self.key.left().least(self.session.purse.left())
    }

    /// Time that tasks may still decode, the running ones counted up to now.
    pub fn time_left_us(&self, now_us: u64) -> u64 {
        self.purses().map(|p| p.lock().time_left_us(now_us)).into_iter().min().expect("there are two")
    }

    /// Sets tokens aside for a task: at most `wanted`, at least one.
    ///
    /// # Errors
    ///
    /// As `grant`.
    pub fn reserve(&self, wanted: u64, now_us: u64, rules: &SessionRules) -> Result<u64, BudgetSpent> {
        self.grant(wanted, now_us, rules).map(|(granted, _)| granted)
    }

    /// `reserve`, and what both have left, tasks that have not ended aside.
    ///
    /// # Errors
    ///
    /// When a budget has nothing left that is not promised already.
    pub fn grant(&self, wanted: u64, now_us: u64, rules: &SessionRules) -> Result<(u64, Budgets), BudgetSpent> {
        let [mut key, mut session] = self.purses().map(Purse::lock);
        let of = |owner| move |what| BudgetSpent { owner, what };
        let in_session = session.tokens_free(now_us, rules).map_err(of(self.session.purse.owner))?;
        let in_key = key.tokens_free(now_us, rules).map_err(of(self.key.owner))?;
        let granted = wanted.min(in_session).min(in_key);
        key.reserve(granted);
        session.reserve(granted);
        Ok((granted, key.left.least(session.left)))
    }

    /// A task got its slot: from now on it uses time.
    pub fn seated(&self, now_us: u64) {
        for mut money in self.purses().map(Purse::lock) {
            money.seated_count += 1;
            money.seated_sum_us += now_us;
        }
    }

    /// Ends a reservation and spends what was used of it.
    pub fn settle(&self, bill: Bill, rules: &SessionRules) {
        for mut money in self.purses().map(Purse::lock) {
            assert!(money.tokens_reserved >= bill.reserved && money.live_tasks > 0, "a reservation was settled twice");
            money.tokens_reserved -= bill.reserved;
            money.live_tasks -= 1;
            if let Some(seated_us) = bill.seated_us {
                money.seated_count -= 1;
                money.seated_sum_us -= seated_us;
            }
            money.left = money.left.less(bill.tokens, bill.time_ms, rules);
        }
        self.session.used(bill.now_ms);
    }
}

/// All sessions of this process, and the purses of its API keys.
pub struct SessionService {
    pub rules: SessionRules,
    sessions: Mutex<Remembered>,
    keys: Vec<Arc<Purse>>,
}

/// The sessions, and in which order they were used last.
#[derive(Default)]
struct Remembered {
    by_id: HashMap<SessionId, Arc<Session>, ahash::RandomState>,
    /// When each was used last, milliseconds, or before: a use does not come here, it is seen when the turn of its session
    /// comes, which then gets another. So the first whose time is right is the one that was not used for longest.
    uses: BinaryHeap<Reverse<Use>>,
}

struct Use {
    at_ms: u64,
    session: Arc<Session>,
}

impl PartialEq for Use {
    fn eq(&self, other: &Use) -> bool {
        self.at_ms == other.at_ms
    }
}

impl Eq for Use {}

impl PartialOrd for Use {
    fn partial_cmp(&self, other: &Use) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Use {
    fn cmp(&self, other: &Use) -> std::cmp::Ordering {
        self.at_ms.cmp(&other.at_ms)
    }
}

impl Remembered {
    fn insert(&mut self, session: Arc<Session>) {
        self.uses.push(Reverse(Use { at_ms: session.uses().last_ms, session: session.clone() }));
        self.by_id.insert(session.id, session);
    }

    /// Forgets the session that was not used for longest, if that was at `before_ms` at the latest; its id. Those with live
    /// tasks are in use.
    fn forget_oldest(&mut self, now_ms: u64, before_ms: u64) -> Option<SessionId> {
        // Whoever gets another turn is not asked twice.
        for _ in 0..self.uses.len() {
            let Reverse(first) = self.uses.peek()?;
            if first.at_ms > before_ms {
                return None;
            }
            let Reverse(Use { at_ms, session }) = self.uses.pop()?;
            if !self.by_id.get(&session.id).is_some_and(|known| Arc::ptr_eq(known, &session)) {
                // It was deleted; another one may have its name.
                continue;
            }
            // One with a live task is in use, whatever the clock's grain.
            let used_ms = match session.purse.live_tasks() {
                0 => session.uses().last_ms,
                _ => now_ms.max(at_ms + 1),
            };
            if used_ms <= at_ms {
                self.by_id.remove(&session.id);
                return Some(session.id);
            }
            self.uses.push(Reverse(Use { at_ms: used_ms, session }));
        }
        None
    }
}

impl SessionService {
    /// For so many API keys.
    pub fn new(rules: SessionRules, key_count: usize) -> SessionService {
        let purse = || Arc::new(Purse::new(Owner::Key, rules.key_budgets));
        SessionService { rules, sessions: Mutex::default(), keys: (0..key_count.max(1)).map(|_| purse()).collect() }
    }

    /// Who pays for a task of this session that was sent with this API key.
    pub fn account(&self, session: Arc<Session>, client: u16) -> Account {
        let key = self.keys.get(usize::from(client)).expect("a request has passed with a key that is configured");
        Account { session, key: key.clone() }
    }

    /// Whether a task of this session, sent with this API key, could be given anything at all; no session is made for that.
    ///
    /// # Errors
    ///
    /// As [`Account::reserve`].
    pub fn check_left(&self, id: SessionId, client: u16, now_us: u64) -> Result<(), BudgetSpent> {
        let key = self.keys.get(usize::from(client)).expect("a request has passed with a key that is configured");
        let session = self.get(id);
        let purses = session.iter().map(|s| &s.purse).chain([&**key]);
        purses.into_iter().try_for_each(|p| p.check_left(now_us, &self.rules))
    }

    /// The session, made if it is not there. At the bound the one that was not used for longest goes,
    /// sessions with live tasks excepted; its id is returned too, for its KV must go as well.
    pub fn get_or_create(&self, id: SessionId, now_ms: u64) -> (Arc<Session>, Option<SessionId>) {
        let mut sessions = self.lock();
        if let Some(session) = sessions.by_id.get(&id) {
            session.used(now_ms);
            return (session.clone(), None);
        }
        let is_full = sessions.by_id.len() >= self.rules.sessions_max;
        let evicted = if is_full { sessions.forget_oldest(now_ms, u64::MAX) } else { None };
        let purse = Purse::new(Owner::Session, self.rules.budgets);
        let uses = Mutex::new(Uses { last_ms: now_ms, turns: 0 });
        let session = Arc::new(Session { id, purse, lengths: Mutex::default(), uses });
        sessions.insert(session.clone());
        (session, evicted)
    }

    pub fn get(&self, id: SessionId) -> Option<Arc<Session>> {
        self.lock().by_id.get(&id).cloned()
    }

    /// Counts a turn: a task of this session was accepted.
    pub fn note_turn(&self, session: &Session, now_ms: u64) {
        let mut uses = session.uses();
        uses.turns += 1;
        uses.last_ms = now_ms;
    }

    /// Forgets the session. Its running tasks go on.
    pub fn delete(&self, id: SessionId) -> bool {
        self.lock().by_id.remove(&id).is_some()
    }

    /// Forgets every session whose time is over and that has no live task; returns their ids.
    pub fn tick(&self, now_ms: u64) -> Vec<SessionId> {
        let mut sessions = self.lock();
        let before_ms = now_ms.checked_sub(self.rules.ttl_ms);
        let forget = || before_ms.and_then(|before_ms| sessions.forget_oldest(now_ms, before_ms));
        std::iter::from_fn(forget).collect()
    }

    pub fn len(&self) -> usize {
        self.lock().by_id.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, Remembered> {
        self.sessions.lock().expect("nothing panics under this lock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::Uuid;

    fn service(change: impl FnOnce(&mut Config)) -> SessionService {
        let mut config = Config::default();
        change(&mut config);
        SessionService::new(SessionRules::from_config(&config), 1)
    }

    #[test]
    fn a_new_session_has_the_defaults() {
        let service = service(|c| c.session_tokens_budget = 77);
        let (session, evicted) = service.get_or_create(Uuid(1), 0);
        let view = session.view(0, &service.rules);
        assert_eq!((view.ttl_ms_remaining, view.turns, view.budgets.tokens), (600_000, 0, 77));
        assert_eq!(evicted, None);
        assert!(Arc::ptr_eq(&session, &service.get_or_create(Uuid(1), 5).0));
    }

    fn account(service: &SessionService, id: u128) -> Account {
        service.account(service.get_or_create(Uuid(id), 0).0, 0)
    }

    fn bill(reserved: u64, tokens: u64, time_ms: u64) -> Bill {
        Bill { reserved, tokens, time_ms, seated_us: None, now_ms: 0 }
    }

    const fn spent(owner: Owner, what: Spent) -> Result<u64, BudgetSpent> {
        Err(BudgetSpent { owner, what })
    }

    #[test]
    fn a_session_is_evicted_when_its_time_is_over_but_not_under_a_live_task() {
        let service = service(|c| c.session_ttl_ms = 100);
        let session = account(&service, 1);
        service.get_or_create(Uuid(2), 50);
        assert_eq!(service.tick(99), []);
        session.reserve(1, 0, &service.rules).unwrap();
        assert_eq!(service.tick(120), [], "a task is running, and the other was used later");
        session.settle(Bill { now_ms: 130, ..bill(1, 1, 1) }, &service.rules);
        assert_eq!(service.tick(150), [Uuid(2)]);
        assert_eq!(service.tick(229), []);
        assert_eq!(service.tick(230), [Uuid(1)]);
        assert!(service.is_empty());
    }

    #[test]
    fn who_has_a_live_task_does_not_go_and_who_was_used_goes_later() {
        let service = service(|c| c.sessions_max = 4);
        for id in 0..4 {
            assert_eq!(service.get_or_create(Uuid(id), id as u64).1, None);
        }
        service.get_or_create(Uuid(0), 10);
        let busy = account(&service, 1);
        busy.reserve(1, 0, &service.rules).unwrap();
        service.delete(Uuid(3));
        assert_eq!(service.get_or_create(Uuid(3), 11).1, None, "there was room");
        let evicted: Vec<_> = (4..8).map(|id| service.get_or_create(Uuid(id), 8 + id as u64).1).collect();
        assert_eq!(evicted, [2, 0, 3, 4].map(|id| Some(Uuid(id))), "1 has a live task");
        busy.settle(Bill { now_ms: 16, ..bill(1, 1, 1) }, &service.rules);
        let evicted: Vec<_> = (8..12).map(|id| service.get_or_create(Uuid(id), 10 + id as u64).1).collect();
        assert_eq!(evicted, [5, 6, 7, 1].map(|id| Some(Uuid(id))));
    }

    #[test]
    fn a_server_full_of_sessions_takes_new_ones_as_fast_as_an_empty_one() {
        let service = service(|c| c.sessions_max = 20_000);
        let began = std::time::Instant::now();
        let evicted = (0..60_000).filter(|id| service.get_or_create(Uuid(*id), *id as u64).1.is_some()).count();
        assert_eq!((evicted, service.len()), (40_000, 20_000));
        // To look at all of them for each took minutes.
        assert!(began.elapsed().as_secs() < 10, "{:?}", began.elapsed());
        assert_eq!(service.tick(u64::MAX).len(), 20_000);
        assert!(service.is_empty());
    }

    #[test]
    fn delete_removes_and_a_turn_is_counted() {
        let service = service(|_| {});
        let (session, _) = service.get_or_create(Uuid(1), 0);
        service.note_turn(&session, 10);
        service.note_turn(&session, 20);
        assert_eq!(session.view(20, &service.rules).turns, 2);
        assert!(service.delete(Uuid(1)));
        assert!(!service.delete(Uuid(1)));
        assert!(service.get(Uuid(1)).is_none());
    }

    #[test]
    fn two_tasks_cannot_both_spend_the_last_token() {
        let service = service(|c| c.session_tokens_budget = 10);
        let (session, rules) = (account(&service, 1), &service.rules);
        assert_eq!(session.reserve(8, 0, rules), Ok(8));
        assert_eq!(session.reserve(8, 0, rules), Ok(2), "only two are left unpromised");
        assert_eq!(session.reserve(1, 0, rules), spent(Owner::Session, Spent::Tokens));
        session.settle(bill(8, 3, 5), rules);
        session.settle(bill(2, 2, 5), rules);
        let left = session.budgets();
        assert_eq!((left.tokens, left.time_ms), (5, 86_400_000 - 10));
    }

    #[test]
    fn cost_and_time_run_out_too_and_cost_is_exact() {
        let service = service(|c| {
            c.session_cost_budget = 0.3;
            c.cost_per_token = 0.1;
            c.session_time_budget_ms = 50;
        });
        let (session, rules) = (account(&service, 1), &service.rules);
        assert_eq!(session.reserve(100, 0, rules), Ok(3));
        session.settle(bill(3, 2, 10), rules);
        assert_eq!(session.budgets().cost(), 0.1);
        assert_eq!(session.reserve(100, 0, rules), Ok(1));
        session.settle(bill(1, 1, 10), rules);
        assert_eq!(session.reserve(1, 0, rules), spent(Owner::Session, Spent::Cost));
        let other = account(&service, 2);
        other.reserve(1, 0, rules).unwrap();
        other.settle(bill(1, 0, 50), rules);
        assert_eq!(other.reserve(1, 0, rules), spent(Owner::Session, Spent::Time));
    }

    #[test]
    fn tasks_that_decode_side_by_side_use_the_time_together() {
        let service = service(|c| c.session_time_budget_ms = 100);
        let (session, rules) = (account(&service, 1), &service.rules);
        session.reserve(1, 0, rules).unwrap();
        session.reserve(1, 0, rules).unwrap();
        session.seated(1_000);
        session.seated(21_000);
        assert_eq!(session.time_left_us(31_000), 60_000);
        assert_eq!(session.time_left_us(61_000), 0);
        assert_eq!(session.reserve(1, 61_000, rules), spent(Owner::Session, Spent::Time));
        session.settle(Bill { seated_us: Some(1_000), ..bill(1, 1, 30) }, rules);
        assert_eq!(session.time_left_us(31_000), 60_000);
        session.settle(Bill { seated_us: Some(21_000), ..bill(1, 1, 10) }, rules);
        assert_eq!((session.budgets().time_ms, session.time_left_us(90_000)), (60, 60_000));
    }

    #[test]
    fn what_a_key_may_spend_its_sessions_share() {
        let service = service(|c| {
            c.key_tokens_budget = 10;
            c.session_tokens_budget = 8;
        });
        let (one, two, rules) = (account(&service, 1), account(&service, 2), &service.rules);
        assert_eq!(one.reserve(20, 0, rules), Ok(8));
        assert_eq!(two.reserve(20, 0, rules), Ok(2));
        assert_eq!(two.reserve(1, 0, rules), spent(Owner::Key, Spent::Tokens));
        one.settle(bill(8, 5, 1), rules);
        two.settle(bill(2, 2, 1), rules);
        assert_eq!([one.budgets().tokens, two.budgets().tokens], [3, 3], "the key leaves less than the sessions");
        assert_eq!(one.session.view(0, rules).budgets.tokens, 3);
    }

    /// Many threads, one session: never more is promised than there is, and what is spent is the sum of what was used.
    #[test]
    fn budgets_are_exact_under_contention() {
        let service = Arc::new(service(|c| {
            c.session_tokens_budget = 20_000;
            c.key_tokens_budget = 30_000;
        }));
        let threads: Vec<_> = (0..4u64)
            .map(|thread| {
                let (service, session) = (service.clone(), account(&service, 1 + u128::from(thread % 2)));
                std::thread::spawn(move || {
                    let mut used = 0;
                    for n in 0..3000 {
                        let Ok(reserved) = session.reserve(1 + n % 13, 0, &service.rules) else { continue };
                        let tokens = reserved - (n + thread) % reserved.clamp(1, 3);
                        session.settle(bill(reserved, tokens, 1), &service.rules);
                        used += tokens;
                    }
                    used
                })
            })
            .collect();
        let used: u64 = threads.into_iter().map(|t| t.join().unwrap()).sum();
        let (one, two) = (account(&service, 1), account(&service, 2));
        assert_eq!(one.key.left().tokens, 30_000 - used);
        let in_sessions: u64 = [&one, &two].map(|a| 20_000 - a.session.purse.left().tokens).iter().sum();
        assert_eq!(in_sessions, used);
        assert_eq!(
            one.key.tokens_reserved() + one.session.purse.tokens_reserved() + two.session.purse.tokens_reserved(),
            0
        );
    }

    #[test]
    fn at_the_bound_the_session_unused_for_longest_goes() {
        let service = service(|c| c.sessions_max = 2);
        service.get_or_create(Uuid(1), 0);
        service.get_or_create(Uuid(2), 1);
        service.get_or_create(Uuid(1), 2);
        assert_eq!(service.get_or_create(Uuid(3), 3).1, Some(Uuid(2)));
        assert_eq!(service.len(), 2);
    }
}
