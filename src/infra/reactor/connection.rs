//! One connection: requests in, answers out, in order, until one side has had enough.

use std::future::{Future, poll_fn};
use std::os::fd::AsRawFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::{Duration, Instant};

use monoio::io::Splitable;
use monoio::net::TcpStream;

use super::buffer::Inbound;
use super::guard::{Panicked, caught};
use super::intake::{BodyError, Extent};
use super::listener::Shared;
use super::outbound::{Closed, Outbound};
use super::socket::reset;
use super::stats::Counted;
use super::wake::Wake;
use super::{BodyLimit, Reply, Service};
use crate::infra::http::head::HeadIndex;
use crate::infra::http::response::{Framing, Persistence};
use crate::infra::http::{Body, HttpError, RequestHead, Response};
use crate::infra::prefetch::Stretch;

/// A refused request's body of at most this length is read and dropped, so that the connection can go on.
const SKIPPED_BODY_MAX: u64 = 64 * 1024;

/// Bytes and time for which a closing connection is still read, so that the peer gets to read the answer:
/// closing with unread bytes would reset the connection under it.
const LINGER_LEN: usize = 1024 * 1024;
const LINGER: Duration = Duration::from_secs(2);

/// Requests answered in a row before others have their turn. Only matters where a read or write may be done
/// at once (epoll): a peer that always has more would never let go.
const TURN: u32 = 32;

/// A body from this length on is written from where it lies and not copied behind its head.
const COPIED_BODY_MAX: usize = 16 * 1024;

pub(super) struct Connection<S> {
    pub(super) inbound: Inbound,
    pub(super) outbound: Outbound,
    pub(super) shared: Rc<Shared<S>>,
    pub(super) wake: Wake,
}

/// What the reactor needs to know of a head while the service has it.
#[derive(Clone, Copy)]
pub(super) struct Outline {
    pub(super) head_len: usize,
    pub(super) body: Body,
    pub(super) expects_continue: bool,
    pub(super) is_head: bool,
    pub(super) without_chunks: bool,
    keep_alive: bool,
}

impl Outline {
    fn of(head: &RequestHead<'_>, head_len: usize) -> Outline {
        Outline {
            head_len,
            body: head.body(),
            expects_continue: head.expects_continue(),
            is_head: head.is_head(),
            without_chunks: head.is_http_1_0(),
            keep_alive: head.keep_alive(),
        }
    }
}

impl<S: Service> Connection<S> {
    pub(super) fn new(stream: TcpStream, shared: Rc<Shared<S>>, wake: Wake) -> Connection<S> {
        let descriptor = stream.as_raw_fd();
        let (reader, writer) = stream.into_split();
        let outbound = Outbound::new(writer, descriptor, shared.config.write_timeout);
        Connection { inbound: Inbound::new(reader), outbound, shared, wake }
    }

    pub(super) async fn run(&mut self) {
        let mut index = HeadIndex::default();
        for turn in 1u32.. {
            match self.exchange(&mut index).await {
                Ok(()) if turn % TURN == 0 => yield_now().await,
                Ok(()) => {}
                Err(Closed::Quietly) => break,
                Err(Closed::AfterAnswer) => {
                    self.linger().await;
                    break;
                }
                Err(Closed::Abort) => {
                    self.outbound.abort();
                    break;
                }
            }
        }
    }

    /// One request and its answer.
    async fn exchange(&mut self, index: &mut HeadIndex) -> Result<(), Closed> {
        let head_len = self.read_head().await?;
        let shared = self.shared.clone();
        shared.config.stats.requests.fetch_add(1, Relaxed);
        let head = match index.parse(&self.inbound.bytes()[..head_len], shared.config.headers_max) {
            Ok(head) => head,
            Err(error) => return self.refuse_and_close(&error).await,
        };
        let outline = Outline::of(&head, head_len);
        let BodyLimit(limit) = match shared.service.on_head(&head) {
            Ok(limit) => limit,
            Err(refusal) => return self.turn_down(refusal, outline).await,
        };
        match self.read_body(outline, limit).await {
            Ok(extent) => self.call(index, extent, outline).await,
            Err(BodyError::Closed(closed)) => Err(closed),
            Err(BodyError::Refused(error)) => {
                let head = index.head(&self.inbound.bytes()[..head_len]);
                let response = shared.service.refuse(&error, Some(&head));
                self.answer(response, Persistence::Closed, outline.is_head).await
            }
        }
    }

    /// Hands the request to the service and writes what it says.
    async fn call(&mut self, index: &mut HeadIndex, extent: Extent, outline: Outline) -> Result<(), Closed> {
        let shared = self.shared.clone();
        let (head_bytes, rest) = self.inbound.bytes().split_at_mut(outline.head_len);
        let head = index.head(head_bytes);
        let reply = {
            let serving = pin!(shared.service.call(&head, &mut rest[..extent.body_len], &self.wake));
            caught(serving).await
        };
        let Ok(reply) = reply else {
            let response = self.after_panic(index, outline.head_len);
            return self.answer(response, Persistence::Closed, outline.is_head).await;
        };
        self.inbound.consume(extent.total_len);
        let persistence = self.persistence(outline);
        match reply {
            Reply::Full(response) => self.answer(response, persistence, outline.is_head).await,
            Reply::Stream { head, reader } if outline.is_head => {
                drop(reader);
                let framing = if outline.without_chunks { Framing::Close } else { Framing::Chunked };
                self.write_head(&head, persistence, framing);
                self.flush_answer(persistence).await
            }
            Reply::Stream { head, reader } => {
                let _open = Counted::new(&shared.config.stats.streams_open);
                self.stream(head, reader, outline).await
            }
            Reply::View { head, readers, view } => {
                let _open = Counted::new(&shared.config.stats.streams_open);
                self.view(head, readers, view, outline).await
            }
        }
    }

    fn after_panic(&mut self, index: &HeadIndex, head_len: usize) -> Response {
        self.shared.config.stats.panics.fetch_add(1, Relaxed);
        let error = HttpError::new(500, "the server failed at this request: this is its bug, see its log");
        let head = index.head(&self.inbound.bytes()[..head_len]);
        self.shared.service.refuse(&error, Some(&head))
    }

    /// Answers a request that the service refuses by its head alone, before its body is looked at.
    async fn turn_down(&mut self, refusal: Response, outline: Outline) -> Result<(), Closed> {
        let arrived = self.inbound.len() > outline.head_len;
        let body_len = match outline.body {
            Body::None => 0,
            // Who waits for a 100 gets the answer in its place, and may send the body or not: nobody can tell.
            _ if outline.expects_continue && !arrived => u64::MAX,
            Body::Length(len) => len,
            Body::Chunked => u64::MAX,
        };
        if body_len > SKIPPED_BODY_MAX {
            return self.answer(refusal, Persistence::Closed, outline.is_head).await;
        }
        self.answer(refusal, self.persistence(outline), outline.is_head).await?;
        match self.read_body(outline, body_len as usize).await {
            Ok(extent) => {
                self.inbound.consume(extent.total_len);
                Ok(())
            }
            Err(BodyError::Closed(closed)) => Err(closed),
            Err(BodyError::Refused(_)) => Err(Closed::AfterAnswer),
        }
    }

    /// Whether the connection goes on after this answer.
    pub(super) fn persistence(&self, outline: Outline) -> Persistence {
        match outline.keep_alive && !self.shared.stop.is_ending() {
            false => Persistence::Closed,
            // HTTP/1.0 closes unless both sides have said otherwise.
            true if outline.without_chunks => Persistence::KeptAndSaid,
            true => Persistence::Kept,
        }
    }

    pub(super) fn write_head(&mut self, head: &Response, persistence: Persistence, framing: Framing) {
        let out = &mut self.outbound.bytes;
        self.shared.with_date(|date| head.write_head(out, date, persistence, framing));
    }

    pub(super) async fn answer(
        &mut self,
        mut response: Response,
        persistence: Persistence,
        head_only: bool,
    ) -> Result<(), Closed> {
        self.write_head(&response, persistence, Framing::Length);
        if head_only || !response.has_body() {
            return self.flush_answer(persistence).await;
        }
        if response.body.len() <= COPIED_BODY_MAX {
            self.outbound.bytes.extend_from_slice(&response.body);
            return self.flush_answer(persistence).await;
        }
        self.outbound.flush(&self.wake).await?;
        self.outbound.write(std::mem::take(&mut response.body), &self.wake, || false).await?;
        self.flush_answer(persistence).await
    }

    async fn flush_answer(&mut self, persistence: Persistence) -> Result<(), Closed> {
        self.outbound.flush(&self.wake).await?;
        if persistence == Persistence::Closed { Err(Closed::AfterAnswer) } else { Ok(()) }
    }

    pub(super) async fn refuse_and_close<T>(&mut self, error: &HttpError) -> Result<T, Closed> {
        let response = self.shared.service.refuse(error, None);
        self.answer(response, Persistence::Closed, false).await?;
        Err(Closed::AfterAnswer)
    }

    /// Says that nothing more will come, and reads what the peer still sends until it closes too.
    async fn linger(&mut self) {
        if self.outbound.finish().await.is_err() {
            return;
        }
        let began = Instant::now();
        let mut total = 0;
        while total < LINGER_LEN && !self.inbound.has_ended() {
            let len = self.inbound.len();
            total += len;
            self.inbound.consume(len);
            let patience = LINGER.saturating_sub(began.elapsed());
            if !matches!(self.wake.within(patience, self.inbound.read()).await, Some(Ok(1..))) {
                return;
            }
        }
    }
}

/// Runs a connection to its end, its panic, or the reactor's.
pub(super) async fn drive<S: Service>(stream: TcpStream, shared: Rc<Shared<S>>, wake: Wake) {
    let descriptor = stream.as_raw_fd();
    let mut connection = Connection::new(stream, shared.clone(), wake);
    let ahead = connection.wake.ahead();
    let sockets = Stretch::of(&connection);
    let running = pin!(connection.run());
    ahead.touches(sockets.hull(Stretch::of(&*running)));
    let mut running = pin!(caught(running));
    let outcome = poll_fn(|context| {
        ahead.look();
        if shared.is_over() {
            reset(descriptor);
            return Poll::Ready(Ok(()));
        }
        running.as_mut().poll(context)
    })
    .await;
    if let Err(Panicked) = outcome {
        shared.config.stats.panics.fetch_add(1, Relaxed);
        tracing::error!("a connection was dropped: its task panicked");
    }
}

/// Lets every other task that is ready run first.
async fn yield_now() {
    let mut yielded = false;
    poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
