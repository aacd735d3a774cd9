//! Sessions: how long they live, how often they were used, and what is left of their budgets.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::config::Config;
use crate::domain::ids::SessionId;

/// Cost is counted in whole millionths, so that sums are exact.
const COST_SCALE: f64 = 1e6;

/// Why a session cannot take a task: which of its budgets is spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BudgetSpent {
    Tokens,
    Time,
    Cost,
}

impl BudgetSpent {
    /// The envelope's `policy_label`.
    pub const fn label(self) -> &'static str {
        match self {
            BudgetSpent::Tokens => "session-tokens-budget",
            BudgetSpent::Time => "session-time-budget",
            BudgetSpent::Cost => "session-cost-budget",
        }
    }
}

/// What a session has left.
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
}

/// The settings that concern sessions.
#[derive(Clone, Copy, Debug)]
pub struct SessionRules {
    pub ttl_ms: u64,
    pub sessions_max: usize,
    budgets: Budgets,
    cost_per_token_millionths: u64,
}

impl SessionRules {
    pub fn from_config(config: &Config) -> SessionRules {
        let millionths = |value: f64| (value * COST_SCALE).round() as u64;
        SessionRules {
            ttl_ms: config.session_ttl_ms,
            sessions_max: config.sessions_max,
            budgets: Budgets {
                tokens: config.session_tokens_budget,
                time_ms: config.session_time_budget_ms,
                cost_millionths: millionths(config.session_cost_budget),
            },
            cost_per_token_millionths: millionths(config.cost_per_token),
        }
    }
}

/// One session. Shared by its tasks, which may outlive it.
pub struct Session {
    pub id: SessionId,
    inner: Mutex<Inner>,
}

struct Inner {
    last_used_ms: u64,
    turns: u64,
    left: Budgets,
    /// Tokens promised to tasks that have not ended: two tasks cannot both spend the last one.
    tokens_reserved: u64,
    live_tasks: u32,
}

/// What a session shows of itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SessionView {
    pub ttl_ms_remaining: u64,
    pub turns: u64,
    pub budgets: Budgets,
}

impl Session {
    fn with<R>(&self, f: impl FnOnce(&mut Inner) -> R) -> R {
        f(&mut self.inner.lock().expect("nothing panics under this lock"))
    }

    pub fn budgets(&self) -> Budgets {
        self.with(|s| s.left)
    }

    pub fn view(&self, now_ms: u64, rules: &SessionRules) -> SessionView {
        self.with(|s| SessionView {
            ttl_ms_remaining: (s.last_used_ms + rules.ttl_ms).saturating_sub(now_ms),
            turns: s.turns,
            budgets: s.left,
        })
    }

    /// Sets tokens aside for a task: at most `wanted`, at least one.
    ///
    /// # Errors
    ///
    /// When a budget has nothing left that is not promised already.
    pub fn reserve(&self, wanted: u64, rules: &SessionRules) -> Result<u64, BudgetSpent> {
        self.with(|s| {
            let free = s.left.tokens.saturating_sub(s.tokens_reserved);
            if free == 0 {
                return Err(BudgetSpent::Tokens);
            }
            if s.left.time_ms == 0 {
                return Err(BudgetSpent::Time);
            }
            let affordable = match s.left.cost_millionths.checked_div(rules.cost_per_token_millionths) {
                Some(tokens) => tokens.saturating_sub(s.tokens_reserved),
                None => u64::MAX,
            };
            if affordable == 0 {
                return Err(BudgetSpent::Cost);
            }
            let granted = wanted.min(free).min(affordable);
            s.tokens_reserved += granted;
            s.live_tasks += 1;
            Ok(granted)
        })
    }

    /// Ends a reservation and spends what was used of it.
    pub fn settle(&self, reserved: u64, tokens: u64, time_ms: u64, now_ms: u64, rules: &SessionRules) {
        self.with(|s| {
            assert!(s.tokens_reserved >= reserved && s.live_tasks > 0, "a reservation was settled twice");
            s.tokens_reserved -= reserved;
            s.live_tasks -= 1;
            s.left = s.left.less(tokens, time_ms, rules);
            s.last_used_ms = now_ms;
        });
    }
}

/// All sessions of this process.
pub struct SessionService {
    pub rules: SessionRules,
    sessions: Mutex<HashMap<SessionId, Arc<Session>>>,
}

impl SessionService {
    pub fn new(rules: SessionRules) -> SessionService {
        SessionService { rules, sessions: Mutex::default() }
    }

    /// The session, made if it is not there. At the bound the one that was not used for longest goes,
    /// sessions with live tasks excepted; its id is returned too, for its KV must go as well.
    pub fn get_or_create(&self, id: SessionId, now_ms: u64) -> (Arc<Session>, Option<SessionId>) {
        let mut sessions = self.lock();
        if let Some(session) = sessions.get(&id) {
            session.with(|s| s.last_used_ms = now_ms);
            return (session.clone(), None);
        }
        let mut evicted = None;
        if sessions.len() >= self.rules.sessions_max {
            let idle = sessions.values().filter(|s| s.with(|s| s.live_tasks) == 0);
            evicted = idle.min_by_key(|s| s.with(|s| s.last_used_ms)).map(|s| s.id);
            if let Some(id) = evicted {
                sessions.remove(&id);
            }
        }
        let inner =
            Inner { last_used_ms: now_ms, turns: 0, left: self.rules.budgets, tokens_reserved: 0, live_tasks: 0 };
        let session = Arc::new(Session { id, inner: Mutex::new(inner) });
        sessions.insert(id, session.clone());
        (session, evicted)
    }

    pub fn get(&self, id: SessionId) -> Option<Arc<Session>> {
        self.lock().get(&id).cloned()
    }

    /// Counts a turn: a task of this session was accepted.
    pub fn note_turn(&self, session: &Session, now_ms: u64) {
        session.with(|s| {
            s.turns += 1;
            s.last_used_ms = now_ms;
        });
    }

    /// Forgets the session. Its running tasks go on.
    pub fn delete(&self, id: SessionId) -> bool {
        self.lock().remove(&id).is_some()
    }

    /// Forgets every session whose time is over and that has no live task; returns their ids.
    pub fn tick(&self, now_ms: u64) -> Vec<SessionId> {
        let mut gone = Vec::new();
        let ttl_ms = self.rules.ttl_ms;
        self.lock().retain(|id, session| {
            let stays = session.with(|s| s.live_tasks > 0 || now_ms < s.last_used_ms + ttl_ms);
            if !stays {
                gone.push(*id);
            }
            stays
        });
        gone
    }

    pub fn len(&self) -> usize {
        self.lock().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<SessionId, Arc<Session>>> {
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
        SessionService::new(SessionRules::from_config(&config))
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

    #[test]
    fn a_session_is_evicted_when_its_time_is_over_but_not_under_a_live_task() {
        let service = service(|c| c.session_ttl_ms = 100);
        let (session, _) = service.get_or_create(Uuid(1), 0);
        service.get_or_create(Uuid(2), 50);
        assert_eq!(service.tick(99), []);
        session.reserve(1, &service.rules).unwrap();
        assert_eq!(service.tick(120), [], "a task is running, and the other was used later");
        session.settle(1, 1, 1, 130, &service.rules);
        assert_eq!(service.tick(150), [Uuid(2)]);
        assert_eq!(service.tick(229), []);
        assert_eq!(service.tick(230), [Uuid(1)]);
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
        let (session, _) = service.get_or_create(Uuid(1), 0);
        assert_eq!(session.reserve(8, &service.rules), Ok(8));
        assert_eq!(session.reserve(8, &service.rules), Ok(2), "only two are left unpromised");
        assert_eq!(session.reserve(1, &service.rules), Err(BudgetSpent::Tokens));
        session.settle(8, 3, 5, 0, &service.rules);
        session.settle(2, 2, 5, 0, &service.rules);
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
        let (session, _) = service.get_or_create(Uuid(1), 0);
        assert_eq!(session.reserve(100, &service.rules), Ok(3));
        session.settle(3, 2, 10, 0, &service.rules);
        assert_eq!(session.budgets().cost(), 0.1);
        assert_eq!(session.reserve(100, &service.rules), Ok(1));
        session.settle(1, 1, 10, 0, &service.rules);
        assert_eq!(session.reserve(1, &service.rules), Err(BudgetSpent::Cost));
        let (other, _) = service.get_or_create(Uuid(2), 0);
        other.reserve(1, &service.rules).unwrap();
        other.settle(1, 0, 50, 0, &service.rules);
        assert_eq!(other.reserve(1, &service.rules), Err(BudgetSpent::Time));
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
