//! The admission queue and its figures, in this process: depth, counters, and the label values of both policies.

use std::sync::Arc;

use orchestratord::admission::{Place, QueueWithMetrics, Waiting, Waits};
use orchestratord::config::AdmissionPolicy;
use orchestratord::domain::task::Priority;
use orchestratord::metrics::{Labels, Metrics, ReactorFigures};
use orchestratord_bdd::harness::metrics::Page;

struct Named(&'static str, Place);

impl Waits for Named {
    fn place(&self) -> &Place {
        &self.1
    }
}

/// A queue of names with its metrics, as a scrape shows them.
struct Queue {
    queue: Arc<QueueWithMetrics<Named>>,
    waiting: Waiting<Named>,
    metrics: Arc<Metrics>,
}

impl Queue {
    fn new(capacity: usize, policy: AdmissionPolicy) -> Queue {
        let labels = Labels { engine: "cpu", engine_version: "0.0.0", pool_id: "default".to_owned(), replica_id: "0" };
        let metrics = Arc::new(Metrics::new(labels));
        let (queue, waiting) = QueueWithMetrics::new(capacity, policy, metrics.clone());
        Queue { queue, waiting, metrics }
    }

    fn enqueue(&self, priority: Priority, name: &'static str) -> bool {
        self.queue.enqueue(priority, |_| Named(name, Place::default())).is_ok()
    }

    fn take(&mut self) -> Option<&'static str> {
        self.waiting.take(Priority::Interactive).map(|waiter| waiter.entry.0)
    }

    fn evicted(&mut self) -> Vec<&'static str> {
        let mut evicted = Vec::new();
        self.waiting.drain(|waiter| evicted.push(waiter.entry.0));
        evicted
    }

    fn shown(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let page = Page::parse(&self.metrics.render(&ReactorFigures::default()));
        page.sum(name, labels).unwrap_or_else(|| panic!("no series {name} {labels:?}"))
    }

    /// Depth of interactive and of batch tasks.
    fn depths(&self) -> (f64, f64) {
        let depth = |priority: &str| {
            let labels =
                [("engine", "cpu"), ("engine_version", "0.0.0"), ("pool_id", "default"), ("priority", priority)];
            self.shown("queue_depth", &labels)
        };
        (depth("interactive"), depth("batch"))
    }

    /// Backpressure events by policy: reject, drop-lru.
    fn events(&self) -> (f64, f64) {
        let events =
            |policy: &str| self.shown("admission_backpressure_events_total", &[("engine", "cpu"), ("policy", policy)]);
        (events("reject"), events("drop-lru"))
    }

    /// Refusals by reason: ADMISSION_REJECT, QUEUE_FULL_DROP_LRU.
    fn refusals(&self) -> (f64, f64) {
        let refusals = |reason: &str| self.shown("tasks_rejected_total", &[("engine", "cpu"), ("reason", reason)]);
        (refusals("ADMISSION_REJECT"), refusals("QUEUE_FULL_DROP_LRU"))
    }
}

#[test]
fn queue_depth_follows_what_waits() {
    let mut queue = Queue::new(8, AdmissionPolicy::Reject);
    assert_eq!(queue.depths(), (0.0, 0.0));
    assert!(queue.enqueue(Priority::Interactive, "a"));
    assert!(queue.enqueue(Priority::Batch, "b"));
    assert!(queue.enqueue(Priority::Interactive, "c"));
    assert_eq!(queue.depths(), (2.0, 1.0));
    assert_eq!(queue.evicted(), Vec::<&str>::new());
    assert_eq!(queue.depths(), (2.0, 1.0), "crossing over to the engine changes nothing");
    assert_eq!(queue.take(), Some("a"));
    assert_eq!(queue.depths(), (1.0, 1.0));
    queue.waiting.remove_if(|task| task.0 == "b", |_| {});
    assert_eq!(queue.depths(), (1.0, 0.0));
    assert_eq!(queue.take(), Some("c"));
    assert_eq!(queue.depths(), (0.0, 0.0));
    assert_eq!((queue.events(), queue.refusals()), ((0.0, 0.0), (0.0, 0.0)));
}

#[test]
fn accepted_tasks_are_counted_by_priority_and_refused_ones_are_not() {
    let queue = Queue::new(2, AdmissionPolicy::Reject);
    assert!(queue.enqueue(Priority::Interactive, "a"));
    assert!(queue.enqueue(Priority::Batch, "b"));
    assert!(!queue.enqueue(Priority::Batch, "c"));
    assert_eq!(queue.shown("tasks_enqueued_total", &[("priority", "interactive")]), 1.0);
    assert_eq!(queue.shown("tasks_enqueued_total", &[("priority", "batch")]), 1.0);
}

#[test]
fn policy_reject_counts_its_own_labels() {
    let mut queue = Queue::new(1, AdmissionPolicy::Reject);
    assert!(queue.enqueue(Priority::Interactive, "first"));
    assert!(!queue.enqueue(Priority::Interactive, "second"));
    assert_eq!((queue.events(), queue.refusals()), ((1.0, 0.0), (1.0, 0.0)));
    assert_eq!(queue.depths(), (1.0, 0.0));
    assert_eq!(queue.evicted(), Vec::<&str>::new());
    assert_eq!(queue.take(), Some("first"));
    assert!(queue.enqueue(Priority::Interactive, "third"), "there is room again");
}

#[test]
fn policy_drop_lru_counts_its_own_labels_while_the_second_task_is_let_in() {
    let mut queue = Queue::new(1, AdmissionPolicy::DropLru);
    assert!(queue.enqueue(Priority::Interactive, "first"));
    assert!(queue.enqueue(Priority::Interactive, "second"));
    assert_eq!((queue.events(), queue.refusals()), ((0.0, 1.0), (0.0, 1.0)));
    assert_eq!(queue.depths(), (1.0, 0.0), "one came, one went");
    assert_eq!(queue.evicted(), ["first"]);
    assert_eq!(queue.take(), Some("second"));
    assert_eq!(queue.take(), None);
}

#[test]
fn policy_drop_lru_refuses_when_only_higher_tasks_wait() {
    let mut queue = Queue::new(1, AdmissionPolicy::DropLru);
    assert!(queue.enqueue(Priority::Interactive, "first"));
    assert!(!queue.enqueue(Priority::Batch, "second"));
    assert_eq!((queue.events(), queue.refusals()), ((0.0, 1.0), (0.0, 1.0)));
    assert_eq!(queue.evicted(), Vec::<&str>::new());
    assert_eq!(queue.take(), Some("first"));
}
