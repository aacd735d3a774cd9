//! A task's log on its way to one reader.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use super::Service;
use super::connection::{Connection, Outline};
use super::outbound::Closed;
use crate::infra::http::response::{Framing, Persistence};
use crate::infra::http::{Response, sse};
use crate::infra::prefetch::Stretch;
use crate::infra::stream::{Claim, Span, StreamReader};

/// A first span up to this length goes out in one write with the head.
const FIRST_SPAN_MAX: usize = 16 * 1024;

/// Pipelined bytes that are kept while a stream runs; beyond, they stay in the kernel.
const PIPELINED_MAX: usize = 64 * 1024;

/// What ends a wait for more of the log.
pub(super) enum Event {
    Posted,
    PeerGone,
    PeerSent,
    Silence,
}

/// Whether the clock that counts from the last write is running.
#[derive(PartialEq)]
pub(super) enum Silence {
    Begins,
    Lasts,
}

impl<S: Service> Connection<S> {
    /// Writes the head, then the log until its end. Dropping `reader` gives its place back.
    pub(super) async fn stream(
        &mut self,
        head: Response,
        mut reader: StreamReader,
        outline: Outline,
    ) -> Result<(), Closed> {
        let without_chunks = outline.without_chunks;
        let persistence = if without_chunks { Persistence::Closed } else { self.persistence(outline) };
        let framing = if without_chunks { Framing::Close } else { Framing::Chunked };
        self.inbound.release();
        self.write_head(&head, persistence, framing);
        drop(head);
        self.wake.touches_stream(Some(Stretch::of(reader.log())));
        let mut claim = reader.claim();
        claim = match claim {
            Claim::Bytes(span) if span.as_slice().len() <= FIRST_SPAN_MAX => {
                self.write_copy(span, &reader, without_chunks).await?;
                reader.claim()
            }
            claim => {
                self.outbound.flush_copy((), &self.wake, || reader.aborted()).await?;
                claim
            }
        };
        let mut silence = Silence::Begins;
        loop {
            match claim {
                Claim::Done => break,
                Claim::Bytes(span) => {
                    silence = Silence::Begins;
                    match without_chunks {
                        true => self.write_copy(span, &reader, true).await?,
                        false => drop(self.outbound.write(span, &self.wake, || reader.aborted()).await?),
                    }
                }
                Claim::Wait => match self.wait_for_more(&mut silence, self.shared.config.heartbeat).await {
                    Event::Posted | Event::PeerSent => {}
                    Event::PeerGone => return Err(Closed::Quietly),
                    Event::Silence => {
                        silence = Silence::Begins;
                        let comment = if without_chunks { sse::KEEP_ALIVE } else { sse::KEEP_ALIVE_CHUNK };
                        self.outbound.bytes.extend_from_slice(comment);
                        self.outbound.flush_copy((), &self.wake, || reader.aborted()).await?;
                    }
                },
            }
            if reader.aborted() {
                return Err(Closed::Abort);
            }
            claim = reader.claim();
        }
        self.wake.touches_stream(None);
        self.wake.relax();
        match persistence == Persistence::Closed || self.shared.stop.is_ending() {
            true => Err(Closed::AfterAnswer),
            false => Ok(()),
        }
    }

    /// Waits for a post, for the peer, or for the next sign of life to be due.
    pub(super) async fn wait_for_more(&mut self, silence: &mut Silence, patience: Duration) -> Event {
        self.outbound.release();
        let Connection { inbound, wake, .. } = self;
        // A post that brings no bytes, or a peer that sends, does not put the sign of life off.
        if std::mem::replace(silence, Silence::Lasts) == Silence::Begins {
            wake.allow(patience);
        }
        poll_fn(|context| {
            if wake.poll_wait(context).is_ready() {
                return Poll::Ready(Event::Posted);
            }
            if inbound.len() < PIPELINED_MAX {
                match inbound.poll_read(context) {
                    Poll::Ready(Ok(1..)) => return Poll::Ready(Event::PeerSent),
                    Poll::Ready(_) => return Poll::Ready(Event::PeerGone),
                    Poll::Pending => {}
                }
            }
            if wake.is_late() { Poll::Ready(Event::Silence) } else { Poll::Pending }
        })
        .await
    }

    /// Writes what is in the outbound buffer and a copy of the span behind it.
    async fn write_copy(&mut self, span: Span, reader: &StreamReader, without_chunks: bool) -> Result<(), Closed> {
        match without_chunks {
            true => sse::unframe(span.as_slice(), &mut self.outbound.bytes),
            false => self.outbound.bytes.extend_from_slice(span.as_slice()),
        }
        self.outbound.flush_copy(span, &self.wake, || reader.aborted()).await
    }
}
