//! One reactor: its runtime, its listeners, and the connections it has accepted.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::net::TcpListener as StdListener;
use std::os::fd::AsRawFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use monoio::io::{AsyncReadRent, AsyncWriteRent, AsyncWriteRentExt};
use monoio::net::{TcpListener, TcpStream, UnixStream};

use super::Service;
use super::connection::drive;
use super::driver::{Driver, block_on};
use super::guard::caught;
use super::inbox::Inbox;
use super::socket;
use super::stats::{Counted, ReactorStats};
use super::stop::Stop;
use super::wake::{TICK, Wake, WakeTable};
use crate::infra::http::HttpError;
use crate::infra::http::response::{Framing, Persistence};

/// Pause after an accept that failed for want of descriptors or memory: trying at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// Connections that are woken before the reactor looks at its sockets again: as many as one submission has room for. A turn
/// more is a wake-up of the peers more: with 512, a token of a thousand streams costs 5 % more.
const POSTS_PER_TURN: usize = 1024;

/// The same when more have a token than one turn takes. Each costs some microseconds, most of them for memory that nobody
/// touched since its last token, and who asks for anything meanwhile should not wait for a thousand of them: a turn is 1 to
/// 2 ms. Among so many, the further wake-ups are not to be seen in what a token costs.
const POSTS_PER_TURN_OF_A_CROWD: usize = 128;

/// Connections that are one too many and are told so at the same time; more are dropped without a word.
const TURNED_AWAY_MAX: u32 = 64;
const TURN_AWAY: Duration = Duration::from_secs(1);

/// Ticks in a second: the window of the loop lag, and the age of a `Date`.
const TICKS_PER_SECOND: usize = (1000 / TICK.as_millis()) as usize;

/// Time for the kernel to let go of the buffers of what was given up, before their memory is.
const SETTLE: Duration = Duration::from_millis(5);

/// The settings of one reactor.
#[derive(Clone)]
pub struct ReactorConfig {
    pub index: u16,
    pub driver: Driver,
    pub stats: Arc<ReactorStats>,
    pub connections_max: usize,
    pub head_len_max: usize,
    pub headers_max: usize,
    pub head_timeout: Duration,
    pub body_timeout: Duration,
    pub idle_timeout: Duration,
    pub write_timeout: Duration,
    pub heartbeat: Duration,
}

/// What the connections of one listener share.
pub(super) struct Shared<S> {
    pub(super) config: ReactorConfig,
    pub(super) service: S,
    pub(super) stop: Arc<Stop>,
    common: Rc<Common>,
}

/// What the connections of all listeners of one reactor share.
struct Common {
    /// Connections have had their time: they are dropped at once.
    over: Cell<bool>,
    date: RefCell<String>,
    turned_away: Cell<u32>,
}

impl<S> Shared<S> {
    /// Calls `with` with the time for `Date` headers; formatted once a second.
    pub(super) fn with_date<R>(&self, with: impl FnOnce(&str) -> R) -> R {
        with(&self.common.date.borrow())
    }

    pub(super) fn is_over(&self) -> bool {
        self.common.over.get()
    }
}

fn date_now() -> String {
    httpdate::fmt_http_date(SystemTime::now())
}

/// Runs a reactor on the calling thread until it is stopped. `make_service` gives each listener its own service,
/// by its place in `listeners`.
///
/// # Errors
///
/// When its runtime cannot be set up.
pub fn run<S: Service>(
    config: ReactorConfig,
    listeners: Vec<StdListener>,
    inbox: Arc<Inbox>,
    stop: Arc<Stop>,
    make_service: impl Fn(usize) -> S,
) -> io::Result<()> {
    assert_eq!(inbox.slot_count(), config.connections_max + 1, "an inbox belongs to its reactor");
    let driver = config.driver.clone();
    block_on(&driver, async move {
        let (table, own) = WakeTable::new(config.index, inbox.slot_count());
        let common =
            Rc::new(Common { over: Cell::new(false), date: RefCell::new(date_now()), turned_away: Cell::new(0) });
        monoio::spawn(deliver_posts(inbox.duplicate()?, inbox, table.clone()));
        monoio::spawn(keep_time(table.clone(), config.stats.clone(), common.clone()));
        let mut accepting = Vec::new();
        for (door, listener) in listeners.into_iter().enumerate() {
            socket::prepare(&listener, config.write_timeout)?;
            let (config, common) = (config.clone(), common.clone());
            let shared = Rc::new(Shared { config, service: make_service(door), stop: stop.clone(), common });
            accepting.push(Box::pin(accept_all(listener, shared, &table, &own)));
        }
        // All of them wait on the reactor's own slot: they are one task, with one waker.
        let mut failed = None;
        poll_fn(|context| {
            accepting.retain_mut(|listener| match listener.as_mut().poll(context) {
                Poll::Pending => true,
                Poll::Ready(result) => {
                    failed = failed.take().or(result.err());
                    false
                }
            });
            if accepting.is_empty() || failed.is_some() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        if let Some(error) = failed {
            return Err(error);
        }
        drop(accepting);
        wind_down(&common, &stop, &table, &own).await;
        Ok(())
    })
}

/// How many are woken per turn: few of a crowd, to its last.
#[derive(Default)]
struct Turns {
    /// That the last turn left.
    left: usize,
}

impl Turns {
    fn next(&mut self, waiting: usize) -> usize {
        let crowded = waiting > POSTS_PER_TURN || self.left > 0;
        let most = if crowded { POSTS_PER_TURN_OF_A_CROWD } else { POSTS_PER_TURN };
        self.left = waiting.saturating_sub(most);
        most
    }
}

/// Wakes the connections that other threads have posted to.
async fn deliver_posts(descriptor: std::os::fd::OwnedFd, inbox: Arc<Inbox>, table: Rc<WakeTable>) {
    // monoio waits on sockets; of a socket only the descriptor's readiness is used here.
    let door = UnixStream::from_std(descriptor.into()).expect("a descriptor can be waited on");
    let mut turns = Turns::default();
    loop {
        // In any order with posts: what was posted before this is drained now, what comes later rings again.
        table.begin_turn();
        inbox.drain(|waiting| turns.next(waiting), |slot| table.post(slot));
        if door.readable(false).await.is_err() {
            monoio::time::sleep(ACCEPT_PAUSE).await;
        }
    }
}

/// The reactor's clock: deadlines, the `Date`, and how late the clock itself is, worst of the last second. It rests while
/// nobody is connected: fifty ticks a second were most of what an idle server did.
async fn keep_time(table: Rc<WakeTable>, stats: Arc<ReactorStats>, common: Rc<Common>) {
    let mut lags = [0u64; TICKS_PER_SECOND];
    let mut due = Instant::now() + TICK;
    for turn in (0..TICKS_PER_SECOND).cycle() {
        let mut rested = false;
        poll_fn(|context| {
            let wanted = table.poll_ticks_wanted(context);
            if wanted.is_pending() {
                rested = true;
                stats.loop_lag_us.store(0, Relaxed);
            }
            wanted
        })
        .await;
        if rested {
            // Who has just connected was not kept waiting, and asks for the time of day.
            (lags, due) = ([0; TICKS_PER_SECOND], Instant::now() + TICK);
            *common.date.borrow_mut() = date_now();
        }
        monoio::time::sleep(due.saturating_duration_since(Instant::now())).await;
        let now = Instant::now();
        // Timers are coarse: a millisecond is theirs, not the loop's.
        lags[turn] = (now.saturating_duration_since(due).as_micros() as u64).saturating_sub(1000);
        stats.loop_lag_us.store(lags.iter().copied().max().unwrap_or(0), Relaxed);
        if turn == 0 {
            *common.date.borrow_mut() = date_now();
        }
        table.tick();
        due = (due + TICK).max(now);
    }
}

async fn accept_all<S: Service>(
    listener: StdListener,
    shared: Rc<Shared<S>>,
    table: &Rc<WakeTable>,
    own: &Wake,
) -> io::Result<()> {
    let descriptor = listener.as_raw_fd();
    let listener = TcpListener::from_std(listener)?;
    let mut complained: Option<Instant> = None;
    while shared.stop.is_serving() {
        let mut accepting = pin!(listener.accept());
        // The accept is never dropped half-way: it might just have accepted somebody.
        let accepted = poll_fn(|context| {
            own.register(context);
            if !shared.stop.is_serving() {
                socket::end(descriptor);
            }
            accepting.as_mut().poll(context)
        });
        match accepted.await {
            Ok((stream, _)) => take_in(stream, &shared, table),
            Err(_) if !shared.stop.is_serving() => break,
            // The peer may have gone again.
            Err(error) if error.raw_os_error() == Some(libc::ECONNABORTED) => {}
            // Anything else is want of descriptors or memory. Others wait in the backlog meanwhile.
            Err(error) => {
                if complained.is_none_or(|at| at.elapsed() >= Duration::from_secs(1)) {
                    complained = Some(Instant::now());
                    tracing::warn!(%error, "connections cannot be accepted");
                }
                monoio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    Ok(())
}

fn take_in<S: Service>(stream: TcpStream, shared: &Rc<Shared<S>>, table: &Rc<WakeTable>) {
    shared.config.stats.connections_accepted.fetch_add(1, Relaxed);
    let shared = shared.clone();
    match table.take() {
        Some(wake) => drop(monoio::spawn(async move {
            let stats = shared.config.stats.clone();
            let _open = Counted::new(&stats.connections_open);
            drive(stream, shared, wake).await;
        })),
        None => {
            shared.config.stats.connections_turned_away.fetch_add(1, Relaxed);
            let count = shared.common.turned_away.get();
            if count < TURNED_AWAY_MAX {
                shared.common.turned_away.set(count + 1);
                monoio::spawn(async move {
                    let _ = caught(pin!(turn_away(stream, &shared))).await;
                    shared.common.turned_away.set(shared.common.turned_away.get() - 1);
                });
            }
        }
    }
}

/// Answers a connection that is one too many, and closes it.
async fn turn_away<S: Service>(mut stream: TcpStream, shared: &Shared<S>) {
    let error = HttpError::new(503, "the server has as many connections as it may: retry later");
    let response = shared.service.refuse(&error, None);
    let mut out = Vec::new();
    shared.with_date(|date| response.write_head(&mut out, date, Persistence::Closed, Framing::Length));
    out.extend_from_slice(&response.body);
    let telling = async {
        let _ = stream.write_all(out).await;
        let _ = stream.shutdown().await;
        // Closing with unread bytes would take the answer from the peer.
        let mut scratch = Vec::with_capacity(1024);
        while let (Ok(1..), bytes) = stream.read(scratch).await {
            scratch = bytes;
        }
    };
    let _ = monoio::time::timeout(TURN_AWAY, telling).await;
}

/// Waits until the last connection is closed, or drops those that are left at the deadline.
async fn wind_down(common: &Common, stop: &Stop, table: &WakeTable, own: &Wake) {
    while table.taken_count() > 0 {
        if stop.deadline().is_some_and(|deadline| Instant::now() >= deadline) {
            common.over.set(true);
            table.wake_all();
            break;
        }
        own.wait_until(TICK, || table.taken_count() == 0).await;
    }
    monoio::time::sleep(SETTLE).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_has_short_turns_to_its_last() {
        let mut turns = Turns::default();
        let mut waiting = POSTS_PER_TURN + 1;
        while waiting > 0 {
            assert_eq!(turns.next(waiting), POSTS_PER_TURN_OF_A_CROWD);
            waiting = waiting.saturating_sub(POSTS_PER_TURN_OF_A_CROWD);
        }
        assert_eq!(turns.next(POSTS_PER_TURN), POSTS_PER_TURN);
        assert_eq!(turns.next(0), POSTS_PER_TURN);
    }
}
